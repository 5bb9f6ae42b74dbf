//! When a thread takes its next sample: bytes that are counted down.
//!
//! Unless the interval was asked for, a countdown whose samples come sooner one after the other than so many times what
//! they take, by the clock, doubles its interval, and goes back as soon as they do not. That bounds what the samples of
//! a thread cost, whatever it does. The next distance alone depends on it, and each sample remembers its own interval,
//! so it stands for as many as it should.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Bytes from one picked byte to the next, on average.
const USUAL_INTERVAL: usize = 512 << 10;
/// Samples come too soon if the time between two is less than so many times what one takes. In a loop that is too fast
/// the time is twice as long on average, and to free a sampled block takes about as long again as to sample it: that
/// makes a hundredth.
const SPARED: u64 = 100;
/// Times that an interval doubles at most.
const MOST_DOUBLINGS: u32 = 14;
/// Bytes after which the clock is looked at if none was picked, as a thread may allocate less by then.
const LOOKED_AFTER: isize = 16 << 20;
/// So many times as much time as is to be between two samples, and none: the interval is halved then.
const LONG: u64 = 8;
/// Nanoseconds that a sample is thought to take before there were any.
const USUAL_COST: u32 = 2_000;
/// What a sample takes is an average of about so many. One that takes much longer than that was interrupted.
const AVERAGED: u64 = 8;
const INTERRUPTED: u64 = 4;

/// Bytes from one picked byte to the next, on average, before it is doubled.
pub(super) static INTERVAL: AtomicUsize = AtomicUsize::new(USUAL_INTERVAL);

/// Counts the bytes that are allocated through a thread's cache.
pub(crate) struct Countdown {
    /// Bytes to the next one that is picked, or to a look at the clock; below zero once that is passed.
    left: Cell<isize>,
    /// Whether it is to one that is picked.
    is_pick: Cell<bool>,
    /// State of the generator.
    random: Cell<u64>,
    /// When the last byte was picked, or the interval halved for want of one, and how often the interval is doubled.
    picked: Cell<u64>,
    doublings: Cell<u32>,
    /// Nanoseconds that a sample takes.
    cost: Cell<u32>,
}

impl Countdown {
    /// That of a cache through which nothing is allocated.
    #[allow(clippy::declare_interior_mutable_const)] // copied into the sentinels
    pub(crate) const NONE: Countdown = Countdown {
        left: Cell::new(0),
        is_pick: Cell::new(true),
        random: Cell::new(1),
        picked: Cell::new(0),
        doublings: Cell::new(0),
        cost: Cell::new(USUAL_COST),
    };

