//! Maps of owned strings.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::hash::{BuildHasherDefault, DefaultHasher};

use fastrand::Rng;

use super::{Job, Tally, random_below};

/// The standard hasher with a fixed key: the order of a map would differ from run to run.
type FixedState = BuildHasherDefault<DefaultHasher>;

/// Builds a hash map of strings, looks entries up, removes half, adds others, drops it.
pub fn hash_map() -> Tally {
    const ENTRIES: u64 = 250_000;
    let mut tally = Tally::default();
    let mut map: HashMap<String, String, FixedState> = HashMap::default();
    for number in 0..ENTRIES {
        map.insert(format!("key/{number}"), format!("the value of {number} is {}", number * number));
    }
    for number in (0..ENTRIES).step_by(2) {
        let value = map.remove(&format!("key/{number}"));
        tally.add(value.map_or(0, |value| value.len() as u64));
    }
    for number in ENTRIES..ENTRIES + ENTRIES / 2 {
        map.insert(format!("another key/{number}"), number.to_string());
    }
    for number in 0..ENTRIES {
        let found = map.get(&format!("key/{number}"));
        tally.add(found.map_or(0, |value| value.len() as u64));
    }
    tally
}

/// Builds a tree map from strings to small vectors, looks up, removes a part, drops it.
pub fn btree_map() -> Tally {
    const PUSHES: usize = 500_000;
    const KEYS: usize = 100_000;
    let mut rng = Rng::with_seed(8);
    let mut tally = Tally::default();
    let mut map: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for number in 0..PUSHES {
        let key = format!("{:06x}/entry", random_below(&mut rng, KEYS));
        map.entry(key).or_default().push(number as u32);
    }
    for key in 0..KEYS {
        let found = map.get(&format!("{key:06x}/entry"));
        tally.add(found.map_or(0, |numbers| numbers.len() as u64));
    }
    for key in (0..KEYS).step_by(3) {
        let removed = map.remove(&format!("{key:06x}/entry"));
        tally.add(removed.map_or(0, |numbers| u64::from(numbers[0])));
    }
    let rest = map.values().flatten().map(|&number| u64::from(number));
    tally.add(rest.sum());
    tally
}

/// Counts the words of a text in lower case, and sorts them by how often they occur.
pub fn words() -> Job {
    let text = text();
    Box::new(move || {
        let mut tally = Tally::default();
        let mut counts: HashMap<String, u64, FixedState> = HashMap::default();
        for line in text.lines() {
            // Collected first, as programs do that look at a line as a whole.
            let words: Vec<String> = line.split(' ').map(str::to_lowercase).collect();
            for word in words {
                *counts.entry(word).or_default() += 1;
                tally.add(1);
            }
        }
        let mut sorted: Vec<(String, u64)> = counts.into_iter().collect();
        sorted.sort_by(|left, right| right.1.cmp(&left.1).then_with(|| left.0.cmp(&right.0)));
        for (rank, (word, count)) in (1..).zip(sorted) {
            tally.add(rank * count + word.len() as u64);
        }
        tally
    })
}

/// About 12 MiB of lines of words; a few are frequent and most are rare, as in any language.
fn text() -> String {
    const LENGTH: usize = 12 << 20;
    let mut rng = Rng::with_seed(9);
    let mut text = String::with_capacity(LENGTH + 1024);
    while text.len() < LENGTH {
        let mut separator = "";
        for _ in 0..5 + random_below(&mut rng, 15) {
            let rarity = random_below(&mut rng, 17);
            let word = random_below(&mut rng, 1 << rarity);
            write!(text, "{separator}Word{word:x}").expect("writing to a string succeeds");
            separator = " ";
        }
        text.push('\n');
    }
    text
}
