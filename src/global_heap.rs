//! [`GlobalHeap`]: a heap over given memory as the global allocator of a program without an operating system.

use crate::heap::{Heap, HeapError, HeapOptions};
use crate::lock::Once;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr;

/// A [`Heap`] over given memory that a static can hold: empty until it is [given its memory](Self::init). Before that,
/// every allocation is refused.
///
/// ```
/// use page_memory_allocator::{GlobalHeap, HeapOptions, SizeClasses};
///
/// // On a machine without an operating system: #[global_allocator]
/// static HEAP: GlobalHeap =
///     GlobalHeap::new(HeapOptions::new().page_size(4096).classes(SizeClasses::POWERS_OF_TWO));
///
/// // There, the array would be a region that the linker script names, and this is done before anything allocates.
/// let memory: &'static mut [u8] = Box::leak(Box::new([0; 65536]));
/// let heap = HEAP.init(memory)?;
/// heap.dump_to(&mut String::new()).unwrap();
/// # Ok::<(), page_memory_allocator::HeapError>(())
/// ```
#[derive(Debug)]
pub struct GlobalHeap {
    options: HeapOptions,
    heap: Once<Heap>,
}

impl GlobalHeap {
    /// A heap to be made with `options`, without memory yet.
    pub const fn new(options: HeapOptions) -> GlobalHeap {
        GlobalHeap { options, heap: Once::new() }
    }

    /// Makes the heap of `memory`, and returns it. If it was made before, that one stays, and `memory` is unused.
    ///
    /// # Errors
    /// As for [`HeapOptions::build_in`]; another attempt may be made with other memory.
    pub fn init(&self, memory: &'static mut [u8]) -> Result<&Heap, HeapError> {
        self.heap.try_call_once(|| self.options.build_in(memory))
    }

    /// [`init`](Self::init) with memory that no reference can be had of.
    ///
    /// ```
    /// use page_memory_allocator::{GlobalHeap, HeapOptions, SizeClasses};
    /// use std::ptr::NonNull;
    ///
    /// static HEAP: GlobalHeap =
    ///     GlobalHeap::new(HeapOptions::new().page_size(4096).classes(SizeClasses::POWERS_OF_TWO));
    ///
    /// // A leaked array stands for a region that a linker script names.
    /// let region = NonNull::from(vec![0u8; 65536].leak());
    /// // SAFETY: nothing else uses the region, ever.
    /// let heap = unsafe { HEAP.init_region(region) }?;
    /// assert!(std::ptr::eq(heap, HEAP.get().unwrap()));
    /// # Ok::<(), page_memory_allocator::HeapError>(())
    /// ```
    ///
    /// # Errors
    /// As for [`init`](Self::init).
    ///
    /// # Safety
    /// As for [`HeapOptions::build_in_region`]; the heap is never dropped, if it is in a static.
    pub unsafe fn init_region(&self, memory: ptr::NonNull<[u8]>) -> Result<&Heap, HeapError> {
        // SAFETY: the caller's contract is the same.
        self.heap.try_call_once(|| unsafe { self.options.build_in_region(memory) })
    }

    /// The heap, if it was made.
    pub fn get(&self) -> Option<&Heap> {
        self.heap.get()
    }
}

// SAFETY: that of the heap, whose blocks stay where they are for as long as it lives.
unsafe impl GlobalAlloc for GlobalHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.get().map_or(ptr::null_mut(), |heap| heap.alloc(layout))
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(heap) = self.get() {
            // SAFETY: the caller's contract is the same.
            unsafe { heap.dealloc(block, layout) };
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.get().map_or(ptr::null_mut(), |heap| heap.alloc_zeroed(layout))
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        self.get().map_or(ptr::null_mut(), |heap| unsafe { heap.realloc(block, layout, new_size) })
    }
}
