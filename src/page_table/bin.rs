//! Bins: lists of the Divided pages that have free blocks, threaded through the headers.

use super::PageTable;
use crate::expectation::Expectation;
use crate::size_class::Geometry;
use crate::units::PageIndex;

/// A page in a list, or the end of it: 1 + the page's index, or 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link(u32);

impl Link {
    pub(super) const END: Link = Link(0);

    pub(super) fn to(page: PageIndex) -> Link {
        Link(page.0 + 1)
    }

    pub(super) fn page(self) -> Option<PageIndex> {
        self.0.checked_sub(1).map(PageIndex)
    }
}

/// Lists of a bin, from the pages with the fewest free blocks to the emptiest.
pub(super) const LISTS: usize = 4;

/// The pages of one class and shard that have free blocks, by how full they are. A page whose blocks are all
/// in use is in no list.
///
/// Blocks are taken from the fullest pages, so that the emptier ones drain and can be released.
#[derive(Debug)]
pub struct Bin {
    pub(super) heads: [Link; LISTS],
    /// Divided pages of this class and shard, listed or not.
    pub(super) pages: u32,
    /// Those of them that are in a list.
    pub(super) listed: u32,
    /// Of pages that are to be divided.
    pub(crate) expectation: Expectation,
}

impl Bin {
    /// A bin without pages: all zeros.
    pub const fn new() -> Bin {
        Bin { heads: [Link::END; LISTS], pages: 0, listed: 0, expectation: Expectation::NONE }
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

    /// The first page of the emptiest list that has one.
    pub(crate) fn emptiest(&self) -> Option<PageIndex> {
        self.heads.iter().rev().find_map(|head| head.page())
    }

    /// Divided pages of this class and shard.
    pub fn pages(&self) -> usize {
        self.pages as usize
    }

    /// The list for a page with `free` of `capacity` blocks free, as in [`Header::list`](super::Header::list).
    pub(super) fn list_of(free: usize, capacity: usize) -> u8 {
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

impl<G: Geometry> PageTable<G> {
    /// Moves `page` to list `list` of its bin (as in [`Header::list`](super::Header::list)), if it is not there.
    pub(super) fn relist(&self, bin: &mut Bin, page: PageIndex, list: u8) {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page_table::Tag;
    use crate::size_class::{CustomGeometry, SizeClasses};
    use crate::units::{ClassIndex, PageCount, ShardIndex};
    use core::ptr::NonNull;

    #[test]
    fn the_more_blocks_a_page_has_free_the_later_is_its_list() {
        let lists = [(0, 0), (1, 1), (7, 1), (8, 2), (15, 2), (16, 3), (31, 3), (32, 4), (64, 4)];
        assert!(lists.iter().all(|&(free, list)| Bin::list_of(free, 64) == list));
    }

    #[test]
    fn a_bin_spares_no_page_unless_it_has_another_and_a_page_counts_where_it_is() {
        let geometry = CustomGeometry::new(4096, SizeClasses::POWERS_OF_TWO).unwrap();
        let pages = PageCount(8);
        let mut storage = std::vec![0u64; PageTable::storage(geometry, pages) / 8];
        let start = NonNull::new(storage.as_mut_ptr()).unwrap().cast();
        // SAFETY: the storage is zeroed, as long as it should be, aligned, and used by nothing else; each shard has one bin.
        let (table, mut runs) = unsafe { PageTable::new(geometry, 1 << 20, pages, start) };
        runs.grow(pages);
        let tags = [0, 1].map(|shard| Tag::new(ShardIndex(shard), ClassIndex(4)));
        let (mut from, mut to) = (Bin::new(), Bin::new());
        table.claim_divided(&mut runs, &mut from, tags[0], PageIndex(0));
        assert_eq!((from.spare(), from.pages()), (None, 1));
        table.claim_divided(&mut runs, &mut from, tags[0], PageIndex(1));
        let spared = from.spare().expect("it has two pages whose blocks are all free");
        table.transfer(&mut from, &mut to, tags[1], spared);
        assert_eq!((from.pages(), to.pages(), from.spare(), to.spare()), (1, 1, None, None));
        assert_eq!((to.fullest(), table.tag(spared)), (Some(spared), tags[1]));
    }
}
