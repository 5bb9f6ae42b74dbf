//! The JSON document says what the page table says.

use page_memory_allocator::page_table::PageState;
use page_memory_allocator::units::PageIndex;
use page_memory_allocator::{Heap, PageAllocator, Stats};
use serde_json::Value;
use std::fmt::{self, Write};

#[path = "common/filled.rs"]
mod filled;
use filled::filled;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

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
    let columns = ["first", "pages", "state", "block", "live_blocks", "free_blocks", "resident_bytes"];
    assert_eq!(document["columns"], serde_json::json!(columns));
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
