//! The names that glibc has for its own functions beside the standard ones. A program that calls some of them has to
//! get them all from one allocator.

use core::ffi::{c_int, c_void};

macro_rules! also_named {
    ($($name:ident = $function:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
        #[doc = concat!("[`", stringify!($function), "`](crate::", stringify!($function), ")")]
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        #[allow(unused_unsafe)] // some are safe
        pub unsafe extern "C" fn $name($($argument: $type),*) $(-> $result)? {
            // SAFETY: the caller's contract is the same.
            unsafe { crate::$function($($argument),*) }
        }
    )*};
}

also_named! {
    __libc_malloc = malloc(size: usize) -> *mut c_void;
    __libc_calloc = calloc(count: usize, size: usize) -> *mut c_void;
    __libc_realloc = realloc(block: *mut c_void, size: usize) -> *mut c_void;
    __libc_reallocarray = reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void;
    __libc_free = free(block: *mut c_void);
    __libc_cfree = cfree(block: *mut c_void);
    __libc_memalign = memalign(alignment: usize, size: usize) -> *mut c_void;
    __libc_valloc = valloc(size: usize) -> *mut c_void;
    __libc_pvalloc = pvalloc(size: usize) -> *mut c_void;
    __posix_memalign = posix_memalign(stored: *mut *mut c_void, alignment: usize, size: usize) -> c_int;
}
