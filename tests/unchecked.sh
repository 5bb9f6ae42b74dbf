#!/usr/bin/env bash
# Shows what each check is for. The tests of misuse, signals, forks and sleeping threads run against builds of the library without one of
# them: then what it finds goes unnoticed, a block has two owners, the page table is wrong, or the process hangs. With
# all checks they pass.
#
#   tests/unchecked.sh [check...]
set -euo pipefail
script=$(realpath "$0")
cd "$(dirname "$script")/../unchecked"
base="${CARGO_TARGET_DIR:-target}"

# check | file of tests | test | what becomes of it
table='
tag    | misuse  | global::a_block_as_one_of_another_size                    | the misuse went unnoticed
tag    | misuse  | heap::a_block_as_one_of_another_size                      | the misuse went unnoticed
mark   | misuse  | global::a_block_twice_in_a_row_before_it_is_handed_out_twice | two owners
mark   | misuse  | global::a_block_by_two_threads_before_it_is_handed_out_twice | two owners
mark   | misuse  | global::a_block_that_is_written_to_after_it_was_freed     | unnoticed
put    | misuse  | heap::a_block_twice                                       | the misuse went unnoticed
put    | misuse  | heap::the_middle_of_a_block                               | the misuse went unnoticed
put    | misuse  | global::a_block_twice_by_the_end_of_the_thread            | subtract with overflow
put    | misuse  | global::the_middle_of_a_block_by_the_end_of_the_thread    | the misuse went unnoticed
run    | misuse  | heap::a_run_of_another_length                             | the misuse went unnoticed
run    | misuse  | heap::the_middle_of_the_first_page_of_a_run               | the misuse went unnoticed
bit    | signals | a_handler_that_keeps_or_frees_small_blocks_never_has_one_handed_out_twice | 0x300
take   | sleeping_threads | a_purge_takes_what_waits_in_the_cache_of_a_thread_that_sleeps | are left
top    | sleeping_threads | blocks_have_one_owner_while_others_take_from_the_caches_of_threads_in_haste | test result: FAILED
holder | signals | a_handler_that_comes_with_a_lock_held_ends_the_program_with_a_line | hangs
atfork | fork    | children_forked_while_threads_allocate_allocate_too       | hangs
'
if [ $# = 0 ]; then
    # Side by side, as those that hang are waited for.
    hang=$(awk -F'|' '/hangs/ {print $1}' <<<"$table")
    others=$(awk -F'|' 'NF && !/hangs/ {print $1}' <<<"$table")
    "$script" $hang &
    "$script" $others
    wait $!
    exit
fi
# A test that takes longer hangs.
seconds=60
export PMA_TEST_FORKS=60 PMA_TEST_MILLISECONDS=10000 CARGO_INCREMENTAL=0

# test <target directory> <file> <test>: says what became of it.
run() {
    local status=0
    said=$(CARGO_TARGET_DIR="$1" timeout "$seconds" cargo test --quiet --locked --test "$2" -- --exact "$3" 2>&1) || status=$?
    if [ "$status" = 0 ]; then
        grep -q '1 passed' <<<"$said" || said="there is no test $3"
    elif [ "$status" = 124 ]; then
        said="$said hangs"
    fi
}

# build <target directory> <file>
build() { CARGO_TARGET_DIR="$1" cargo test --quiet --locked --no-run --test "$2"; }

wrong=0
while IFS='|' read -r check file test becomes; do
    read -r check <<<"$check"; read -r file <<<"$file"; read -r test <<<"$test"; read -r becomes <<<"$becomes"
    [ -n "$check" ] || continue
    [[ " $* " == *" $check "* ]] || continue
    build "$base/checked" "$file"
    run "$base/checked" "$file" "$test"
    if ! grep -q '1 passed' <<<"$said"; then
        echo "$said"; echo "$test does not pass with all checks"; wrong=1; continue
    fi
    export RUSTFLAGS="--cfg pma_unchecked=\"$check\""
    build "$base/$check" "$file"
    run "$base/$check" "$file" "$test"
    unset RUSTFLAGS
    if grep -qF "$becomes" <<<"$said" && ! grep -q '1 passed' <<<"$said"; then
        echo "without $check: $test: $becomes"
    else
        echo "$said"; echo "without $check, $test does not end in: $becomes"; wrong=1
    fi
done <<<"$table"
exit "$wrong"
