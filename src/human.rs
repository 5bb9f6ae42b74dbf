//! Figures for people to read.

use core::fmt;

/// Bytes in the largest unit that they fill: `1023 B`, `1.0 KiB`, `12.3 GiB`. With a width, to the right of it, such
/// that the points of a column are below each other: ten characters hold any number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes(pub(crate) usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let unit = self.0.checked_ilog2().unwrap_or(0) as usize / 10;
        let (pad, width) = match f.width() {
            Some(width) => (3, width.saturating_sub(4)),
            None => (0, 0),
        };
        if unit == 0 {
            return write!(f, "{:>width$} {:>pad$}", self.0, UNITS[unit]);
        }
        // Rounded down, so that 1023.99 KiB does not become 1024.0.
        let tenths = (self.0 as u128 * 10) >> (10 * unit);
        write!(f, "{:>width$}.{} {}", tenths / 10, tenths % 10, UNITS[unit], width = width.saturating_sub(2))
    }
}

/// A name on one line: of characters that would end it, or do more, their codes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name(pub(crate) &'static str);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.0.chars().try_for_each(|character| match character.is_control() {
            true => write!(f, "{}", character.escape_default()),
            false => f.write_char(character),
        })
    }
}

/// So many of something; the width of the format is that of the number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count(pub(crate) usize, pub(crate) &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{:>width$} {}{plural}", self.0, self.1, width = f.width().unwrap_or(0))
    }
}

/// A part of a whole, as `12.3 %`, six characters wide and up to `100.0 %`, which is seven.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) part: usize,
    pub(crate) whole: usize,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thousandths = self.part as u128 * 1000 / self.whole.max(1) as u128;
        write!(f, "{:>3}.{} %", thousandths / 10, thousandths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{format, string::ToString};

    #[test]
    fn bytes_are_written_in_the_largest_unit_that_they_fill_and_in_ten_characters() {
        for (bytes, text) in [
            (0, "     0   B"),
            (1023, "  1023   B"),
            (1024, "   1.0 KiB"),
            (1024 * 1024 - 1, "1023.9 KiB"),
            #[cfg(target_pointer_width = "64")]
            (12 << 30 | 1 << 29, "  12.5 GiB"),
            #[cfg(target_pointer_width = "64")]
            (usize::MAX, "  15.9 EiB"),
            #[cfg(target_pointer_width = "32")]
            (usize::MAX, "   3.9 GiB"),
        ] {
            assert_eq!(format!("{:10}", Bytes(bytes)), text);
            let narrow = text.split_whitespace().collect::<std::vec::Vec<_>>().join(" ");
            assert_eq!(Bytes(bytes).to_string(), narrow);
        }
    }

    #[test]
    fn shares_are_rounded_down() {
        assert_eq!(Share { part: 2, whole: 3 }.to_string(), " 66.6 %");
        assert_eq!(Share { part: 3, whole: 3 }.to_string(), "100.0 %");
        assert_eq!(Share { part: 0, whole: 0 }.to_string(), "  0.0 %");
    }
}
