//! The picture holds the document, and a browser shows what that says. The browser's part is left out, and said to be,
//! where there is no Chromium; but for CI, where there has to be one.

use page_memory_allocator::page_table::PageState;
use page_memory_allocator::units::PageIndex;
use page_memory_allocator::{Component, Heap, PageAllocator};
use serde_json::Value;
use std::alloc::Layout;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

#[path = "common/child.rs"]
mod child;
#[path = "common/filled.rs"]
mod filled;
use child::{in_child, text};
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
        assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "there is no Chromium, and CI needs one");
        eprintln!("skipped: there is no Chromium");
    }
    found
}

/// What the browser writes when it has shown the page at `url`.
fn shown(browser: &Path, directory: &Path, url: &str, arguments: &[&str]) -> String {
    let output = directory.join("output");
    let mut child = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1400"])
        .args(["--disable-quic", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync"])
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

/// The tag that a script writes what it has to say to.
fn root(dom: &str) -> &str {
    tags(dom).find(|tag| tag.starts_with("html")).unwrap()
}

/// Asserts that the page shows the sums of the document.
fn assert_shows(dom: &str, document: &Value) {
    let root = root(dom);
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
    for part in &parts {
        assert_eq!(number(part, "data-bytes"), document["resident"][attribute(part, "data-part").unwrap()]);
    }
    let mut shown: Vec<_> = parts.iter().map(|part| attribute(part, "data-part").unwrap()).collect();
    let resident = document["resident"].as_object().unwrap();
    let mut expected: Vec<_> = resident.keys().filter(|&name| name != "process_bytes").collect();
    shown.sort();
    expected.sort();
    assert_eq!(shown, expected, "each part of the resident size, once");
    let sum: u64 = parts.iter().map(|part| number(part, "data-bytes")).sum();
    assert_eq!(sum, document["resident"]["process_bytes"]);

    let rows: Vec<_> = tags(dom)
        .filter(|tag| attribute(tag, "data-block").is_some() && attribute(tag, "data-resident").is_some())
        .collect();
    for class in document["classes"].as_array().unwrap() {
        let row = rows.iter().find(|row| number(row, "data-block") == class["block"]).unwrap();
        assert_eq!(number(row, "data-pages"), class["pages"]);
        assert_eq!(number(row, "data-live"), class["live_blocks"]);
        assert_eq!(number(row, "data-asked"), class["least_asked_bytes"]);
        assert_eq!(number(row, "data-resident"), class["resident_bytes"]);
    }
}

/// A directory for a test's files.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Writes the page to `name` and shows it in a browser, with a script behind it that looks at what is drawn. Asserts
/// that it shows the document, and each cell in the colour of its pages.
fn probed(browser: &Path, name: &str, page: &str) -> String {
    let directory = directory(name);
    let file = directory.join("probed.html");
    let probe = format!("<script>\n{}</script>\n</body>", include_str!("common/probe.js"));
    fs::write(&file, page.replace("</body>", &probe)).unwrap();
    let dom = shown(browser, &directory, &format!("file://{}#theme=light", file.display()), &["--dump-dom"]);
    assert_shows(&dom, &document_in(page));
    let root = root(&dom);
    let modes = attribute(root, "data-modes").expect("the probe ran").split(',').count();
    let (cells, zoomed) = (number(root, "data-cells"), number(root, "data-zoomed"));
    assert_eq!(number(root, "data-wrong"), 0, "{:?}", attribute(root, "data-first"));
    assert_eq!(cells, number(root, "data-drawn-first") * modes as u64);
    let milliseconds = |name| attribute(root, name).unwrap().parse::<f64>().unwrap();
    let (loaded, parsing, drawing) =
        (milliseconds("data-loaded"), milliseconds("data-parsing"), milliseconds("data-drawing"));
    println!(
        "{name}: {cells} cells and {zoomed} of a closer view; loaded in {loaded} ms, parsing {parsing} ms, drawing {drawing} ms"
    );
    // Many times what they take where nothing else runs.
    assert!(loaded < 60_000.0 && parsing < 5_000.0 && drawing < 2_000.0);
    dom
}

/// Takes a picture of the page.
fn photograph(browser: &Path, name: &str, page: &str) {
    let directory = directory(name);
    let (file, screenshot) = (directory.join("heap.html"), directory.join("heap.png"));
    fs::write(&file, page).unwrap();
    let url = format!("file://{}", file.display());
    shown(browser, &directory, &url, &[&format!("--screenshot={}", screenshot.display())]);
    let picture = fs::read(&screenshot).expect("a picture was taken");
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000, "{} bytes", picture.len());
}

/// A colour of the page by its name, of those of the light theme.
fn colour(page: &str, name: &str) -> [f64; 3] {
    let hex = &page.split_once(&format!("--{name}: #")).unwrap().1[..6];
    [0, 2, 4].map(|at| f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()))
}

/// Asserts that a cell has the colour of its page, and what is said of it is what the table says.
fn assert_cell_agrees(heap: &Heap, page: &str, dom: &str, number: u32) {
    let said = |what: &str| attribute(root(dom), &format!("data-{what}{number}")).unwrap();
    let pixel: Vec<f64> = said("pixel").split(',').map(|part| part.parse().unwrap()).collect();
    let fullness = |live: usize, free: usize| live as f64 / (live + free) as f64;
    let is_in = |colours: &[[f64; 3]]| {
        colours.iter().any(|colour| colour.iter().zip(&pixel).all(|(a, b)| (a - b).abs() <= 1.0))
    };
    let contains = |lines: &[&dyn Display]| {
        for what in ["hover", "chosen"] {
            let lines = lines.iter().map(|line| line.to_string());
            let missing: Vec<_> =
                lines.filter(|line| !said(what).replace(": ", "; ").contains(line)).collect();
            assert!(missing.is_empty(), "page {number}: {missing:?} is not in {what:?}: {}", said(what));
        }
    };
    let title = said("hover").replace(',', "");
    assert!(title.starts_with(&format!("Page {number}: ")), "{title}");
    let state = said("chosen").split_once(';').unwrap().0;
    let address = heap.start().addr() + number as usize * heap.page_size();
    contains(&[&format!("Address; {address:#x}")]);
    match heap.page_state(PageIndex(number)) {
        PageState::Free => {
            assert!(["free", "purged"].contains(&state), "page {number}: {state}");
            let name = if state == "free" { "free-page" } else { "untouched" };
            assert!(is_in(&[colour(page, name)]), "page {number}: {pixel:?}");
            contains(&[&"Free with it; ", &"Resident; "]);
        }
        PageState::Divided { block, live_blocks, free_blocks, .. } => {
            assert_eq!(state, "divided", "page {number}");
            let (none, all) = (colour(page, "free-block"), colour(page, "live-block"));
            let part = fullness(live_blocks, free_blocks);
            let mixed = [0, 1, 2].map(|at| none[at] + (all[at] - none[at]) * part);
            assert!(is_in(&[mixed]), "page {number}: {pixel:?}, not {mixed:?}");
            let blocks = live_blocks + free_blocks;
            contains(&[&format!("Block; {block} B"), &format!("Live blocks; {live_blocks} of {blocks}")]);
        }
        PageState::MultiHead { .. } | PageState::MultiTail => {
            assert_eq!(state, "multi", "page {number}");
            assert!(is_in(&[colour(page, "live-run")]), "page {number}: {pixel:?}");
            contains(&[&"Run; ", &"Handed out; "]);
        }
    }
}

#[test]
fn a_browser_shows_a_small_heap() {
    let Some(browser) = browser() else { return };
    let heap = filled(8, 512);
    let page = html_of(&heap);
    let dom = probed(&browser, "small", &page);
    (0..8).for_each(|number| assert_cell_agrees(&heap, &page, &dom, number));
    photograph(&browser, "small", &page);
}

#[test]
fn a_browser_shows_the_heap_whatever_page_is_asked_for() {
    let Some(browser) = browser() else { return };
    let heap = filled(8, 512);
    let directory = directory("wanted");
    let file = directory.join("heap.html");
    fs::write(&file, html_of(&heap)).unwrap();
    for wanted in ["3", "99", "x", "1.5"] {
        let url = format!("file://{}#page={wanted}&theme=light", file.display());
        let dom = shown(&browser, &directory, &url, &["--dump-dom"]);
        assert!(attribute(root(&dom), "data-ready").is_some(), "#page={wanted}");
    }
}

#[test]
fn a_browser_shows_a_heap_of_a_million_pages() {
    let Some(browser) = browser() else { return };
    let heap = filled(1_000_000, 512);
    let page = html_of(&heap);
    let dom = probed(&browser, "million", &page);
    let pages = root(&dom).split(" data-hover").skip(1).map(|rest| rest.split_once('=').unwrap().0);
    let mut seen = 0;
    for number in pages.map(|number| number.parse().unwrap()) {
        assert!((400_000..600_000).contains(&number), "the closer view is one of the middle");
        assert_cell_agrees(&heap, &page, &dom, number);
        seen += 1;
    }
    assert_eq!(seen, 400);
    photograph(&browser, "million", &page);
}

#[test]
fn a_browser_shows_guarded_blocks_among_the_parts() {
    let Some(browser) = browser() else { return };
    let file = directory("guarded").join("page.html");
    let output = in_child(
        |command| {
            command.env("PMA_GUARD_SAMPLE", "10");
        },
        || {
            let held: Vec<Vec<u8>> = (0..2000).map(|size| vec![1; size]).collect();
            let mut page = String::new();
            HEAP.dump_html(&mut page).unwrap();
            drop(held);
            fs::write(directory("guarded").join("page.html"), page).unwrap();
        },
    );
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let page = fs::read_to_string(file).unwrap();
    assert!(document_in(&page)["resident"]["guarded_bytes"].as_u64().unwrap() > 0);
    probed(&browser, "guarded", &page);
}

/// A part of this program whose name would close an element, or open one.
static PART: Component = Component::new("</script><b>\"part\" \\ & co");
static OTHER: Component = Component::new("other");

#[test]
fn a_browser_shows_whose_the_pages_are() {
    let Some(browser) = browser() else { return };
    let held: Vec<Vec<u8>> = PART.enter(|| (0..3000).map(|size| vec![1; size * 40]).collect());
    let others = OTHER.enter(|| vec![1u8; 1 << 20]);
    let mut page = String::new();
    HEAP.dump_html(&mut page).unwrap();
    let document = document_in(&page);
    let dom = probed(&browser, "components", &page);
    assert!(attribute(root(&dom), "data-modes").unwrap().ends_with(",component"));
    let escaped = "Component; &lt;/script&gt;&lt;b&gt;&quot;part&quot; \\ &amp; co";
    let name = escaped.replace("&lt;", "<").replace("&gt;", ">");
    assert!([escaped, &name].iter().any(|name| dom.contains(name)), "a page tells whose it is");

    let directory = directory("components");
    let file = directory.join("heap.html");
    photograph(&browser, "components", &page);
    let url = format!("file://{}#mode=component", file.display());
    let dom = shown(&browser, &directory, &url, &["--dump-dom"]);
    assert_shows_owners(&dom, &document);
    drop((held, others));
}

/// Asserts that the legend has the pages of each component.
fn assert_shows_owners(dom: &str, document: &Value) {
    let spans = document["spans"].as_array().unwrap();
    let taken = |owner: &Value| -> u64 {
        let own = spans.iter().filter(|span| span[2] != "free" && span[7] == *owner);
        own.map(|span| span[1].as_u64().unwrap()).sum()
    };
    let owners: Vec<_> = tags(dom).filter(|tag| attribute(tag, "data-owner").is_some()).collect();
    assert_eq!(owners.len(), 1 + document["components"].as_array().unwrap().len());
    for line in owners {
        let owner = attribute(line, "data-owner").unwrap().parse::<u64>().map_or(Value::Null, Value::from);
        assert_eq!(number(line, "data-owned"), taken(&owner), "{line}");
    }
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