    /// A new countdown, the numbers of which are its own.
    pub(crate) fn new() -> Countdown {
        static COUNTDOWNS: AtomicU64 = AtomicU64::new(1);
        let number = COUNTDOWNS.fetch_add(1, Relaxed);
        // The address of the stack differs from run to run, if the system makes it random.
        let mut seed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (&raw const number).addr() as u64;
        // The bits of both are spread, as splitmix64 does.
        seed = (seed ^ seed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        seed = (seed ^ seed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        let countdown = Countdown { random: Cell::new(seed | 1), ..Countdown::NONE };
        countdown.draw();
        countdown
    }

    /// Counts bytes that are being allocated. True if one of them may be picked: see [`next`](Self::next).
    #[inline(always)]
    pub(crate) fn is_due(&self, bytes: usize) -> bool {
        let left = self.left.get().wrapping_sub(bytes as isize);
        self.left.set(left);
        left < 0
    }

    /// Bytes from one that is picked to the next, on average, until the next is.
    fn interval(&self) -> usize {
        INTERVAL.load(Relaxed).saturating_mul(1 << self.doublings.get())
    }

    /// A distance to the next byte that is picked.
    fn distance(&self) -> isize {
        let mut state = self.random.get();
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        let uniform = (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64;
        (-(1.0 - uniform).ln() * self.interval() as f64) as isize
    }

    /// Draws the distance to the next byte that is picked.
    fn draw(&self) {
        let distance = self.distance();
        self.is_pick.set(distance <= LOOKED_AFTER);
        self.left.set(distance.min(LOOKED_AFTER));
    }

    /// Draws the next distance, as one is passed, at `now` if intervals may double. Returns the interval by which a byte
    /// was picked; `None` if none was.
    pub(super) fn next(&self, now: Option<u64>) -> Option<usize> {
        // What is not drawn beyond the look at the clock may be drawn then: that there was none so far tells nothing.
        let picked = self.is_pick.get() || self.left.get().saturating_add(self.distance()) < 0;
        let interval = picked.then(|| self.interval());
        if let Some(now) = now {
            let since = now.saturating_sub(self.picked.get());
            let times = since / (u64::from(self.cost.get()) * SPARED);
            let doublings = self.doublings.get();
            if times == 0 && picked {
                self.doublings.set((doublings + 1).min(MOST_DOUBLINGS));
            } else if picked || times >= LONG {
                self.doublings.set(doublings.saturating_sub(times.max(1).ilog2()));
            }
            if picked || times >= LONG {
                self.picked.set(now);
            }
        }
        self.draw();
        interval
    }

    /// Takes note of what a sample took.
    pub(super) fn took(&self, nanoseconds: u64) {
        let cost = u64::from(self.cost.get());
        let took = nanoseconds.min(cost * INTERRUPTED);
        // Rounded up, and so never zero.
        let average = (cost * (AVERAGED - 1) + took).div_ceil(AVERAGED);
        self.cost.set(average.min(u32::MAX.into()) as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread that allocates `times` blocks of `size` bytes, one in `pace` nanoseconds, where a sample takes `cost`.
    struct Simulated {
        samples: f64,
        /// The part of its time that samples took.
        share: f64,
        /// The estimate of how many blocks it allocated, to the truth.
        estimated: f64,
    }

    fn simulate(size: usize, pace: u64, cost: u64, times: u32) -> Simulated {
        const START: u64 = 1 << 40;
        let countdown = Countdown::new();
        let (mut now, mut samples, mut estimated) = (START, 0, 0.0);
        for _ in 0..times {
            now += pace;
            if countdown.is_due(size)
                && let Some(interval) = countdown.next(Some(now))
            {
                countdown.took(cost);
                now += cost;
                samples += 1;
                estimated += -1.0 / (-(size as f64) / interval as f64).exp_m1();
            }
        }
        Simulated {
            samples: f64::from(samples),
            share: (samples as u64 * cost) as f64 / (now - START) as f64,
            estimated: estimated / f64::from(times),
        }
    }

    #[test]
    fn samples_take_a_part_of_the_time_whatever_they_cost_and_the_estimate_is_right_all_the_same() {
        // By bytes a second: 10 GB, 500 GB, more of runs, little.
        for (size, pace, times) in
            [(1_000, 100, 6_000_000), (100_000, 200, 3_000_000), (2 << 20, 300, 2_000_000)]
        {
            for cost in [400, 1_500, 8_000] {
                let simulated = simulate(size, pace, cost, times);
                let label = std::format!("{size} bytes in {pace} ns, {cost} ns a sample");
                assert!(simulated.share < 0.009, "{label}: {} of the time", simulated.share);
                let spared = 512.0 * 1024.0 / size as f64 * pace as f64 > 2.0 * (SPARED * cost) as f64;
                assert!(spared || simulated.share > 0.0025, "{label}: {} of the time", simulated.share);
                let error = (simulated.estimated - 1.0).abs() * simulated.samples.sqrt();
                assert!(error < 8.0, "{label}: {} estimated from {}", simulated.estimated, simulated.samples);
            }
        }
    }

    #[test]
    fn a_thread_that_allocates_slowly_is_sampled_by_the_usual_interval() {
        let simulated = simulate(1_000, 2_000, 1_500, 4_000_000);
        let expected = 4_000_000.0 * 1_000.0 / USUAL_INTERVAL as f64;
        // The interval doubles for the next after each pair that happens to be close.
        assert!(simulated.samples > expected * 0.6, "{} samples, {expected} expected", simulated.samples);
    }

    #[test]
    fn a_countdown_goes_back_to_the_usual_interval_when_its_thread_has_waited() {
        let countdown = Countdown::new();
        let pick = |now| {
            countdown.is_pick.set(true);
            countdown.next(Some(now))
        };
        (0..20).for_each(|turn| _ = pick(1 << 40 | turn));
        assert_eq!(countdown.interval(), USUAL_INTERVAL << MOST_DOUBLINGS);
        pick(2 << 40);
        assert_eq!(countdown.interval(), USUAL_INTERVAL);
        // It does so before the next byte is picked, which may be far.
        (0..20).for_each(|turn| _ = pick(2 << 40 | turn));
        countdown.is_pick.set(false);
        countdown.left.set(0);
        assert_eq!(countdown.next(Some(3 << 40)), None);
        assert_eq!(countdown.interval(), USUAL_INTERVAL);
    }

    #[test]
    fn a_sample_that_was_interrupted_does_not_keep_others_away() {
        let countdown = Countdown::new();
        (0..100).for_each(|_| countdown.took(1_000));
        assert!(countdown.cost.get().abs_diff(1_000) < 10, "{}", countdown.cost.get());
        countdown.took(50_000_000);
        assert!(countdown.cost.get() < 1_500, "{}", countdown.cost.get());
        (0..100).for_each(|_| countdown.took(0));
        assert!((1..10).contains(&countdown.cost.get()), "a cost of nothing would not spare anything");
        (0..100).for_each(|_| countdown.took(u64::MAX));
        assert_eq!(countdown.cost.get(), u32::MAX);
    }

    #[test]
    fn distances_are_as_long_as_asked_for_on_average() {
        let countdown = Countdown::new();
        let drawn = 100_000;
        let sum: f64 = (0..drawn).map(|_| countdown.distance() as f64).sum();
        let mean = sum / f64::from(drawn);
        assert!((mean / USUAL_INTERVAL as f64 - 1.0).abs() < 0.02, "{mean}");
    }
}
