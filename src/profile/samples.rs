//! Where samples are kept: records side by side, and a table of addresses that leads to them.

use crate::sys;
use crate::units::{PageCount, PageIndex};
use core::ptr::{self, NonNull};
use core::slice;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};
use static_assertions::const_assert;
use std::vec::Vec;

/// Frames of a stack that are kept, from the innermost.
pub(super) const MOST_FRAMES: usize = 48;
/// Samples at a time: as many as 32 GiB have at the usual interval. What is beyond is not sampled.
pub(super) const MOST: usize = 1 << 16;
/// Slots of the table, so that at most half of them are in use.
const SLOTS: usize = MOST * 2;
const_assert!(SLOTS.is_power_of_two());

/// Return addresses from the innermost frame outward; zeros behind the last.
pub(super) type Frames = [usize; MOST_FRAMES];

/// One sampled allocation that is live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(super) address: usize,
    /// Bytes asked for.
    pub(super) size: usize,
    /// Bytes that were counted, of which one was picked: those of the first size, and what it has grown by since.
    pub(super) counted: usize,
    /// Bytes from one that was picked to the next, on average, when this one was.
    pub(super) interval: usize,
    pub(super) frames: Frames,
}

/// A bit for each page of the arena: whether a sampled run begins there. Null before the first sample.
static MARKS: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

fn mark_of(page: PageIndex) -> Option<(&'static AtomicU64, u64)> {
    let marks = NonNull::new(MARKS.load(Relaxed))?;
    // SAFETY: there is a bit for each page of the arena, and the mapping stays.
    let word = unsafe { marks.add(page.get() / 64).as_ref() };
    Some((word, 1 << (page.get() % 64)))
}

/// Whether a sampled run begins at `page`. May be asked at any time.
#[inline]
pub(super) fn is_marked(page: PageIndex) -> bool {
    mark_of(page).is_some_and(|(word, bit)| word.load(Relaxed) & bit != 0)
}

/// The samples. Records in use are the first ones; the last one fills the place of one that goes.
pub(super) struct Samples {
    records: *mut Sample,
    /// By address: 1 + the number of a record, or 0. Addresses that meet are in the slots that follow.
    slots: *mut u32,
    used: usize,
}

// SAFETY: the pointers lead to mappings that belong to the samples alone.
unsafe impl Send for Samples {}

impl Samples {
    pub(super) const fn none() -> Samples {
        Samples { records: ptr::null_mut(), slots: ptr::null_mut(), used: 0 }
    }

    /// Maps what is needed; memory comes with use. False if the system refuses.
    fn prepare(&mut self, pages: PageCount) -> bool {
        if self.records.is_null() {
            let bytes = [MOST * size_of::<Sample>(), SLOTS * 4, pages.get().div_ceil(64) * 8];
            let Some([records, slots, marks]) = sys::map_all_zeroed(bytes) else { return false };
            (self.records, self.slots) = (records.cast().as_ptr(), slots.cast().as_ptr());
            MARKS.store(marks.cast().as_ptr(), Relaxed);
        }
        true
    }

    fn records(&self) -> &[Sample] {
        if self.records.is_null() {
            return &[];
        }
        // SAFETY: so many records of the mapping have been written.
        unsafe { slice::from_raw_parts(self.records, self.used) }
    }

    /// The slots, once there are any.
    fn slots(&mut self) -> &mut [u32] {
        // SAFETY: the mapping is that long, and the samples are borrowed as a whole.
        unsafe { slice::from_raw_parts_mut(self.slots, SLOTS) }
    }

