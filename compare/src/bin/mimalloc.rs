//! The workloads over mimalloc.

compare::main!(
    mimalloc::MiMalloc = mimalloc::MiMalloc,
    version: Some(version()),
    give_back: mi_collect(true)
);

unsafe extern "C" {
    safe fn mi_version() -> std::ffi::c_int;
    safe fn mi_collect(force: bool);
}

/// The library packs its version as major, two digits of minor, two of patch; its crate's number
/// says nothing about it.
fn version() -> String {
    let packed = mi_version();
    format!("{}.{}.{}", packed / 10_000, packed / 100 % 100, packed % 100)
}
