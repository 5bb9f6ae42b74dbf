//! How the memory of this process is mapped.

use std::fs;
use std::ops::Range;

/// Mappings of this process.
#[allow(dead_code)] // some tests look at what is in them only
pub fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").expect("Linux shows them").lines().count()
}

/// The addresses of each mapping, and what the system knows of it: `nh` if there are to be no huge pages, `hg` if some,
/// `dd` if it is left out of core files.
fn flagged() -> Vec<(Range<usize>, String)> {
    let maps = fs::read_to_string("/proc/self/smaps").expect("Linux shows them");
    let hexadecimal = |digits| usize::from_str_radix(digits, 16).ok();
    let (mut range, mut flagged) = (0..0, Vec::new());
    for line in maps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            flagged.push((range.clone(), flags.to_owned()));
        } else if let Some((start, end)) = first.split_once('-')
            && let (Some(start), Some(end)) = (hexadecimal(start), hexadecimal(end))
        {
            range = start..end;
        }
    }
    flagged
}

fn has(flags: &str, flag: &str) -> bool {
    flags.split(' ').any(|of_mapping| of_mapping == flag)
}

/// Bytes of mappings that the system may back with huge pages.
#[allow(dead_code)] // some tests ask for the number of mappings only
pub fn bytes_with_huge_pages() -> usize {
    flagged().into_iter().filter(|(_, flags)| has(flags, "hg")).map(|(range, _)| range.len()).sum()
}

/// What the system was advised for the mapping that `address` is in: `nh` for no huge pages, `hg` for some.
#[allow(dead_code)] // as above
pub fn advice_for(address: usize) -> &'static str {
    let mapping = flagged().into_iter().find(|(range, _)| range.contains(&address));
    mapping.map_or("no mapping", |(_, flags)| {
        ["nh", "hg"].into_iter().find(|&advice| has(&flags, advice)).unwrap_or("none")
    })
}

/// Bytes of mappings that are in core files, and whether the one that `address` is in is among them.
#[allow(dead_code)] // as above
pub fn bytes_in_core_files(address: usize) -> (usize, bool) {
    let dumped = || flagged().into_iter().filter(|(_, flags)| !has(flags, "dd")).map(|(range, _)| range);
    (dumped().map(|range| range.len()).sum(), dumped().any(|range| range.contains(&address)))
}
