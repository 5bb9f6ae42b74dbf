//! What threads have in common: the core's atomics and cells, and statics made of them.
//!
//! Sources that name these by this module (`lock.rs`, `fork.rs`, `decay.rs`, `first_use.rs`, `page_table/state.rs`, and `fast.rs`,
//! `gate.rs` and `raise.rs` of `thread_cache/`) are compiled a second time by `models/`, whose module of this name has
//! loom's instead: there every order of what threads do is tried.

pub(crate) use core::cell::UnsafeCell;
pub(crate) use core::hint::spin_loop;
#[cfg(feature = "os")]
pub(crate) use core::sync::atomic::AtomicU64;
pub(crate) use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize};
pub(crate) use spin::{RelaxStrategy, once::Once};

/// Statics that threads have in common. Loom's are made anew for each order.
macro_rules! shared {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[$attribute])* static $name: $type = $value;)*
    };
}
pub(crate) use shared;
