//! What of the process's memory the system holds in RAM.

use super::file::File;
use core::ptr::{self, NonNull};

/// Bytes of an entry of `/proc/self/pagemap`.
const ENTRY: usize = size_of::<u64>();
/// OS pages that are told of at a time.
pub(crate) const WINDOW: usize = 512;

/// The OS page is in RAM.
const PRESENT: u64 = 1 << 63;
/// It is a page of a file, or shared, or the one huge page of zeros that all processes have in common.
const OF_FILE: u64 = 1 << 61;
/// It is mapped here and nowhere else. The page of zeros that stands for memory only read from is not.
const EXCLUSIVE: u64 = 1 << 56;

/// Tells which OS pages of private memory are resident.
///
/// `/proc/self/pagemap` tells pages of one's own from the page of zeros that stands for memory which was only read
/// from, and which is not part of the resident size. Where that file cannot be read, `mincore` is asked, which does
/// not tell the two apart.
#[derive(Debug)]
pub(crate) struct PageMap {
    file: Option<File>,
    /// Whether pages may be shared with a process that forked from this one, or the one it forked from.
    forked: bool,
}

impl PageMap {
    /// `forked`: whether the process has a relation that may share its pages.
    pub(crate) fn open(forked: bool) -> PageMap {
        PageMap { file: File::open(c"/proc/self/pagemap"), forked }
    }

    /// For each OS page from `start` on, whether it is resident. `start` is a multiple of the OS page.
    pub(crate) fn read(&self, start: usize, pages: &mut [bool; WINDOW]) {
        if !self.read_pagemap(start, pages) {
            read_mincore(start, pages);
        }
    }

    fn read_pagemap(&self, start: usize, pages: &mut [bool; WINDOW]) -> bool {
        let Some(file) = &self.file else { return false };
        let mut bytes = [0; WINDOW * ENTRY];
        let offset = (start / super::page_size() * ENTRY) as u64;
        // Fewer entries than asked for: the range leaves the address space, where nothing is resident.
        let read = file.read_at(offset, &mut bytes);
        for (page, entry) in pages.iter_mut().zip(bytes.chunks_exact(ENTRY)) {
            let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
            let own = entry & EXCLUSIVE != 0 || self.forked;
            *page = entry & PRESENT != 0 && entry & OF_FILE == 0 && own;
        }
        read > 0
    }
}

/// Of the `bytes` from `start` on, whole OS pages and at most [`WINDOW`] of them, those that have memory.
pub(crate) fn bytes_with_memory(start: NonNull<u8>, bytes: usize) -> usize {
    debug_assert!(bytes / super::page_size() <= WINDOW);
    let mut resident = [0u8; WINDOW];
    // SAFETY: mincore reads no memory of the range, and writes a byte for each of its pages.
    unsafe { libc::mincore(start.as_ptr().cast(), bytes, resident.as_mut_ptr()) };
    resident.iter().filter(|&resident| resident & 1 != 0).count() * super::page_size()
}

/// [`PageMap::read`] by `mincore`. Of what is not mapped nothing is resident.
fn read_mincore(start: usize, pages: &mut [bool; WINDOW]) {
    let mut resident = [0u8; WINDOW];
    let bytes = WINDOW * super::page_size();
    // SAFETY: mincore reads no memory of the range, and writes a byte for each of its pages.
    unsafe { libc::mincore(ptr::without_provenance_mut(start), bytes, resident.as_mut_ptr()) };
    for (page, resident) in pages.iter_mut().zip(resident) {
        *page = resident & 1 != 0;
    }
}

/// Bytes of the whole process that are resident, `None` if the system does not say.
pub(crate) fn process_bytes() -> Option<usize> {
    exact_process_bytes().or_else(|| {
        // Counted in pages, and on some systems some tens of pages late.
        let mut text = [0; 128];
        let read = File::open(c"/proc/self/statm")?.read_at(0, &mut text);
        let resident = text[..read].split(|&byte| byte == b' ').nth(1)?;
        Some(number(resident)? * super::page_size())
    })
}

/// The sum over all mappings, which the system counts page by page.
fn exact_process_bytes() -> Option<usize> {
    let mut text = [0; 512];
    let read = File::open(c"/proc/self/smaps_rollup")?.read_at(0, &mut text);
    let mut lines = text[..read].split(|&byte| byte == b'\n');
    let kibibytes = lines.find_map(|line| line.strip_prefix(b"Rss:"))?;
    Some(number(kibibytes)? * 1024)
}

/// The number that `text` holds, between anything else.
fn number(text: &[u8]) -> Option<usize> {
    let digits =
        text.iter().skip_while(|byte| !byte.is_ascii_digit()).take_while(|byte| byte.is_ascii_digit());
    digits.fold(None, |number, digit| Some(number.unwrap_or(0) * 10 + usize::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    fn resident(map: &PageMap, start: NonNull<u8>, pages: usize) -> std::vec::Vec<bool> {
        let mut window = [false; WINDOW];
        map.read(start.addr().get(), &mut window);
        window[..pages].to_vec()
    }

    #[test]
    fn pages_written_are_resident_and_pages_only_read_are_not() {
        let page = sys::page_size();
        let start = sys::map_zeroed(8 * page).unwrap();
        let map = PageMap::open(false);
        assert_eq!(resident(&map, start, 8), [false; 8]);
        // SAFETY: the pages are of the mapping.
        unsafe {
            start.add(page).read_volatile();
            start.add(3 * page).write_volatile(1);
            start.add(4 * page + 5).write_volatile(0);
        }
        let expected = [false, false, false, true, true, false, false, false];
        if map.file.is_some() {
            assert_eq!(resident(&map, start, 8), expected);
        }
        let mut by_mincore = [false; WINDOW];
        let mapped = sys::map_zeroed(WINDOW * page).unwrap();
        // SAFETY: as above.
        unsafe { mapped.add(7 * page).write_volatile(1) };
        read_mincore(mapped.addr().get(), &mut by_mincore);
        assert!(by_mincore[7] && !by_mincore[6]);
        // SAFETY: the mappings are not used any more.
        unsafe {
            sys::unmap(start, 8 * page);
            sys::unmap(mapped, WINDOW * page);
        }
    }

    #[test]
    fn the_resident_size_grows_by_what_is_touched() {
        const MORE: usize = 64 << 20;
        let before = process_bytes().unwrap();
        let start = sys::map_zeroed(MORE).unwrap();
        // SAFETY: the mapping is that long.
        unsafe { start.write_bytes(1, MORE) };
        let after = process_bytes().unwrap();
        assert!(after >= before + MORE * 9 / 10, "{before} {after}");
        // SAFETY: the mapping is not used any more.
        unsafe { sys::unmap(start, MORE) };
    }

    #[test]
    fn numbers_are_found_between_other_text() {
        assert_eq!(number(b"    14568 kB"), Some(14568));
        assert_eq!(number(b"0"), Some(0));
        assert_eq!(number(b" kB"), None);
    }
}
