//! The JSON document says what the page table says.

use page_memory_allocator::page_table::PageState;
use page_memory_allocator::units::PageIndex;
use page_memory_allocator::{Component, Heap, PageAllocator, Stats};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::fs;

#[path = "common/child.rs"]
mod child;
#[path = "common/filled.rs"]
mod filled;
use child::{in_child, text};
use filled::filled;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// Names of the columns of spans.
const COLUMNS: [&str; 8] =
    ["first", "pages", "state", "block", "live_blocks", "free_blocks", "resident_bytes", "component"];

fn json_of(heap: &Heap) -> Value {
    let mut text = String::new();
    heap.dump_json(&mut text).unwrap();
    serde_json::from_str(&text).expect("the document is JSON")
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().expect("a number")).unwrap()
}

/// Asserts that the spans cover the pages from 0 in order, each once, with the state that the table has for it.
fn assert_spans_agree_with_the_table(document: &Value, heap: &Heap) {
    assert_eq!(document["columns"], serde_json::json!(COLUMNS));
    let mut next = 0;
    for span in document["spans"].as_array().unwrap() {
        let (first, pages) = (number(&span[0]), number(&span[1]));
        assert_eq!(first, next, "{span}");
        assert!(pages > 0, "{span}");
        let (mut block, mut live, mut free) = (0, 0, 0);
        for page in first..first + pages {
            let (expected, of_page) = match heap.page_state(PageIndex(page as u32)) {
                PageState::Free => ("free", (0, 0, 0)),
                PageState::Divided { block, live_blocks, free_blocks, .. } => {
                    ("divided", (block, live_blocks, free_blocks))
                }
                PageState::MultiHead { .. } => ("multi", (0, 1, 0)),
                PageState::MultiTail => ("multi", (0, 0, 0)),
            };
            assert_eq!(span[2], expected, "page {page} of {span}");
            block = of_page.0;
            live += of_page.1;
            free += of_page.2;
        }
        assert_eq!((number(&span[3]), number(&span[4]), number(&span[5])), (block, live, free), "{span}");
        assert!(number(&span[6]) <= pages * heap.page_size(), "{span}");
        assert_eq!(span[7], Value::Null, "a heap of one's own knows no components");
        next = first + pages;
    }
    assert_eq!(next, heap.pages().get());
}

/// Asserts that the sums of the spans are the figures beside them.
fn assert_sums_agree_with_the_spans(document: &Value) {
    let spans = document["spans"].as_array().unwrap();
    let sum = |state: &str, column: usize| -> usize {
        spans.iter().filter(|span| span[2] == state).map(|span| number(&span[column])).sum()
    };
    let (summary, free, runs) = (&document["summary"], &document["free"], &document["runs"]);
    assert_eq!(number(&summary["free_pages"]), sum("free", 1));
    assert_eq!(number(&summary["divided_pages"]), sum("divided", 1));
    assert_eq!(number(&summary["multi_pages"]), sum("multi", 1));
    assert_eq!(number(&summary["live_runs"]), sum("multi", 4));
    assert_eq!(number(&summary["live_blocks"]) + number(&summary["cached_blocks"]), sum("divided", 4));
    assert_eq!(number(&summary["free_blocks"]), sum("divided", 5));
    assert_eq!(number(&free["resident_bytes"]), sum("free", 6));
    assert_eq!(number(&runs["resident_bytes"]), sum("multi", 6));
    let resident_free: usize =
        spans.iter().filter(|span| span[2] == "free" && span[6] != 0).map(|span| number(&span[1])).sum();
    assert_eq!(number(&free["resident_pages"]), resident_free);
    assert_eq!(number(&free["purged_pages"]), number(&free["pages"]) - resident_free);
    for class in document["classes"].as_array().unwrap() {
        let of_class = |column: usize| -> usize {
            spans.iter().filter(|span| span[3] == class["block"]).map(|span| number(&span[column])).sum()
        };
        assert_eq!(number(&class["pages"]), of_class(1), "{class}");
        assert_eq!(number(&class["live_blocks"]) + number(&class["cached_blocks"]), of_class(4), "{class}");
        assert_eq!(number(&class["free_blocks"]), of_class(5), "{class}");
        assert_eq!(number(&class["resident_bytes"]), of_class(6), "{class}");
    }
    let resident = document["resident"].as_object().unwrap();
    let parts = resident.iter().filter(|(name, _)| *name != "process_bytes").map(|(_, bytes)| number(bytes));
    assert_eq!(parts.sum::<usize>(), number(&resident["process_bytes"]));
}

