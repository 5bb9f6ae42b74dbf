//! Threads that allocate beside each other, for each other, and briefly.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crossbeam_channel::{Sender, bounded};
use fastrand::Rng;

use super::sets::WorkingSet;
use super::{SizeTable, Tally, random_below};
use crate::block::Block;

/// Joins threads and adds up their tallies.
fn join_all(threads: impl IntoIterator<Item = thread::JoinHandle<Tally>>) -> Tally {
    let mut total = Tally::default();
    for thread in threads {
        total.merge(thread.join().expect("a worker does not panic"));
    }
    total
}

/// Threads that share nothing but the allocator.
pub fn random_sets() -> Tally {
    const THREADS: u64 = 4;
    const LENGTH: usize = 10_000;
    const REPLACEMENTS: u64 = 3_000_000;
    let threads: Vec<_> = (0..THREADS)
        .map(|seed| {
            thread::spawn(move || {
                let mut set = WorkingSet::new(LENGTH, SizeTable::of_programs(), seed);
                set.replace(REPLACEMENTS);
                set.finish()
            })
        })
        .collect();
    join_all(threads)
}

/// What producers send: allocated by one thread, freed by another.
enum Message {
    Fixed(Box<[u64; 8]>),
    Bytes(Vec<u8>),
    Text(String),
}

impl Message {
    fn new(number: u64, rng: &mut Rng) -> Message {
        match number % 3 {
            0 => Message::Fixed(Box::new([number; 8])),
            1 => Message::Bytes(vec![number as u8; 16 + random_below(rng, 1000)]),
            _ => Message::Text(format!("message {number} of one of the producers")),
        }
    }

    fn digest(&self) -> u64 {
        match self {
            Message::Fixed(words) => words[7],
            Message::Bytes(bytes) => bytes.len() as u64 + u64::from(bytes[0]),
            Message::Text(text) => text.len() as u64,
        }
    }
}

/// Producer and consumer pairs. The channels are bounded, or the peak of memory would be a matter
/// of scheduling.
const PAIRS: u64 = 2;

/// Runs [`PAIRS`] of producers and consumers.
fn pairs<T: Send + 'static>(
    capacity: usize,
    produce: fn(SyncSender<T>, Rng),
    consume: fn(Receiver<T>) -> Tally,
) -> Tally {
    let mut consumers = Vec::new();
    let mut producers = Vec::new();
    for seed in 0..PAIRS {
        let (sender, receiver) = sync_channel(capacity);
        consumers.push(thread::spawn(move || consume(receiver)));
        producers.push(thread::spawn(move || produce(sender, Rng::with_seed(seed))));
    }
    for producer in producers {
        producer.join().expect("a producer does not panic");
    }
    join_all(consumers)
}

/// One message at a time.
pub fn channel() -> Tally {
    const MESSAGES: u64 = 2_000_000;
    pairs(
        4096,
        |sender, mut rng| {
            for number in 0..MESSAGES {
                sender.send(Message::new(number, &mut rng)).expect("the consumer reads until the end");
            }
        },
        |receiver| {
            let mut tally = Tally::default();
            for message in receiver {
                tally.add(message.digest());
            }
            tally
        },
    )
}

/// A vector of messages at a time.
pub fn channel_batches() -> Tally {
    const BATCHES: u64 = 14_000;
    const BATCH: u64 = 128;
    pairs(
        32,
        |sender, mut rng| {
            for batch in 0..BATCHES {
                let messages: Vec<_> =
                    (batch..batch + BATCH).map(|number| Message::new(number, &mut rng)).collect();
                sender.send(messages).expect("the consumer reads until the end");
            }
        },
        |receiver| {
            let mut tally = Tally::default();
            for message in receiver.into_iter().flatten() {
                tally.add(message.digest());
            }
            tally
        },
    )
}

/// Threads that come and go, four at a time, each leaving some blocks to its parent.
pub fn churn() -> Tally {
    const WAVES: u64 = 500;
    const WAVE: u64 = 4;
    const LENGTH: usize = 200;
    const REPLACEMENTS: u64 = 400;
    const LEFT_BEHIND: u64 = 20;

    let mut total = Tally::default();
    for wave in 0..WAVES {
        let threads: Vec<_> = (0..WAVE)
            .map(|thread| {
                let seed = wave * WAVE + thread;
                thread::spawn(move || {
                    let mut set = WorkingSet::new(LENGTH, SizeTable::log_uniform(8, 2048), seed);
                    set.replace(REPLACEMENTS);
                    let left: Vec<Block> = (0..LEFT_BEHIND)
                        .map(|number| Block::new(Block::MIN_SIZE << (number % 8), number))
                        .collect();
                    (set.finish(), left)
                })
            })
            .collect();
        for thread in threads {
            let (tally, left) = thread.join().expect("a worker does not panic");
            total.merge(tally);
            for block in left {
                total.add(block.read());
            }
        }
    }
    total
}

/// Threads in a ring, each churning a set of its own and handing some blocks to the next.
///
/// Nobody waits: a block whose mailbox is full is freed by its owner instead, so which thread
/// frees it varies, and what is read from it does not.
pub fn neighbours() -> Tally {
    const THREADS: u64 = 16;
    const LENGTH: usize = 1000;
    const REPLACEMENTS: u64 = 1_500_000;
    const MAILBOX: usize = 256;
    /// One replaced block in so many goes to the neighbour.
    const HANDED: u64 = 8;

    let (senders, mut receivers): (Vec<Sender<Block>>, Vec<_>) =
        (0..THREADS).map(|_| bounded(MAILBOX)).unzip();
    // Thread n reads mailbox n and writes to mailbox n + 1.
    receivers.rotate_right(1);
    let threads: Vec<_> = (0..)
        .zip(senders.into_iter().zip(receivers))
        .map(|(seed, (next, mailbox))| {
            thread::spawn(move || {
                let mut set = WorkingSet::new(LENGTH, SizeTable::log_uniform(8, 1024), seed);
                for number in 0..REPLACEMENTS {
                    let old = set.replace_one(number);
                    if number % HANDED == 0 {
                        drop(next.try_send(old));
                        drop(mailbox.try_recv());
                    }
                }
                set.finish()
            })
        })
        .collect();
    join_all(threads)
}
