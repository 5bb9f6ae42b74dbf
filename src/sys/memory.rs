//! Memory of the system: address space, and what stands behind it.
//!
//! Sizes and addresses are multiples of [`page_size`].

use super::{Remapped, errno};
use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};

const PRIVATE_AND_UNCOUNTED: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Bytes in a page of the operating system (an *OS page*).
pub(crate) fn page_size() -> usize {
    static SIZE: AtomicUsize = AtomicUsize::new(0);
    let known = SIZE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: getauxval has no preconditions; every Linux tells a process this.
    let size = unsafe { libc::getauxval(libc::AT_PAGESZ) } as usize;
    SIZE.store(size, Ordering::Relaxed);
    size
}

/// Bytes of memory that all programs may have together, on the machine and swapped out; 0 if the system does not say.
pub(crate) fn machine_memory() -> usize {
    // `sysconf` would do, but in older C libraries it opens a file through buffers that it allocates.
    let mut info = core::mem::MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: sysinfo writes to the struct it is given, and zeros are a valid value of it.
    unsafe {
        if libc::sysinfo(info.as_mut_ptr()) != 0 {
            return 0;
        }
        let info = info.assume_init();
        (info.totalram as usize)
            .saturating_add(info.totalswap as usize)
            .saturating_mul(info.mem_unit as usize)
    }
}

/// Reserves address space that cannot be read or written and costs nothing.
pub(crate) fn reserve(bytes: usize) -> Option<NonNull<u8>> {
    map(bytes, libc::PROT_NONE)
}

/// [`reserve`]s address space for tables that are [committed part by part](commit_part), without huge pages.
pub(crate) fn reserve_tables(bytes: usize) -> Option<NonNull<u8>> {
    let start = reserve(bytes)?;
    // SAFETY: the mapping is new.
    unsafe {
        advise_huge(start, bytes, false);
        advise_dump(start, bytes, false);
    }
    Some(start)
}

/// Maps memory that reads as zeros and is backed when it is first written, by no more than is written.
pub(crate) fn map_zeroed(bytes: usize) -> Option<NonNull<u8>> {
    let start = map(bytes, libc::PROT_READ | libc::PROT_WRITE)?;
    // SAFETY: the mapping is new.
    unsafe { advise_huge(start, bytes, false) };
    Some(start)
}

/// [`map_zeroed`] for each of several lengths, made whole OS pages; all or none. As most of it is never written, it is left
/// out of core files.
#[cfg(feature = "profile")]
pub(crate) fn map_all_zeroed<const N: usize>(bytes: [usize; N]) -> Option<[NonNull<u8>; N]> {
    let bytes = bytes.map(|bytes| bytes.next_multiple_of(page_size()));
    let mut mapped = [NonNull::dangling(); N];
    for part in 0..N {
        let Some(start) = map_zeroed(bytes[part]) else {
            // SAFETY: these were just mapped, and nobody has them.
            mapped.iter().zip(bytes).take(part).for_each(|(&start, bytes)| unsafe { unmap(start, bytes) });
            return None;
        };
        // SAFETY: the mapping is new.
        unsafe { advise_dump(start, bytes[part], false) };
        mapped[part] = start;
    }
    Some(mapped)
}

fn map(bytes: usize, protection: libc::c_int) -> Option<NonNull<u8>> {
    // SAFETY: a new private mapping at an address of the kernel's choice touches no memory in use.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, PRIVATE_AND_UNCOUNTED, -1, 0) };
    if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) }
}

/// Leaves memory out of core files, or not. A debugger would otherwise write all that is mapped. False if that is refused.
///
/// # Safety
/// The range is mapped and belongs to the caller.
pub(crate) unsafe fn advise_dump(start: NonNull<u8>, bytes: usize, dump: bool) -> bool {
    let advice = if dump { libc::MADV_DODUMP } else { libc::MADV_DONTDUMP };
    // SAFETY: advice about memory of the caller, whose contents stay as they are.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, advice) == 0 }
}

/// [`commit`]s part of a reservation that is left out of core files: that part will be in them. All of it will if the process
/// has no mapping to spare.
///
/// # Safety
/// The reservation was made by [`reserve`] and belongs to the caller, and the part lies within.
pub(crate) unsafe fn commit_part(reserved: NonNull<u8>, bytes: usize, part: Range<usize>) -> bool {
    // SAFETY: the reservation is the caller's.
    unsafe {
        let start = reserved.add(part.start);
        let _ = advise_dump(start, part.len(), true) || advise_dump(reserved, bytes, true);
        commit(start, part.len())
    }
}

