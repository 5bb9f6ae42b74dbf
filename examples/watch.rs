//! Watches the page table of a program at work, live in the terminal.
//!
//! ```text
//! cargo run --release --example watch                  # p purges, space halts the work, q quits
//! cargo run --release --example watch -- --frames 3    # prints three frames as text, for pipes
//! ```
//!
//! A few threads fill the heap with things of many sizes and free them again, in waves. What is shown is read from
//! [`PageAllocator::dump_json`] five times a second.

use page_memory_allocator::PageAllocator;
use ratatui::Frame;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Terminal};
use serde_json::Value;
use std::io::{self, IsTerminal, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{env, thread};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

const THREADS: usize = 3;
/// Things that a thread keeps at the height of a wave.
const MOST_KEPT: usize = 30_000;
const FRAME: Duration = Duration::from_millis(200);
/// Columns and rows of a frame that is printed.
const PRINTED: (u16, u16) = (100, 30);

const LIVE_BLOCK: Color = Color::Rgb(72, 129, 234);
const LIVE_RUN: Color = Color::Rgb(150, 108, 232);
const CACHED: Color = Color::Rgb(233, 168, 60);
const FREE_BLOCK: Color = Color::Rgb(45, 62, 102);
const FREE_PAGE: Color = Color::Rgb(67, 180, 150);
const UNTOUCHED: Color = Color::Rgb(48, 54, 64);
const TABLES: Color = Color::Rgb(214, 100, 140);
const OTHER: Color = Color::Rgb(128, 138, 154);

/// The parts of the resident size, in the order they are shown.
const PARTS: [(&str, &[&str], Color); 7] = [
    ("live blocks", &["live_block_bytes"], LIVE_BLOCK),
    ("live runs", &["live_run_bytes"], LIVE_RUN),
    ("in caches", &["cached_block_bytes"], CACHED),
    ("free blocks", &["free_block_bytes", "tail_bytes"], FREE_BLOCK),
    ("free pages", &["free_page_bytes"], FREE_PAGE),
    ("own tables", &["guarded_bytes", "table_bytes", "cache_bytes"], TABLES),
    ("all else", &["other_bytes"], OTHER),
];

/// Keeps and drops things until `stop`, in waves of some seconds; does nothing while `halted`.
fn work(seed: u64, stop: &AtomicBool, halted: &AtomicBool) {
    let mut random = seed;
    let mut next = move |bound: usize| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) as usize % bound
    };
    let (mut kept, mut rising): (Vec<Vec<u8>>, bool) = (Vec::new(), true);
    while !stop.load(Relaxed) {
        if halted.load(Relaxed) {
            thread::sleep(FRAME);
            continue;
        }
        for _ in 0..200 {
            if rising || next(4) == 0 {
                let most = if next(300) == 0 { 1 << 20 } else { 16 << next(9) };
                let size = next(most);
                kept.push(vec![1; size]);
            } else if !kept.is_empty() {
                kept.swap_remove(next(kept.len()));
            }
        }
        rising = if rising { kept.len() < MOST_KEPT } else { kept.len() < MOST_KEPT / 10 };
        thread::sleep(Duration::from_millis(2));
    }
}

