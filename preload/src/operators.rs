//! C++'s operators `new` and `delete`. Those of libstdc++ and libc++ call `malloc`, `aligned_alloc` and `free`, at the
//! cost of two more jumps each; these take a block from the thread's cache, and put it there, themselves.
//!
//! A program may replace some of the operators, and rely on the C++ library's others to call those. Then none of ours
//! may serve: what one allocator gave, another would get back. So it is looked up whether every operator that
//! the program sees [is ours](crate::seen). If one is not, each of ours hands its calls on to the next library's.
//!
//! The next library's `new` also sees to what fails: it calls the new-handler and throws `bad_alloc`, which this
//! language cannot. It is reached by a jump, with the arguments as they came, so that no frame of this library is
//! there when the exception passes.

use crate::HEAP;
use crate::seen::{is_ours, known_to_be_ours};
use core::ffi::{CStr, c_void};
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

/// The C++ libraries that there are.
const LIBRARIES: [&CStr; 3] = [c"libstdc++.so.6", c"libc++.so.1", c"libc++abi.so.1"];

/// Where the libraries behind this one have the operator `name`, which ends in a zero. Looked up once, and kept in
/// `found`. If there is none, `found` stays null.
fn next(name: &'static str, found: &AtomicPtr<c_void>) -> *mut c_void {
    if found.load(Relaxed).is_null() {
        // SAFETY: the name ends in a zero.
        let mut next = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast()) };
        // A library that the program has opened may have the C++ library to itself.
        for library in LIBRARIES {
            if !next.is_null() {
                break;
            }
            // SAFETY: the names end in zeros, and nothing is loaded. What is found is not closed: it is to stay.
            unsafe {
                let opened = libc::dlopen(library.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
                if !opened.is_null() {
                    next = libc::dlsym(opened, name.as_ptr().cast());
                }
            }
        }
        found.store(next, Relaxed);
    }
    found.load(Relaxed)
}

/// [`next`] for an operator that has to be there: without one there is nobody to turn to, and the process ends.
fn next_or_end(name: &'static str, found: &AtomicPtr<c_void>) -> *mut c_void {
    let next = next(name, found);
    if next.is_null() {
        crate::end(b"libpma: there is no C++ library to throw bad_alloc\n");
    }
    next
}

/// The name of an operator, with a zero behind it.
macro_rules! name {
    ($name:ident) => {
        concat!(stringify!($name), "\0")
    };
}

/// An operator `new`: its arguments, and the block that it makes of them, from the thread's cache or else from the heap.
macro_rules! new {
    ($name:ident ($($argument:ident: $type:ty),*) $cached:expr, $block:expr) => {
        /// C++'s operator of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        #[allow(unused_variables)] // some ignore an argument
        pub unsafe extern "C" fn $name($($argument: $type),*) -> *mut c_void {
            static NEXT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

            /// A block from the heap, else a jump to the next library's operator.
            #[cold]
            #[unsafe(naked)]
            extern "C" fn slow($($argument: $type),*) -> *mut c_void {
                core::arch::naked_asm!(
                    // No operator has more arguments, and three words align the stack for the call.
                    "push rdi",
                    "push rsi",
                    "push rdx",
                    "call {block}",
                    "pop rdx",
                    "pop rsi",
                    "pop rdi",
                    "test rax, rax",
                    "je 2f",
                    "ret",
                    "2:",
                    "mov rax, qword ptr [rip + {next}]",
                    "test rax, rax",
                    "je 3f",
                    "jmp rax",
                    "3:",
                    "ret",
                    block = sym block,
                    next = sym NEXT,
                )
            }

            /// A block from the heap. Null if the next library's operator is to serve, which is then in `NEXT`; if there is
            /// none, and nothing is to be thrown, the answer is null.
            extern "C" fn block($($argument: $type),*) -> *mut c_void {
                let block = if is_ours() { $block } else { ptr::null_mut() };
                if block.is_null() {
                    let throws = !name!($name).contains("nothrow");
                    if throws { next_or_end(name!($name), &NEXT) } else { next(name!($name), &NEXT) };
                }
                block.cast()
            }

            if known_to_be_ours() {
                let block: *mut u8 = $cached;
                if !block.is_null() {
                    return block.cast();
                }
            }
            slow($($argument),*)
        }
    };
}

