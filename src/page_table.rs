//! The page table: what every page of an arena is, and which of its blocks are free.
//!
//! | state | tag | header | may become |
//! |---|---|---|---|
//! | Free | 0 | zeroed | Divided, Multi head, Multi tail |
//! | Divided | class and shard | live blocks, watermark, list links; a bitmap beside it | Free, once no block is live |
//! | Multi head | 0 | length of the run | Free |
//! | Multi tail | 0 | zeroed; it is neither free nor a head | Free |
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
//! the bin's class and shard. Whoever locks those two has locked the table.

use crate::runs::{Runs, Summary};
use crate::size_class::{GRANULE, Geometry};
use crate::units::{ClassIndex, PageCount, PageIndex, ShardIndex};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering};
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

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum State {
    /// Free or Multi tail.
    None = 0,
    Divided,
    MultiHead,
}

/// What the table knows about one page beside its bitmap. All zeros for a Free page and for a Multi tail.
#[derive(Debug)]
#[repr(C)]
struct Header {
    state: State,
    /// Divided: 1 + the list of its bin that the page is in; 0 while it has no free block.
    list: u8,
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
}

const_assert_eq!(size_of::<Header>(), 28); // beside 64 KiB of memory; a field more is no harm
const_assert!(align_of::<Header>() <= 8); // the storage is aligned to words

/// A page in a list, or the end of it: 1 + the page's index, or 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Link(u32);

impl Link {
    const END: Link = Link(0);

    fn to(page: PageIndex) -> Link {
        Link(page.0 + 1)
    }

    fn page(self) -> Option<PageIndex> {
        self.0.checked_sub(1).map(PageIndex)
    }
}

/// Lists of a bin, from the pages with the fewest free blocks to the emptiest.
const LISTS: usize = 4;

/// The pages of one class and shard that have free blocks, by how full they are. A page whose blocks are all
/// in use is in no list.
///
/// Blocks are taken from the fullest pages, so that the emptier ones drain and can be released.
#[derive(Debug)]
pub struct Bin {
    heads: [Link; LISTS],
    /// Divided pages of this class and shard, listed or not.
    pages: u32,
    /// Those of them that are in a list.
    listed: u32,
}

impl Bin {
    /// A bin without pages: all zeros.
    pub const fn new() -> Bin {
        Bin { heads: [Link::END; LISTS], pages: 0, listed: 0 }
    }

    /// The first page of the fullest list that has one.
    pub fn fullest(&self) -> Option<PageIndex> {
        self.heads.iter().find_map(|head| head.page())
    }

    /// A page with at least a quarter of its blocks free, the emptiest list first, that the bin can spare: it has
    /// another one with free blocks.
    pub fn spare(&self) -> Option<PageIndex> {
        if self.listed < 2 {
            return None;
        }
        self.heads[LISTS / 2..].iter().rev().find_map(|head| head.page())
    }

    /// Divided pages of this class and shard.
    pub fn pages(&self) -> usize {
        self.pages as usize
    }

    /// The list for a page with `free` of `capacity` blocks free, as in [`Header::list`].
    fn list_of(free: usize, capacity: usize) -> u8 {
        if free == 0 {
            return 0;
        }
        1 + u8::from(free >= capacity / 8) + u8::from(free >= capacity / 4) + u8::from(free >= capacity / 2)
    }
}

impl Default for Bin {
    fn default() -> Bin {
        Bin::new()
    }
}

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
            Misuse::WrongLayout => "freed a block with the layout of another size class",
        })
    }
}

/// An invariant that does not hold, and the page (or the first page concerned) where it was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What should hold and does not.
    pub what: &'static str,
    /// Where.
    pub page: PageIndex,
}

/// Totals of a verified table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// Pages not in use, those above the frontier included.
    pub free_pages: usize,
    /// Divided pages.
    pub divided_pages: usize,
    /// Pages of Multi runs.
    pub multi_pages: usize,
    /// Multi runs.
    pub runs: usize,
    /// Blocks handed out, those in thread caches included.
    pub live_blocks: usize,
    /// Bytes in those blocks.
    pub live_block_bytes: usize,
    /// Divided pages with free blocks: each is in exactly one list.
    pub listed_pages: usize,
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
    words_per_page: usize,
    headers: NonNull<Header>,
    tags: NonNull<AtomicU16>,
    bitmaps: NonNull<u64>,
}

