//! Which shard is whose: the first are those that threads are spread over; then, with the feature `profile`, comes that of
//! sampled blocks; then each component has one.

use crate::size_class::built::SHARDS;
use crate::units::{ComponentIndex, ShardIndex};

/// Shards of the process heap that are no component's: those that threads are spread over, and with the feature `profile`
/// that of sampled blocks.
pub(crate) const SHARED_SHARDS: usize = SHARDS + cfg!(feature = "profile") as usize;

/// Components there can be: each has a shard of pages to itself, beyond the others.
pub(crate) const MOST_COMPONENTS: usize = u8::MAX as usize + 1 - SHARED_SHARDS;

impl ComponentIndex {
    /// The shard of the component's pages; for none, the first of the threads'.
    #[inline]
    pub(crate) fn shard(self) -> ShardIndex {
        ShardIndex(if self == ComponentIndex::NONE { 0 } else { SHARED_SHARDS as u8 - 1 + self.0 })
    }
}

impl ShardIndex {
    /// The shard of the blocks that the profile samples. No thread's cache serves it.
    pub(crate) const SAMPLED: ShardIndex = ShardIndex(SHARDS as u8);

    /// Whether the shard is that of sampled blocks.
    #[inline(always)]
    pub(crate) fn is_sampled(self) -> bool {
        cfg!(feature = "profile") && self == ShardIndex::SAMPLED
    }

    /// The component whose pages are in this shard of the process heap.
    #[inline]
    pub(crate) fn component(self) -> ComponentIndex {
        ComponentIndex(self.0.saturating_sub(SHARED_SHARDS as u8 - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_and_components_lead_to_each_other() {
        for shard in 0..=u8::MAX {
            let component = ShardIndex(shard).component();
            assert_eq!(component == ComponentIndex::NONE, (shard as usize) < SHARED_SHARDS);
            if component != ComponentIndex::NONE {
                assert_eq!(component.shard(), ShardIndex(shard));
                assert!((component.0 as usize) <= MOST_COMPONENTS);
            }
        }
    }
}
