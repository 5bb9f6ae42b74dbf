//! Whose functions the program sees.
//!
//! A program may have a `malloc` of its own, or replace some of the operators `new` and `delete`, and leave what there is
//! beside them to the libraries, whose functions call those. Then ours must do so, too: what one allocator gave, another would
//! get back.

use core::ffi::c_void;
#[cfg(target_env = "gnu")]
use core::mem;
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering::Relaxed};

/// What was found out about the program; [`UNKNOWN`] before that.
static SEEN: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
/// All functions that allocate and free are ours.
const OURS: u8 = 1;
/// Some are another's: operators, or all of them.
const OTHERS: u8 = 2;
/// `malloc` and what has to go with it are another's, and what there may be beside that is ours.
const OTHERS_MALLOC: u8 = 3;

/// What a program that has a `malloc` of its own has, and what it may leave out; with a zero behind each name.
const MALLOC: [&str; 4] = ["malloc\0", "calloc\0", "realloc\0", "free\0"];
const BESIDE: &str = "reallocarray\0";

/// Whether all that the program sees is ours, as far as was found out.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn known_to_be_ours() -> bool {
    SEEN.load(Relaxed) == OURS
}

/// Whether all that the program sees is ours.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_ours() -> bool {
    look() == OURS
}

/// Whether the program has a `malloc` of its own, and sees ours beside it.
pub(crate) fn is_beside_another() -> bool {
    look() == OTHERS_MALLOC
}

/// Finds out what the program sees, at the first call, which is made when the library is loaded.
pub(crate) fn look() -> u8 {
    if SEEN.load(Relaxed) == UNKNOWN {
        let this_library = library_of(look as *const c_void);
        let are_ours = |names: &[&'static str]| {
            let mut found = names.iter().map(|name| by_name(name));
            found.all(|function| library_of(function) == this_library || is_detour(function))
        };
        #[cfg(target_arch = "x86_64")]
        let operators = crate::operators::OPERATORS;
        #[cfg(not(target_arch = "x86_64"))]
        let operators = &[];
        let seen = match are_ours(&MALLOC) {
            true if are_ours(operators) && !are_in_another_library(operators) => OURS,
            false if are_ours(&[BESIDE]) => OTHERS_MALLOC,
            _ => OTHERS,
        };
        SEEN.store(seen, Relaxed);
    }
    SEEN.load(Relaxed)
}

/// Whether a library of the program, which is neither the one of C++ nor another allocator, has some of the operators: calls in
/// there may lead to them.
fn are_in_another_library(operators: &[&'static str]) -> bool {
    if !has_cpp_library() {
        return false;
    }
    // SAFETY: the names end in zeros.
    let behind = |name: &str| library_of(unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast()) });
    let of_cpp = behind("_ZSt15get_new_handlerv\0");
    if of_cpp.is_null() {
        return false;
    }
    let of_allocator = behind("malloc\0");
    operators
        .iter()
        .map(|name| behind(name))
        .any(|library| !library.is_null() && library != of_cpp && library != of_allocator)
}

/// Whether the loader, when it loaded this library, found a function of the C++ library. Where there is none, `dlsym` would
/// allocate a message that says so.
#[cfg(target_arch = "x86_64")]
fn has_cpp_library() -> bool {
    let function: *const c_void;
    // SAFETY: this reads the address that the loader has written; zero if it found none, as the symbol is weak.
    unsafe {
        core::arch::asm!(
            ".weak _ZSt15get_new_handlerv",
            "mov {}, qword ptr [rip + _ZSt15get_new_handlerv@GOTPCREL]",
            out(reg) function,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    !function.is_null()
}

/// There are no operators here that it matters for.
#[cfg(not(target_arch = "x86_64"))]
fn has_cpp_library() -> bool {
    false
}

/// The function of the program that has this name, with a zero behind it; null if there is none.
fn by_name(name: &'static str) -> *mut c_void {
    // SAFETY: the name ends in a zero.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr().cast()) }
}

/// [`by_name`], looked up once and kept in `found`.
pub(crate) fn once_by_name(name: &'static str, found: &AtomicPtr<c_void>) -> *mut c_void {
    if found.load(Relaxed).is_null() {
        found.store(by_name(name), Relaxed);
    }
    found.load(Relaxed)
}

/// Whether it is no function that was found, but where a program that is not position-independent calls it, by way of its own
/// linkage table: there such a program has the address of a function, if it takes that, although it defines no such function.
#[cfg(target_env = "gnu")]
fn is_detour(function: *const c_void) -> bool {
    let mut info = mem::MaybeUninit::<libc::Dl_info>::zeroed();
    let mut symbol: *const libc::Elf64_Sym = ptr::null();
    // SAFETY: both are written to if something is found; of symbols, a pointer to one that stays as long as what has it.
    unsafe {
        let place = (&raw mut symbol).cast();
        libc::dladdr1(function, info.as_mut_ptr(), place, RTLD_DL_SYMENT) != 0
            && symbol.as_ref().is_some_and(|symbol| symbol.st_shndx == UNDEFINED)
    }
}

/// The section of what a file does not define: `SHN_UNDEF`.
#[cfg(target_env = "gnu")]
const UNDEFINED: u16 = 0;
/// Asks [`dladdr1`](libc::dladdr1) for a symbol.
#[cfg(target_env = "gnu")]
const RTLD_DL_SYMENT: libc::c_int = 1;

/// Other C libraries do not say whose symbol is at an address.
#[cfg(not(target_env = "gnu"))]
fn is_detour(_: *const c_void) -> bool {
    false
}

/// The library, or the program, that `address` lies in; null if there is none. `dladdr` would look through all of its symbols, which
/// takes longer than the start of many programs.
fn library_of(address: *const c_void) -> *const c_void {
    struct Search {
        address: usize,
        library: *const c_void,
    }
    unsafe extern "C" fn look_in(
        info: *mut libc::dl_phdr_info,
        _: usize,
        search: *mut c_void,
    ) -> libc::c_int {
        // SAFETY: the loader's description of a library, with so many headers; and the search, which nothing else uses meanwhile.
        let (info, headers, search) = unsafe {
            let info = &*info;
            let headers = slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
            (info, headers, &mut *search.cast::<Search>())
        };
        let is_in = |header: &libc::Elf64_Phdr| {
            let offset = search.address.wrapping_sub((info.dlpi_addr + header.p_vaddr) as usize);
            header.p_type == libc::PT_LOAD && offset < header.p_memsz as usize
        };
        let found = headers.iter().any(is_in);
        if found {
            search.library = info.dlpi_phdr.cast();
        }
        found.into()
    }
    let mut search = Search { address: address.addr(), library: ptr::null() };
    // SAFETY: the callback has the type that it is to have, and is given the search.
    unsafe { libc::dl_iterate_phdr(Some(look_in), (&raw mut search).cast()) };
    search.library
}
