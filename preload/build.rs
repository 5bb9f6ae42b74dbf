//! Link options of the shared library.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for option in [
        // Blocks, and the functions that the C library calls when threads end and processes fork, outlive `dlclose`.
        "nodelete",
        // Handlers for forks run in the order in which they are registered. Ours are first to open the heap again.
        "initfirst",
    ] {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,{option}");
    }
}
