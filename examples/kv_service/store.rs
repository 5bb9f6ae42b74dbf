//! The values, in a component of their own: when its limit is reached, a value is refused and the service goes on.

use page_memory_allocator::{Component, ComponentStats};
use std::collections::{HashMap, TryReserveError};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most bytes that the keys and values may take, and the map of them.
pub const LIMIT: usize = 64 << 20;

static STORE: Component = Component::new("store").limit(LIMIT).soft_limit(LIMIT / 4 * 3, |exceeded| {
    eprintln!("The store holds {} bytes, more than {}.", exceeded.held_bytes, exceeded.soft_limit);
});

/// Keys and their values.
#[derive(Default)]
pub struct Store {
    values: Mutex<HashMap<String, Vec<u8>>>,
}

impl Store {
    fn values(&self) -> MutexGuard<'_, HashMap<String, Vec<u8>>> {
        // A map of bytes is in order between any two calls.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `value` under `key`, in memory of the store.
    ///
    /// # Errors
    /// The store is full, and as it was.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<(), TryReserveError> {
        let (mut own_key, mut own_value) = (String::new(), Vec::new());
        let mut values = self.values();
        let replaced = STORE.enter(|| {
            own_key.try_reserve_exact(key.len())?;
            own_value.try_reserve_exact(value.len())?;
            values.try_reserve(1)?;
            own_key.push_str(key);
            own_value.extend_from_slice(value);
            Ok::<_, TryReserveError>(values.insert(own_key, own_value))
        })?;
        drop(values);
        drop(replaced);
        Ok(())
    }

    /// A copy of the value of `key`, in memory of whoever asks.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.values().get(key).cloned()
    }

    /// Removes `key`, and says whether it was there.
    pub fn delete(&self, key: &str) -> bool {
        let removed = self.values().remove_entry(key);
        removed.is_some()
    }

    /// What the store holds.
    pub fn stats(&self) -> ComponentStats {
        STORE.stats()
    }
}
