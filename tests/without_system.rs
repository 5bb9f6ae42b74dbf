//! The library for machines without an operating system: a program without `std` builds on it, and neither `std` nor
//! `libc` comes with it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

/// A target that has no operating system. It is built for where the toolchain has it; the host is, everywhere.
const BARE: &str = "x86_64-unknown-none";

const PROGRAM: &str = r#"
//! A kernel's heap, in an array.
#![no_std]
extern crate alloc;

use page_memory_allocator::{GlobalHeap, HeapError, HeapOptions, SizeClasses, set_fault_handler};

#[global_allocator]
static HEAP: GlobalHeap =
    GlobalHeap::new(HeapOptions::new().page_size(4096).classes(SizeClasses::POWERS_OF_TWO));

/// Begins to use `memory`; writes the heap to `console`.
pub fn start(
    memory: &'static mut [u8],
    console: &mut impl core::fmt::Write,
) -> Result<alloc::vec::Vec<u8>, HeapError> {
    set_fault_handler(|_line| loop {});
    let heap = HEAP.init(memory)?;
    let _ = heap.dump_to(console);
    let _ = heap.check();
    let _ = heap.summary();
    Ok(alloc::vec![1, 2, 3])
}
"#;

/// A crate that uses the library without its default features; `None` for what it depends on but the library.
fn program() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("without_system");
    fs::create_dir_all(folder.join("src")).unwrap();
    fs::write(folder.join("src/lib.rs"), PROGRAM).unwrap();
    let manifest = format!(
        "[package]\nname = \"program\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         page_memory_allocator = {{ path = {:?}, default-features = false }}\n",
        env!("CARGO_MANIFEST_DIR")
    );
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    // The versions that this build has are there.
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    folder.join("Cargo.toml")
}

fn cargo(command: &str, arguments: &[&str]) -> Output {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo runs the tests"));
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("PMA_") || name_text.starts_with("CARGO_PKG_") || name_text == "RUSTFLAGS" {
            cargo.env_remove(name);
        }
    }
    cargo.arg(command).arg("--offline").arg("--manifest-path").arg(program()).args(arguments);
    cargo.env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("without_system_target"));
    cargo.env("CARGO_TERM_COLOR", "never").output().expect("cargo can be started")
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|written| String::from_utf8_lossy(written)).concat()
}

/// Whether the toolchain has the core library of `target`.
fn has(target: &str) -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

#[test]
fn a_program_without_std_builds_and_links_no_libc() {
    let output = cargo("check", &[]);
    assert!(output.status.success(), "{}", text(&output));
    let output = cargo("tree", &["--edges", "normal", "--prefix", "none", "--target", "all"]);
    let tree = text(&output);
    assert!(output.status.success() && tree.contains("page_memory_allocator"), "{tree}");
    assert!(!tree.contains("libc"), "{tree}");

    // Of all else, only `core` may be linked: a target that has nothing else shows it.
    if has(BARE) {
        let output = cargo("check", &["--target", BARE]);
        assert!(output.status.success(), "{}", text(&output));
    } else {
        eprintln!("not built for {BARE}, which the toolchain lacks");
    }
}
