//! The workloads over the system's allocator.

compare::main!(
    std::alloc::System = std::alloc::System,
    version: version(),
    give_back: give_back()
);

/// The C library's, where it can be asked.
#[cfg(target_env = "gnu")]
fn version() -> Option<String> {
    unsafe extern "C" {
        safe fn gnu_get_libc_version() -> *const std::ffi::c_char;
    }
    // SAFETY: glibc returns a string constant.
    let version = unsafe { std::ffi::CStr::from_ptr(gnu_get_libc_version()) };
    Some(format!("glibc {}", version.to_string_lossy()))
}

#[cfg(not(target_env = "gnu"))]
fn version() -> Option<String> {
    None
}

#[cfg(target_env = "gnu")]
fn give_back() {
    unsafe extern "C" {
        safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    malloc_trim(0);
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}