// SAFETY: the pointers lead to storage that belongs to the table alone; what they lead to is reached only through
// `&mut Runs` or `&mut Bin`, tags apart, which are atomic.
unsafe impl<G: Send> Send for PageTable<G> {}
// SAFETY: as above.
unsafe impl<G: Sync> Sync for PageTable<G> {}

/// Where each part of a table lies in its storage, in bytes.
struct Sections {
    tags: usize,
    bitmaps: usize,
    free: usize,
    dirty: usize,
    summaries: usize,
    end: usize,
}

impl Sections {
    fn new(capacity: PageCount, words_per_page: usize) -> Sections {
        let (words, nodes) = Runs::storage(capacity);
        let aligned = |bytes: usize| bytes.next_multiple_of(size_of::<u64>());
        let tags = aligned(capacity.get() * size_of::<Header>());
        let free = tags + aligned(capacity.get() * size_of::<AtomicU16>());
        let dirty = free + words * size_of::<u64>();
        let summaries = dirty + words * size_of::<u64>();
        let bitmaps = summaries + aligned(nodes * size_of::<Summary>());
        let end = bitmaps + capacity.get() * words_per_page * size_of::<u64>();
        Sections { tags, bitmaps, free, dirty, summaries, end }
    }
}

fn words_per_page<G: Geometry>(geometry: G) -> usize {
    (geometry.page_size() / GRANULE).div_ceil(u64::BITS as usize)
}

impl<G: Geometry> PageTable<G> {
    /// Bytes of storage that a table of `capacity` pages needs.
    pub fn storage(geometry: G, capacity: PageCount) -> usize {
        Sections::new(capacity, words_per_page(geometry)).end
    }

    /// A table of `capacity` pages for the arena that begins at address `base`, and the index of its runs.
    ///
    /// # Safety
    /// `storage` leads to [`PageTable::storage`] bytes of zeros, aligned to 8, that nothing else uses for as long
    /// as the table or the index is in use. For one class and shard there is one [`Bin`] only.
    pub unsafe fn new(
        geometry: G,
        base: usize,
        capacity: PageCount,
        storage: NonNull<u8>,
    ) -> (PageTable<G>, Runs<'static>) {
        let words_per_page = words_per_page(geometry);
        let sections = Sections::new(capacity, words_per_page);
        let (words, nodes) = Runs::storage(capacity);
        // SAFETY: the sections lie within the storage, do not overlap, are aligned, and zeros are a valid value of
        // what each holds.
        unsafe {
            let table = PageTable {
                geometry,
                base,
                capacity,
                words_per_page,
                headers: storage.cast(),
                tags: storage.add(sections.tags).cast(),
                bitmaps: storage.add(sections.bitmaps).cast(),
            };
            let runs = Runs::new(
                capacity,
                NonNull::slice_from_raw_parts(storage.add(sections.free).cast(), words).as_mut(),
                NonNull::slice_from_raw_parts(storage.add(sections.dirty).cast(), words).as_mut(),
                NonNull::slice_from_raw_parts(storage.add(sections.summaries).cast(), nodes).as_mut(),
            );
            (table, runs)
        }
    }

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

    /// Makes `count` free pages from `start` on one Multi run.
    pub fn claim_multi(&self, runs: &mut Runs, start: PageIndex, count: PageCount) {
        runs.claim(start, count);
        // SAFETY: the page was free, so its header belongs to the holder of `runs`.
        let header = unsafe { &mut *self.header(start) };
        debug_assert_eq!(header.state, State::None);
        (header.state, header.run) = (State::MultiHead, count);
    }

    /// Length of the Multi run that begins at `head`, or why there is none.
    pub fn multi_run(&self, runs: &Runs, head: PageIndex) -> Result<PageCount, Misuse> {
        if runs.is_free(head) {
            return Err(Misuse::FreePage);
        }
        if self.tag(head).is_divided() {
            return Err(Misuse::WrongLayout);
        }
        // SAFETY: the page is part of a Multi run, so its header belongs to the holder of `runs`.
        let header = unsafe { &*self.header(head) };
        if header.state == State::MultiHead { Ok(header.run) } else { Err(Misuse::NotAtStart) }
    }

