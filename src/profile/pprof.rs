//! The format of `pprof` (`profile.proto`), compressed with `gzip`. Only what is needed of both.

use super::samples::Frames;
use super::stacks::{Live, Names, outward};
use std::collections::{BTreeMap, HashMap};
use std::string::{String, ToString};
use std::vec::Vec;

/// A message of protocol buffers.
#[derive(Default)]
struct Message(Vec<u8>);

/// How a field is written.
const VARINT: u64 = 0;
const BYTES: u64 = 2;

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) -> &mut Message {
        if value != 0 {
            self.varint(field << 3 | VARINT);
            self.varint(value);
        }
        self
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Message {
        self.varint(field << 3 | BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn message(&mut self, field: u64, message: &Message) -> &mut Message {
        self.bytes(field, &message.0)
    }

    fn numbers(&mut self, field: u64, values: impl IntoIterator<Item = u64>) -> &mut Message {
        let mut packed = Message::default();
        values.into_iter().for_each(|value| packed.varint(value));
        self.message(field, &packed)
    }
}

/// Strings by number; number 0 is the empty one.
struct Strings(HashMap<String, u64>, Vec<String>);

impl Strings {
    fn number(&mut self, text: &str) -> u64 {
        if let Some(&number) = self.0.get(text) {
            return number;
        }
        let number = self.1.len() as u64;
        self.0.insert(text.to_string(), number);
        self.1.push(text.to_string());
        number
    }
}

pub(super) fn write(stacks: &BTreeMap<Frames, Live>, names: &Names, interval: usize) -> Vec<u8> {
    let mut strings = Strings(HashMap::new(), Vec::new());
    strings.number("");
    let mut profile = Message::default();
    let mut value_type = |kind: &str, unit: &str| {
        let mut message = Message::default();
        message.number(1, strings.number(kind)).number(2, strings.number(unit));
        message
    };
    let (objects, space) = (value_type("inuse_objects", "count"), value_type("inuse_space", "bytes"));
    let period_type = value_type("space", "bytes");
    profile.message(1, &objects).message(1, &space);

    // Locations by address, functions by name and file, numbered from 1.
    let mut locations: BTreeMap<usize, u64> = BTreeMap::new();
    for (stack, live) in stacks {
        let mut ids = Vec::new();
        for (address, _) in outward(stack, names) {
            let next = locations.len() as u64 + 1;
            ids.push(*locations.entry(address).or_insert(next));
        }
        let mut sample = Message::default();
        sample.numbers(1, ids).numbers(2, [live.objects.round() as u64, live.bytes.round() as u64]);
        profile.message(2, &sample);
    }
    let mut functions: HashMap<(u64, u64), u64> = HashMap::new();
    for (&address, &id) in &locations {
        let mut location = Message::default();
        location.number(1, id).number(3, address as u64);
        for function in &names[&address].functions {
            let (name, file) = (strings.number(&function.name), strings.number(&function.file));
            let next = functions.len() as u64 + 1;
            let id = *functions.entry((name, file)).or_insert(next);
            let mut line = Message::default();
            line.number(1, id).number(2, u64::from(function.line));
            location.message(4, &line);
        }
        profile.message(4, &location);
    }
    for (&(name, file), &id) in &functions {
        // Without the name that the system has for it: where that is the same, pprof takes it for one of C++, and cuts it.
        let mut function = Message::default();
        function.number(1, id).number(2, name).number(4, file);
        profile.message(5, &function);
    }
    let default_type = strings.number("inuse_space");
    for text in &strings.1 {
        profile.bytes(6, text.as_bytes());
    }
    profile.message(11, &period_type).number(12, interval as u64).number(14, default_type);
    gzip(&profile.0)
}

/// How hard is tried to make it small, from 0 to 10.
const EFFORT: u8 = 6;

fn gzip(data: &[u8]) -> Vec<u8> {
    // Deflate; no name, time or extras; from Unix.
    let mut out = std::vec![0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3];
    out.extend(miniz_oxide::deflate::compress_to_vec(data, EFFORT));
    out.extend(crc32(data).to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_gzip() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn messages_are_written_as_protocol_buffers_are() {
        let mut message = Message::default();
        message.number(1, 150).number(2, 0).bytes(2, b"testing").numbers(4, [3, 270, 86942]);
        let expected = b"\x08\x96\x01\x12\x07testing\x22\x06\x03\x8e\x02\x9e\xa7\x05";
        assert_eq!(message.0, expected);
    }
}