/// Makes reserved memory readable and writable; it reads as zeros. False if the system refuses.
///
/// # Safety
/// The range is reserved by [`reserve`] and belongs to the caller.
pub(crate) unsafe fn commit(start: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: the range belongs to the caller, who loses nothing when it becomes accessible.
    unsafe { libc::mprotect(start.as_ptr().cast(), bytes, libc::PROT_READ | libc::PROT_WRITE) == 0 }
}

/// Lets the system back memory with huge pages as it is touched, or not. It may be refused, and no harm done.
///
/// # Safety
/// The range is mapped and belongs to the caller.
pub(crate) unsafe fn advise_huge(start: NonNull<u8>, bytes: usize, huge: bool) {
    let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    // SAFETY: advice about memory of the caller, whose contents stay as they are.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, advice) };
}

/// Gives the memory of committed addresses back to the system: they read as zeros, and are backed anew when they
/// are written. False if that is refused; then they may hold anything.
///
/// # Safety
/// The range is committed and belongs to the caller, who needs none of its contents.
pub(crate) unsafe fn purge(start: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: the caller gives the contents up.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_DONTNEED) == 0 }
}

/// Memory in more mappings than this is not moved: they stay apart, and one is added with each move.
const MOST_MAPPINGS: usize = 8;

/// Moves the memory of `bytes` committed bytes to another place, without copying it; what was there is lost. The old
/// place stays committed, and reads as zeros.
///
/// Mappings are moved one by one. The system would move several, from Linux 6.17 on, but where it fails there, some of them
/// have been moved, and nobody can tell which.
///
/// # Safety
/// Both ranges are committed and belong to the caller; they do not overlap. What lies behind the old one is mapped.
pub(crate) unsafe fn remap(from: NonNull<u8>, to: NonNull<u8>, bytes: usize) -> Remapped {
    let (mut ends, mut mappings, mut end) = ([0; MOST_MAPPINGS], 0, 0);
    while end < bytes {
        // SAFETY: the part is the caller's.
        let in_one = unsafe { bytes_in_one_mapping(from.add(end), bytes - end) };
        if in_one == 0 || mappings == MOST_MAPPINGS {
            return Remapped::Refused;
        }
        end += in_one;
        ends[mappings] = end;
        mappings += 1;
    }
    let mut start = 0;
    for end in ends[..mappings].iter().copied() {
        // SAFETY: the parts are the caller's.
        let remapped = unsafe { remap_mapping(from.add(start), to.add(start), end - start) };
        if remapped != Remapped::Moved {
            // SAFETY: what has been moved is at the new place, and there is memory, or will be, at the old one.
            unsafe {
                from.copy_from_nonoverlapping(to, start);
                purge(to, start);
            }
            return if start > 0 && remapped == Remapped::Refused { Remapped::MappedAnew } else { remapped };
        }
        start = end;
    }
    Remapped::Moved
}

/// How many of the `bytes` from `start` on, whole OS pages, lie in one mapping; 0 if the system does not say.
///
/// # Safety
/// The range is committed and belongs to the caller, and what lies behind it is mapped.
unsafe fn bytes_in_one_mapping(start: NonNull<u8>, bytes: usize) -> usize {
    let is_one = |bytes: usize| {
        // More room in the same place is not to be had. For a range in several mappings that is not what the system says.
        // SAFETY: nothing is moved, and what lies behind is mapped.
        let grown = unsafe { libc::mremap(start.as_ptr().cast(), bytes, bytes + page_size(), 0) };
        grown == libc::MAP_FAILED && errno() == libc::ENOMEM
    };
    if is_one(bytes) {
        return bytes;
    }
    let (mut one, mut several) = (0, bytes / page_size());
    while one + 1 < several {
        let middle = one.midpoint(several);
        if is_one(middle * page_size()) { one = middle } else { several = middle }
    }
    one * page_size()
}

