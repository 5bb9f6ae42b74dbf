//! How the process heap behaves: set in the type, at compile time, and by environment variables at its first use.
//!
//! The variables are listed at [`PageAllocator`](crate::PageAllocator); those of [`report`](crate::report) and of
//! [`profile`](crate::profile) have no option.
//!
//! A variable outranks the type. What cannot be read is reported once, on standard error, and ignored.

use crate::line::Line;
use crate::size_class::built;
use crate::sys;
use core::ffi::CStr;
use core::fmt::Write;
use core::str;

/// As the type says, or the environment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    /// Free pages go back to the system after so many milliseconds, or never.
    pub(crate) purge_after_ms: Option<u32>,
    /// Whether a background thread does it.
    pub(crate) background_purge: bool,
    /// Whether the system may back memory with huge pages.
    pub(crate) huge_pages: bool,
    /// Most bytes of pages in use.
    pub(crate) limit: usize,
    /// One allocation in so many is guarded; 0 for none.
    pub(crate) guard_sample: u32,
    /// Whether all of what is freed is zeroed. A hardened build alone can do it.
    pub(crate) zero_on_free: bool,
}

impl Options {
    pub(crate) const fn new() -> Options {
        Options {
            purge_after_ms: Some(500),
            background_purge: false,
            huge_pages: true,
            limit: usize::MAX,
            guard_sample: 0,
            zero_on_free: false,
        }
    }

    /// These, or what the environment says instead.
    pub(crate) fn with_environment(mut self) -> Options {
        let switch = "it takes 1 or 0";
        set(
            &mut self.purge_after_ms,
            c"PMA_PURGE_MS",
            "it takes milliseconds below 2^32, or never",
            parse_purge,
        );
        set(&mut self.background_purge, c"PMA_BACKGROUND_PURGE", switch, parse_switch);
        set(&mut self.huge_pages, c"PMA_HUGE_PAGES", switch, parse_switch);
        set(
            &mut self.limit,
            c"PMA_LIMIT",
            "it takes bytes, or so many K, M or G, of a page at least",
            parse_limit,
        );
        set(&mut self.guard_sample, c"PMA_GUARD_SAMPLE", "it takes a number below 2^32", |value| {
            value.parse().ok()
        });
        let (switch, parse): (_, fn(&str) -> _) = if cfg!(feature = "hardened") {
            (switch, parse_switch)
        } else {
            // What it asks for is what there is, if that is nothing.
            ("only a build with the feature `hardened` can do it", |value| (value == "0").then_some(false))
        };
        set(&mut self.zero_on_free, c"PMA_ZERO_ON_FREE", switch, parse);
        #[cfg(not(feature = "profile"))]
        set(&mut (), c"PMA_PROFILE_BYTES", "only a build with the feature `profile` takes samples", |_| None);
        self
    }
}

/// Sets `option` to what `variable` says, if it is set and `parse` understands it.
pub(crate) fn set<T>(option: &mut T, variable: &CStr, takes: &str, parse: fn(&str) -> Option<T>) {
    let Some(value) = sys::environment(variable) else { return };
    match str::from_utf8(value.to_bytes()).ok().and_then(parse) {
        Some(value) => *option = value,
        None => ignore(variable, value, takes),
    }
}

/// Says that `variable` is ignored, and what it takes. A long value is cut off.
pub(crate) fn ignore(variable: &CStr, value: &CStr, takes: &str) {
    let mut line = Line::new();
    let _ = writeln!(
        line,
        "page_memory_allocator: {}={:.80} is ignored: {takes}",
        variable.to_str().unwrap_or_default(),
        str::from_utf8(value.to_bytes()).unwrap_or("(not UTF-8)"),
    );
    line.report();
}

fn parse_purge(value: &str) -> Option<Option<u32>> {
    if value == "never" {
        return Some(None);
    }
    let milliseconds: u32 = value.parse().ok()?;
    Some((milliseconds != u32::MAX).then_some(milliseconds))
}

fn parse_switch(value: &str) -> Option<bool> {
    match value {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

pub(crate) fn parse_bytes(value: &str) -> Option<usize> {
    let (digits, shift) = match value.as_bytes().last()? {
        b'K' => (&value[..value.len() - 1], 10),
        b'M' => (&value[..value.len() - 1], 20),
        b'G' => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    digits.parse::<usize>().ok()?.checked_mul(1 << shift)
}

/// With less than a page, not even the program's first allocation would be served.
fn parse_limit(value: &str) -> Option<usize> {
    parse_bytes(value).filter(|&bytes| bytes >= built::PAGE_SIZE)
}

impl Default for Options {
    fn default() -> Options {
        Options::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_whole_or_not_at_all() {
        assert_eq!(parse_purge("250"), Some(Some(250)));
        assert_eq!((parse_purge("never"), parse_purge("4294967295")), (Some(None), Some(None)));
        assert_eq!((parse_purge(""), parse_purge("1s"), parse_purge("-1")), (None, None, None));
        assert_eq!(
            (parse_switch("1"), parse_switch("0"), parse_switch("yes")),
            (Some(true), Some(false), None)
        );
        assert_eq!((parse_bytes("4096"), parse_bytes("3M")), (Some(4096), Some(3 << 20)));
        assert_eq!((parse_bytes("5K"), parse_bytes("2G")), (Some(5 << 10), Some(2 << 30)));
        assert_eq!((parse_limit("0"), parse_limit("512"), parse_limit("1M")), (None, None, Some(1 << 20)));
        assert_eq!((parse_bytes("M"), parse_bytes("99999999999G"), parse_bytes("1.5G")), (None, None, None));
    }
}
