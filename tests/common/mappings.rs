//! How the memory of this process is mapped.

use std::fs;
use std::ops::Range;

/// Mappings of this process.
#[allow(dead_code)] // some tests look at what is in them only
pub fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").expect("Linux shows them").lines().count()
}

/// The addresses of each mapping, and what the system was advised for it: `nh` for no huge pages, `hg` for some.
fn advised() -> Vec<(Range<usize>, &'static str)> {
    let maps = fs::read_to_string("/proc/self/smaps").expect("Linux shows them");
    let hexadecimal = |digits| usize::from_str_radix(digits, 16).ok();
    let (mut range, mut advised) = (0..0, Vec::new());
    for line in maps.lines() {
        let mut words = line.split(' ');
        let first = words.next().unwrap_or_default();
        if first == "VmFlags:" {
            let advice = words.find_map(|flag| ["nh", "hg"].into_iter().find(|&advice| flag == advice));
            advised.push((range.clone(), advice.unwrap_or("none")));
        } else if let Some((start, end)) = first.split_once('-')
            && let (Some(start), Some(end)) = (hexadecimal(start), hexadecimal(end))
        {
            range = start..end;
        }
    }
    advised
}

/// Bytes of mappings that the system may back with huge pages.
#[allow(dead_code)] // some tests ask for the number of mappings only
pub fn bytes_with_huge_pages() -> usize {
    advised().into_iter().filter(|(_, advice)| *advice == "hg").map(|(range, _)| range.len()).sum()
}

/// What the system was advised for the mapping that `address` is in: `nh` for no huge pages, `hg` for some.
#[allow(dead_code)] // as above
pub fn advice_for(address: usize) -> &'static str {
    advised()
        .into_iter()
        .find(|(range, _)| range.contains(&address))
        .map_or("no mapping", |(_, advice)| advice)
}
