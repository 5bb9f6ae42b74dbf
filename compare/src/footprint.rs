//! What stays resident when the work is done: scenes, and how they are measured.
//!
//! A scene is played once in a fresh process. It says what its program holds at the end, and the resident size of
//! the process is read a second later, before and after the allocator is asked to give back what it can.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::measure::status;
use crate::workloads::{SizeTable, random_below};

const MIB: usize = 1 << 20;
const OS_PAGE: usize = 4096;

/// How an allocator is asked to give memory back; nothing for one that has no call for it.
pub type GiveBack = fn();

/// One scene.
pub struct Scene {
    /// What the command line and the report call it.
    pub name: &'static str,
    /// What happens in it.
    pub about: &'static str,
    play: fn() -> Held,
}

/// What a program holds at the end of a scene, in bytes asked for; kept alive while that is looked at.
type Held = (usize, Box<dyn std::any::Any>);

/// What became of one scene, as printed by an allocator's binary. Sizes are bytes, without those of the process
/// before the scene.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Footprint {
    /// Name of the scene.
    pub scene: String,
    /// Elapsed seconds of the scene itself.
    pub seconds: f64,
    /// Page faults of the scene itself.
    pub faults: u64,
    /// The largest resident size.
    pub peak: u64,
    /// What the program still holds.
    pub live: u64,
    /// Resident a second after the scene, during which nothing was allocated.
    pub idle: u64,
    /// Resident after the allocator was asked to give back what it can.
    pub given_back: u64,
}

/// All scenes.
pub const ALL: &[Scene] = &[
    Scene { name: "gone", about: "1 GiB in blocks of 16 B to 1 MiB, all freed in random order", play: gone },
    Scene {
        name: "day",
        about: "a server's day: load rises to 400 MiB with much coming and going, then 90 % is freed at random",
        play: day,
    },
    Scene { name: "vec-1g", about: "one Vec<u8> grows by push to 1 GiB", play: vec_1g },
    Scene { name: "frames", about: "300 zeroed frames of 8 MiB, each page touched once", play: frames },
    Scene { name: "array-1g", about: "an array of 1 GiB is filled", play: array_1g },
    Scene { name: "sparse", about: "a zeroed table of 1 GiB, of which 1 page in 256 is used", play: sparse },
];

/// The scene called `name`.
pub fn find(name: &str) -> Option<&'static Scene> {
    ALL.iter().find(|scene| scene.name == name)
}

/// Plays `scene` and measures it.
pub fn measure(scene: &Scene, give_back: GiveBack) -> Footprint {
    let (before, faults) = (resident(), faults());
    let start = Instant::now();
    let (live, held) = (scene.play)();
    let seconds = start.elapsed().as_secs_f64();
    let faults = self::faults() - faults;
    thread::sleep(Duration::from_secs(1));
    let idle = resident();
    give_back();
    let given_back = resident();
    drop(held);
    Footprint {
        scene: scene.name.to_owned(),
        seconds,
        faults,
        peak: status("VmHWM:").saturating_sub(before),
        live: live as u64,
        idle: idle.saturating_sub(before),
        given_back: given_back.saturating_sub(before),
    }
}

fn resident() -> u64 {
    status("VmRSS:")
}

fn faults() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask for its own usage").minor_page_faults() as u64
}

/// A block of `len` bytes, all written.
fn block(len: usize) -> Vec<u8> {
    vec![len as u8 | 1; len]
}

fn gone() -> Held {
    let mut rng = Rng::with_seed(11);
    let (small, large) = (SizeTable::log_uniform(16, 32 << 10), SizeTable::log_uniform(32 << 10, MIB));
    let mut blocks = Vec::new();
    let mut sum = 0;
    while sum < 1024 * MIB {
        // As many bytes in small blocks as in large ones, about.
        let sizes = if random_below(&mut rng, 64) == 0 { &large } else { &small };
        let new = block(sizes.pick(&mut rng));
        sum += new.len();
        blocks.push(new);
    }
    rng.shuffle(&mut blocks);
    while let Some(last) = blocks.pop() {
        drop(last);
    }
    (0, Box::new(()))
}

fn day() -> Held {
    const PEAK: usize = 400 * MIB;
    let mut rng = Rng::with_seed(12);
    let sizes = SizeTable::log_uniform(16, 64 << 10);
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut live = 0;
    // The morning: for every three that come, two go.
    while live < PEAK {
        for _ in 0..3 {
            let new = block(sizes.pick(&mut rng));
            live += new.len();
            blocks.push(new);
        }
        for _ in 0..2 {
            // What is kept for long is little: most of what goes is young.
            let young = blocks.len().min(4096);
            let at = blocks.len() - 1 - random_below(&mut rng, young);
            if live < PEAK * 9 / 10 || random_below(&mut rng, 8) == 0 {
                live -= blocks.swap_remove(at).len();
            }
        }
    }
    // The afternoon: the load stays, the blocks do not.
    for _ in 0..300_000 {
        let at = random_below(&mut rng, blocks.len());
        let new = block(sizes.pick(&mut rng));
        live = live + new.len() - blocks[at].len();
        blocks[at] = new;
    }
    // The evening.
    rng.shuffle(&mut blocks);
    let kept = blocks.len() / 10;
    blocks.truncate(kept);
    blocks.shrink_to_fit();
    let live = blocks.iter().map(Vec::len).sum::<usize>() + blocks.capacity() * size_of::<Vec<u8>>();
    (live, Box::new(blocks))
}

fn vec_1g() -> Held {
    const BYTES: usize = 1024 * MIB;
    let mut vector: Vec<u8> = Vec::new();
    while vector.len() < BYTES {
        vector.push(black_box(7));
    }
    (vector.len(), Box::new(vector))
}

fn frames() -> Held {
    for _ in 0..300 {
        let mut frame = vec![0u8; 8 * MIB];
        frame.iter_mut().step_by(OS_PAGE).for_each(|byte| *byte += 1);
        black_box(&frame);
    }
    (0, Box::new(()))
}

fn array_1g() -> Held {
    let array = block(1024 * MIB);
    (array.len(), Box::new(array))
}

fn sparse() -> Held {
    let mut table = vec![0u8; 1024 * MIB];
    table.iter_mut().step_by(256 * OS_PAGE).for_each(|byte| *byte = 1);
    (table.len() / 256, Box::new(table))
}