/// An operator `delete`: its arguments behind the block, of which none is needed.
macro_rules! delete {
    ($name:ident ($($argument:ident: $type:ty),*)) => {
        /// C++'s operator of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(block: *mut c_void $(, $argument: $type)*) {
            #[cold]
            #[inline(never)]
            extern "C" fn slow(block: *mut c_void $(, $argument: $type)*) {
                static NEXT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
                if is_ours() {
                    // SAFETY: the block is null or live.
                    return unsafe { crate::free(block) };
                }
                // SAFETY: what has this name has these arguments.
                unsafe {
                    let next: unsafe extern "C" fn(*mut c_void $(, $type)*) =
                        mem::transmute(next_or_end(name!($name), &NEXT));
                    next(block $(, $argument)*);
                }
            }

            // SAFETY: the block is null or live.
            if !(known_to_be_ours() && unsafe { HEAP.free_cached(block.cast()) }) {
                slow(block $(, $argument)*);
            }
        }
    };
}

/// All operators.
macro_rules! operators {
    (
        new { $($new:ident $new_arguments:tt = $cached:expr, $block:expr;)* }
        delete { $($delete:ident $delete_arguments:tt;)* }
    ) => {
        $(new!($new $new_arguments $cached, $block);)*
        $(delete!($delete $delete_arguments);)*
        /// Their names.
        pub(crate) static OPERATORS: &[&str] = &[$(name!($new),)* $(name!($delete),)*];
    };
}

/// `const std::nothrow_t &`
type Nothrow = *const c_void;

operators! {
    new {
        _Znwm(size: usize) = HEAP.malloc_cached(size), HEAP.malloc_otherwise(size);
        _Znam(size: usize) = HEAP.malloc_cached(size), HEAP.malloc_otherwise(size);
        _ZnwmRKSt9nothrow_t(size: usize, tag: Nothrow) = HEAP.malloc_cached(size), HEAP.malloc_otherwise(size);
        _ZnamRKSt9nothrow_t(size: usize, tag: Nothrow) = HEAP.malloc_cached(size), HEAP.malloc_otherwise(size);
        _ZnwmSt11align_val_t(size: usize, align: usize) = ptr::null_mut(), HEAP.malloc_aligned(size, align);
        _ZnamSt11align_val_t(size: usize, align: usize) = ptr::null_mut(), HEAP.malloc_aligned(size, align);
        _ZnwmSt11align_val_tRKSt9nothrow_t(size: usize, align: usize, tag: Nothrow) =
            ptr::null_mut(), HEAP.malloc_aligned(size, align);
        _ZnamSt11align_val_tRKSt9nothrow_t(size: usize, align: usize, tag: Nothrow) =
            ptr::null_mut(), HEAP.malloc_aligned(size, align);
    }
    delete {
        _ZdlPv();
        _ZdaPv();
        _ZdlPvm(size: usize);
        _ZdaPvm(size: usize);
        _ZdlPvRKSt9nothrow_t(tag: Nothrow);
        _ZdaPvRKSt9nothrow_t(tag: Nothrow);
        _ZdlPvSt11align_val_t(align: usize);
        _ZdaPvSt11align_val_t(align: usize);
        _ZdlPvmSt11align_val_t(size: usize, align: usize);
        _ZdaPvmSt11align_val_t(size: usize, align: usize);
        _ZdlPvSt11align_val_tRKSt9nothrow_t(align: usize, tag: Nothrow);
        _ZdaPvSt11align_val_tRKSt9nothrow_t(align: usize, tag: Nothrow);
    }
}
