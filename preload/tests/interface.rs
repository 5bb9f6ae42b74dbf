//! What the functions of the shared library do, called in the library as `dlopen` yields it.

#[path = "../../tests/common/child.rs"]
mod child;
mod common;
#[path = "../../tests/common/pattern.rs"]
mod pattern;
#[path = "../../tests/common/resident.rs"]
mod resident;

use child::{in_child, text};
use core::ffi::{CStr, c_int, c_void};
use pattern::{fill, verify};
use resident::resident;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::OnceLock;
use std::{mem, ptr, thread};

type Block = *mut c_void;

const PTRDIFF_MAX: usize = isize::MAX as usize;
/// In every class, at the borders of many, and runs.
const SIZES: [usize; 26] = [
    1, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 100, 127, 128, 129, 1000, 1024, 4095, 4096, 10_000, 32_768,
    32_769, 65_536, 65_537, 1_000_000,
];

macro_rules! interface {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The library's functions.
        struct Interface {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Interface {
            fn find(library: *mut c_void) -> Interface {
                Interface {
                    $($name: {
                        let name = CString::new(stringify!($name)).unwrap();
                        let function = symbol(library, &name);
                        assert!(!function.is_null(), "{name:?} is not exported");
                        // SAFETY: the function of this name has this type.
                        unsafe { mem::transmute::<Block, unsafe extern "C" fn($($argument),*) $(-> $result)?>(function) }
                    },)*
                }
            }
        }
    };
}

interface! {
    malloc: fn(usize) -> Block;
    calloc: fn(usize, usize) -> Block;
    realloc: fn(Block, usize) -> Block;
    reallocarray: fn(Block, usize, usize) -> Block;
    free: fn(Block);
    cfree: fn(Block);
    free_sized: fn(Block, usize);
    free_aligned_sized: fn(Block, usize, usize);
    posix_memalign: fn(*mut Block, usize, usize) -> c_int;
    aligned_alloc: fn(usize, usize) -> Block;
    memalign: fn(usize, usize) -> Block;
    valloc: fn(usize) -> Block;
    pvalloc: fn(usize) -> Block;
    malloc_usable_size: fn(Block) -> usize;
    malloc_trim: fn(usize) -> c_int;
}

/// The library, opened.
fn library() -> *mut c_void {
    static LIBRARY: OnceLock<usize> = OnceLock::new();
    let address = *LIBRARY.get_or_init(|| {
        let path = CString::new(common::library().as_os_str().as_bytes()).unwrap();
        // SAFETY: the library's constructor may be called at any time.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        // SAFETY: dlerror returns a string after a failure.
        assert!(!library.is_null(), "{:?}", unsafe { CStr::from_ptr(libc::dlerror()) });
        library.expose_provenance()
    });
    ptr::with_exposed_provenance_mut(address)
}

fn symbol(library: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: the library is open.
    unsafe { libc::dlsym(library, name.as_ptr()) }
}

fn pma() -> &'static Interface {
    static INTERFACE: OnceLock<Interface> = OnceLock::new();
    INTERFACE.get_or_init(|| Interface::find(library()))
}

/// A value of errno that nothing sets.
const UNTOUCHED: c_int = 4321;

/// What `call` returns, and errno after it.
fn with_errno<T>(call: impl FnOnce() -> T) -> (T, c_int) {
    // Now, rather than at the first call.
    pma();
    // SAFETY: the calling thread's errno.
    unsafe {
        libc::__errno_location().write(UNTOUCHED);
        let result = call();
        (result, libc::__errno_location().read())
    }
}

