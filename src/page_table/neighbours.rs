//! Blocks that lie side by side: bits and addresses of many of them at a time.

/// `count` bits from bit `first` on: at least one, and all within a word.
#[inline]
pub(super) fn mask(first: usize, count: usize) -> u64 {
    debug_assert!(count >= 1 && first + count <= u64::BITS as usize);
    (u64::MAX >> (u64::BITS as usize - count)) << first
}

/// Writes `lowest` and the addresses of the blocks that follow it, the lowest last.
#[inline]
pub(super) fn write_descending(slots: &mut [usize], lowest: usize, block: usize) {
    let mut address = lowest;
    for slot in slots.iter_mut().rev() {
        *slot = address;
        address += block;
    }
}

/// How many of a list's first blocks lie side by side.
pub(super) enum Neighbours {
    /// Each follows the one before it; one block at least.
    Above(usize),
    /// Each precedes the one before it.
    Below(usize),
}

/// How the first of `blocks`, of `block` bytes each, lie to each other.
#[inline]
pub(super) fn neighbours(blocks: &[usize], block: usize) -> Neighbours {
    let distance = if let [first, second, ..] = blocks { second.wrapping_sub(*first) } else { 0 };
    if distance == block {
        Neighbours::Above(at_distance(blocks, distance))
    } else if distance == block.wrapping_neg() {
        Neighbours::Below(at_distance(blocks, distance))
    } else {
        Neighbours::Below(1)
    }
}

/// How many of the first blocks lie at this distance, each from the one before it. The first two do.
#[inline]
fn at_distance(blocks: &[usize], distance: usize) -> usize {
    // Most batches are either short or long: few by themselves, and then so many to a turn.
    const FEW: usize = 4;
    const AT_ONCE: usize = 8;
    let follows = |count: usize| blocks[count].wrapping_sub(blocks[count - 1]) == distance;
    let mut count = 2;
    while count < blocks.len().min(FEW) {
        if !follows(count) {
            return count;
        }
        count += 1;
    }
    while let Some(next) = blocks.get(count - 1..count + AT_ONCE) {
        let differ =
            (0..AT_ONCE).fold(0, |differ, at| differ | (next[at + 1].wrapping_sub(next[at]) ^ distance));
        if differ != 0 {
            break;
        }
        count += AT_ONCE;
    }
    while count < blocks.len() && follows(count) {
        count += 1;
    }
    count
}

/// Sets `count` bits from bit `first` on, if none of them is set.
#[inline]
pub(super) fn free_all(bitmap: &mut [u64], first: usize, count: usize) -> bool {
    // Most lie in one word.
    let (word, bit) = (first / u64::BITS as usize, first % u64::BITS as usize);
    if bit + count <= u64::BITS as usize {
        let mask = mask(bit, count);
        let are_used = bitmap[word] & mask == 0;
        bitmap[word] |= if are_used { mask } else { 0 };
        return are_used;
    }
    let words = |bitmap: &mut [u64], each: fn(&mut u64, u64) -> bool| {
        let (mut at, end) = (first, first + count);
        while at < end {
            let (word, bit) = (at / u64::BITS as usize, at % u64::BITS as usize);
            let bits = (u64::BITS as usize - bit).min(end - at);
            if !each(&mut bitmap[word], mask(bit, bits)) {
                return false;
            }
            at += bits;
        }
        true
    };
    words(bitmap, |word, mask| *word & mask == 0)
        && words(bitmap, |word, mask| {
            *word |= mask;
            true
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_mask_has_as_many_bits_as_asked_for_from_the_first_on() {
        for (first, count, bits) in
            [(0, 1, 1), (0, 64, u64::MAX), (63, 1, 1 << 63), (4, 3, 0b111 << 4), (1, 63, u64::MAX - 1)]
        {
            assert_eq!(mask(first, count), bits, "{count} from {first} on");
        }
    }

    #[test]
    fn blocks_are_put_all_at_once_or_none_of_them() {
        const ALL: u64 = u64::MAX;
        // Before: the bits of blocks that are free; then which are put, whether they are, and the bits after.
        for (before, first, count, put, after) in [
            ([0, 0, 0], 3, 2, true, [0b11000, 0, 0]),
            ([0b100, 0, 0], 3, 2, true, [0b11100, 0, 0]),
            ([0b10000, 0, 0], 3, 2, false, [0b10000, 0, 0]),
            ([0b11000, 0, 0], 3, 2, false, [0b11000, 0, 0]),
            ([0, 0, 0], 0, 192, true, [ALL, ALL, ALL]),
            ([0, 0, 0], 63, 2, true, [1 << 63, 1, 0]),
            ([0, 0, 0], 60, 100, true, [0b1111 << 60, ALL, ALL >> 32]),
            // One in the way, in the first word, between and in the last.
            ([1 << 61, 0, 0], 60, 100, false, [1 << 61, 0, 0]),
            ([0, 1 << 33, 0], 60, 100, false, [0, 1 << 33, 0]),
            ([0, 0, 1 << 31], 60, 100, false, [0, 0, 1 << 31]),
            ([0, 0, 1 << 32], 60, 100, true, [0b1111 << 60, ALL, ALL >> 31]),
        ] {
            let mut bitmap = before;
            assert_eq!(free_all(&mut bitmap, first, count), put, "{count} from {first} on, of {before:x?}");
            assert_eq!(bitmap, after, "{count} from {first} on, of {before:x?}");
        }
    }

    #[test]
    fn neighbours_are_counted_upward_or_downward() {
        let counted = |blocks: &[usize]| match neighbours(blocks, 48) {
            Neighbours::Above(count) => (true, count),
            Neighbours::Below(count) => (false, count),
        };
        assert_eq!(counted(&[480, 528, 576, 720, 768]), (true, 3));
        assert_eq!(counted(&[480, 432, 384]), (false, 3));
        assert_eq!(counted(&[480, 432, 480]), (false, 2));
        assert_eq!(counted(&[480, 480]), (false, 1));
        assert_eq!(counted(&[480]), (false, 1));
        // As many as are counted at a time, and more, with one that lies elsewhere at every place.
        for len in 2..=20 {
            let above: Vec<usize> = (0..len).map(|at| 4_800 + at * 48).collect();
            let below: Vec<usize> = above.iter().rev().copied().collect();
            assert_eq!((counted(&above), counted(&below)), ((true, len), (false, len)));
            for other in 2..len {
                let broken = |mut blocks: Vec<usize>| {
                    blocks[other] = 48_000;
                    counted(&blocks)
                };
                assert_eq!((broken(above.clone()), broken(below.clone())), ((true, other), (false, other)));
            }
        }
    }

    #[test]
    fn addresses_are_written_down_from_the_end_upward() {
        let mut slots = [0; 4];
        write_descending(&mut slots[1..], 1_000, 48);
        assert_eq!(slots, [0, 1_096, 1_048, 1_000]);
    }
}
