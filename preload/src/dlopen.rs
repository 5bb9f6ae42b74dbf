//! `dlopen` and `dlmopen` without `RTLD_DEEPBIND`.
//!
//! What a library that is opened with that flag calls is looked for in it and in the libraries that it needs, before those
//! of the program: so its `malloc` and `free` are the C library's, and a block that it is given by the program, or gives
//! to it, is freed by the wrong one. PHP opens its modules so. What the flag is for, that such a library has functions
//! of the same names as the program, is rarer.
//!
//! The loader looks at the address that it returns to for who calls: whose search path it follows, and which libraries
//! are next. So the call is handed on by a jump.

use core::ffi::{c_char, c_int, c_long, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

/// A function of the loader by which a library is opened, with its flags in the register `flags`.
macro_rules! opens {
    ($name:ident($($argument:ident: $type:ty),*), $flags:literal) => {
        /// The loader's function of this name, which resolves the names of the opened library as those of any other.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> *mut c_void {
            /// The loader's; null until it was looked for.
            static NEXT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

            /// Looks for the loader's function, which a program that calls it has.
            extern "C" fn find() -> *mut c_void {
                // SAFETY: the name ends in a zero.
                let next = unsafe { libc::dlsym(libc::RTLD_NEXT, concat!(stringify!($name), "\0").as_ptr().cast()) };
                if next.is_null() {
                    crate::end(concat!("libpma: there is no ", stringify!($name), "\n").as_bytes());
                }
                NEXT.store(next, Relaxed);
                next
            }

            core::arch::naked_asm!(
                concat!("and ", $flags, ", {kept}"),
                "mov rax, qword ptr [rip + {next}]",
                "test rax, rax",
                "jne 2f",
                // Three words align the stack for the call.
                "push rdi",
                "push rsi",
                "push rdx",
                "call {find}",
                "pop rdx",
                "pop rsi",
                "pop rdi",
                "2:",
                "jmp rax",
                kept = const !libc::RTLD_DEEPBIND,
                next = sym NEXT,
                find = sym find,
            )
        }
    };
}

opens!(dlopen(path: *const c_char, flags: c_int), "esi");
opens!(dlmopen(list: c_long, path: *const c_char, flags: c_int), "edx");
