//! The workloads over rusty_alloc.

compare::main!(rusty_alloc_api::RustyAlloc = rusty_alloc_api::RustyAlloc);
