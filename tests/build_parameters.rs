//! What can be set when the crate is built: bad values end the build with one sentence, good ones make a crate that
//! passes its own tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

/// The crate, as cargo sees it in a build with parameters.
fn cargo(command: &str, manifest: &Path, parameters: &[(&str, &str)]) -> Output {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo runs the tests"));
    cargo.arg(command).arg("--lib").arg("--offline").arg("--manifest-path").arg(manifest);
    cargo.arg("--target-dir").arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("build_parameters"));
    for (name, _) in env::vars_os() {
        // Neither what this build was set to, nor what cargo tells the tests.
        let name_text = name.to_string_lossy();
        if name_text.starts_with("PMA_") || name_text.starts_with("CARGO_PKG_") || name_text == "RUSTFLAGS" {
            cargo.env_remove(name);
        }
    }
    cargo
        .envs(parameters.iter().copied())
        .env("CARGO_TERM_COLOR", "never")
        .output()
        .expect("cargo can be started")
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|written| String::from_utf8_lossy(written)).concat()
}

/// The crate's manifest without what only its tests need: nobody waits for that to be built a second time.
fn slim_manifest() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let slim = Path::new(env!("CARGO_TARGET_TMPDIR")).join("slim");
    let whole = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let mut manifest = String::from("[workspace]\n[lib]\npath = \"src/lib.rs\"\n");
    let mut kept = false;
    for line in whole.lines() {
        if line.starts_with('[') {
            // A packed manifest has a table for each dependency.
            kept = ["[package]", "[features]", "[dependencies]", "[profile.test]"].contains(&line)
                || line.starts_with("[dependencies.");
        }
        if kept {
            manifest.extend([line, "\n"]);
        }
    }
    fs::create_dir_all(&slim).unwrap();
    for (name, path) in [("src", root.join("src")), ("build.rs", root.join("build.rs"))] {
        let _ = fs::remove_file(slim.join(name));
        std::os::unix::fs::symlink(path, slim.join(name)).unwrap();
    }
    fs::copy(root.join("Cargo.lock"), slim.join("Cargo.lock")).unwrap();
    fs::write(slim.join("Cargo.toml"), manifest).unwrap();
    slim.join("Cargo.toml")
}

#[test]
fn values_that_cannot_be_end_the_build_with_one_sentence() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    for (name, value, range) in [
        ("PMA_PAGE_SIZE", "3000", "from 4096 to 1048576"),
        ("PMA_PAGE_SIZE", "abc", "from 4096 to 1048576"),
        ("PMA_PAGE_SIZE", "12", "from 4096 to 1048576"),
        ("PMA_PAGE_SIZE", "2097152", "from 4096 to 1048576"),
        ("PMA_PAGE_SIZE", "", "from 4096 to 1048576"),
        ("PMA_PAGE_SIZE", "-65536", "from 4096 to 1048576"),
        ("PMA_PAGE_SIZE", "0x10000", "from 4096 to 1048576"),
        ("PMA_STEPS_PER_DOUBLING", "12", "from 8 to 16"),
        ("PMA_SHARDS", "0", "from 1 to 128"),
        ("PMA_ARENA_BYTES", "99999999999999999999", "from 67108864 to 70368744177664"),
    ] {
        let output = cargo("check", &manifest, &[(name, value)]);
        let said = text(&output);
        assert!(!output.status.success(), "{name}={value} was accepted");
        let sentence =
            format!("{name}={value:?} is not accepted: it takes a power of two {range}, in digits.");
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: page_memory")).collect();
        assert_eq!(errors.len(), 1, "{said}");
        assert!(errors[0].ends_with(&sentence), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    // A class that is larger than half a page of the size that was chosen.
    let parameters = [("PMA_PAGE_SIZE", "16384"), ("PMA_LARGEST_CLASS", "16384")];
    let said = text(&cargo("check", &manifest, &parameters));
    assert!(said.contains("PMA_LARGEST_CLASS=\"16384\" is not accepted"), "{said}");
    assert!(said.contains("from 1024 to 8192"), "{said}");
}

#[test]
fn a_crate_of_other_pages_and_classes_passes_its_tests() {
    // The tests of the crate compare what was asked for with what came of it.
    let parameters = [
        ("PMA_PAGE_SIZE", "16384"),
        ("PMA_ARENA_BYTES", "67108864"),
        ("PMA_LARGEST_CLASS", "4096"),
        ("PMA_STEPS_PER_DOUBLING", "16"),
        ("PMA_SHARDS", "4"),
    ];
    let output = cargo("test", &slim_manifest(), &parameters);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("test result: ok"), "{}", text(&output));
}

/// The bounds of the page size, and of the number of classes.
#[test]
fn values_at_the_bounds_make_a_crate() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    for parameters in [
        &[("PMA_PAGE_SIZE", "4096"), ("PMA_SHARDS", "1"), ("PMA_LARGEST_CLASS", "1024")][..],
        &[("PMA_PAGE_SIZE", "1048576"), ("PMA_SHARDS", "128"), ("PMA_ARENA_BYTES", "67108864")],
        &[("PMA_PAGE_SIZE", "1048576"), ("PMA_STEPS_PER_DOUBLING", "16")],
    ] {
        let output = cargo("check", &manifest, parameters);
        assert!(output.status.success(), "{parameters:?}: {}", text(&output));
    }
}
