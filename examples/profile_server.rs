//! Serves the profile of what is live over HTTP.
//!
//! ```text
//! cargo run --release --features profile --example profile_server              # until it is ended
//! cargo run --release --features profile --example profile_server -- --once    # asks itself, prints, and ends
//!
//! go tool pprof -top http://127.0.0.1:PORT/debug/pprof/heap
//! curl http://127.0.0.1:PORT/debug/pprof/heap > heap.pb.gz                       # for Speedscope
//! curl http://127.0.0.1:PORT/debug/pprof/folded                                 # for flame graphs
//! ```

use page_memory_allocator::PageAllocator;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;
use std::{env, thread};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keeps texts, most of the memory.
#[inline(never)]
fn keep_texts() -> Vec<String> {
    (0..400_000).map(|number| format!("text number {number} ").repeat(4)).collect()
}

/// Keeps a table of small arrays.
#[inline(never)]
fn keep_a_table() -> HashMap<usize, Box<[u64]>> {
    (0..100_000).map(|number| (number, vec![1; number % 20].into())).collect()
}

/// Answers one request.
fn answer(stream: TcpStream) -> io::Result<()> {
    // Who connects and asks for nothing is in the way of others only for a while.
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let (status, kind, body) =
        match request.split_whitespace().nth(1).map(|path| path.split('?').next().unwrap_or(path)) {
            Some("/debug/pprof/heap") => ("200 OK", "application/octet-stream", HEAP.profile().pprof()),
            Some("/debug/pprof/folded") => ("200 OK", "text/plain", HEAP.profile().folded().into_bytes()),
            Some("/") => {
                let mut page = String::new();
                HEAP.dump_html(&mut page).map_err(io::Error::other)?;
                ("200 OK", "text/html", page.into_bytes())
            }
            _ => ("404 Not Found", "text/plain", b"/, /debug/pprof/heap, /debug/pprof/folded\n".to_vec()),
        };
    let mut stream = reader.into_inner();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body)
}

/// Asks the server at `port` for the folded stacks.
fn ask(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.write_all(b"GET /debug/pprof/folded HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn run() -> io::Result<()> {
    let once = env::args_os().nth(1).is_some_and(|argument| argument == "--once");
    let kept = (keep_texts(), keep_a_table());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    println!("http://127.0.0.1:{port}/, .../debug/pprof/heap, .../debug/pprof/folded");
    if once {
        let asked = thread::spawn(move || ask(port));
        answer(listener.accept()?.0)?;
        let answer = asked.join().expect("asking does not panic")?;
        println!("{answer}");
    } else {
        for stream in listener.incoming() {
            if let Err(error) = stream.and_then(answer) {
                eprintln!("profile_server: {error}");
            }
        }
    }
    drop(kept);
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("profile_server: {error}");
            ExitCode::FAILURE
        }
    }
}
