//! Where the parts of a table lie in the memory that it is given.

use super::{Header, PageTable, watched};
use crate::runs::{Runs, Summary, Word};
use crate::size_class::{GRANULE, Geometry};
use crate::units::{PageCount, PageIndex};
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU16;

/// Kinds of bitmaps, which differ in length.
pub(super) const KINDS: usize = 3;

/// Most words of a bitmap that is not of the last kind: enough for all blocks of 512 and of 64 bytes in pages of 64 KiB.
const MOST_WORDS: [usize; KINDS - 1] = [2, 16];

/// The words of a page's bitmaps, by kind. A page has the shortest that is enough for the blocks that were ever handed out,
/// so that those of many pages lie in one OS page; the longer ones are not touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BitmapWords(pub(super) [usize; KINDS]);

impl BitmapWords {
    fn new<G: Geometry>(geometry: G) -> BitmapWords {
        let all = (geometry.page_size() / GRANULE).div_ceil(u64::BITS as usize);
        let [tiny, short] = MOST_WORDS;
        // Where few are enough for all blocks, there is one kind.
        BitmapWords(if all > short { [tiny, short, all] } else { [all, 0, 0] })
    }

    /// The kind that is enough for the blocks below `watermark`.
    #[inline]
    pub(super) fn kind(self, watermark: usize) -> usize {
        let BitmapWords([tiny, short, _]) = self;
        usize::from(watermark > tiny * u64::BITS as usize)
            + usize::from(watermark > tiny.max(short) * u64::BITS as usize)
    }

    /// Bytes of `count` pages' bitmaps, by kind.
    fn bytes(self, count: usize) -> [usize; KINDS] {
        self.0.map(|words| count * words * size_of::<u64>())
    }
}

/// Where each part of a table lies in its storage, in bytes.
struct Sections {
    tags: usize,
    watched: usize,
    bitmaps: [usize; KINDS],
    /// Those of the index of runs.
    words: usize,
    summaries: usize,
    end: usize,
}

impl Sections {
    fn new(capacity: PageCount, bitmap_words: BitmapWords) -> Sections {
        let (words_of_runs, nodes) = Runs::words_and_summaries(capacity);
        let aligned = |bytes: usize| bytes.next_multiple_of(size_of::<u64>());
        let tags = aligned(capacity.get() * size_of::<Header>());
        let watched = tags + aligned(capacity.get() * size_of::<AtomicU16>());
        let words = watched + aligned(watched::bytes(capacity));
        let summaries = words + words_of_runs * size_of::<Word>();
        let mut end = summaries + aligned(nodes * size_of::<Summary>());
        let bitmaps = bitmap_words.bytes(capacity.get()).map(|bytes| {
            end += bytes;
            end - bytes
        });
        Sections { tags, watched, bitmaps, words, summaries, end }
    }
}

impl<G: Geometry> PageTable<G> {
    /// Bytes of storage that a table of `capacity` pages needs.
    pub fn storage(geometry: G, capacity: PageCount) -> usize {
        Sections::new(capacity, BitmapWords::new(geometry)).end
    }

    /// Where in the storage the bitmaps of `pages` lie: in bytes, by kind, upward. Behind the first there are none but
    /// bitmaps, which are the most of it, and that of a page is not touched before the page is Divided.
    pub(crate) fn bitmaps_in_storage(
        geometry: G,
        capacity: PageCount,
        pages: Range<usize>,
    ) -> [Range<usize>; KINDS] {
        let bitmap_words = BitmapWords::new(geometry);
        let first = Sections::new(capacity, bitmap_words).bitmaps;
        let (starts, ends) = (bitmap_words.bytes(pages.start), bitmap_words.bytes(pages.end));
        core::array::from_fn(|kind| first[kind] + starts[kind]..first[kind] + ends[kind])
    }

    /// A table of `capacity` pages for the arena that begins at address `base`, and the index of its runs.
    ///
    /// # Safety
    /// `storage` leads to [`PageTable::storage`] bytes of zeros, aligned to 8, that nothing else uses for as long
    /// as the table or the index is in use. For one class and shard there is one [`Bin`](super::Bin) only.
    pub unsafe fn new(
        geometry: G,
        base: usize,
        capacity: PageCount,
        storage: NonNull<u8>,
    ) -> (PageTable<G>, Runs<'static>) {
        let bitmap_words = BitmapWords::new(geometry);
        let sections = Sections::new(capacity, bitmap_words);
        let (words, nodes) = Runs::words_and_summaries(capacity);
        // SAFETY: the sections lie within the storage, do not overlap, are aligned, and zeros are a valid value of
        // what each holds.
        unsafe {
            let table = PageTable {
                geometry,
                base,
                capacity,
                bitmap_words,
                headers: storage.cast(),
                tags: storage.add(sections.tags).cast(),
                watched: storage.add(sections.watched).cast(),
                bitmaps: sections.bitmaps.map(|first| storage.add(first).cast()),
            };
            let runs = Runs::new(
                capacity,
                NonNull::slice_from_raw_parts(storage.add(sections.words).cast(), words).as_mut(),
                NonNull::slice_from_raw_parts(storage.add(sections.summaries).cast(), nodes).as_mut(),
            );
            (table, runs)
        }
    }

    /// Where the parts of the table are that serve the pages below `frontier`: start and length in bytes.
    pub(crate) fn storage_in_use(&self, frontier: PageIndex) -> [(usize, usize); 2 + KINDS] {
        let sections = Sections::new(self.capacity, self.bitmap_words);
        let start = self.headers.addr().get();
        let bytes = self.bitmap_words.bytes(frontier.get());
        core::array::from_fn(|part| match part {
            0 => (start, frontier.get() * size_of::<Header>()),
            1 => (start + sections.tags, sections.bitmaps[0] - sections.tags),
            _ => (self.bitmaps[part - 2].addr().get(), bytes[part - 2]),
        })
    }

    /// Calls `see` with start and length of the parts of the table that serve `pages` and hold nothing but zeros, in
    /// whole grains of `grain` bytes, a power of two. They stay so while `runs` is held: a bitmap belongs to a Divided
    /// page, a header to one that is not Free.
    pub(crate) fn for_each_unused_part(
        &self,
        runs: &Runs,
        pages: Range<PageIndex>,
        grain: usize,
        mut see: impl FnMut(NonNull<u8>, usize),
    ) {
        let blocks = |page| {
            let tag = self.tag(page);
            if tag.is_divided() { self.capacity_of(tag) } else { 0 }
        };
        let mut of_array = |array: NonNull<u8>, stride: usize, is_unused: &dyn Fn(PageIndex) -> bool| {
            let mut page = pages.start.get();
            while page < pages.end.get() {
                let first = page;
                while page < pages.end.get() && is_unused(PageIndex(page as u32)) {
                    page += 1;
                }
                let start = (array.addr().get() + first * stride).next_multiple_of(grain);
                let end = (array.addr().get() + page * stride) & !(grain - 1);
                if start < end {
                    // SAFETY: the part lies within the array.
                    see(unsafe { array.add(start - array.addr().get()) }, end - start);
                }
                page += 1;
            }
        };
        of_array(self.headers.cast(), size_of::<Header>(), &|page| runs.is_free(page));
        let mut enough = 0;
        for (bitmaps, words) in self.bitmaps.into_iter().zip(self.bitmap_words.0) {
            of_array(bitmaps.cast(), words * size_of::<u64>(), &|page| blocks(page) <= enough);
            enough = words * u64::BITS as usize;
        }
    }
}