    /// Makes the Multi run of `count` pages that begins at `head` Free.
    pub fn release_multi(&self, runs: &mut Runs, head: PageIndex, count: PageCount) {
        debug_assert_eq!(self.multi_run(runs, head), Ok(count));
        // SAFETY: the page begins a Multi run, so its header belongs to the holder of `runs`.
        let header = unsafe { &mut *self.header(head) };
        (header.state, header.run) = (State::None, PageCount(0));
        runs.release(head, count);
    }

    /// Changes the length of the Multi run at `head` from `old` to `new` pages where it stands: gives back its
    /// tail, or takes the free pages behind it. False if those are not all free.
    pub fn resize_multi(&self, runs: &mut Runs, head: PageIndex, old: PageCount, new: PageCount) -> bool {
        debug_assert_eq!(self.multi_run(runs, head), Ok(old));
        if new < old {
            runs.release(head.plus(new), PageCount(old.0 - new.0));
        } else if new > old {
            let more = PageCount(new.0 - old.0);
            if runs.free_from(head.plus(old), more) < more {
                return false;
            }
            runs.claim(head.plus(old), more);
        }
        // SAFETY: as in `release_multi`.
        unsafe { (*self.header(head)).run = new };
        true
    }

    /// Makes the free page `page` a Divided one of `bin`, which is that of `tag`, with no block in use.
    pub fn claim_divided(&self, runs: &mut Runs, bin: &mut Bin, tag: Tag, page: PageIndex) {
        debug_assert!(tag.is_divided());
        runs.claim(page, PageCount(1));
        // SAFETY: the page was free, so its header belongs to the holder of `runs`.
        let header = unsafe { &mut *self.header(page) };
        debug_assert_eq!(header.state, State::None);
        (header.state, header.live, header.watermark, header.first_word) = (State::Divided, 0, 0, 0);
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
        divided.header.state = State::None;
        (divided.header.watermark, divided.header.first_word) = (0, 0);
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

    /// Moves `page` to list `list` of its bin (as in [`Header::list`]), if it is not there.
    fn relist(&self, bin: &mut Bin, page: PageIndex, list: u8) {
        // SAFETY: the page, and each page of a list, is a Divided one of this bin; the references do not overlap, as
        // a page is not its own neighbour.
        unsafe {
            let header = &mut *self.header(page);
            if header.list == list {
                return;
            }
            if header.list != 0 {
                match header.previous.page() {
                    Some(previous) => (*self.header(previous)).next = header.next,
                    None => bin.heads[header.list as usize - 1] = header.next,
                }
                if let Some(next) = header.next.page() {
                    (*self.header(next)).previous = header.previous;
                }
                (header.next, header.previous) = (Link::END, Link::END);
                bin.listed -= 1;
            }
            header.list = list;
            if list != 0 {
                bin.listed += 1;
                let head = &mut bin.heads[list as usize - 1];
                header.next = *head;
                if let Some(next) = head.page() {
                    (*self.header(next)).previous = Link::to(page);
                }
                *head = Link::to(page);
            }
        }
    }

    /// What `page` is, if it is not Divided.
    pub fn undivided_state(&self, runs: &Runs, page: PageIndex) -> Option<PageState> {
        if runs.is_free(page) {
            return Some(PageState::Free);
        }
        match self.multi_run(runs, page) {
            Ok(run) => Some(PageState::MultiHead { run }),
            Err(Misuse::NotAtStart) => Some(PageState::MultiTail),
            Err(_) => None,
        }
    }

    /// Verifies every page against the invariants of the [module](self), and returns the totals.
    ///
    /// # Safety
    /// The caller has exclusive use of the table: it holds `runs` and all bins.
    pub unsafe fn check(&self, runs: &Runs) -> Result<Census, Violation> {
        let mut census = Census::default();
        let fail = |what, page| Err(Violation { what, page });
        if let Err(what) = runs.check() {
            return fail(what, PageIndex(0));
        }
        census.free_pages = self.capacity.get() - runs.frontier().get();
        let mut page = PageIndex(0);
        while page < runs.frontier() {
            // SAFETY: the caller has exclusive use of all headers.
            let header = unsafe { &*self.header(page) };
            let tag = self.tag(page);
            let mut pages = PageCount(1);
            if runs.is_free(page) {
                if header.state != State::None || tag.is_divided() {
                    return fail("a free page has a state", page);
                }
                census.free_pages += 1;
            } else {
                match header.state {
                    State::None => return fail("a page is neither free nor part of anything", page),
                    State::MultiHead => {
                        pages = header.run;
                        self.check_multi(runs, page, pages)?;
                        census.multi_pages += pages.get();
                        census.runs += 1;
                    }
                    State::Divided => {
                        self.check_divided(header, page)?;
                        census.divided_pages += 1;
                        census.live_blocks += header.live as usize;
                        census.live_block_bytes +=
                            header.live as usize * self.geometry.classes().block(tag.class());
                        census.listed_pages += usize::from(header.list != 0);
                    }
                }
            }
            page = page.plus(pages);
        }
        Ok(census)
    }

    fn check_multi(&self, runs: &Runs, head: PageIndex, count: PageCount) -> Result<(), Violation> {
        if count.0 == 0 || head.plus(count) > runs.frontier() {
            return Err(Violation { what: "a run leaves the arena", page: head });
        }
        for page in (head.0..head.plus(count).0).map(PageIndex) {
            // SAFETY: `check` has exclusive use of all headers.
            let header = unsafe { &*self.header(page) };
            let whole = !runs.is_free(page) && !self.tag(page).is_divided();
            if !whole || (page != head && header.state != State::None) {
                return Err(Violation { what: "a page of a run is something else too", page });
            }
        }
        Ok(())
    }

    fn check_divided(&self, header: &Header, page: PageIndex) -> Result<(), Violation> {
        let fail = |what| Err(Violation { what, page });
        let tag = self.tag(page);
        if !tag.is_divided() || tag.class().get() >= self.geometry.class_count() {
            return fail("a Divided page has no class");
        }
        let capacity = self.capacity_of(tag);
        let bitmap = self.bitmap_of(page);
        // SAFETY: `check` has exclusive use of all bitmaps.
        let words = unsafe { bitmap.as_ref() };
        let free_bits: usize = words.iter().map(|word| word.count_ones() as usize).sum();
        if header.live as usize + free_bits + (capacity - header.watermark as usize) != capacity {
            return fail("live + free bits + (capacity - watermark) differs from the capacity");
        }
        let last_bit =
            words.iter().rposition(|&word| word != 0).map(|word| word * 64 + words[word].ilog2() as usize);
        if last_bit.is_some_and(|bit| bit >= header.watermark as usize) {
            return fail("a block above the watermark is marked free");
        }
        if words[..header.first_word as usize].iter().any(|&word| word != 0) {
            return fail("a block below the first free one is free");
        }
        if header.list != Bin::list_of(capacity - header.live as usize, capacity) {
            return fail("a page is in the wrong list");
        }
        Ok(())
    }

    fn bitmap_of(&self, page: PageIndex) -> NonNull<[u64]> {
        assert!(page.0 < self.capacity.0, "a page of another arena");
        // SAFETY: the page is one of the arena's, which all have a bitmap.
        let first = unsafe { self.bitmaps.add(page.get() * self.words_per_page) };
        NonNull::slice_from_raw_parts(first, self.words_per_page)
    }

    /// Verifies the lists of the bin of `tag`, and returns how many pages are in them.
    pub fn check_bin(&self, bin: &mut Bin, tag: Tag) -> Result<usize, Violation> {
        let mut listed = 0;
        for list in 0..LISTS {
            let mut previous = Link::END;
            let mut next = bin.heads[list];
            while let Some(page) = next.page() {
                let fail = |what| Err(Violation { what, page });
                if self.tag(page) != tag {
                    return fail("a list holds a page of another class or shard");
                }
                let header = self.divided(bin, page).header;
                if header.list as usize != list + 1 || header.previous != previous {
                    return fail("a list's links disagree");
                }
                listed += 1;
                if listed > self.capacity.get() {
                    return fail("a list runs in a circle");
                }
                (previous, next) = (Link::to(page), header.next);
            }
        }
        if listed != bin.listed as usize {
            return Err(Violation { what: "a bin's count of listed pages is wrong", page: PageIndex(0) });
        }
        Ok(listed)
    }
}

/// Exclusive use of one Divided page.
#[derive(Debug)]
pub struct DividedPage<'a, G> {
    table: &'a PageTable<G>,
    page: PageIndex,
    tag: Tag,
    bin: &'a mut Bin,
    header: &'a mut Header,
}