/// [`remap`] of one mapping, or part of one, which is moved as a whole or not at all.
///
/// # Safety
/// As there.
unsafe fn remap_mapping(from: NonNull<u8>, to: NonNull<u8>, bytes: usize) -> Remapped {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: both ranges are the caller's, who expects the contents in the new one.
    let moved = unsafe { libc::mremap(from.as_ptr().cast(), bytes, bytes, flags, to.as_ptr()) };
    if moved == to.as_ptr().cast() {
        return Remapped::Moved;
    }
    // What the system does not know, or does not let a process do, it refuses before it does anything.
    if matches!(errno(), libc::EINVAL | libc::ENOSYS | libc::EPERM) {
        return Remapped::Refused;
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = PRIVATE_AND_UNCOUNTED | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: the range is mapped only if nothing else is mapped there.
    unsafe {
        let mapped = libc::mmap(to.as_ptr().cast(), bytes, protection, flags, -1, 0);
        if mapped == to.as_ptr().cast() {
            return Remapped::MappedAnew;
        }
        if mapped != libc::MAP_FAILED {
            // A system that does not know the flag has chosen a place.
            libc::munmap(mapped, bytes);
        }
    }
    Remapped::Lost
}

/// Replaces what is at committed addresses by memory that was never used. False if the system refuses: then there
/// may be nothing.
///
/// # Safety
/// The range is within an arena and belongs to the caller, who needs none of its contents.
pub(crate) unsafe fn map_over(start: NonNull<u8>, bytes: usize) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = PRIVATE_AND_UNCOUNTED | libc::MAP_FIXED;
    // SAFETY: the caller gives up what is there.
    unsafe { libc::mmap(start.as_ptr().cast(), bytes, protection, flags, -1, 0) != libc::MAP_FAILED }
}

/// Gives a mapping, or part of one, back.
///
/// # Safety
/// The range belongs to the caller and is not used any more.
pub(crate) unsafe fn unmap(start: NonNull<u8>, bytes: usize) {
    if bytes > 0 {
        // SAFETY: the caller gives the range up. A refusal leaves it mapped, which harms nobody.
        unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
    }
}

/// Makes committed memory inaccessible until [`commit`] is called for it. It may be refused.
///
/// # Safety
/// The range is committed and belongs to the caller, who does not use it meanwhile.
pub(crate) unsafe fn protect(start: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: nobody uses the range.
    unsafe { libc::mprotect(start.as_ptr().cast(), bytes, libc::PROT_NONE) == 0 }
}

/// Has the system keep a note that pages cannot be touched, until [`unguard`] is called for them; their contents are lost.
/// It costs no mapping. False if the system cannot, as before Linux 6.13, or does not; then some may have the note all the same.
///
/// # Safety
/// The range is committed and belongs to the caller, who does not use it meanwhile.
#[cfg(feature = "hardened")]
pub(crate) unsafe fn guard(start: NonNull<u8>, bytes: usize) -> bool {
    const MADV_GUARD_INSTALL: libc::c_int = 102;
    // SAFETY: nobody uses the range.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, MADV_GUARD_INSTALL) == 0 }
}

/// Undoes [`guard`]. False if the system refuses.
///
/// # Safety
/// The range belongs to the caller.
#[cfg(feature = "hardened")]
pub(crate) unsafe fn unguard(start: NonNull<u8>, bytes: usize) -> bool {
    const MADV_GUARD_REMOVE: libc::c_int = 103;
    // SAFETY: the range becomes as it was.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, MADV_GUARD_REMOVE) == 0 }
}

#[cfg(all(test, feature = "profile"))]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn of_several_mappings_none_is_left_if_one_is_refused() {
        let mapped = || -> usize {
            let pages = fs::read_to_string("/proc/self/statm").expect("Linux tells");
            pages.split(' ').next().expect("a number").parse().expect("a number")
        };
        let before = mapped();
        for _ in 0..1_000 {
            assert!(map_all_zeroed([1 << 20, 1 << 62]).is_none());
        }
        assert!((mapped() - before) * page_size() < 256 << 20);
        let [first, second] = map_all_zeroed([1, 100_000]).expect("so much is to be had");
        // SAFETY: both were just mapped, and are written to and given back here alone.
        unsafe {
            first.write(1);
            second.add(99_999).write(1);
            unmap(first, page_size());
            unmap(second, 100_000usize.next_multiple_of(page_size()));
        }
    }
}
