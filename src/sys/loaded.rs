//! The shared library that this code may be part of.

/// Has the shared library that this code is part of, if it is of one, stay loaded when it is closed: threads that used it call
/// a function of it when they end, and so may the system until then.
///
/// The other C libraries keep what was loaded once (musl), or load nothing (a program that is linked statically).
pub(crate) fn stay_loaded() {
    #[cfg(all(target_env = "gnu", not(target_feature = "crt-static"), not(miri)))]
    if !is_of_program((stay_loaded as *const ()).addr()) && !is_linked_to_stay() {
        let mut object = core::mem::MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: the loader fills in what it knows of an address; the name is its own, of an object that is loaded.
        unsafe {
            if libc::dladdr(stay_loaded as *const _, object.as_mut_ptr()) != 0 {
                let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
                libc::dlopen(object.assume_init().dli_fname, flags);
            }
        }
    }
}

/// Whether an address lies in the program itself. The system has told where its headers are, so the loader need not be asked:
/// in a small program, what that takes would be a good part of all that it needs of the C library.
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static"), not(miri)))]
fn is_of_program(address: usize) -> bool {
    #[cfg(target_pointer_width = "64")]
    type Header = libc::Elf64_Phdr;
    #[cfg(target_pointer_width = "32")]
    type Header = libc::Elf32_Phdr;
    // SAFETY: getauxval has no preconditions, and the headers stay where they are.
    let headers = unsafe {
        let start = core::ptr::with_exposed_provenance::<Header>(libc::getauxval(libc::AT_PHDR) as usize);
        if start.is_null() {
            return true;
        }
        core::slice::from_raw_parts(start, libc::getauxval(libc::AT_PHNUM) as usize)
    };
    // Where it was linked to lie at that address, it does.
    let own = headers.iter().find(|header| header.p_type == libc::PT_PHDR);
    let base = own.map_or(0, |own| headers.as_ptr().addr().wrapping_sub(own.p_vaddr as usize));
    let mut segments = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    segments.any(|segment| {
        let start = base.wrapping_add(segment.p_vaddr as usize);
        address.wrapping_sub(start) < segment.p_memsz as usize
    })
}

/// Whether the object that this code is part of was linked by `-z nodelete`.
#[cfg(all(target_env = "gnu", not(target_feature = "crt-static"), not(miri)))]
fn is_linked_to_stay() -> bool {
    const DT_NULL: usize = 0;
    const DT_FLAGS_1: usize = 0x6fff_fffb;
    const DF_1_NODELETE: usize = 8;
    unsafe extern "C" {
        /// What the linker has told the loader, which it defines in each object: pairs of a tag and a value.
        #[link_name = "_DYNAMIC"]
        static TOLD: [usize; 2];
    }
    let mut entry = &raw const TOLD;
    loop {
        // SAFETY: none follows the one of the tag that ends it, and nobody writes to them.
        let [tag, value] = unsafe { entry.read() };
        match tag {
            DT_NULL => return false,
            DT_FLAGS_1 => return value & DF_1_NODELETE != 0,
            // SAFETY: as above.
            _ => entry = unsafe { entry.add(1) },
        }
    }
}