impl<G: Geometry> DividedPage<'_, G> {
    /// Blocks handed out.
    pub fn live(&self) -> usize {
        self.header.live as usize
    }

    /// The words of the bitmap that the class uses.
    fn bitmap(&mut self) -> &mut [u64] {
        let words = self.table.capacity_of(self.tag).div_ceil(u64::BITS as usize);
        // SAFETY: the bitmap of a Divided page belongs to the holder of its bin, as the header does.
        let bitmap = unsafe { self.table.bitmap_of(self.page).as_mut() };
        &mut bitmap[..words]
    }

    /// Takes up to `slots.len()` blocks, lowest first, and writes their addresses to the end of `slots` in
    /// descending order: a stack that ends there pops them in ascending order. Returns how many.
    pub fn take(&mut self, slots: &mut [usize]) -> usize {
        let block = self.table.geometry.classes().block(self.tag.class());
        let capacity = self.table.capacity_of(self.tag);
        let base = self.table.address_of(self.page);
        let mut unfilled = slots.len();
        let mut at = self.header.first_word as usize;
        let words = self.bitmap();
        while unfilled > 0 && at < words.len() {
            let mut word = words[at];
            let count = unfilled.min(word.count_ones() as usize);
            let origin = base + at * u64::BITS as usize * block;
            for slot in slots[unfilled - count..unfilled].iter_mut().rev() {
                *slot = origin + word.trailing_zeros() as usize * block;
                word &= word - 1;
            }
            unfilled -= count;
            words[at] = word;
            at += usize::from(word == 0);
        }
        let watermark = self.header.watermark as usize;
        let fresh = unfilled.min(capacity - watermark);
        let mut address = base + watermark * block;
        for slot in slots[unfilled - fresh..unfilled].iter_mut().rev() {
            *slot = address;
            address += block;
        }
        let taken = slots.len() - unfilled + fresh;
        self.header.first_word = at as u32;
        self.header.watermark = (watermark + fresh) as u32;
        self.header.live += taken as u32;
        taken
    }

    /// Takes back the first of `blocks`, which lies in this page, and those that follow it as long as they do.
    /// Returns how many; if one of them is no block in use, its place among `blocks` and what it is instead.
    pub fn put(&mut self, blocks: &[usize]) -> Result<usize, (usize, Misuse)> {
        let class = self.tag.class();
        let classes = self.table.geometry.classes();
        let page_size = self.table.geometry.page_size();
        let base = self.table.address_of(self.page);
        let block = classes.block(class);
        let end = self.header.watermark as usize * block;
        let mut first_word = self.header.first_word as usize;
        let bitmap = self.bitmap();
        let mut put = 0;
        for &address in blocks {
            let offset = address.wrapping_sub(base);
            if offset >= end {
                if offset >= page_size {
                    break;
                }
                return Err((
                    put,
                    if offset % block == 0 { Misuse::AlreadyFree } else { Misuse::NotAtStart },
                ));
            }
            let number = classes.divide(offset, class);
            let (word, bit) = (number / u64::BITS as usize, 1 << (number % u64::BITS as usize));
            if number * block != offset {
                return Err((put, Misuse::NotAtStart));
            }
            if bitmap[word] & bit != 0 {
                return Err((put, Misuse::AlreadyFree));
            }
            bitmap[word] |= bit;
            first_word = first_word.min(word);
            put += 1;
        }
        self.header.first_word = first_word as u32;
        self.header.live -= put as u32;
        Ok(put)
    }

    /// Moves the page to the list that its fullness asks for. Due after blocks were taken or put.
    pub fn settle(self) {
        let capacity = self.table.capacity_of(self.tag);
        let list = Bin::list_of(capacity - self.header.live as usize, capacity);
        self.table.relist(self.bin, self.page, list);
    }

    /// What the page is, for a reader of the table.
    pub fn state(&mut self) -> PageState {
        let class = self.tag.class();
        let block = self.table.geometry.classes().block(class);
        let capacity = self.table.capacity_of(self.tag);
        let watermark = self.header.watermark as usize;
        let first_word = self.header.first_word as usize;
        let free = self.bitmap()[first_word..]
            .iter()
            .position(|&word| word != 0)
            .map(|at| first_word + at)
            .map(|at| at * u64::BITS as usize + self.bitmap()[at].trailing_zeros() as usize);
        let next = free.unwrap_or(if watermark < capacity { watermark } else { 0 });
        PageState::Divided {
            class,
            block,
            free_blocks: capacity - self.live(),
            live_blocks: self.live(),
            next_offset: next * block,
        }
    }
}
