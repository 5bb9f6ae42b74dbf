//! Hands the compiler's version to the report, so that it names the compiler that built the
//! binaries and not the one that happens to be first in `PATH` when they run.

use std::env;
use std::process::Command;

fn main() {
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC for build scripts");
    let output = Command::new(rustc)
        .arg("--version")
        .output()
        .expect("the compiler that is about to build this package can print its version");
    let version = String::from_utf8(output.stdout).expect("a version is plain text");
    println!("cargo::rustc-env=COMPARE_RUSTC={}", version.trim());
    println!("cargo::rerun-if-changed=build.rs");
}
