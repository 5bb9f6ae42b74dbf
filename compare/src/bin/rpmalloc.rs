//! The workloads over rpmalloc.

compare::main!(rpmalloc::RpMalloc = rpmalloc::RpMalloc);