/// Calls that allocate `size` bytes in every way there is, by name, and the alignment they are to have.
fn ways_to_allocate(size: usize) -> Vec<(&'static str, usize, Block)> {
    let page_size = os_page_size();
    let usual = if size > 8 { 16 } else { 8 };
    // SAFETY: these may be called with anything; the block given to realloc is live.
    unsafe {
        let mut stored = ptr::null_mut();
        assert_eq!((pma().posix_memalign)(&mut stored, 64, size), 0);
        let mut blocks = vec![
            ("malloc", usual, (pma().malloc)(size)),
            ("calloc", usual, (pma().calloc)(size, 1)),
            ("realloc of null", usual, (pma().realloc)(ptr::null_mut(), size)),
            ("realloc", usual, (pma().realloc)((pma().malloc)(3), size)),
            ("reallocarray", usual, (pma().reallocarray)(ptr::null_mut(), 1, size)),
            ("posix_memalign", 64, stored),
            ("valloc", page_size, (pma().valloc)(size)),
            ("pvalloc", page_size, (pma().pvalloc)(size)),
        ];
        for shift in 0..=22 {
            let align = 1 << shift;
            blocks.push(("aligned_alloc", align.max(usual), (pma().aligned_alloc)(align, size)));
            blocks.push(("memalign", align.max(usual), (pma().memalign)(align, size)));
        }
        blocks
    }
}

fn os_page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

#[test]
fn blocks_are_aligned_long_enough_and_apart() {
    for size in SIZES {
        let blocks = ways_to_allocate(size);
        for (number, &(way, align, block)) in blocks.iter().enumerate() {
            assert!(!block.is_null(), "{way} of {size} bytes");
            assert!(block.addr().is_multiple_of(align), "{way} of {size} bytes at {block:p}");
            // SAFETY: the block is live, and as long as it says.
            unsafe {
                assert!((pma().malloc_usable_size)(block) >= size, "{way} of {size} bytes");
                fill(block.cast(), size, number);
            }
        }
        for (number, &(_, _, block)) in blocks.iter().enumerate() {
            // SAFETY: the block is live, and was filled.
            unsafe {
                verify(block.cast(), size, number);
                (pma().free)(block);
            }
        }
    }
}

#[test]
fn every_size_up_to_a_page_is_aligned_to_16_but_for_the_least() {
    for size in 0..=4096 {
        // SAFETY: malloc may be called with anything; the blocks are live.
        unsafe {
            let blocks = [(pma().malloc)(size), (pma().malloc)(size)];
            for block in blocks {
                assert!(
                    block.addr().is_multiple_of(if size > 8 { 16 } else { 8 }),
                    "{size} bytes at {block:p}"
                );
            }
            assert!(blocks[0].addr().abs_diff(blocks[1].addr()) >= size.max(1));
            blocks.into_iter().for_each(|block| (pma().free)(block));
        }
    }
}

#[test]
fn a_size_of_zero_gives_a_block_of_its_own() {
    // SAFETY: these may be called with anything; the blocks are live.
    unsafe {
        let mut stored = [ptr::null_mut(); 2];
        stored.iter_mut().for_each(|stored| assert_eq!((pma().posix_memalign)(stored, 4096, 0), 0));
        let blocks = [
            (pma().malloc)(0),
            (pma().malloc)(0),
            (pma().calloc)(0, 0),
            (pma().calloc)(0, 8),
            (pma().calloc)(8, 0),
            (pma().realloc)(ptr::null_mut(), 0),
            (pma().reallocarray)(ptr::null_mut(), 0, 8),
            (pma().aligned_alloc)(64, 0),
            (pma().memalign)(64, 0),
            (pma().valloc)(0),
            (pma().pvalloc)(0),
            stored[0],
            stored[1],
        ];
        for (number, block) in blocks.iter().enumerate() {
            assert!(!block.is_null(), "block {number}");
            assert!(!blocks[..number].contains(block), "block {number}");
        }
        blocks.into_iter().for_each(|block| (pma().free)(block));
    }
}

#[test]
fn success_and_free_leave_errno_alone() {
    for size in [0].into_iter().chain(SIZES) {
        // Enough blocks for the slow paths.
        let (blocks, errno) = with_errno(|| (0..20).flat_map(|_| ways_to_allocate(size)).collect::<Vec<_>>());
        assert_eq!(errno, UNTOUCHED, "{size} bytes");
        // SAFETY: the blocks are live, and freed once.
        let ((), errno) =
            with_errno(|| blocks.iter().for_each(|&(_, _, block)| unsafe { (pma().free)(block) }));
        assert_eq!(errno, UNTOUCHED, "{size} bytes");
    }
}

