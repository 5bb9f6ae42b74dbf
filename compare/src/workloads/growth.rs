//! Memory that grows in place, or moves.

use std::hint::black_box;

use fastrand::Rng;

use super::{Tally, random_below};

/// Many vectors of small elements, pushed to; the newest thousand stay alive.
pub fn vec_push() -> Tally {
    const VECTORS: usize = 1_800_000;
    const ALIVE: usize = 1000;
    const LONGEST: usize = 100;
    let mut rng = Rng::with_seed(2);
    let mut tally = Tally::default();
    let mut alive: Vec<Vec<u32>> = vec![Vec::new(); ALIVE];
    for index in 0..VECTORS {
        let mut vector = Vec::new();
        for element in 0..1 + random_below(&mut rng, LONGEST) {
            vector.push(element as u32);
        }
        tally.add(vector.iter().map(|&element| u64::from(element)).sum());
        alive[index % ALIVE] = vector;
    }
    tally
}

/// One vector that grows to 256 MiB, by slices and by single bytes, without a hint of its size.
pub fn vec_large() -> Tally {
    const LENGTH: usize = 256 << 20;
    const ROUNDS: usize = 2;
    let slice = [7_u8; 4096];
    let mut tally = Tally::default();
    for _ in 0..ROUNDS {
        let mut vector: Vec<u8> = Vec::new();
        while vector.len() < LENGTH {
            vector.extend_from_slice(black_box(&slice));
            for byte in 0..64 {
                vector.push(byte);
            }
        }
        tally.add(vector.len() as u64 + u64::from(vector[LENGTH / 2]));
    }
    tally
}

/// Strings that grow by phrases up to 4 KiB; the newest hundred stay alive.
pub fn string_push() -> Tally {
    const STRINGS: usize = 300_000;
    const ALIVE: usize = 100;
    const LONGEST: usize = 4000;
    const PHRASES: [&str; 4] = [
        "a page ",
        "of blocks of one size, all of them ",
        "which the allocator hands out one after the other, lowest address first, ",
        "until none is left; ",
    ];
    let mut rng = Rng::with_seed(3);
    let mut tally = Tally::default();
    let mut alive = vec![String::new(); ALIVE];
    for index in 0..STRINGS {
        let length = random_below(&mut rng, LONGEST);
        let mut string = String::new();
        while string.len() < length {
            string.push_str(PHRASES[random_below(&mut rng, PHRASES.len())]);
        }
        tally.add(string.len() as u64);
        alive[index % ALIVE] = string;
    }
    tally
}

/// Buffers that grow in turn, each by a step of its own, so that none can count on the space
/// behind it; at 24 KiB a buffer starts over.
pub fn round_robin() -> Tally {
    const BUFFERS: usize = 1000;
    const STEPS: usize = 1000;
    const LONGEST: usize = 24 << 10;
    let mut rng = Rng::with_seed(4);
    let mut tally = Tally::default();
    let mut buffers: Vec<Vec<u8>> = vec![Vec::new(); BUFFERS];
    for _ in 0..STEPS {
        for buffer in &mut buffers {
            if buffer.len() > LONGEST {
                tally.checksum += u64::from(buffer[0]) + u64::from(buffer[buffer.len() / 2]);
                *buffer = Vec::new();
            }
            // Exact, so that every step reallocates instead of every doubling.
            let step = 16 + random_below(&mut rng, 240);
            buffer.reserve_exact(black_box(step));
            buffer.resize(buffer.len() + step, step as u8);
            tally.add(buffer.len() as u64);
        }
    }
    tally
}