fn document() -> Value {
    let mut text = String::new();
    HEAP.dump_json(&mut text).expect("a String can be written");
    serde_json::from_str(&text).expect("the document is JSON")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// The colour of a span of the page table, and the letter that stands for it where there are no colours.
fn look(span: &Value) -> (char, Color) {
    let (live, free) = (number(&span[4]), number(&span[5]));
    match span[2].as_str() {
        Some("divided") if live * 4 < live + free => ('.', FREE_BLOCK),
        Some("divided") => ('d', LIVE_BLOCK),
        Some("multi") => ('M', LIVE_RUN),
        _ if number(&span[6]) > 0 => ('-', FREE_PAGE),
        _ => (' ', UNTOUCHED),
    }
}

/// The look of most of the `pages` that are folded into a cell; of equally many, of those that come first. `spans` are
/// the page table from the first of them on.
fn majority(spans: &[Value], pages: Range<u64>) -> Option<(char, Color)> {
    let mut looks: Vec<((char, Color), u64)> = Vec::new();
    for span in spans.iter().take_while(|span| number(&span[0]) < pages.end) {
        let end = number(&span[0]) + number(&span[1]);
        let inside = end.min(pages.end).saturating_sub(number(&span[0]).max(pages.start));
        match looks.iter_mut().find(|(other, _)| *other == look(span)) {
            Some((_, sum)) => *sum += inside,
            None => looks.push((look(span), inside)),
        }
    }
    // The first of the largest.
    looks.into_iter().rev().max_by_key(|&(_, pages)| pages).map(|(look, _)| look)
}

fn show_parts(frame: &mut Frame, area: Rect, heap: &Value) {
    let whole = number(&heap["resident"]["process_bytes"]).max(1);
    let inner = Block::bordered().title(format!(" resident {} ", bytes(whole)).bold());
    let width = inner.inner(area).width as u64;
    let (mut bar, mut names) = (Vec::new(), Vec::new());
    for (name, members, color) in PARTS {
        let size: u64 = members.iter().map(|member| number(&heap["resident"][member])).sum();
        bar.push(Span::styled("█".repeat((size * width / whole) as usize), Style::new().fg(color)));
        names.push(Span::styled("■ ", Style::new().fg(color)));
        names.push(Span::raw(format!("{name} {}  ", bytes(size))));
    }
    let wrapped = Paragraph::new(vec![Line::from(bar), Line::from(names)]).wrap(Default::default());
    frame.render_widget(wrapped.block(inner), area);
}

fn show_map(frame: &mut Frame, area: Rect, heap: &Value) {
    let page_size = number(&heap["heap"]["page_size"]).max(1);
    let pages = number(&heap["summary"]["committed_bytes"]) / page_size;
    let block = Block::bordered();
    let inner = block.inner(area);
    let cells = (u64::from(inner.width) * u64::from(inner.height)).max(1);
    let fold = pages.div_ceil(cells).max(1);
    let title = format!(" {pages} pages of {}, {fold} to a cell ", bytes(page_size));
    frame.render_widget(block.title(title), area);
    let spans = heap["spans"].as_array().map_or(&[][..], Vec::as_slice);
    let mut at = 0;
    for cell in 0..pages.div_ceil(fold) {
        while spans.get(at + 1).is_some_and(|next| number(&next[0]) <= cell * fold) {
            at += 1;
        }
        let Some((letter, color)) = majority(&spans[at..], cell * fold..pages.min((cell + 1) * fold)) else {
            break;
        };
        let (x, y) = (cell % u64::from(inner.width), cell / u64::from(inner.width));
        let place = (inner.x + x as u16, inner.y + y as u16);
        if let Some(cell) = frame.buffer_mut().cell_mut(place) {
            cell.set_char(letter).set_bg(color).set_fg(Color::Black);
        }
    }
}

fn show_classes(frame: &mut Frame, area: Rect, heap: &Value) {
    let mut classes: Vec<&Value> = heap["classes"].as_array().into_iter().flatten().collect();
    classes.sort_by_key(|class| std::cmp::Reverse(number(&class["resident_bytes"])));
    let row = |name: String, of: &Value, blocks: &Value| {
        let live = bytes(number(&of["live_bytes"]));
        Row::new([name, number(blocks).to_string(), live, bytes(number(&of["resident_bytes"]))])
    };
    let runs = row("runs".to_owned(), &heap["runs"], &heap["runs"]["runs"]);
    let rows = classes.iter().map(|class| row(bytes(number(&class["block"])), class, &class["live_blocks"]));
    let widths = [9, 8, 10, 10].map(Constraint::Length);
    let header = Row::new(["block", "live", "bytes", "resident"]).dim();
    let table = Table::new(std::iter::once(runs).chain(rows), widths).header(header);
    frame.render_widget(table.block(Block::bordered().title(" size classes ")), area);
}

fn show(frame: &mut Frame, heap: &Value, said: &str) {
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(5), Constraint::Fill(1), Constraint::Length(1)])
            .areas(frame.area());
    let [map, classes] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(42)]).areas(middle);
    show_parts(frame, top, heap);
    show_map(frame, map, heap);
    show_classes(frame, classes, heap);
    let keys = Line::from(vec![
        " p ".bold(),
        "purge".into(),
        "  space ".bold(),
        "halt the work".into(),
        "  q ".bold(),
        "quit   ".into(),
        said.into(),
    ]);
    frame.render_widget(keys, bottom);
}

/// What a key asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    Quit,
    Purge,
    /// The work halts, or goes on.
    Halt,
}