    fn first_slot(address: usize) -> usize {
        ((address >> 3) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize >> 40 & (SLOTS - 1)
    }

    /// The slot that leads to the sample at `address`, or the free one where it would be.
    fn slot_of(&mut self, address: usize) -> usize {
        let mut slot = Self::first_slot(address);
        loop {
            let number = self.slots()[slot] as usize;
            if number == 0 || self.records()[number - 1].address == address {
                return slot;
            }
            slot = (slot + 1) % SLOTS;
        }
    }

    /// Adds a sample, of an arena of `pages`: that of a block, or of the run at `run`. False if there is no room.
    pub(super) fn add(&mut self, pages: PageCount, run: Option<PageIndex>, sample: Sample) -> bool {
        if !self.prepare(pages) || self.are_full() {
            return false;
        }
        let slot = self.slot_of(sample.address);
        // SAFETY: the mapping has room for one record more.
        unsafe { self.records.add(self.used).write(sample) };
        self.used += 1;
        let number = self.used as u32;
        self.slots()[slot] = number;
        if let Some((word, bit)) = run.and_then(mark_of) {
            word.fetch_or(bit, Relaxed);
        }
        true
    }

    /// Whether there are as many as there may be.
    pub(super) fn are_full(&self) -> bool {
        self.used == MOST
    }

    /// Removes the sample at `address`: that of a block, or of the run at `run`.
    pub(super) fn remove(&mut self, run: Option<PageIndex>, address: usize) -> Option<Sample> {
        if self.records.is_null() {
            return None;
        }
        let slot = self.slot_of(address);
        let number = self.slots()[slot] as usize;
        let sample = *self.records().get(number.checked_sub(1)?)?;
        self.empty(slot);
        if number < self.used {
            let last = self.records()[self.used - 1];
            let slot = self.slot_of(last.address);
            self.slots()[slot] = number as u32;
            // SAFETY: the record is one of those in use.
            unsafe { self.records.add(number - 1).write(last) };
        }
        self.used -= 1;
        if let Some((word, bit)) = run.and_then(mark_of) {
            word.fetch_and(!bit, Relaxed);
        }
        Some(sample)
    }

    /// Empties a slot, and moves up those behind it that would not be found any more.
    fn empty(&mut self, slot: usize) {
        let (mut gap, mut next) = (slot, (slot + 1) % SLOTS);
        while let Some(number) = (self.slots()[next] as usize).checked_sub(1) {
            let first = Self::first_slot(self.records()[number].address);
            // How far the slot is from where the search for its address begins, against how far the gap is.
            if next.wrapping_sub(first) % SLOTS >= next.wrapping_sub(gap) % SLOTS {
                let moved = self.slots()[next];
                self.slots()[gap] = moved;
                gap = next;
            }
            next = (next + 1) % SLOTS;
        }
        self.slots()[gap] = 0;
    }

    /// Copies all samples to `to`, if it has room for them: nothing is allocated.
    pub(super) fn copy_to(&self, to: &mut Vec<Sample>) -> bool {
        let fits = to.capacity() >= self.used;
        if fits {
            to.clear();
            to.extend_from_slice(self.records());
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn samples_are_found_by_their_addresses_whatever_came_and_went() {
        let mut samples = Samples::none();
        let mut model: HashMap<usize, usize> = HashMap::new();
        let mut random = 1u64;
        for turn in 0..200_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let page = PageIndex((random >> 33) as u32 % 3000);
            // Runs, and blocks in the middle of pages.
            let run = page.get().is_multiple_of(2).then_some(page);
            let address = (page.get() + 7) << if run.is_some() { 16 } else { 3 };
            match model.remove(&address) {
                Some(size) => {
                    assert_eq!(is_marked(page), run.is_some());
                    assert_eq!(samples.remove(run, address).map(|sample| sample.size), Some(size));
                    assert!(samples.remove(run, address).is_none());
                }
                None => {
                    assert!(!is_marked(page));
                    assert!(samples.add(
                        PageCount(3000),
                        run,
                        Sample { address, size: turn, counted: turn, interval: 1, frames: [0; MOST_FRAMES] }
                    ));
                    model.insert(address, turn);
                }
            }
            assert_eq!(samples.used, model.len());
        }
        let mut copy = Vec::new();
        assert!(!samples.copy_to(&mut copy));
        copy.reserve(samples.used);
        assert!(samples.copy_to(&mut copy));
        assert!(copy.iter().all(|sample| model[&sample.address] == sample.size));
    }
}
