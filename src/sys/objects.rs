//! What the loader has mapped: the program and its libraries, with their unwind tables.

use core::ffi::{c_int, c_void};
use core::ops::Range;
use core::slice;

/// A loaded object that has unwind tables. All of these are addresses.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// From its lowest segment to its highest.
    pub(crate) mapped: Range<usize>,
    /// From its `.eh_frame_hdr`, which leads to what follows it, the tables, to the end of the segment that both are in.
    pub(crate) tables: Range<usize>,
}

/// The object that holds `address`, if it has unwind tables.
pub(crate) fn holding(address: usize) -> Option<Object> {
    let mut search = Search { address, found: None };
    // SAFETY: the callback has the type that it is to have, and is given the search, which nothing else uses meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}

/// An address in the C library.
pub(crate) fn in_c_library() -> usize {
    (libc::getpid as *const ()).addr()
}

struct Search {
    address: usize,
    found: Option<Object>,
}

unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _: usize, search: *mut c_void) -> c_int {
    // SAFETY: the loader's description of an object, with so many headers; and what `holding` has passed on.
    let (base, headers, search) = unsafe {
        let info = &*info;
        let headers = slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
        (info.dlpi_addr as usize, headers, &mut *search.cast::<Search>())
    };
    let segments = || {
        let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
        loaded.map(|header| {
            let start = base + header.p_vaddr as usize;
            start..start + header.p_memsz as usize
        })
    };
    let segment_of = |address: usize| segments().find(|segment| segment.contains(&address));
    if segment_of(search.address).is_none() {
        return 0;
    }
    let header = headers.iter().find(|header| header.p_type == libc::PT_GNU_EH_FRAME);
    search.found = header.and_then(|header| {
        let header = base + header.p_vaddr as usize;
        let lowest = segments().map(|segment| segment.start).min()?;
        let highest = segments().map(|segment| segment.end).max()?;
        Some(Object { mapped: lowest..highest, tables: header..segment_of(header)?.end })
    });
    // There is no other: the search ends.
    1
}