/// Bytes that count against the limit of a process's data.
fn data_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn only_the_call_that_finds_no_memory_sets_errno() {
    let output = in_child(
        |_| {},
        || {
            let mut blocks = Vec::with_capacity(10_000);
            pma();
            // Not in the steps in which the heap takes memory: it has to ask for less after a refusal.
            let data = data_bytes() + (10 << 20) + (700 << 10);
            let limit = libc::rlimit { rlim_cur: data, rlim_max: data };
            // SAFETY: the limit can be read; the blocks are live, and freed once.
            unsafe {
                assert_eq!(libc::setrlimit(libc::RLIMIT_DATA, &limit), 0);
                let last = loop {
                    let (block, errno) = with_errno(|| (pma().malloc)(20_000));
                    if block.is_null() {
                        break errno;
                    }
                    assert_eq!(errno, UNTOUCHED, "at block {}", blocks.len());
                    blocks.push(block);
                };
                assert_eq!(last, libc::ENOMEM);
                assert!(blocks.len() > 100, "{} blocks", blocks.len());
                let ((), errno) = with_errno(|| blocks.iter().for_each(|&block| (pma().free)(block)));
                assert_eq!(errno, UNTOUCHED);
                assert!(!(pma().malloc)(20_000).is_null());
            }
        },
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn null_may_be_freed_and_has_no_size() {
    // SAFETY: null is allowed.
    let (size, errno) = with_errno(|| unsafe {
        (pma().free)(ptr::null_mut());
        (pma().cfree)(ptr::null_mut());
        (pma().free_sized)(ptr::null_mut(), 100);
        (pma().free_sized)(ptr::null_mut(), 0);
        (pma().free_aligned_sized)(ptr::null_mut(), 64, 100_000);
        (pma().malloc_usable_size)(ptr::null_mut())
    });
    assert_eq!((size, errno), (0, UNTOUCHED));
}

/// A call that fails, and how.
type Failure = (&'static str, fn() -> Block, c_int);

#[test]
fn what_cannot_be_served_is_null_and_sets_errno() {
    // SAFETY: these may be called with anything.
    #[rustfmt::skip]
    const FAILURES: [Failure; 28] = unsafe { [
        ("malloc of everything", || (pma().malloc)(usize::MAX), libc::ENOMEM),
        ("malloc above PTRDIFF_MAX", || (pma().malloc)(PTRDIFF_MAX + 1), libc::ENOMEM),
        ("malloc of PTRDIFF_MAX", || (pma().malloc)(PTRDIFF_MAX), libc::ENOMEM),
        ("malloc of half the addresses", || (pma().malloc)(PTRDIFF_MAX / 2), libc::ENOMEM),
        ("calloc of everything", || (pma().calloc)(1, usize::MAX), libc::ENOMEM),
        ("calloc that wraps to 0", || (pma().calloc)(1 << 32, 1 << 32), libc::ENOMEM),
        ("calloc that wraps to 16", || (pma().calloc)((1 << 60) + 1, 16), libc::ENOMEM),
        ("calloc above PTRDIFF_MAX", || (pma().calloc)(2, PTRDIFF_MAX / 2 + 1), libc::ENOMEM),
        ("realloc of null", || (pma().realloc)(ptr::null_mut(), PTRDIFF_MAX + 1), libc::ENOMEM),
        ("reallocarray that wraps", || (pma().reallocarray)(ptr::null_mut(), 1 << 32, 1 << 32), libc::ENOMEM),
        ("reallocarray", || (pma().reallocarray)(ptr::null_mut(), 1, usize::MAX), libc::ENOMEM),
        ("aligned_alloc to 0", || (pma().aligned_alloc)(0, 64), libc::EINVAL),
        ("aligned_alloc to 3", || (pma().aligned_alloc)(3, 64), libc::EINVAL),
        ("aligned_alloc to 24", || (pma().aligned_alloc)(24, 48), libc::EINVAL),
        ("aligned_alloc to everything", || (pma().aligned_alloc)(usize::MAX, 48), libc::EINVAL),
        ("aligned_alloc above PTRDIFF_MAX", || (pma().aligned_alloc)(64, PTRDIFF_MAX + 1), libc::ENOMEM),
        ("aligned_alloc that wraps", || (pma().aligned_alloc)(4096, usize::MAX - 100), libc::ENOMEM),
        ("aligned_alloc far apart", || (pma().aligned_alloc)(1 << 62, 8), libc::ENOMEM),
        ("aligned_alloc farther apart", || (pma().aligned_alloc)(1 << 63, 8), libc::ENOMEM),
        ("memalign to too much", || (pma().memalign)((1 << 63) + 1, 8), libc::EINVAL),
        ("memalign above PTRDIFF_MAX", || (pma().memalign)(64, PTRDIFF_MAX + 1), libc::ENOMEM),
        ("valloc of everything", || (pma().valloc)(usize::MAX), libc::ENOMEM),
        ("valloc above PTRDIFF_MAX", || (pma().valloc)(PTRDIFF_MAX + 1), libc::ENOMEM),
        ("pvalloc of everything", || (pma().pvalloc)(usize::MAX), libc::ENOMEM),
        ("pvalloc that wraps", || (pma().pvalloc)(usize::MAX - 4094), libc::ENOMEM),
        ("pvalloc that does not wrap", || (pma().pvalloc)(usize::MAX - 4095), libc::ENOMEM),
        ("pvalloc above PTRDIFF_MAX", || (pma().pvalloc)(PTRDIFF_MAX + 1), libc::ENOMEM),
        ("pvalloc of PTRDIFF_MAX", || (pma().pvalloc)(PTRDIFF_MAX), libc::ENOMEM),
    ] };
    for (what, call, error) in FAILURES {
        assert_eq!(with_errno(call), (ptr::null_mut(), error), "{what}");
    }
}

#[test]
fn memalign_takes_an_alignment_that_is_no_power_of_two_for_the_next_one() {
    for (alignment, next) in [(0, 16), (3, 16), (24, 32), (100, 128), (5000, 8192)] {
        // SAFETY: memalign may be called with anything; the block is live.
        unsafe {
            let (block, errno) = with_errno(|| (pma().memalign)(alignment, 100));
            assert!(!block.is_null() && block.addr().is_multiple_of(next), "{alignment}: {block:p}");
            assert_eq!(errno, UNTOUCHED);
            (pma().free)(block);
        }
    }
}

#[test]
fn posix_memalign_returns_its_errors_and_stores_only_blocks() {
    let marker = ptr::without_provenance_mut(0x5A5A);
    let refused = [0, 1, 2, 3, 4, 6, 7, 9, 12, 24, 40, 100, 4095, usize::MAX];
    let invalid = refused.map(|align| (align, 100, libc::EINVAL));
    let too_large = [
        (8, usize::MAX, libc::ENOMEM),
        (8, PTRDIFF_MAX + 1, libc::ENOMEM),
        (4096, usize::MAX - 4096, libc::ENOMEM),
        (1 << 62, 1, libc::ENOMEM),
        (1 << 63, 1, libc::ENOMEM),
    ];
    for (align, size, error) in invalid.into_iter().chain(too_large) {
        let mut stored = marker;
        // SAFETY: the pointer can be stored.
        let result = with_errno(|| unsafe { (pma().posix_memalign)(&mut stored, align, size) });
        assert_eq!(result, (error, UNTOUCHED), "{size} bytes aligned to {align}");
        assert_eq!(stored, marker, "{size} bytes aligned to {align}");
    }
    for align in (3..=24).map(|shift| 1usize << shift) {
        for size in [0, 1, align - 1, align, align + 1, 3 * align] {
            let mut stored = marker;
            // SAFETY: the pointer can be stored; the block is live and as long as that.
            unsafe {
                let result = with_errno(|| (pma().posix_memalign)(&mut stored, align, size));
                assert_eq!(result, (0, UNTOUCHED), "{size} bytes aligned to {align}");
                assert!(stored.addr().is_multiple_of(align), "{size} bytes aligned to {align}");
                fill(stored.cast(), size.min(100_000), align);
                (pma().free)(stored);
            }
        }
    }
}

#[test]
fn realloc_keeps_the_contents_as_far_as_both_sizes_reach() {
    for from in SIZES {
        for to in SIZES {
            // SAFETY: the blocks are live and as long as they say.
            unsafe {
                let old = (pma().malloc)(from);
                fill(old.cast(), from, to);
                let (new, errno) = with_errno(|| (pma().realloc)(old, to));
                assert!(!new.is_null(), "{from} to {to} bytes");
                assert_eq!(errno, UNTOUCHED, "{from} to {to} bytes");
                assert!(new.addr().is_multiple_of(if to > 8 { 16 } else { 8 }), "{from} to {to}: {new:p}");
                assert!((pma().malloc_usable_size)(new) >= to, "{from} to {to} bytes");
                verify(new.cast(), from.min(to), to);
                fill(new.cast(), to, from);
                (pma().free)(new);
            }
        }
    }
}

#[test]
fn realloc_grows_and_shrinks_a_block_in_small_steps() {
    // SAFETY: the block is live and as long as that at every step.
    unsafe {
        let mut block = ptr::null_mut();
        let mut size = 0;
        let up = (1..400).map(|step| step * step * 7);
        let down = (1..400).rev().map(|step| step * step * 5 + 1);
        for next in up.chain(down) {
            let new = (pma().realloc)(block, next);
            assert!(!new.is_null());
            verify(new.cast(), size.min(next), 1);
            fill(new.cast(), next, 1);
            (block, size) = (new, next);
        }
        (pma().free)(block);
    }
}

#[test]
fn a_block_that_cannot_grow_stays_as_it_is() {
    for size in SIZES {
        // SAFETY: the block is live and as long as that.
        unsafe {
            let block = (pma().malloc)(size);
            fill(block.cast(), size, 5);
            for calls in [
                with_errno(|| (pma().realloc)(block, PTRDIFF_MAX + 1)),
                with_errno(|| (pma().realloc)(block, PTRDIFF_MAX)),
                with_errno(|| (pma().realloc)(block, usize::MAX)),
                with_errno(|| (pma().reallocarray)(block, 1 << 32, 1 << 32)),
                with_errno(|| (pma().reallocarray)(block, usize::MAX, 2)),
                with_errno(|| (pma().reallocarray)(block, 2, PTRDIFF_MAX)),
            ] {
                assert_eq!(calls, (ptr::null_mut(), libc::ENOMEM), "{size} bytes");
            }
            verify(block.cast(), size, 5);
            (pma().free)(block);
        }
    }
}

#[test]
fn realloc_to_zero_frees_the_block() {
    for size in SIZES {
        // SAFETY: the blocks are live, and given up by the call.
        unsafe {
            // The thread's cache hands out what was freed last, so a leak would show.
            let first = (pma().malloc)(size);
            assert_eq!(with_errno(|| (pma().realloc)(first, 0)), (ptr::null_mut(), UNTOUCHED));
            let second = (pma().malloc)(size);
            assert_eq!(with_errno(|| (pma().reallocarray)(second, 0, 8)), (ptr::null_mut(), UNTOUCHED));
            let third = (pma().malloc)(size);
            if size <= 32_768 {
                assert_eq!((first, second), (second, third), "{size} bytes");
            }
            (pma().free)(third);
        }
    }
}

#[test]
fn calloc_gives_zeros_where_something_else_was() {
    for round in 0..3 {
        for size in SIZES {
            // SAFETY: the blocks are live and as long as that.
            unsafe {
                let dirty: Vec<Block> = (0..4).map(|_| (pma().malloc)(size)).collect();
                for &block in &dirty {
                    block.cast::<u8>().write_bytes(0xA5, (pma().malloc_usable_size)(block));
                }
                dirty.iter().for_each(|&block| (pma().free)(block));
                let (block, errno) = with_errno(|| {
                    if size % 4 == 0 { (pma().calloc)(size / 4, 4) } else { (pma().calloc)(1, size) }
                });
                assert!(!block.is_null());
                assert_eq!(errno, UNTOUCHED);
                let bytes = std::slice::from_raw_parts(block.cast::<u8>(), size);
                assert!(bytes.iter().all(|&byte| byte == 0), "{size} bytes, round {round}");
                (pma().free)(block);
            }
        }
    }
}

#[test]
fn calloc_gives_no_memory_to_blocks_that_have_none() {
    const BLOCKS: usize = 1_000;
    let output = in_child(
        |_| {},
        || {
            let mut blocks = Vec::with_capacity(BLOCKS);
            pma();
            let before = resident();
            // SAFETY: the blocks are live and as long as that.
            unsafe {
                blocks.extend((0..BLOCKS).map(|_| (pma().calloc)(10, 1_000)));
                blocks.iter().for_each(|block| block.cast::<u64>().write(1));
                let used = resident() - before;
                // A page of each, not three.
                assert!(used < 2 * BLOCKS * os_page_size(), "{} KiB", used / 1024);
                for block in blocks {
                    assert_eq!(block.cast::<u8>().add(9_999).read(), 0);
                    (pma().free)(block);
                }
            }
        },
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn pvalloc_gives_whole_pages() {
    let page_size = os_page_size();
    for size in [0, 1, page_size - 1, page_size, page_size + 1, 100_000] {
        // SAFETY: pvalloc may be called with anything; the block is live.
        unsafe {
            let block = (pma().pvalloc)(size);
            assert!(block.addr().is_multiple_of(page_size));
            let whole = size.max(1).next_multiple_of(page_size);
            assert!((pma().malloc_usable_size)(block) >= whole);
            fill(block.cast(), whole, size);
            (pma().free)(block);
        }
    }
}

#[test]
fn all_of_the_usable_size_is_usable() {
    for size in SIZES {
        // SAFETY: the blocks are live and as long as they say.
        unsafe {
            let blocks: Vec<Block> = (0..3).map(|_| (pma().malloc)(size)).collect();
            let usable = (pma().malloc_usable_size)(blocks[0]);
            for (number, &block) in blocks.iter().enumerate() {
                assert_eq!((pma().malloc_usable_size)(block), usable);
                fill(block.cast(), usable, number);
            }
            for (number, &block) in blocks.iter().enumerate() {
                verify(block.cast(), usable, number);
                (pma().free)(block);
            }
        }
    }
}

/// A block that was served.
fn served(block: Block) -> Block {
    assert!(!block.is_null());
    block
}

#[test]
fn blocks_may_be_freed_with_their_sizes() {
    for size in [0].into_iter().chain(SIZES) {
        // SAFETY: the blocks are live, and freed once, with their sizes.
        let ((), errno) = with_errno(|| unsafe {
            (pma().free_sized)(served((pma().malloc)(size)), size);
            (pma().free_sized)(served((pma().calloc)(1, size)), size);
            let resized = (pma().realloc)(served((pma().malloc)(100)), size.max(1));
            (pma().free_sized)(served(resized), size.max(1));
            (pma().cfree)(served((pma().malloc)(size)));
            for align in [1, 8, 16, 64, 4096, 1 << 20] {
                (pma().free_aligned_sized)(served((pma().aligned_alloc)(align, size)), align, size);
            }
        });
        assert_eq!(errno, UNTOUCHED);
    }
}

#[test]
fn a_block_that_realloc_made_shorter_may_be_freed_with_its_new_size() {
    for from in SIZES {
        for to in SIZES.into_iter().filter(|&to| to <= from) {
            // SAFETY: the blocks are live, and freed once, with their sizes.
            unsafe { (pma().free_sized)(served((pma().realloc)(served((pma().malloc)(from)), to)), to) };
        }
    }
}

/// Asserts that a test, run in a child, was ended by the library, which said `why`.
fn assert_ends<F: FnOnce()>(why: &str, body: F) {
    let output = in_child(|_| {}, body);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    assert!(text(&output.stderr).contains(why), "{output:?}");
}

#[test]
fn a_free_with_more_than_the_block_has_ends_the_process() {
    // SAFETY: that the size is wrong is found out.
    assert_ends(
        "page_memory_allocator: freed with a layout that the block or run does not have",
        || unsafe {
            (pma().free_sized)((pma().malloc)(100), 1000);
        },
    );
}

#[test]
fn a_free_of_what_another_allocator_gave_ends_the_process() {
    // SAFETY: that the block is from elsewhere is found out.
    assert_ends("page_memory_allocator: freed a pointer that is not from this heap", || unsafe {
        (pma().free)(libc::malloc(100));
    });
}

#[test]
fn a_run_freed_twice_ends_the_process() {
    // SAFETY: that the block is free is found out.
    assert_ends("page_memory_allocator: freed a pointer into a page that is not in use", || unsafe {
        let block = (pma().malloc)(1_000_000);
        (pma().free)(block);
        (pma().free)(block);
    });
}

#[test]
fn blocks_may_be_freed_by_other_threads_and_after_the_end_of_their_own() {
    for _ in 0..50 {
        let blocks: Vec<usize> = thread::spawn(|| {
            (0..2000)
                .map(|number| {
                    let size = SIZES[number % 20];
                    // SAFETY: the block is live and as long as that.
                    unsafe {
                        let block = (pma().malloc)(size);
                        fill(block.cast(), size, number);
                        block.expose_provenance()
                    }
                })
                .collect()
        })
        .join()
        .unwrap();
        let (ours, theirs) = blocks.split_at(1000);
        let check_and_free = |first: usize, blocks: &[usize]| {
            for (number, &address) in (first..).zip(blocks) {
                let block: Block = ptr::with_exposed_provenance_mut(address);
                // SAFETY: the block is live, was filled, and is freed once.
                unsafe {
                    verify(block.cast(), SIZES[number % 20], number);
                    (pma().free)(block);
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| check_and_free(1000, theirs));
            check_and_free(0, ours);
        });
    }
}

#[test]
fn threads_that_come_and_go_leave_no_memory_behind() {
    let use_a_thread = || {
        thread::spawn(|| {
            // SAFETY: the blocks are live and as long as that.
            unsafe {
                let blocks: Vec<Block> = (0..1000).map(|_| (pma().malloc)(512)).collect();
                blocks.iter().for_each(|block| fill(block.cast(), 512, 1));
                blocks.into_iter().for_each(|block| (pma().free)(block));
            }
        })
        .join()
        .unwrap()
    };
    let output = in_child(
        |_| {},
        || {
            (0..20).for_each(|_| use_a_thread());
            let before = resident();
            (0..200).for_each(|_| use_a_thread());
            let more = resident().saturating_sub(before);
            // The blocks of one thread are half a megabyte.
            assert!(more < 2 << 20, "{more} bytes more");
        },
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn malloc_trim_gives_free_memory_back() {
    const BYTES: usize = 64 << 20;
    let output = in_child(
        |_| {},
        || {
            // SAFETY: the block is that long, and freed once.
            let ((before, given_back, after), errno) = with_errno(|| unsafe {
                let block = (pma().malloc)(BYTES);
                fill(block.cast(), BYTES, 1);
                (pma().free)(block);
                (resident(), (pma().malloc_trim)(0), resident())
            });
            assert_eq!((given_back, errno), (1, UNTOUCHED));
            assert!(after + BYTES / 2 < before, "{before} {after}");
            // SAFETY: it may always be called.
            assert_eq!(unsafe { (pma().malloc_trim)(0) }, 0);
        },
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_library_stays_when_it_is_closed() {
    let output = in_child(
        |_| {},
        // SAFETY: the library is open; it says of itself that it stays.
        || unsafe {
            let block = (pma().malloc)(100);
            thread::scope(|scope| {
                scope.spawn(|| {
                    (pma().free)((pma().malloc)(100));
                    assert_eq!(libc::dlclose(library()), 0);
                });
            });
            (pma().free)(block);
            assert!(!(pma().malloc)(1000).is_null());
        },
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_c_librarys_other_names_for_the_functions_are_exported() {
    for name in [
        c"__libc_malloc",
        c"__libc_calloc",
        c"__libc_realloc",
        c"__libc_reallocarray",
        c"__libc_free",
        c"__libc_cfree",
        c"__libc_memalign",
        c"__libc_valloc",
        c"__libc_pvalloc",
        c"__posix_memalign",
    ] {
        let function = symbol(library(), name);
        // SAFETY: zeros are a valid value, which dladdr may change.
        let file = unsafe {
            let mut info: libc::Dl_info = mem::zeroed();
            assert_ne!(libc::dladdr(function, &mut info), 0, "{name:?}");
            CStr::from_ptr(info.dli_fname).to_str().unwrap()
        };
        assert!(file.ends_with("libpma.so"), "{name:?} is in {file}");
    }
}
