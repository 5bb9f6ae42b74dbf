//! The workloads over snmalloc.

compare::main!(snmalloc_rs::SnMalloc = snmalloc_rs::SnMalloc);
