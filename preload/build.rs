//! Link options of the shared library.

use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

/// Says what is laid out where. Linkers other than LLD do not read such a script, or put constants among the code.
const SCRIPT: &str = "layout.ld";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SCRIPT}");
    for option in [
        // Blocks, and the functions that the C library calls when threads end and processes fork, outlive `dlclose`.
        "nodelete",
        // Handlers for forks run in the order in which they are registered. Ours are first to open the heap again.
        "initfirst",
    ] {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,{option}");
    }
    if links_with_lld() {
        // Each segment takes as few pages as it can.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,separate-loadable-segments");
        println!("cargo::rustc-cdylib-link-arg=-T");
        println!("cargo::rustc-cdylib-link-arg={}/{SCRIPT}", required("CARGO_MANIFEST_DIR"));
    }
}

/// Whether the linker of this build is LLD, as its name in what it links says; it is rustc's own on some targets only, and may be
/// another by the user's choice.
fn links_with_lld() -> bool {
    let library = Path::new(&required("OUT_DIR")).join("empty.so");
    let mut rustc = Command::new(required("RUSTC"));
    rustc.args(["--crate-type", "cdylib", "--crate-name", "empty", "--target", &required("TARGET"), "-o"]);
    rustc.arg(&library).arg("-");
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    rustc.args(flags.split('\x1f').filter(|flag| !flag.is_empty()));
    let nothing = rustc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let is_linked = nothing.status().is_ok_and(|status| status.success());
    is_linked && fs::read(library).is_ok_and(|linked| linked.windows(12).any(|at| at == b"Linker: LLD "))
}

fn required(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
