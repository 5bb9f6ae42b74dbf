//! The page table: what every page of an arena is, and which of its blocks are free.
//!
//! | state | tag | header | may become |
//! |---|---|---|---|
//! | Free | 0 | zeroed | Divided, Multi head, Multi tail, guard |
//! | Divided | class and shard | live blocks, watermark, first word, list links, busy, fresh, purged, unwritten, zeros; a bitmap beside it | Free, once no block is live; Divided of another shard |
//! | Multi head | 0 | length of the run, owner, mapping, tail, busy, blank | Free, waiting head, cached head, held head |
//! | Multi tail | 0 | zeroed; it is neither free nor a head | Free, waiting tail |
//! | guard | 0 | only that it is one; in hardened builds | Free |
//! | waiting head | 0 | length of the run, which was freed; in hardened builds | Multi head |
//! | cached head | 0 | length of the run, which was freed and waits in a thread's cache; its tail is as that of a Multi run | Multi head |
//! | held head | 0 | as a Multi head, while the end of the run goes back to the system and the runs are locked | Multi head |
//! | waiting tail | 0 | only that it waits; in hardened builds | Multi tail |
//!
//! Whether a page is free is a bit of [`Runs`]. Tails need no writing, so a run of any length is claimed and
//! released in a few words. For every Divided page
//!
//! > `live + free bits + (capacity - watermark) = capacity`
//!
//! holds: blocks from the watermark on have never been handed out and have no bit; a block in a thread cache
//! counts as live.
//!
//! The table is plain data: no lock, no static, no system call. Who may touch what is said by the arguments:
//! `&mut Runs` is needed to make a page Free or to take it from there, and `&mut Bin` to use the Divided pages of
//! the bin's class and shard. Whoever locks those two has locked the table, but for Multi runs that their owners free to
//! their threads' caches, or take from there: these change state without a lock (`page_table/state.rs`).
//!
//! The module is public for tests, fuzzing and benches, which drive a table without a heap around it:
//!
//! ```
//! use core::ptr::NonNull;
//! use page_memory_allocator::page_table::{Bin, PageTable, Tag};
//! use page_memory_allocator::size_class::{CustomGeometry, SizeClasses};
//! use page_memory_allocator::units::{ClassIndex, PageCount, PageIndex, ShardIndex};
//!
//! let geometry = CustomGeometry::new(4096, SizeClasses::POWERS_OF_TWO).unwrap();
//! let mut storage = vec![0u64; PageTable::storage(geometry, PageCount(8)).div_ceil(8)];
//! let start = NonNull::new(storage.as_mut_ptr()).unwrap().cast();
//! // SAFETY: the storage is zeroed, aligned, long enough, and nothing else's.
//! let (table, mut runs) = unsafe { PageTable::new(geometry, 0x10000, PageCount(8), start) };
//! runs.grow(PageCount(8));
//!
//! let (mut bin, tag, page) = (Bin::new(), Tag::new(ShardIndex(0), ClassIndex(4)), PageIndex(0));
//! table.claim_divided(&mut runs, &mut bin, tag, page);
//! let mut blocks = [0; 3];
//! let mut divided = table.divided(&mut bin, page);
//! assert_eq!(divided.take(&mut blocks, |_, _| ()), 3);
//! assert_eq!((blocks[2], divided.live()), (0x10000, 3)); // the table never touches the memory that it is of
//! divided.settle();
//! // SAFETY: all bins and the runs are this thread's.
//! let census = unsafe { table.check(&runs) }.unwrap();
//! assert_eq!((census.divided_pages, census.live_blocks, census.free_pages), (1, 3, 7));
//! ```

mod bin;
mod check;
mod divided;
mod multi;
mod neighbours;
mod state;
mod storage;
mod watched;

pub use bin::Bin;
pub use check::{Census, Violation};
pub use divided::{Contents, DividedPage};
pub(crate) use multi::Mapping;

