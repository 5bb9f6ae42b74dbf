//! The collections of std over the process heap.

use page_memory_allocator::PageAllocator;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, mpsc};
use std::thread;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

fn check() {
    if let Err(violation) = HEAP.check() {
        panic!("{violation:?}");
    }
}

#[test]
fn a_vec_keeps_its_elements_while_it_grows_and_shrinks() {
    let mut numbers = Vec::new();
    for number in 0..1_000_000u64 {
        numbers.push(number * 3);
    }
    check();
    for keep in [900_000, 10_000, 8_193, 1_000, 9, 1] {
        numbers.truncate(keep);
        numbers.shrink_to_fit();
        assert_eq!(numbers.len(), keep);
        assert!(numbers.iter().enumerate().all(|(at, &number)| number == at as u64 * 3));
        check();
    }
    numbers.clear();
    numbers.shrink_to_fit();
    assert_eq!(numbers.capacity(), 0);
    numbers.extend(0..100_000);
    assert_eq!(numbers.iter().sum::<u64>(), 4_999_950_000);
    drop(numbers);
    check();
}

#[test]
fn vecs_that_grow_by_turns_do_not_mix() {
    let mut vecs = vec![Vec::new(); 100];
    for round in 0..2_000 {
        for (at, vec) in vecs.iter_mut().enumerate() {
            vec.push(at * 10_000 + round);
        }
    }
    for (at, vec) in vecs.iter().enumerate() {
        assert!(vec.iter().copied().eq((0..2_000).map(|round| at * 10_000 + round)));
    }
    vecs.retain(|vec| vec[0] % 20_000 == 0);
    vecs.iter_mut().for_each(|vec| vec.truncate(vec[0] % 777));
    vecs.iter_mut().for_each(Vec::shrink_to_fit);
    check();
    drop(vecs);
    check();
}

#[test]
fn strings_are_built_joined_and_cut() {
    let mut text = String::new();
    for number in 0..50_000 {
        write!(text, "{number},").unwrap();
    }
    let parts: Vec<String> = text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    assert_eq!(parts.len(), 50_000);
    assert!(parts.iter().enumerate().all(|(at, part)| part.parse() == Ok(at)));
    assert_eq!(parts.join(","), text[..text.len() - 1]);
    text.truncate(10);
    text.shrink_to_fit();
    text.insert_str(5, &"é".repeat(3_000));
    assert_eq!(text.chars().count(), 3_010);
    drop(parts);
    check();
}

#[test]
fn boxes_of_many_sizes_keep_what_they_hold() {
    trait Holds {
        fn sum(&self) -> usize;
    }
    struct Block<const N: usize>([u8; N]);
    impl<const N: usize> Holds for Block<N> {
        fn sum(&self) -> usize {
            self.0.iter().map(|&byte| byte as usize).sum()
        }
    }
    #[repr(align(512))]
    struct Aligned(u8);
    impl Holds for Aligned {
        fn sum(&self) -> usize {
            assert_eq!((&raw const *self).addr() % 512, 0);
            self.0 as usize
        }
    }
    fn boxed(at: usize) -> Box<dyn Holds> {
        let byte = (at % 251) as u8;
        match at % 7 {
            0 => Box::new(Block([byte; 0])),
            1 => Box::new(Block([byte; 1])),
            2 => Box::new(Block([byte; 17])),
            3 => Box::new(Block([byte; 160])),
            4 => Box::new(Block([byte; 3_000])),
            5 => Box::new(Block([byte; 40_000])),
            _ => Box::new(Aligned(byte)),
        }
    }
    fn expected(at: usize) -> usize {
        at % 251 * [0, 1, 17, 160, 3_000, 40_000, 1][at % 7]
    }

    let mut boxes: Vec<_> = (0..3_500).map(|at| (at, boxed(at))).collect();
    for round in 1..4 {
        boxes.retain(|&(at, _)| at % (round + 1) != 0);
        boxes.extend((0..700).map(|n| round * 10_000 + n).map(|at| (at, boxed(at))));
        assert!(boxes.iter().all(|(at, held)| held.sum() == expected(*at)));
        check();
    }
    drop(boxes);
    check();
}

#[test]
fn maps_grow_shrink_and_answer_the_same() {
    let mut hashed = HashMap::new();
    let mut sorted = BTreeMap::new();
    for key in 0..60_000u32 {
        let key = key.wrapping_mul(0x9E37_79B1);
        hashed.insert(key, key.to_string());
        sorted.insert(key, key.to_string());
    }
    check();
    hashed.retain(|key, _| key % 3 != 0);
    sorted.retain(|key, _| key % 3 != 0);
    hashed.shrink_to_fit();
    assert_eq!(hashed.len(), sorted.len());
    assert!(sorted.iter().all(|(key, text)| hashed.get(key) == Some(text) && key.to_string() == *text));
    check();
    while let Some((key, text)) = sorted.pop_first() {
        assert_eq!(hashed.remove(&key), Some(text));
    }
    assert!(hashed.is_empty());
    drop(hashed);
    check();
}

#[test]
fn a_queue_that_turns_round_keeps_its_order() {
    let mut queue = VecDeque::new();
    let (mut put, mut taken) = (0u32, 0);
    for round in 0..200 {
        for _ in 0..round * 5 {
            queue.push_back(Box::new(put));
            put += 1;
        }
        for _ in 0..round * 4 {
            assert_eq!(queue.pop_front().as_deref(), Some(&taken));
            taken += 1;
        }
    }
    assert!(queue.iter().map(|held| **held).eq(taken..put));
    drop(queue);
    check();
}

#[test]
fn what_threads_share_and_send_arrives_whole() {
    let shared: Arc<Vec<String>> = Arc::new((0..1_000).map(|number| number.to_string()).collect());
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let (shared, sender) = (Arc::clone(&shared), sender.clone());
            thread::spawn(move || {
                for round in 0..200 {
                    let picked: Vec<String> =
                        shared.iter().skip(round).step_by(thread + 2).cloned().collect();
                    sender.send((thread, round, picked)).unwrap();
                }
            })
        })
        .collect();
    drop(sender);
    let mut parcels = 0;
    for (thread, round, picked) in receiver {
        assert!(picked.iter().eq(shared.iter().skip(round).step_by(thread + 2)));
        parcels += 1;
    }
    assert_eq!(parcels, 8 * 200);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(Arc::strong_count(&shared), 1);
    drop(shared);
    check();
}
