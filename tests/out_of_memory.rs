//! Memory that runs out: refused without harm, and the heap goes on with what is freed.

use page_memory_allocator::size_class::{SizeClasses, built};
use page_memory_allocator::{HeapOptions, PageAllocator};
use std::alloc::Layout;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::{fs, io};

#[path = "common/child.rs"]
mod child;
use child::{in_child, text};
#[path = "common/pattern.rs"]
mod pattern;
use pattern::{fill, verify};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

/// Gives a child a limit before it runs anything.
fn limited(resource: Resource, bytes: usize) -> impl FnOnce(&mut Command) {
    move |command| {
        let limit = libc::rlimit { rlim_cur: bytes as _, rlim_max: bytes as _ };
        // SAFETY: setrlimit is all that is called between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::setrlimit(resource, &limit) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            })
        };
    }
}

/// Takes address space, for good.
fn map(bytes: usize, protection: libc::c_int) -> Option<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a mapping at an address of the kernel's choice touches nothing that is in use.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    (start != libc::MAP_FAILED).then_some(start)
}

/// A block that knows what is in it.
struct Block {
    number: usize,
    bytes: Vec<u8>,
}

impl Block {
    /// A block of `size` bytes, unless memory has run out.
    fn new(number: usize, size: usize) -> Option<Block> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).ok()?;
        assert_eq!(bytes.capacity(), size);
        bytes.extend([number.to_le_bytes(), size.to_le_bytes()].iter().flatten().take(size));
        Some(Block { number, bytes })
    }

    fn size(&self) -> usize {
        self.bytes.capacity()
    }

    fn is_whole(&self) -> bool {
        let contents = [self.number.to_le_bytes(), self.size().to_le_bytes()];
        self.bytes.iter().eq(contents.iter().flatten().take(self.size()))
    }
}

/// Takes blocks of `size` bytes until none is left.
fn fill_up(blocks: &mut Vec<Block>, size: usize) {
    while blocks.len() < blocks.capacity() {
        match Block::new(blocks.len(), size) {
            Some(block) => blocks.push(block),
            None => return,
        }
    }
    panic!("memory does not run out");
}

/// Frees every other block of `size` bytes, and returns how many.
fn free_every_other(blocks: &mut Vec<Block>, size: usize) -> usize {
    let before = blocks.len();
    let mut keep = false;
    blocks.retain(|block| {
        keep ^= block.size() == size;
        keep || block.size() != size
    });
    before - blocks.len()
}

/// What a child does whose memory is limited to about `limit` bytes. The messages of its panics are plain text:
/// to format one takes memory.
fn exhaust_and_recover(limit: usize) {
    let mut blocks: Vec<Block> = Vec::with_capacity(400_000);
    for round in 0..3 {
        for size in [1 << 20, built::PAGE_SIZE] {
            blocks.extend((0..8).filter_map(|number| Block::new(number, size)));
        }
        for size in [16 << 20, 1 << 20, built::PAGE_SIZE] {
            fill_up(&mut blocks, size);
            assert!(
                Vec::<u8>::new().try_reserve_exact(size).is_err(),
                "memory that had run out is there again"
            );
            assert!(HEAP.check().is_ok(), "the table of a full heap is not sound");
        }
        let served: usize = blocks.iter().map(Block::size).sum();
        assert!(served > limit / 4, "most of the memory is never served");
        assert!(blocks.iter().all(Block::is_whole));

        // What is freed between others serves again, sizes as large and smaller ones.
        for size in [1 << 20, built::PAGE_SIZE, 1_000] {
            let freed = free_every_other(&mut blocks, size);
            assert!(freed > 0, "there are no blocks to free");
            for _ in 0..freed {
                blocks.push(Block::new(blocks.len(), size).expect("a block as large was freed"));
            }
            free_every_other(&mut blocks, size);
            fill_up(&mut blocks, 1_000);
        }
        assert!(blocks.iter().all(Block::is_whole));
        assert!(HEAP.check().is_ok(), "the table is not sound");

        if round % 2 == 0 {
            blocks.clear();
        } else {
            while !blocks.is_empty() {
                blocks.swap_remove(blocks.len() / 2);
            }
        }
        // All that was in pieces is one run again, but for what is in use and in caches. A hardened cache keeps some of what
        // was freed, no matter when and where.
        if cfg!(feature = "hardened") {
            HEAP.purge();
        }
        assert!(Block::new(0, served / 4 * 3).is_some(), "the freed memory is still in pieces");
        HEAP.check().unwrap();
    }
    println!("recovered");
}