use bin::Link;
use state::{AtomicState, State};
use storage::{BitmapWords, KINDS};

use crate::runs::Runs;
use crate::size_class::Geometry;
use crate::units::{ClassIndex, ComponentIndex, PageCount, PageIndex, ShardIndex};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicUsize, Ordering};
use static_assertions::{const_assert, const_assert_eq};

/// Class and shard of a Divided page in one integer; zero for any other page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tag(u16);

impl Tag {
    /// The tag of a page that is not Divided.
    pub const NONE: Tag = Tag(0);

    /// The tag of the pages of `class` in `shard`.
    #[inline]
    pub const fn new(shard: ShardIndex, class: ClassIndex) -> Tag {
        Tag((shard.0 as u16) << 8 | class.0 as u16)
    }

    /// The tag with these bits, as a table of tags holds them.
    #[inline]
    pub(crate) const fn from_bits(bits: u16) -> Tag {
        Tag(bits)
    }

    #[inline]
    pub(crate) const fn bits(self) -> u16 {
        self.0
    }

    /// The class, or [`ClassIndex::NONE`].
    #[inline]
    pub const fn class(self) -> ClassIndex {
        ClassIndex(self.0 as u8)
    }

    /// The shard; meaningless when there is no class.
    #[inline]
    pub const fn shard(self) -> ShardIndex {
        ShardIndex((self.0 >> 8) as u8)
    }

    /// Whether the page is Divided.
    #[inline]
    pub const fn is_divided(self) -> bool {
        self.0 != 0
    }
}

/// What the table knows about one page beside its bitmap. All zeros for a Free page and for a Multi tail.
#[derive(Debug)]
#[repr(C)]
struct Header {
    state: AtomicState,
    /// Multi head: the component that holds the run.
    owner: ComponentIndex,
    /// Divided: 1 + the list of its bin that the page is in; 0 while it has no free block.
    list: u8,
    /// Divided: whether blocks were taken or put since [`DividedPage::was_idle`] last looked. Multi head: whether the run was
    /// made or resized since [`PageTable::unused_multi_tail`] last did. Such a page is watched.
    busy: bool,
    /// Multi head: how the run is mapped.
    mapping: Mapping,
    /// Multi head: whether what is behind the bytes asked for has no memory.
    blank: bool,
    /// Divided: whether blocks that were never handed out hold zeros, as the page had no memory when it was divided.
    fresh: bool,
    /// Divided: the sixteenths of the page that have no memory, a bit each. The others may have some.
    purged: u16,
    /// Divided: the sixteenths of the page in which free blocks below the watermark may begin that nothing was written to
    /// when they were put back, or that have lost it since; a bit each.
    unwritten: u16,
    /// Divided: the sixteenths of the page that were purged, and in which no block was handed out since; a bit each.
    zeros: u16,
    /// Divided: blocks handed out, those in thread caches included.
    live: u32,
    /// Divided: blocks from here on have never been handed out.
    watermark: u32,
    /// Divided: no word of the bitmap below this one has a bit.
    first_word: u32,
    /// Divided: neighbours in the list, as links.
    next: Link,
    previous: Link,
    /// Multi head: pages in the run.
    run: PageCount,
    /// Multi head: bytes of the last page behind those that were asked for. Whoever has the run may change it, and others may
    /// look.
    tail: AtomicU32,
}

const_assert_eq!(size_of::<Header>(), 44); // beside 64 KiB of memory; a field more is no harm
const_assert!(align_of::<Header>() <= 8); // the storage is aligned to words

/// What a page is, with the figures that belong to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageState {
    /// Not in use.
    Free,
    /// Blocks of one size.
    Divided {
        /// The class of the blocks.
        class: ClassIndex,
        /// Bytes in a block.
        block: usize,
        /// Blocks that could be handed out.
        free_blocks: usize,
        /// Blocks handed out, those in thread caches included.
        live_blocks: usize,
        /// Offset, within the page, of the block that is handed out next; 0 when none is free.
        next_offset: usize,
    },
    /// The first page of a run that is one allocation.
    MultiHead {
        /// Pages in the run.
        run: PageCount,
    },
    /// Another page of such a run.
    MultiTail,
}