/// Asserts that the figures are those of `stats`.
fn assert_agrees_with_stats(document: &Value, stats: &Stats) {
    assert_eq!(number(&document["summary"]["live_bytes"]), stats.live_bytes());
    assert_eq!(number(&document["summary"]["least_asked_bytes"]), stats.least_asked_bytes());
    assert_eq!(number(&document["runs"]["asked_bytes"]), stats.runs.asked_bytes);
    assert_eq!(number(&document["resident"]["live_block_bytes"]), stats.resident.live_block_bytes);
    assert_eq!(number(&document["resident"]["free_page_bytes"]), stats.resident.free_page_bytes);
    let classes: Vec<_> = stats.classes().iter().filter(|class| class.pages.get() > 0).collect();
    assert_eq!(document["classes"].as_array().unwrap().len(), classes.len());
    for (written, class) in document["classes"].as_array().unwrap().iter().zip(classes) {
        assert_eq!(number(&written["block"]), class.block);
        assert_eq!(number(&written["live_resident_bytes"]), class.live_resident_bytes());
        assert_eq!(number(&written["free_resident_bytes"]), class.free_resident_bytes);
    }
}

#[test]
fn the_document_of_a_small_heap_agrees_with_its_table() {
    let heap = filled(8, 4096);
    let document = json_of(&heap);
    assert_eq!(document["format"], "page_memory_allocator heap");
    assert_eq!(document["version"], 1);
    assert_eq!(document["heap"]["start"], format!("{:#x}", heap.start().addr()));
    assert_eq!(document["before"], Value::Null);
    assert_spans_agree_with_the_table(&document, &heap);
    assert_sums_agree_with_the_spans(&document);
    assert_agrees_with_stats(&document, &heap.stats());
}

#[test]
fn the_document_of_a_heap_of_a_million_pages_agrees_with_its_table() {
    let heap = filled(1_000_000, 512);
    let document = json_of(&heap);
    assert!(document["spans"].as_array().unwrap().len() > 100_000, "the heap is a mixture");
    assert_spans_agree_with_the_table(&document, &heap);
    assert_sums_agree_with_the_spans(&document);
    assert_agrees_with_stats(&document, &heap.stats());
}

#[test]
fn the_process_heap_is_a_document_that_adds_up() {
    let held: Vec<Vec<u8>> = (1..2000).map(|size| vec![1; size * 10]).collect();
    let mut text = String::new();
    HEAP.dump_json(&mut text).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_sums_agree_with_the_spans(&document);
    assert!(number(&document["summary"]["live_blocks"]) >= held.len());
    assert_eq!(number(&document["heap"]["pages"]), HEAP.summary().reserved_bytes / HEAP.summary().page_size);
}

/// Names that JSON, or a page that holds it, would take for something else.
static PARTS: [Component; 3] =
    [Component::new("a \"quoted\" \\ part"), Component::new("</script>"), Component::new("lines\n\tof two")];

fn process_document() -> Value {
    let mut text = String::new();
    HEAP.dump_json(&mut text).unwrap();
    serde_json::from_str(&text).expect("the document is JSON")
}

