//! The shared library under test.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The path of the shared library. It is built for the purpose, in release; the environment variable
/// `PMA_TEST_LIBRARY` has another one tested.
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| env::var_os("PMA_TEST_LIBRARY").map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libpma");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", "pma-preload", "--target-dir"])
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("LD_PRELOAD")
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "the library cannot be built: {status}");
    target.join("release/libpma.so")
}