/// What `key` asks for, when it is pressed: some terminals tell of repeats and releases, too.
fn wish(key: KeyEvent) -> Option<Wish> {
    if key.kind != KeyEventKind::Press {
        return None;
    }
    match key.code {
        // A terminal in raw mode sends no signal for it.
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Wish::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Quit),
        KeyCode::Char('p') => Some(Wish::Purge),
        KeyCode::Char(' ') => Some(Wish::Halt),
        _ => None,
    }
}

/// Shows frames until a key says to quit.
fn watch(terminal: &mut DefaultTerminal, halted: &AtomicBool) -> io::Result<()> {
    let mut said = String::new();
    loop {
        let heap = document();
        terminal.draw(|frame| show(frame, &heap, &said))?;
        let start = Instant::now();
        while event::poll(FRAME.saturating_sub(start.elapsed()))? {
            let Event::Key(key) = event::read()? else { continue };
            match wish(key) {
                Some(Wish::Quit) => return Ok(()),
                Some(Wish::Purge) => said = format!("{} purged", bytes(HEAP.purge() as u64)),
                Some(Wish::Halt) => {
                    halted.fetch_xor(true, Relaxed);
                }
                None => {}
            }
        }
    }
}

/// Prints `frames` frames as text.
fn print(frames: usize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut terminal =
        Terminal::new(TestBackend::new(PRINTED.0, PRINTED.1)).unwrap_or_else(|never| match never {});
    for frame in 1..=frames {
        thread::sleep(FRAME);
        let heap = document();
        terminal.draw(|frame| show(frame, &heap, "")).unwrap_or_else(|never| match never {});
        writeln!(out, "frame {frame}\n{}", terminal.backend())?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> =
        env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let frames = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] if io::stdout().is_terminal() => None,
        [] => Some(3),
        ["--frames", frames] if frames.parse::<usize>().is_ok() => frames.parse().ok(),
        _ => {
            eprintln!("usage: watch [--frames N]");
            return ExitCode::from(2);
        }
    };
    let (stop, halted) = (AtomicBool::new(false), AtomicBool::new(false));
    let end = thread::scope(|scope| {
        for seed in 0..THREADS {
            let (stop, halted) = (&stop, &halted);
            scope.spawn(move || work(seed as u64, stop, halted));
        }
        let end = match frames {
            Some(frames) => print(frames),
            None => ratatui::run(|terminal| watch(terminal, &halted)),
        };
        stop.store(true, Relaxed);
        end
    });
    match end {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads a pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("watch: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_that_are_pressed_ask_for_something() {
        let press = |code, modifiers| wish(KeyEvent::new(code, modifiers));
        let (none, control) = (KeyModifiers::NONE, KeyModifiers::CONTROL);
        assert_eq!(press(KeyCode::Char('q'), none), Some(Wish::Quit));
        assert_eq!(press(KeyCode::Esc, none), Some(Wish::Quit));
        assert_eq!(press(KeyCode::Char('c'), control), Some(Wish::Quit));
        assert_eq!(press(KeyCode::Char('c'), none), None);
        assert_eq!(press(KeyCode::Char('p'), none), Some(Wish::Purge));
        assert_eq!(press(KeyCode::Char(' '), none), Some(Wish::Halt));
        for kind in [KeyEventKind::Release, KeyEventKind::Repeat] {
            assert_eq!(wish(KeyEvent::new_with_kind(KeyCode::Char('p'), none, kind)), None);
        }
    }

    #[test]
    fn a_cell_looks_like_most_of_the_pages_folded_into_it() {
        let spans = [
            json!([0, 3, "free", 0, 0, 0, 0, null]),
            json!([3, 2, "multi", 0, 1, 0, 4096, null]),
            json!([5, 3, "multi", 0, 1, 0, 4096, null]),
            json!([8, 90, "free", 0, 0, 0, 4096, null]),
        ];
        let letter = |from: usize, pages| majority(&spans[from..], pages).map(|(letter, _)| letter);
        assert_eq!(letter(0, 0..8), Some('M'), "two runs are more than what comes first");
        assert_eq!(letter(0, 0..4), Some(' '));
        assert_eq!(letter(0, 1..5), Some(' '), "of equally many, the first");
        assert_eq!(letter(2, 7..9), Some('M'));
        assert_eq!(letter(2, 7..20), Some('-'));
        assert_eq!(majority(&[], 0..8), None);
    }
}