/// Runs `body` where no other test does.
fn alone<F: FnOnce()>(body: F) {
    let output = in_child(|_| (), body);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn the_spans_of_a_component_add_up_to_its_pages_and_its_name_is_what_it_was_called() {
    alone(|| {
        let held: Vec<Vec<Vec<u8>>> = (PARTS.iter().zip(1..))
            .map(|(part, turns)| {
                part.enter(|| {
                    (0..turns * 300).map(|n| vec![1; n % 7 * 400 + n % 100 / 99 * 300_000]).collect()
                })
            })
            .collect();
        let document = process_document();
        assert_sums_agree_with_the_spans(&document);
        let components = document["components"].as_array().unwrap();
        let names: Vec<_> = components.iter().map(|component| component["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["a \"quoted\" \\ part", "</script>", "lines\n\tof two"]);
        let spans = document["spans"].as_array().unwrap();
        for (index, component) in components.iter().enumerate() {
            let pages = |state: &str| -> usize {
                let own = spans.iter().filter(|span| span[7] == index && span[2] == state);
                own.map(|span| number(&span[1])).sum()
            };
            assert!(pages("divided") > 0 && pages("multi") > 0 && pages("free") == 0);
            assert_eq!(pages("divided"), number(&component["divided_pages"]), "{component}");
            assert_eq!(pages("multi"), number(&component["multi_pages"]), "{component}");
        }
        drop(held);
    });
}

#[test]
fn no_name_of_a_component_ends_the_script_that_the_document_is_in() {
    alone(|| {
        let held: Vec<Vec<u8>> = PARTS.iter().map(|part| part.enter(|| vec![1; 1000])).collect();
        let mut text = String::new();
        HEAP.dump_json(&mut text).unwrap();
        assert!(text.contains("/script>") && !text.contains('<'), "{text}");
        drop(held);
    });
}

#[test]
fn the_document_since_a_snapshot_has_the_figures_of_both() {
    let heap = filled(8, 4096);
    let before = heap.snapshot();
    let layout = std::alloc::Layout::new::<[u8; 512]>();
    assert!((0..2).all(|_| !heap.alloc(layout).is_null()));
    let mut text = String::new();
    heap.dump_json_since(&before, &mut text).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_agrees_with_stats(&document["before"], before.stats());
    assert_agrees_with_stats(&document, &heap.stats());
    let live = |of: &Value| number(&of["summary"]["live_blocks"]);
    assert_eq!(live(&document), live(&document["before"]) + 2);

    let before = HEAP.snapshot();
    let mut text = String::new();
    HEAP.dump_json_since(&before, &mut text).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_agrees_with_stats(&document["before"], before.stats());
    assert_sums_agree_with_the_spans(&document);
}

/// Adds the names of all members of `value`, and of the objects in it.
fn names_in(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                names.insert(name.clone());
                names_in(value, names);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| names_in(value, names)),
        _ => {}
    }
}

#[test]
fn every_member_of_a_document_is_described() {
    alone(|| {
        let held = PARTS[0].enter(|| vec![1u8; 100]);
        let mut text = String::new();
        HEAP.dump_json_since(&HEAP.snapshot(), &mut text).unwrap();
        let mut names: BTreeSet<String> = COLUMNS.iter().map(|&name| name.to_owned()).collect();
        names_in(&serde_json::from_str(&text).unwrap(), &mut names);
        let described = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
        let in_heap = ["start", "page_size", "os_page_size", "pages"];
        for name in &names {
            let own = format!("`{name}`");
            let of_heap = in_heap.contains(&name.as_str()).then(|| format!("`heap.{name}`"));
            assert!(
                described.contains(&own) || of_heap.is_some_and(|name| described.contains(&name)),
                "{name} is not in docs/json.md"
            );
        }
        assert!(names.len() > 50, "{names:?}");
        drop(held);
    });
}

/// Has room for so many bytes.
struct Full(usize);

impl Write for Full {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.checked_sub(text.len()).ok_or(fmt::Error)?;
        Ok(())
    }
}

#[test]
fn a_writers_error_ends_the_document_and_is_returned() {
    let heap = filled(8, 4096);
    let mut text = String::new();
    heap.dump_json(&mut text).unwrap();
    for room in (0..text.len() - 100).step_by(7) {
        assert_eq!(heap.dump_json(&mut Full(room)), Err(fmt::Error));
    }
}
