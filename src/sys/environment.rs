//! The variables of the environment, which may be read before the C library has any.

use core::ffi::CStr;

/// The environment variable `name`. Programs that have more rights than their user do not listen to it.
pub(crate) fn environment(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: the name ends in a zero, and so does the value, which stays where it is unless the program changes its
    // environment: callers have read it by then.
    unsafe {
        if libc::getauxval(libc::AT_SECURE) != 0 {
            return None;
        }
        let value = libc::getenv(name.as_ptr());
        if value.is_null() { environment_at_start(name) } else { Some(CStr::from_ptr(value)) }
    }
}

/// The environment variable `name` before the C library has an environment: a library that is loaded before it, as by
/// `LD_PRELOAD`, may be asked for memory by then.
///
/// # Safety
/// No other thread changes the environment meanwhile.
#[cfg(target_env = "gnu")]
unsafe fn environment_at_start(name: &CStr) -> Option<&'static CStr> {
    use core::ffi::c_char;
    unsafe extern "C" {
        static environ: *const *const c_char;
        /// Where the kernel has put the number of arguments; behind it lie these, a null pointer, and the
        /// variables up to another one. Set by the dynamic linker before it calls anybody.
        static __libc_stack_end: *const usize;
    }
    // SAFETY: as said there; the strings stay where the kernel has put them.
    unsafe {
        if !environ.is_null() || __libc_stack_end.is_null() {
            return None;
        }
        let arguments = *__libc_stack_end;
        let mut variable = __libc_stack_end.add(1 + arguments + 1).cast::<*const c_char>();
        while !(*variable).is_null() {
            let text = CStr::from_ptr(*variable);
            if let Some(rest) = text.to_bytes().strip_prefix(name.to_bytes())
                && rest.first() == Some(&b'=')
            {
                return CStr::from_bytes_with_nul(&text.to_bytes_with_nul()[name.count_bytes() + 1..]).ok();
            }
            variable = variable.add(1);
        }
    }
    None
}

/// Other C libraries have their environment before any library is called.
///
/// # Safety
/// None is needed.
#[cfg(not(target_env = "gnu"))]
unsafe fn environment_at_start(_: &CStr) -> Option<&'static CStr> {
    None
}
