//! The calling thread's stack, fast: what the unwind tables say of a return address is looked up once.
//!
//! For nearly every address that is: the caller's stack pointer is one of two registers and so many bytes, the return
//! address lies below it, and the frame pointer is unchanged or in a certain place. That fits a word. Words are kept by
//! address, without a lock: two words that were not written together do not fit each other, and are as good as none.
//!
//! What is kept must stay true, so only addresses are served that are in this program or the C library, neither of
//! which is unloaded. A stack with any other address in it, or with an address of which the tables say something less
//! usual, is left to the general unwinder.

use super::samples::Frames;
use crate::sys::objects;
use core::arch::asm;
use core::ptr;
use core::slice;
use core::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, NativeEndian, Register, RegisterRule,
    UnwindContext, UnwindContextStorage, UnwindSection as _, UnwindTableRow, X86_64,
};

/// How to come from a frame to the one that called it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// There is none: the thread begins here.
    End,
    /// The caller's stack pointer is `base` and so many bytes. The return address is in the word below it; the caller's
    /// frame pointer is unchanged if `saved` is 0, else so many words below.
    Caller { base: Base, bytes: u32, saved: u16 },
    /// Something else.
    Unusual,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Base {
    StackPointer,
    FramePointer,
}

impl Step {
    /// As a word; none is zero.
    fn to_word(self) -> u64 {
        match self {
            Step::End => 1,
            Step::Unusual => 2,
            Step::Caller { base, bytes, saved } => {
                u64::from(bytes) << 32
                    | u64::from(saved) << 16
                    | if base == Base::StackPointer { 3 } else { 4 }
            }
        }
    }

    fn from_word(word: u64) -> Step {
        let base = match word & 0xFF {
            1 => return Step::End,
            3 => Base::StackPointer,
            4 => Base::FramePointer,
            _ => return Step::Unusual,
        };
        Step::Caller { base, bytes: (word >> 32) as u32, saved: (word >> 16) as u16 }
    }

    fn of_row(row: &UnwindTableRow<usize, OnStack>) -> Step {
        let (base, bytes) = match *row.cfa() {
            CfaRule::RegisterAndOffset { register: X86_64::RSP, offset } => (Base::StackPointer, offset),
            CfaRule::RegisterAndOffset { register: X86_64::RBP, offset } => (Base::FramePointer, offset),
            _ => return Step::Unusual,
        };
        let rule = |register: Register| row.register(register);
        match rule(X86_64::RA) {
            Some(RegisterRule::Offset(-8)) => {}
            Some(RegisterRule::Undefined) => return Step::End,
            _ => return Step::Unusual,
        }
        let saved = match rule(X86_64::RBP) {
            None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => 0,
            Some(RegisterRule::Offset(offset)) if offset < 0 && offset % 8 == 0 => -offset / 8,
            _ => return Step::Unusual,
        };
        match (bytes.try_into(), saved.try_into()) {
            (Ok(bytes), Ok(saved)) => Step::Caller { base, bytes, saved },
            _ => Step::Unusual,
        }
    }
}

/// What is kept of addresses: a word, and the address combined with it, so that neither is taken without the other.
struct Kept([(AtomicU64, AtomicU64); Kept::SLOTS]);

static KEPT: Kept = Kept([const { (AtomicU64::new(0), AtomicU64::new(0)) }; Kept::SLOTS]);

impl Kept {
    const SLOTS: usize = 4096;

    fn slot(&self, address: usize) -> &(AtomicU64, AtomicU64) {
        let hash = (address as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        &self.0[(hash >> 52) as usize % Kept::SLOTS]
    }

    fn get(&self, address: usize) -> Option<Step> {
        let (key, word) = self.slot(address);
        let (key, word) = (key.load(Relaxed), word.load(Relaxed));
        (word != 0 && key ^ word == address as u64).then(|| Step::from_word(word))
    }

    fn set(&self, address: usize, step: Step) {
        let (key, word) = self.slot(address);
        key.store(address as u64 ^ step.to_word(), Relaxed);
        word.store(step.to_word(), Relaxed);
    }
}

/// An object that is never unloaded.
struct Object {
    /// Where it is mapped: from here on,
    start: AtomicUsize,
    /// up to here. 0 until all the rest is known.
    end: AtomicUsize,
    /// Its `.eh_frame_hdr`, which leads to what follows it, the unwind tables.
    header: AtomicUsize,
    /// The end of the segment that both are in.
    tables_end: AtomicUsize,
}

impl Object {
    const fn unknown() -> Object {
        let [start, end, header, tables_end] = [const { AtomicUsize::new(0) }; 4];
        Object { start, end, header, tables_end }
    }

