//! [`PageAllocator`]: the process heap behind thread caches, as a global allocator. Nothing but dispatch.

use crate::fork;
use crate::heap::Heap;
use crate::page_table::{Census, Tag, Violation};
use crate::size_class::{BuildGeometry, GRANULE, Geometry, built::CLASS_OF, last_byte};
use crate::thread_cache::{self, current};
use crate::units::{ClassIndex, ShardIndex};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// The process heap.
static MADE: spin::Once<Heap<BuildGeometry>> = spin::Once::new();
/// The same for everyone to find: null until forks are provided for.
static HEAP: AtomicPtr<Heap<BuildGeometry>> = AtomicPtr::new(ptr::null_mut());

/// The process heap, made at first use; `None` while the system refuses it.
#[inline]
pub(crate) fn heap() -> Option<&'static Heap<BuildGeometry>> {
    // SAFETY: null, or the heap in `MADE`, which stays there.
    match unsafe { HEAP.load(Ordering::Acquire).as_ref() } {
        Some(heap) => Some(heap),
        None => make_heap(),
    }
}

#[cold]
#[inline(never)]
fn make_heap() -> Option<&'static Heap<BuildGeometry>> {
    let heap = MADE.try_call_once(|| Heap::for_process().ok_or(())).ok()?;
    // While a thread makes the key, a child forked by another would wait for it for ever. So it is made before forks
    // are provided for, as the heap is.
    thread_cache::exit_key();
    if fork::register() {
        HEAP.store(ptr::from_ref(heap).cast_mut(), Ordering::Release);
    }
    Some(heap)
}

/// The allocator of a program: a page allocator over one heap for the whole process, with a cache for each thread.
///
/// ```
/// use page_memory_allocator::PageAllocator;
///
/// #[global_allocator]
/// static HEAP: PageAllocator = PageAllocator::new();
///
/// fn main() {
///     let words = vec!["all", "of", "this", "is", "in", "the", "page", "table"];
///     assert_eq!(words.concat().len(), 25);
///     HEAP.dump();
/// }
/// ```
///
/// Values of this type hold nothing: all of them are the same heap.
#[derive(Debug, Default)]
pub struct PageAllocator {
    _private: (),
}

impl PageAllocator {
    /// The process heap's allocator.
    pub const fn new() -> PageAllocator {
        PageAllocator { _private: () }
    }

    /// Verifies every invariant of the page table, with the whole heap locked for as long as that takes. Blocks
    /// in thread caches count as live.
    ///
    /// # Errors
    /// The first invariant that does not hold, and the page it was seen at.
    pub fn check(&self) -> Result<Census, Violation> {
        heap().map_or(Ok(Census::default()), Heap::check)
    }
}

/// The class of a layout by table, on the fast path; `None` for sizes that the table does not have.
#[inline(always)]
fn class_of(layout: Layout) -> Option<ClassIndex> {
    CLASS_OF.get(last_byte(layout) / GRANULE).map(|&class| ClassIndex(class))
}

// SAFETY: blocks come from pages or runs that hold them whole, at addresses that the layout's alignment divides (see
// `size_class`), and belong to their owner until they are freed. Nothing here unwinds.
unsafe impl GlobalAlloc for PageAllocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(class) = class_of(layout) {
            let block = current().pop(class);
            if !block.is_null() {
                return block;
            }
        }
        alloc_slow(layout)
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if !class_of(layout).is_some_and(|class| current().push(class, ptr.addr())) {
            dealloc_slow(ptr, layout);
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if class_of(layout).is_none() {
            return alloc_zeroed_slow(layout);
        }
        // SAFETY: the caller's contract is the same.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block is the caller's to be, and at least as long as the layout.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller vouches for the new size.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if heap().is_some_and(|heap| heap.resize_in_place(ptr.addr(), layout, new_layout)) {
            return ptr;
        }
        // SAFETY: the new block differs from the old one, which is given up; both are as long as their layouts.
        unsafe {
            let new = self.alloc(new_layout);
            if !new.is_null() {
                ptr::copy_nonoverlapping(ptr, new, layout.size().min(new_size));
                self.dealloc(ptr, layout);
            }
            new
        }
    }
}

#[cold]
#[inline(never)]
fn alloc_slow(layout: Layout) -> *mut u8 {
    let Some(heap) = heap() else { return ptr::null_mut() };
    match BuildGeometry.class_of(layout) {
        ClassIndex::NONE => heap.alloc_run(layout, false),
        class => match thread_cache::current_or_made(heap, None) {
            Some(cache) => cache.alloc_slow(heap, class),
            None => heap.alloc_block(Tag::new(ShardIndex(0), class)),
        },
    }
}

#[cold]
#[inline(never)]
fn alloc_zeroed_slow(layout: Layout) -> *mut u8 {
    match heap() {
        Some(heap) if BuildGeometry.class_of(layout) == ClassIndex::NONE => heap.alloc_run(layout, true),
        // A layout of size zero: there is nothing to write.
        Some(_) => alloc_slow(layout),
        None => ptr::null_mut(),
    }
}

#[cold]
#[inline(never)]
fn dealloc_slow(ptr: *mut u8, layout: Layout) {
    let Some(heap) = heap() else { return };
    let mut address = ptr.addr();
    let class = BuildGeometry.class_of(layout);
    if class == ClassIndex::NONE {
        return heap.dealloc_run(address, Some(layout));
    }
    let tag = heap.tag_for_free(address, class);
    match thread_cache::current_or_made(heap, Some(tag.shard())) {
        Some(cache) => cache.dealloc_slow(heap, tag, address),
        None => heap.put_all(class, core::slice::from_mut(&mut address)),
    }
}
