//! The workloads over jemalloc.

compare::main!(tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc);