/// A use of a pointer that the page table contradicts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misuse {
    /// The address is not in the arena.
    OutsideArena,
    /// The page is not in use.
    FreePage,
    /// The address is not where a block, or a run, starts.
    NotAtStart,
    /// The block is free already.
    AlreadyFree,
    /// The block was freed, and then freed again or written to.
    UsedSinceFreed,
    /// The layout belongs to another size class, or to a run of another length.
    WrongLayout,
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Misuse::OutsideArena => "freed a pointer that is not from this heap",
            Misuse::FreePage => "freed a pointer into a page that is not in use",
            Misuse::NotAtStart => "freed a pointer into the middle of a block",
            Misuse::AlreadyFree => "freed a block twice",
            Misuse::UsedSinceFreed => "freed a block twice, or wrote to a freed block",
            Misuse::WrongLayout => "freed with a layout that the block or run does not have",
        })
    }
}

/// The table of one arena. See the [module](self).
///
/// # Panics
/// Methods that are given a page panic if the arena has none of that index; the heap gives them no such page.
#[derive(Debug)]
pub struct PageTable<G> {
    geometry: G,
    /// Address of page 0.
    base: usize,
    capacity: PageCount,
    bitmap_words: BitmapWords,
    headers: NonNull<Header>,
    tags: NonNull<AtomicU16>,
    /// A bit for each page: see [`next_watched`](PageTable::next_watched).
    watched: NonNull<AtomicUsize>,
    /// For every page a bitmap of each kind.
    bitmaps: [NonNull<u64>; KINDS],
}

// SAFETY: the pointers lead to storage that belongs to the table alone; what they lead to is reached only through
// `&mut Runs` or `&mut Bin`, but for what is atomic, and the header of a run that its owner frees to a cache or takes from there,
// as long as its state says that it is theirs.
unsafe impl<G: Send> Send for PageTable<G> {}
// SAFETY: as above.
unsafe impl<G: Sync> Sync for PageTable<G> {}

impl<G: Geometry> PageTable<G> {
    /// The geometry of the arena.
    #[inline]
    pub fn geometry(&self) -> G {
        self.geometry
    }

    /// Pages in the arena.
    #[inline]
    pub fn capacity(&self) -> PageCount {
        self.capacity
    }

    /// Address of the arena's first page.
    #[inline]
    pub fn base(&self) -> usize {
        self.base
    }

    /// The tags, one a page, for lookups on a fast path.
    pub(crate) fn tags(&self) -> *const AtomicU16 {
        self.tags.as_ptr()
    }

    /// The page that `address` lies in.
    #[inline]
    pub fn page_of(&self, address: usize) -> Option<PageIndex> {
        let page = address.wrapping_sub(self.base) >> self.geometry.page_shift();
        (page < self.capacity.get()).then_some(PageIndex(page as u32))
    }

    /// Address of `page`.
    #[inline]
    pub fn address_of(&self, page: PageIndex) -> usize {
        self.base + (page.get() << self.geometry.page_shift())
    }

    /// Class and shard of `page`, if it is Divided. May be read at any time. While a block of the page is live the
    /// class does not change; the shard may, unless its bin is locked.
    #[inline]
    pub fn tag(&self, page: PageIndex) -> Tag {
        assert!(page.0 < self.capacity.0, "a page of another arena");
        // SAFETY: the page is one of the arena's, which all have a tag.
        Tag(unsafe { self.tags.add(page.get()).as_ref() }.load(Ordering::Relaxed))
    }

