//! The allocators compared: the names of their binaries and of the packages they come from.

/// One allocator of the comparison.
#[derive(Debug)]
pub struct Allocator {
    /// The name of its binary, and its heading in the report.
    pub name: &'static str,
    /// The packages of `Cargo.lock` whose versions identify it; none for the system's.
    pub packages: &'static [&'static str],
}

/// The allocator under test; all others are its peers.
pub const OURS: &str = "page_memory_allocator";

/// The peer that ratios are formed against.
pub const BASELINE: &str = "mimalloc";

/// All allocators, in the order of the report's columns.
pub const ALL: &[Allocator] = &[
    Allocator { name: OURS, packages: &["page_memory_allocator"] },
    Allocator { name: BASELINE, packages: &["mimalloc", "libmimalloc-sys"] },
    Allocator { name: "jemalloc", packages: &["tikv-jemallocator", "tikv-jemalloc-sys"] },
    Allocator { name: "snmalloc", packages: &["snmalloc-rs", "snmalloc-sys"] },
    Allocator { name: "rpmalloc", packages: &["rpmalloc", "rpmalloc-sys"] },
    Allocator { name: "rusty_alloc", packages: &["rusty_alloc-api", "rusty_alloc"] },
    Allocator { name: "system", packages: &[] },
];
