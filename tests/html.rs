//! The picture holds the document, and a browser shows what that says. The browser's part is left out, and said to be,
//! where there is no Chromium.

use page_memory_allocator::page_table::PageState;
use page_memory_allocator::units::PageIndex;
use page_memory_allocator::{Heap, PageAllocator};
use serde_json::Value;
use std::alloc::Layout;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

#[path = "common/filled.rs"]
mod filled;
use filled::filled;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// A browser that is not done by then is ended.
const LONGEST: Duration = Duration::from_secs(100);

fn html_of(heap: &Heap) -> String {
    let mut page = String::new();
    heap.dump_html(&mut page).unwrap();
    page
}

/// The document that a page holds.
fn document_in(page: &str) -> Value {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"heap\">\n").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).expect("the page holds a JSON document")
}

#[test]
fn the_page_holds_the_document_and_needs_nothing_else() {
    let heap = filled(8, 4096);
    let page = html_of(&heap);
    let mut json = String::new();
    heap.dump_json(&mut json).unwrap();
    let (mut inside, mut alone) = (document_in(&page), serde_json::from_str::<Value>(&json).unwrap());
    // Of the process, not of the heap: it changes meanwhile.
    for document in [&mut inside, &mut alone] {
        document["resident"]
            .as_object_mut()
            .unwrap()
            .retain(|name, _| !["process_bytes", "other_bytes"].contains(&name.as_str()));
    }
    assert_eq!(inside, alone);
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    for outside in ["src=", "href=", "@import", "url(", "http:", "https:", "fetch("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = env::var_os("PATH")?;
    let found =
        env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: there is no Chromium");
    }
    found
}

/// What the browser writes when it has shown the page at `url`.
fn shown(browser: &Path, directory: &Path, url: &str, arguments: &[&str]) -> String {
    let output = directory.join("output");
    let mut child = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1400"])
        .arg(format!("--user-data-dir={}", directory.join("profile").display()))
        .args(arguments)
        .arg(url)
        .stdout(fs::File::create(&output).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LONGEST {
            child.kill().unwrap();
        }
        thread::sleep(Duration::from_millis(20));
    }
    fs::read_to_string(output).unwrap()
}

/// The tags of a document that has been shown, those of scripts and what follows them left out.
fn tags(dom: &str) -> impl Iterator<Item = &str> {
    let body = dom.split_once("<script").expect("the page has a script").0;
    body.split('<').filter_map(|rest| rest.split_once('>').map(|(tag, _)| tag))
}

fn attribute<'t>(tag: &'t str, name: &str) -> Option<&'t str> {
    tag.split_once(&format!(" {name}=\""))?.1.split_once('"').map(|(value, _)| value)
}

fn number(tag: &str, name: &str) -> u64 {
    attribute(tag, name).expect(tag).parse().expect(tag)
}

/// Asserts that the page shows the sums of the document.
fn assert_shows(dom: &str, document: &Value) {
    let root = tags(dom).find(|tag| tag.starts_with("html")).unwrap();
    assert_eq!(attribute(root, "data-ready"), Some("1"), "the script ran to its end");
    assert_eq!(number(root, "data-pages"), document["heap"]["pages"]);
    assert_eq!(number(root, "data-spans"), document["spans"].as_array().unwrap().len() as u64);
    assert!(number(root, "data-drawn") > 0);

    let of_state = |state: &str| tags(dom).find(|tag| attribute(tag, "data-state") == Some(state)).unwrap();
    let (summary, free, runs) = (&document["summary"], &document["free"], &document["runs"]);
    assert_eq!(number(of_state("divided"), "data-pages"), summary["divided_pages"]);
    assert_eq!(number(of_state("multi"), "data-pages"), summary["multi_pages"]);
    assert_eq!(number(of_state("multi"), "data-resident"), runs["resident_bytes"]);
    assert_eq!(number(of_state("multi"), "data-live"), runs["live_bytes"]);
    assert_eq!(number(of_state("free"), "data-pages"), free["resident_pages"]);
    assert_eq!(number(of_state("free"), "data-resident"), free["resident_bytes"]);
    assert_eq!(number(of_state("purged"), "data-pages"), free["purged_pages"]);

    let parts: Vec<_> = tags(dom).filter(|tag| attribute(tag, "data-part").is_some()).collect();
    assert_eq!(parts.len(), 9);
    for part in &parts {
        assert_eq!(number(part, "data-bytes"), document["resident"][attribute(part, "data-part").unwrap()]);
    }
    let sum: u64 = parts.iter().map(|part| number(part, "data-bytes")).sum();
    assert_eq!(sum, document["resident"]["process_bytes"]);

    let rows: Vec<_> = tags(dom)
        .filter(|tag| attribute(tag, "data-block").is_some() && attribute(tag, "data-resident").is_some())
        .collect();
    for class in document["classes"].as_array().unwrap() {
        let row = rows.iter().find(|row| number(row, "data-block") == class["block"]).unwrap();
        assert_eq!(number(row, "data-pages"), class["pages"]);
        assert_eq!(number(row, "data-live"), class["live_blocks"]);
        assert_eq!(number(row, "data-resident"), class["resident_bytes"]);
    }
}