    fn set_tag(&self, page: PageIndex, tag: Tag) {
        assert!(page.0 < self.capacity.0, "a page of another arena");
        // SAFETY: as in `tag`.
        unsafe { self.tags.add(page.get()).as_ref() }.store(tag.0, Ordering::Relaxed);
    }

    fn header(&self, page: PageIndex) -> *mut Header {
        assert!(page.0 < self.capacity.0, "a page of another arena");
        // SAFETY: the page is one of the arena's, which all have a header.
        unsafe { self.headers.add(page.get()).as_ptr() }
    }

    fn capacity_of(&self, tag: Tag) -> usize {
        self.geometry.capacity(tag.class())
    }

    /// Makes the free page `page` a Divided one of `bin`, which is that of `tag`, with no block in use.
    pub fn claim_divided(&self, runs: &mut Runs, bin: &mut Bin, tag: Tag, page: PageIndex) {
        debug_assert!(tag.is_divided());
        runs.claim(page, PageCount(1));
        // SAFETY: the page was free, so its header belongs to the holder of `runs`.
        let header = unsafe { &mut *self.header(page) };
        debug_assert_eq!(header.state.get(), State::None);
        header.state.set(State::Divided);
        (header.live, header.watermark, header.first_word) = (0, 0, 0);
        header.fresh = runs.dirty_within(page, PageCount(1)).is_none();
        (header.busy, header.purged) = (true, if header.fresh { u16::MAX } else { 0 });
        self.watch(page);
        self.set_tag(page, tag);
        bin.pages += 1;
        self.relist(bin, page, Bin::list_of(self.capacity_of(tag), self.capacity_of(tag)));
    }

    /// Makes a Divided page without live blocks Free.
    pub fn release_divided(&self, runs: &mut Runs, bin: &mut Bin, page: PageIndex) {
        self.relist(bin, page, 0);
        bin.pages -= 1;
        let mut divided = self.divided(bin, page);
        debug_assert_eq!(divided.header.live, 0);
        divided.bitmap().fill(0);
        divided.header.state.set(State::None);
        (divided.header.watermark, divided.header.first_word) = (0, 0);
        (divided.header.busy, divided.header.fresh) = (false, false);
        (divided.header.purged, divided.header.unwritten, divided.header.zeros) = (0, 0, 0);
        self.let_be(page);
        self.set_tag(page, Tag::NONE);
        runs.release(page, PageCount(1));
    }

    /// Moves a Divided page to the bin of another shard, `to`, which is that of `tag`.
    pub fn transfer(&self, from: &mut Bin, to: &mut Bin, tag: Tag, page: PageIndex) {
        debug_assert_eq!(self.tag(page).class(), tag.class());
        self.relist(from, page, 0);
        from.pages -= 1;
        to.pages += 1;
        self.set_tag(page, tag);
        self.divided(to, page).settle();
    }

    /// The Divided page `page`, whose class and shard are those of `bin`.
    #[inline]
    pub fn divided<'a>(&'a self, bin: &'a mut Bin, page: PageIndex) -> DividedPage<'a, G> {
        let tag = self.tag(page);
        debug_assert!(tag.is_divided());
        // SAFETY: the page is Divided, so its header belongs to the holder of its bin.
        let header = unsafe { &mut *self.header(page) };
        DividedPage { table: self, page, tag, bin, header }
    }

    /// What `page` is, if it is not Divided.
    pub fn undivided_state(&self, runs: &Runs, page: PageIndex) -> Option<PageState> {
        if runs.is_free(page) {
            return Some(PageState::Free);
        }
        match self.multi_run(runs, page) {
            Ok(run) => Some(PageState::MultiHead { run }),
            Err(Misuse::NotAtStart) => Some(PageState::MultiTail),
            Err(Misuse::FreePage) => Some(PageState::Free),
            Err(_) => None,
        }
    }

