//! A profile: the samples by stack, and the stacks with names.

use super::paused;
use super::pprof;
use super::samples::{Frames, Sample};
use core::fmt::Write;
use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec::Vec;

/// What is live, by the stack that allocated it: estimates from samples. Made by
/// [`PageAllocator::profile`](crate::PageAllocator::profile).
///
/// ```
/// use page_memory_allocator::{PageAllocator, Profile};
///
/// #[global_allocator]
/// static HEAP: PageAllocator = PageAllocator::new();
///
/// fn main() {
///     let held = vec![1u8; 64 << 20];
///     let profile: Profile = HEAP.profile();
///     assert!(profile.folded().lines().count() > 0);
///     assert!(!profile.pprof().is_empty() && held.len() == 64 << 20);
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Profile {
    stacks: BTreeMap<Frames, Live>,
    interval: usize,
}

/// What is live of one stack.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Live {
    pub(super) objects: f64,
    pub(super) bytes: f64,
}

/// A function that an address is in: several, the innermost first, where calls were inlined.
#[derive(Clone, Debug)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) file: String,
    pub(super) line: u32,
}

/// What is known of an address.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The functions that it is in, without those with which every allocation ends. There may be none left.
    pub(super) functions: Vec<Function>,
    /// Whether there were such.
    way_in: bool,
}

/// What is known of addresses.
pub(super) type Names = BTreeMap<usize, Place>;

/// Frames of the allocator, and of what calls it for everybody, are among so many of the innermost.
const DEEPEST_WAY_IN: usize = 16;

impl Profile {
    pub(super) fn new(samples: Vec<Sample>, interval: usize) -> Profile {
        let mut stacks: BTreeMap<Frames, Live> = BTreeMap::new();
        for sample in samples {
            let stands_for = -1.0 / (-(sample.counted.max(1) as f64) / sample.interval as f64).exp_m1();
            let live = stacks.entry(sample.frames).or_default();
            live.objects += stands_for;
            live.bytes += stands_for * sample.size as f64;
        }
        Profile { stacks, interval }
    }

    /// Bytes that are live, as the samples tell: near the truth where there are many.
    pub fn live_bytes(&self) -> usize {
        self.stacks.values().map(|live| live.bytes).sum::<f64>() as usize
    }

    /// Writes the profile in the format of `pprof`, compressed with `gzip`: `go tool pprof` and Speedscope read it. To
    /// find the names of functions, it reads the debug information of the program.
    pub fn pprof(&self) -> Vec<u8> {
        paused(|| pprof::write(&self.stacks, &self.names(), self.interval))
    }

    /// Writes the profile as folded stacks: a line for each, the functions from the outermost to the innermost
    /// separated by semicolons, then the bytes that are live. That is what flame graphs are made of.
    pub fn folded(&self) -> String {
        paused(|| {
            let names = self.names();
            let mut lines: BTreeMap<String, f64> = BTreeMap::new();
            for (stack, live) in &self.stacks {
                let mut line = String::new();
                for function in
                    outward(stack, &names).into_iter().rev().flat_map(|place| place.1.functions.iter().rev())
                {
                    let separator = if line.is_empty() { "" } else { ";" };
                    // Writing to a String cannot fail.
                    let _ = write!(line, "{separator}{}", function.name.replace(';', ":"));
                }
                *lines.entry(line).or_default() += live.bytes;
            }
            lines.iter().fold(String::new(), |mut text, (line, bytes)| {
                let _ = writeln!(text, "{line} {}", bytes.round());
                text
            })
        })
    }

    fn names(&self) -> Names {
        let mut names = Names::new();
        for &address in self.stacks.keys().flatten().filter(|&&address| address != 0) {
            names.entry(address).or_insert_with(|| place_of(address));
        }
        // What it has read of the program would stay in the heap that is looked at: tens of megabytes.
        backtrace::clear_symbol_cache();
        names
    }
}

/// The places of a stack from the innermost outward, those left out with which every allocation ends: the way into
/// the allocator, and the allocator.
pub(super) fn outward<'n>(stack: &Frames, names: &'n Names) -> Vec<(usize, &'n Place)> {
    let used: Vec<_> = stack.iter().take_while(|&&address| address != 0).collect();
    let inner = &used[..used.len().min(DEEPEST_WAY_IN)];
    let from = inner.iter().rposition(|address| names[address].way_in).unwrap_or(0);
    let places = used[from..].iter().map(|&&address| (address, &names[&address]));
    places.filter(|(_, place)| !place.functions.is_empty()).collect()
}

/// What is known of the call before `address`.
fn place_of(address: usize) -> Place {
    let mut functions = Vec::new();
    backtrace::resolve(core::ptr::without_provenance_mut(address.saturating_sub(1)), |symbol| {
        let Some(name) = symbol.name() else { return };
        let file = symbol.filename().map(|path| path.display().to_string());
        functions.push(Function {
            name: std::format!("{name:#}"),
            file: file.unwrap_or_default(),
            line: symbol.lineno().unwrap_or(0),
        });
    });
    if functions.is_empty() {
        functions.push(Function { name: std::format!("{address:#x}"), file: String::new(), line: 0 });
    }
    let way_in = functions.iter().rposition(Function::is_way_in);
    functions.drain(..way_in.map_or(0, |last| last + 1));
    Place { functions, way_in: way_in.is_some() }
}

impl Function {
    fn is_way_in(&self) -> bool {
        // With little debug information names lack their paths, so files are looked at, too.
        let ours = file!().strip_suffix("profile/stacks.rs").unwrap_or(file!());
        let of_file = |start: &str| {
            ["global.rs", "unsized_calls.rs", "profile.rs", "profile/unwind.rs"]
                .iter()
                .any(|name| self.file.strip_suffix(name).is_some_and(|directory| directory.ends_with(start)))
        };
        let name = self.name.trim_start_matches('<');
        // What enters a component, or is polled in one, is the program's, whose functions are called in it.
        if name.starts_with("page_memory_allocator::component::") {
            return false;
        }
        let names =
            ["page_memory_allocator::", "backtrace::", "alloc::alloc::", "__rust_alloc", "__rust_realloc"];
        of_file(ours)
            || self.file.ends_with("library/alloc/src/alloc.rs")
            || self.file.contains("/backtrace-")
            || names.iter().any(|start| name.starts_with(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_enters_a_component_is_no_way_into_the_allocator() {
        let is_way_in =
            |name: &str, file: &str| Function { name: name.into(), file: file.into(), line: 1 }.is_way_in();
        assert!(is_way_in("<page_memory_allocator::global::PageAllocator>::alloc_slow", ""));
        assert!(is_way_in("alloc_slow", file!().replace("profile/stacks.rs", "global.rs").as_str()));
        assert!(is_way_in("__rust_alloc", ""));
        assert!(!is_way_in("<page_memory_allocator::component::Component>::enter::<server::load>", ""));
        assert!(!is_way_in("<page_memory_allocator::component::future::InComponent<F> as Future>::poll", ""));
        assert!(!is_way_in("server::load", "src/main.rs"));
    }
}
