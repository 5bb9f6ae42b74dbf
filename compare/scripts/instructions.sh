#!/usr/bin/env bash
# Counts the instructions of one pair of alloc and dealloc, for each allocator, and prints them as a
# table in Markdown. Unlike time, instructions repeat on a noisy machine.
#
#   scripts/instructions.sh [allocator...]
#
# Each loop of src/counts.rs is run for two numbers of pairs; the difference cancels start-up. The
# figures in brackets are net of the bare loop: the same loop around two calls that do nothing.
# An allocator that reserves more than valgrind's address space is stepped through instead, over
# fewer pairs, because that is slow.
# Needs valgrind, and the binaries: cargo build --release --bins
set -euo pipefail

binaries="$(dirname "${BASH_SOURCE[0]}")/../target/release"
shapes=(pair burst400 random1000)
allocators=("$@")
if [ ${#allocators[@]} -eq 0 ]; then
    allocators=(page_memory_allocator mimalloc jemalloc snmalloc rpmalloc rusty_alloc system)
fi

# Both print the instructions of a whole process, and fail if it does.
simulated() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$@" 2>&1 >/dev/null |
        sed -n 's/.*Collected : *//p'
}
stepped() {
    "$binaries/single_step" "$@"
}

# per_pair <how> <few> <many> <allocator> <loop>: instructions a pair, with one decimal.
per_pair() {
    local low high
    low=$("$1" "$binaries/$4" "$5" "$2") || return 1
    high=$("$1" "$binaries/$4" "$5" "$3") || return 1
    awk -v low="$low" -v high="$high" -v pairs=$(($3 - $2)) 'BEGIN { printf "%.1f", (high - low) / pairs }'
}

# count <allocator> <loop>: by the one means or the other; a dagger marks the second.
count() {
    per_pair simulated 100000 200000 "$1" "$2" 2>/dev/null ||
        { per_pair stepped 4000 12000 "$1" "$2" 2>/dev/null && printf '†'; }
}

# What the bare loop costs does not depend on the allocator; it is counted once.
declare -A bare
printf '| instructions a pair | one block of 64 B | 400 blocks of 64 B | random of 1,000, 8 B to 4 KiB |\n'
printf '|---|--:|--:|--:|\n| bare loop |'
for shape in "${shapes[@]}"; do
    bare[$shape]=$(count "${allocators[0]}" "bare-$shape") || {
        printf '\nno count from %s; are valgrind installed and the binaries built?\n' "${allocators[0]}" >&2
        exit 1
    }
    printf ' %s |' "${bare[$shape]}"
done
printf '\n'
for allocator in "${allocators[@]}"; do
    printf '| %s |' "$allocator"
    for shape in "${shapes[@]}"; do
        if total=$(count "$allocator" "count-$shape"); then
            awk -v total="$total" -v bare="${bare[$shape]}" 'BEGIN { printf " %s (%.1f) |", total, total - bare }'
        else
            printf ' – |'
        fi
    done
    printf '\n'
done
printf '\n† counted by single steps, over fewer pairs.\n'