/// A directory for a test's files.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Shows the heap in a browser, and asserts that sums, cells and details are those of the table.
fn assert_is_shown(heap: &Heap, name: &str, pages: &[u32]) {
    let Some(browser) = browser() else { return };
    let directory = directory(name);
    let (file, screenshot) = (directory.join("heap.html"), directory.join("heap.png"));
    let page = html_of(heap);
    fs::write(&file, &page).unwrap();
    let document = document_in(&page);
    let url = format!("file://{}", file.display());
    for &page in pages {
        let dom = shown(&browser, &directory, &format!("{url}#page={page}"), &["--dump-dom"]);
        assert_shows(&dom, &document);
        let chosen = tags(&dom).find(|tag| attribute(tag, "id") == Some("chosen")).unwrap();
        assert_eq!(number(chosen, "data-page"), u64::from(page));
        let states: &[_] = match heap.page_state(PageIndex(page)) {
            PageState::Free => &["free", "purged"],
            PageState::Divided { block, live_blocks, free_blocks, .. } => {
                let blocks = live_blocks + free_blocks;
                assert!(dom.contains(&format!("<dd>{block} B</dd>")), "page {page}");
                assert!(dom.contains(&format!("<dd>{live_blocks} of {blocks}</dd>")), "page {page}");
                &["divided"]
            }
            PageState::MultiHead { .. } | PageState::MultiTail => &["multi"],
        };
        assert!(states.contains(&attribute(chosen, "data-state").unwrap()), "page {page}: {chosen}");
    }
    shown(&browser, &directory, &url, &[&format!("--screenshot={}", screenshot.display())]);
    let picture = fs::read(&screenshot).expect("a picture was taken");
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000, "{} bytes", picture.len());
}

#[test]
fn a_browser_shows_a_small_heap() {
    assert_is_shown(&filled(8, 512), "small", &[0, 5, 7]);
}

#[test]
fn a_browser_shows_a_heap_of_a_million_pages() {
    assert_is_shown(&filled(1_000_000, 512), "million", &[777_777]);
}

#[test]
fn a_browser_shows_what_has_changed() {
    let Some(browser) = browser() else { return };
    let heap = filled(1000, 4096);
    let before = heap.snapshot();
    let blocks: Vec<_> = (0..5).map(|_| heap.alloc(Layout::new::<[u64; 4]>())).collect();
    assert!(blocks.iter().all(|block| !block.is_null()));
    let mut page = String::new();
    heap.dump_html_since(&before, &mut page).unwrap();
    let directory = directory("changed");
    let file = directory.join("heap.html");
    fs::write(&file, &page).unwrap();
    let dom = shown(&browser, &directory, &format!("file://{}", file.display()), &["--dump-dom"]);
    assert_shows(&dom, &document_in(&page));
    let changed =
        tags(&dom).find(|tag| attribute(tag, "data-bytes") == Some("160")).expect("5 blocks of 32 bytes");
    assert_eq!((number(changed, "data-block"), number(changed, "data-live")), (32, 5));
}
