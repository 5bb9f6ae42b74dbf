#!/usr/bin/env bash
# Runs threads on the process heap under ThreadSanitizer (tsan/): no report. Then once more with a library whose locks are
# opened without telling other threads what was written, which must be reported: else nothing was looked at. Needs a nightly compiler with the sanitizer's
# runtime; where there is none, it says so.
set -euo pipefail
cd "$(dirname "$0")/../tsan"

skip() { echo "skipped: $*"; exit 0; }

target=$(rustc -vV | sed -n 's/^host: //p')
command -v rustup >/dev/null || skip "no rustup, so no other compiler"
sysroot=$(rustup run nightly rustc --print sysroot 2>/dev/null) || skip "no nightly compiler"
ls "$sysroot/lib/rustlib/$target/lib/"*tsan* >/dev/null 2>&1 || skip "the nightly compiler has no runtime of the sanitizer"

# The standard library is not instrumented: hence the second flag. The sanitizer does not know what the system call `membarrier`
# does to other threads: hence the third. Its address space is small.
flags="--cfg pma_sanitized -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer"
export PMA_ARENA_BYTES=1073741824
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}"

# run <flags>: builds it, and runs it with what it reports in a file.
run() {
    RUSTFLAGS="$flags $1" rustup run nightly cargo build --release --locked --target "$target" || return 2
    TSAN_OPTIONS="exitcode=66 ${TSAN_OPTIONS:-}" timeout 300 "$CARGO_TARGET_DIR/$target/release/tsan" 2>"$CARGO_TARGET_DIR/report"
}

status=0
run "" || status=$?
if [ "$status" != 0 ]; then
    head -n 200 "$CARGO_TARGET_DIR/report"
    echo "ended with status $status"
    exit 1
fi
status=0
TSAN_OPTIONS=halt_on_error=1 run '--cfg pma_unchecked="release"' >/dev/null || status=$?
if [ "$status" != 66 ] || ! grep -q "WARNING: ThreadSanitizer: data race" "$CARGO_TARGET_DIR/report"; then
    echo "a race that is there was not reported: status $status"
    exit 1
fi
echo "no report; a race that was put there is reported"