#[test]
fn a_process_with_little_address_space_runs_out_and_recovers() {
    const LIMIT: usize = 256 << 20;
    let output = in_child(limited(libc::RLIMIT_AS, LIMIT), || exhaust_and_recover(LIMIT));
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("recovered"));
}

// Guards do not count as memory that may be written. What is committed in their stead is missing when a run is freed whose
// guard is to be written again: that page is then lost, and the run a page too short to serve as large a one.
#[cfg(not(feature = "hardened"))]
#[test]
fn a_process_that_may_write_little_memory_runs_out_and_recovers() {
    // The reservation is large; what is refused is to commit more of it.
    const LIMIT: usize = 256 << 20;
    let output = in_child(limited(libc::RLIMIT_DATA, LIMIT), || {
        exhaust_and_recover(LIMIT);
        // All that was granted was asked for, although the last steps had to be small ones.
        assert!(map(256 << 10, libc::PROT_READ | libc::PROT_WRITE).is_none(), "the system had more to give");
    });
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("recovered"));
}

#[test]
fn what_a_process_may_write_is_for_its_blocks_and_not_for_tables() {
    const LIMIT: usize = 1 << 30;
    let output = in_child(limited(libc::RLIMIT_DATA, LIMIT), || {
        let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(2_000);
        loop {
            let mut block = Vec::new();
            if block.try_reserve_exact(1 << 20).is_err() {
                break;
            }
            blocks.push(block);
        }
        let served = blocks.len() << 20;
        blocks.clear();
        assert!(served > LIMIT / 4 * 3, "{served} bytes are served");
        HEAP.check().unwrap();
    });
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// A figure of the system's memory, in bytes.
fn memory_of_the_system(name: &str) -> usize {
    let figures = fs::read_to_string("/proc/meminfo").expect("Linux tells");
    let line = figures.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("a known name");
    kilobytes.parse::<usize>().expect("a number") << 10
}

#[test]
fn where_the_system_grants_no_more_than_it_has_that_is_served_and_the_rest_is_null() {
    let overcommit = fs::read_to_string("/proc/sys/vm/overcommit_memory").expect("Linux tells");
    if overcommit.trim() != "2" {
        println!("skipped: the system grants more than it has (vm.overcommit_memory={})", overcommit.trim());
        return;
    }
    let output = in_child(
        |_| (),
        || {
            // So much that other processes are left some of it.
            let size = (memory_of_the_system("CommitLimit") - memory_of_the_system("Committed_AS")) / 5;
            for _ in 0..3 {
                let mut blocks = Vec::with_capacity(2_000);
                while let Some(block) = Block::new(blocks.len(), size) {
                    blocks.push(block);
                }
                let served = blocks.len();
                assert!((3..=5).contains(&served), "{served} fifths of it are served");
                for size in 1..=1_000 {
                    blocks.push(Block::new(blocks.len(), size).expect("there is more"));
                }
                assert!(blocks.iter().all(Block::is_whole));
                HEAP.check().unwrap();
                blocks.truncate(served - 1);
                assert!(Block::new(0, size).is_some(), "a block as large was freed");
            }
            println!("recovered");
        },
    );
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("recovered"));
}