    fn set(&self, found: &objects::Object) {
        self.header.store(found.tables.start, Relaxed);
        self.tables_end.store(found.tables.end, Relaxed);
        self.start.store(found.mapped.start, Relaxed);
        self.end.store(found.mapped.end, Release);
    }

    fn has(&self, address: usize) -> bool {
        address < self.end.load(Acquire) && address >= self.start.load(Relaxed)
    }

    /// What the tables say of the object's `address`.
    fn step(&self, address: usize) -> Option<Step> {
        let (header, end) = (self.header.load(Relaxed), self.tables_end.load(Relaxed));
        let bytes_from = |start: usize| {
            let length = end.checked_sub(start).filter(|_| start >= header)?;
            // SAFETY: a part of a segment that is mapped for good, and only read.
            Some(unsafe { slice::from_raw_parts(ptr::with_exposed_provenance(start), length) })
        };
        let bases = BaseAddresses::default().set_eh_frame_hdr(header as u64);
        let parsed = EhFrameHdr::new(bytes_from(header)?, NativeEndian).parse(&bases, 8).ok()?;
        let frames = parsed.eh_frame_ptr().direct().ok()? as usize;
        let bases = bases.set_eh_frame(frames as u64);
        let section = EhFrame::from(EndianSlice::new(bytes_from(frames)?, NativeEndian));
        let mut context = UnwindContext::<usize, OnStack>::new_in();
        let (table, get) = (parsed.table()?, EhFrame::cie_from_offset);
        let row = table.unwind_info_for_address(&section, &bases, &mut context, address as u64, get);
        row.ok().map(Step::of_row)
    }
}

/// Room for the rows of unwind tables: nothing is allocated.
struct OnStack;

impl UnwindContextStorage<usize> for OnStack {
    type Rules = [(Register, RegisterRule<usize>); 32];
    type Stack = [UnwindTableRow<usize, OnStack>; 4];
}

/// The program, or library, that this code is in, and the C library.
static OBJECTS: [Object; 2] = [const { Object::unknown() }; 2];

/// Looks for the objects. To be called once.
pub(super) fn start() {
    for (object, inside) in OBJECTS.iter().zip([(start as *const ()).addr(), objects::in_c_library()]) {
        if let Some(found) = objects::holding(inside) {
            object.set(&found);
        }
    }
}

/// The step from `address`, an instruction of a function that is being run.
fn step_from(address: usize) -> Step {
    if let Some(step) = KEPT.get(address) {
        return step;
    }
    let Some(object) = OBJECTS.iter().find(|object| object.has(address)) else { return Step::Unusual };
    let step = object.step(address).unwrap_or(Step::Unusual);
    KEPT.set(address, step);
    step
}

/// Stores the return addresses of the calling thread's stack, from that of this call on. False if that is for the
/// general unwinder to do.
#[inline(never)]
pub(super) fn capture(frames: &mut Frames) -> bool {
    let (mut address, mut stack, mut frame): (usize, usize, usize);
    // SAFETY: reads registers.
    unsafe {
        asm!(
            "lea {address}, [rip]", "mov {stack}, rsp", "mov {frame}, rbp",
            address = out(reg) address, stack = out(reg) stack, frame = out(reg) frame,
            options(nomem, nostack, preserves_flags),
        );
    }
    for place in frames.iter_mut() {
        let (base, bytes, saved) = match step_from(address) {
            Step::End => return true,
            Step::Unusual => return false,
            Step::Caller { base: Base::StackPointer, bytes, saved } => (stack, bytes, saved),
            Step::Caller { base: Base::FramePointer, bytes, saved } => (frame, bytes, saved),
        };
        let caller = base.wrapping_add(bytes as usize);
        if caller <= stack {
            return false;
        }
        let word = |number: usize| {
            let address = ptr::with_exposed_provenance::<usize>(caller - number * 8);
            // SAFETY: the unwind tables of a function that is being run say that these words are in its frame.
            unsafe { address.read() }
        };
        if saved != 0 {
            frame = word(saved.into());
        }
        stack = caller;
        *place = word(1);
        // The call is before the return address, which may be that of another function.
        address = place.wrapping_sub(1);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::super::samples::MOST_FRAMES;
    use super::*;
    use std::boxed::Box;
    use std::hint::black_box;
    use std::thread;
    use std::vec::Vec;

    /// A local variable that the stack must be aligned for.
    #[repr(align(256))]
    struct Aligned([u8; 256]);

    #[inline(never)]
    fn aligned(depth: usize, last: &dyn Fn()) {
        let local = black_box(Aligned([depth as u8; 256]));
        nested(depth, last);
        assert_eq!(black_box(&local).0[17], depth as u8);
    }

    #[inline(never)]
    fn nested(depth: usize, last: &dyn Fn()) {
        let mut large = black_box([depth; 100]);
        match depth {
            0 => last(),
            1 | 4 | 5 => aligned(depth - 1, last),
            _ => Vec::from_iter(0..1).iter().for_each(|_| nested(depth - 1, last)),
        }
        large[depth] += 1;
        black_box(large);
    }

    /// The stack as the general unwinder sees it, from the outermost frame inward.
    fn usual() -> Vec<usize> {
        let mut frames = Vec::new();
        backtrace::trace(|frame| {
            frames.push(frame.ip().addr());
            frames.len() < MOST_FRAMES
        });
        // Behind the outermost frame there may be a zero.
        frames.pop_if(|&mut frame| frame == 0);
        frames.reverse();
        frames
    }

    #[test]
    fn the_stack_is_that_which_the_general_unwinder_sees() {
        start();
        let compare = || {
            for _ in 0..3 {
                let mut frames = [0; MOST_FRAMES];
                assert!(capture(&mut frames), "nothing unusual is in this stack");
                let mut seen: Vec<usize> = frames.iter().copied().take_while(|&frame| frame != 0).collect();
                seen.reverse();
                let usual = usual();
                assert!(seen.len() > 3 && usual.len() < MOST_FRAMES);
                // The innermost are those of this function, and of the unwinder.
                let outer = seen.len() - 1;
                assert_eq!(seen[..outer], usual[..outer]);
            }
        };
        let check: Box<dyn Fn() + Send> = Box::new(compare);
        thread::spawn(move || (0..7).for_each(|depth| nested(depth, &check))).join().unwrap();
    }

    #[test]
    fn words_say_what_they_were_made_of() {
        for base in [Base::StackPointer, Base::FramePointer] {
            for (bytes, saved) in [(8, 0), (16, 2), (u32::MAX, u16::MAX)] {
                let step = Step::Caller { base, bytes, saved };
                assert_eq!(Step::from_word(step.to_word()), step);
            }
        }
        assert_eq!(Step::from_word(Step::End.to_word()), Step::End);
        assert_eq!(Step::from_word(Step::Unusual.to_word()), Step::Unusual);
    }

    #[test]
    fn an_address_is_not_taken_for_another_one_in_its_place() {
        let kept = &KEPT;
        let (one, step) = (0x1234_5678, Step::Caller { base: Base::StackPointer, bytes: 64, saved: 0 });
        kept.set(one, step);
        assert_eq!(kept.get(one), Some(step));
        let other = (one + 1..).find(|&other| ptr::eq(kept.slot(other), kept.slot(one))).unwrap();
        assert_eq!(kept.get(other), None);
        kept.set(other, Step::End);
        assert_eq!((kept.get(one), kept.get(other)), (None, Some(Step::End)));
    }
}