    /// The bitmap of a Divided page of `capacity` blocks, of which those below `watermark` were ever handed out. No bit moves
    /// from one to a longer one: when the watermark rises, no block below it is free.
    #[inline]
    fn bitmap_of(&self, page: PageIndex, capacity: usize, watermark: usize) -> NonNull<[u64]> {
        self.bitmap_at(page, capacity, self.bitmap_words.kind(watermark))
    }

    /// The other bitmaps of that page, whose bits are all zero.
    fn other_bitmaps_of(
        &self,
        page: PageIndex,
        capacity: usize,
        watermark: usize,
    ) -> impl Iterator<Item = NonNull<[u64]>> {
        let used = self.bitmap_words.kind(watermark);
        (0..KINDS).filter(move |&kind| kind != used).map(move |kind| self.bitmap_at(page, capacity, kind))
    }

    #[inline]
    fn bitmap_at(&self, page: PageIndex, capacity: usize, kind: usize) -> NonNull<[u64]> {
        assert!(page.0 < self.capacity.0, "a page of another arena");
        let (bitmaps, words) = (self.bitmaps[kind], self.bitmap_words.0[kind]);
        // SAFETY: the page is one of the arena's, which all have bitmaps of each kind, of that length.
        let first = unsafe { bitmaps.add(page.get() * words) };
        NonNull::slice_from_raw_parts(first, capacity.div_ceil(u64::BITS as usize).min(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::{CustomGeometry, SizeClasses};
    use std::vec;
    use std::vec::Vec;

    /// A table, and the memory that it is in.
    fn table_of(
        geometry: CustomGeometry,
        pages: PageCount,
    ) -> (Vec<u64>, PageTable<CustomGeometry>, Runs<'static>) {
        let mut storage = vec![0u64; PageTable::storage(geometry, pages).div_ceil(8)];
        let start = NonNull::new(storage.as_mut_ptr()).unwrap().cast();
        // SAFETY: the storage is zeroed, as long as it should be, aligned, and used by nothing else.
        let (table, runs) = unsafe { PageTable::new(geometry, 0, pages, start) };
        (storage, table, runs)
    }

    #[test]
    fn blocks_put_back_unwritten_are_told_as_blank_until_the_page_is_full() {
        // A block is a part.
        let geometry = CustomGeometry::new(4096, SizeClasses::POWERS_OF_TWO).unwrap();
        let (_storage, table, mut runs) = table_of(geometry, PageCount(1));
        runs.grow(PageCount(1));
        let class = geometry.class_of(core::alloc::Layout::new::<[u8; 256]>());
        let (mut bin, page) = (Bin::new(), PageIndex(0));
        table.claim_divided(&mut runs, &mut bin, Tag::new(ShardIndex(0), class), page);
        let mut divided = table.divided(&mut bin, page);
        // Takes blocks, and puts four back, to which nothing was written in some.
        let mut take = |count: usize, unwritten: &[usize]| {
            let (mut slots, told) = (vec![0; count], core::cell::RefCell::new(vec![]));
            assert_eq!(
                divided.take(&mut slots, |blank, _| told.borrow_mut().extend_from_slice(blank)),
                count
            );
            divided.put(&[0, 256, 512, 768]).unwrap();
            divided.note_unwritten(unwritten);
            told.into_inner()
        };
        assert_eq!(take(8, &[512, 256]), [1792, 1536, 1280, 1024, 768, 512, 256, 0]);
        assert_eq!(take(5, &[]), [2048, 512, 256]);
        assert_eq!(take(4, &[768]), [512, 256]);
        assert_eq!(take(11, &[]).len(), 7 + 3);
        assert_eq!(take(4, &[0]), []);
        assert_eq!(take(4, &[]), [0]);
    }

    #[test]
    fn blocks_that_were_never_handed_out_hold_zeros_if_their_page_had_no_memory() {
        let geometry = CustomGeometry::new(4096, SizeClasses::POWERS_OF_TWO).unwrap();
        let (_storage, table, mut runs) = table_of(geometry, PageCount(1));
        runs.grow(PageCount(1));
        let class = geometry.class_of(core::alloc::Layout::new::<[u8; 1024]>());
        let (mut bin, page) = (Bin::new(), PageIndex(0));
        let mut take_two_after = |purged: bool, runs: &mut Runs| {
            if purged {
                runs.clean(page, PageCount(1));
            }
            table.claim_divided(runs, &mut bin, Tag::new(ShardIndex(0), class), page);
            let told = core::cell::RefCell::new(vec![]);
            let mut slots = [0; 2];
            for put in [true, false] {
                let mut divided = table.divided(&mut bin, page);
                divided.take(&mut slots, |blank, holds| {
                    told.borrow_mut().extend(blank.iter().map(|&block| (block, holds)));
                });
                if put {
                    divided.put(&slots[..1]).unwrap();
                    divided.note_unwritten(&slots[..1]);
                }
                divided.settle();
            }
            table.divided(&mut bin, page).put(&[0, 1024, 2048]).unwrap();
            table.release_divided(runs, &mut bin, page);
            told.into_inner()
        };
        let told = |holds| vec![(1024, holds), (0, holds), (2048, holds), (1024, Contents::Unknown)];
        assert_eq!(take_two_after(false, &mut runs), told(Contents::Zeros));
        assert_eq!(take_two_after(false, &mut runs), told(Contents::Unknown));
        assert_eq!(take_two_after(true, &mut runs), told(Contents::Zeros));
    }

    #[test]
    fn a_page_has_the_shortest_bitmap_that_is_enough_for_the_blocks_handed_out() {
        let geometry = CustomGeometry::new(65536, SizeClasses::POWERS_OF_TWO).unwrap();
        let (_storage, table, mut runs) = table_of(geometry, PageCount(2));
        runs.grow(PageCount(2));
        let class = geometry.class_of(core::alloc::Layout::new::<[u8; 8]>());
        let (mut bin, page) = (Bin::new(), PageIndex(1));
        table.claim_divided(&mut runs, &mut bin, Tag::new(ShardIndex(0), class), page);
        let mut divided = table.divided(&mut bin, page);
        let mut handed_out = 0;
        for (all, kind, words) in [(128, 0, 2), (129, 1, 16), (1024, 1, 16), (1025, 2, 128), (8192, 2, 128)] {
            let mut blocks = vec![0; all - handed_out];
            assert_eq!(divided.take(&mut blocks, |_, _| ()), all - handed_out);
            divided.put(&blocks).unwrap();
            for each in 0..KINDS {
                // SAFETY: nothing else has a bitmap.
                let bitmap = unsafe { table.bitmap_at(page, 8192, each).as_ref() };
                let bits = bitmap.iter().map(|word| word.count_ones() as usize).sum::<usize>();
                assert_eq!(bits, if each == kind { all - handed_out } else { 0 }, "{each} of {all}");
                assert!(each != kind || bitmap.len() == words);
            }
            assert_eq!(divided.take(&mut blocks, |_, _| ()), all - handed_out);
            handed_out = all;
        }
    }

    #[test]
    fn the_parts_of_a_table_in_use_are_the_whole_of_it_when_all_pages_are() {
        for page_size in [4096, 65536] {
            parts_are_the_whole(CustomGeometry::new(page_size, SizeClasses::POWERS_OF_TWO).unwrap());
        }
    }

    fn parts_are_the_whole(geometry: CustomGeometry) {
        let pages = PageCount(1_000);
        let bytes = PageTable::storage(geometry, pages);
        let (storage, table, _) = table_of(geometry, pages);
        let mut at = storage.as_ptr().addr();
        for (start, bytes) in table.storage_in_use(PageIndex(1_000)) {
            assert_eq!(start, at);
            at += bytes.next_multiple_of(8);
        }
        assert_eq!(at, storage.as_ptr().addr() + bytes);
    }
}