#[test]
fn without_any_address_space_left_what_is_committed_still_serves() {
    let output = in_child(limited(libc::RLIMIT_AS, 512 << 20), || {
        let mut ballast: Vec<Vec<u8>> = Vec::with_capacity(64);
        ballast.extend((0..64).map(|_| vec![1; 1 << 20]));
        ballast.clear();
        // Every piece of address space that is left, down to a single OS page.
        for shift in (12..30).rev() {
            while map(1 << shift, libc::PROT_NONE).is_some() {}
        }
        // All classes, so deep that thread caches would like to grow.
        let mut blocks: Vec<Block> = Vec::with_capacity(100_000);
        for &bytes in &built::BLOCK_SIZES[1..] {
            blocks.extend(
                (0..(1 << 18) / bytes).map(|_| Block::new(0, bytes as usize).expect("there is room")),
            );
        }
        assert!(blocks.iter().all(Block::is_whole));
        blocks.clear();
        HEAP.check().unwrap();
        println!("served");
    });
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("served"));
}

#[test]
fn a_heap_filled_with_blocks_of_any_size_is_all_free_once_they_are_freed() {
    for page in [512, 4096, 65536] {
        for classes in [SizeClasses::POWERS_OF_TWO, SizeClasses::BUILD] {
            for size in [1, 8, 24, 200, page / 4, page / 2, page / 2 + 1, page, 3 * page, 32 * page] {
                let pages = 32;
                let heap = HeapOptions::new()
                    .capacity(pages * page)
                    .page_size(page)
                    .classes(classes)
                    .build()
                    .unwrap();
                let layout = Layout::from_size_align(size, 1).unwrap();
                for reversed in [false, true] {
                    let mut blocks = Vec::new();
                    loop {
                        let block = heap.alloc(layout);
                        if block.is_null() {
                            break;
                        }
                        // SAFETY: the block was just allocated with this size.
                        unsafe { fill(block, size, blocks.len()) };
                        blocks.push(block);
                    }
                    let census = heap.check().unwrap();
                    let per_page = (page / size.next_power_of_two().max(8)).max(1);
                    let runs = pages / size.div_ceil(page);
                    assert!(blocks.len() >= if size <= page / 2 { per_page * pages } else { runs }, "{size}");
                    assert!(
                        census.free_pages < size.div_ceil(page),
                        "{size} bytes in pages of {page}: {census:?}"
                    );
                    assert!(heap.alloc_zeroed(layout).is_null());
                    // SAFETY: each block holds what it was filled with, and is freed once with its layout.
                    let free = |(at, &block): (usize, &*mut u8)| unsafe {
                        verify(block, size, at);
                        heap.dealloc(block, layout);
                    };
                    if reversed {
                        blocks.iter().enumerate().rev().for_each(free);
                    } else {
                        blocks.iter().enumerate().for_each(free);
                    }
                    let census = heap.check().unwrap();
                    assert_eq!(
                        (census.free_pages, census.live_blocks),
                        (pages, 0),
                        "{size} in pages of {page}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_full_heap_serves_again_what_one_free_gives_back() {
    let heap = HeapOptions::new()
        .capacity(32768)
        .page_size(4096)
        .classes(SizeClasses::POWERS_OF_TWO)
        .build()
        .unwrap();
    let small = Layout::new::<[u8; 64]>();
    let page = Layout::new::<[u8; 4096]>();
    let runs: Vec<_> = (0..7).map(|_| heap.alloc(page)).collect();
    let blocks: Vec<_> = (0..64).map(|_| heap.alloc(small)).collect();
    assert!(runs.iter().chain(&blocks).all(|block| !block.is_null()));
    for layout in [small, page, Layout::new::<u8>()] {
        assert!(heap.alloc(layout).is_null());
    }
    // SAFETY: every block is live and freed with its layout; those allocated in their stead are never freed.
    unsafe {
        heap.dealloc(blocks[40], small);
        assert!(heap.alloc(page).is_null());
        assert_eq!(heap.alloc(small), blocks[40]);
        assert!(heap.alloc(small).is_null());
        heap.dealloc(runs[3], page);
        // A page that was a run serves another class, and is a run again once that is freed.
        let byte = heap.alloc(Layout::new::<u8>());
        assert!(!byte.is_null() && heap.alloc(page).is_null());
        heap.dealloc(byte, Layout::new::<u8>());
        assert_eq!(heap.alloc(page), runs[3]);
    }
    heap.check().unwrap();
}
