//! What the service answers.
//!
//! | request | answer |
//! |---|---|
//! | `PUT /kv/KEY` | keeps the body; 507 if the store is full |
//! | `GET /kv/KEY`, `DELETE /kv/KEY` | the value, or 404 |
//! | `GET /` | a page that leads to the following |
//! | `GET /stats` | the figures of the heap and of its components |
//! | `GET /dump` | the page table |
//! | `GET /json` | the same for programs |
//! | `GET /map` | the same as a picture |
//! | `GET /profile` | who allocated what is live, for `pprof`; with the feature `profile` |
//! | `POST /purge` | gives free memory back to the system |

use crate::HEAP;
use crate::store::Store;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use page_memory_allocator::Component;
use std::convert::Infallible;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use tokio::net::TcpListener;

/// The longest value, in bytes.
const LONGEST_VALUE: usize = 1 << 20;

/// The end of the list of links.
#[cfg(feature = "profile")]
macro_rules! profile_link {
    () => {
        r#", <a href="/profile">a profile of what is live</a>"#
    };
}
#[cfg(not(feature = "profile"))]
macro_rules! profile_link {
    () => {
        ""
    };
}

/// What connections and requests allocate.
static REQUESTS: Component = Component::new("requests");

const FRONT_PAGE: &str = concat!(
    r#"<!doctype html>
<title>Key-value service</title>
<h1>Key-value service</h1>
<p><a href="/stats">Figures of the heap</a>, <a href="/dump">the page table</a>, <a href="/map">its picture</a>, <a href="/json">as JSON</a>"#,
    profile_link!(),
    r#"
<form method="post" action="/purge"><button>Give free memory back</button></form>
"#
);

/// Serves connections for ever.
///
/// # Errors
/// Those of the listener.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    let store = Arc::new(Store::default());
    loop {
        let (stream, _) = listener.accept().await?;
        let store = Arc::clone(&store);
        let service = service_fn(move |request| answer(Arc::clone(&store), request));
        // On whichever thread it is polled, the connection is in its component.
        tokio::spawn(REQUESTS.wrap(async move {
            // A client that goes away is no concern.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }));
    }
}

async fn answer(store: Arc<Store>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    Ok(match (request.method(), path.as_str()) {
        (&Method::GET, "/") => page("text/html; charset=utf-8", FRONT_PAGE),
        (&Method::GET, "/stats") => page("text/plain; charset=utf-8", figures(&store)),
        (&Method::GET, "/dump") => page("text/plain; charset=utf-8", text(|out| HEAP.dump_to(out))),
        (&Method::GET, "/json") => page("application/json", text(|out| HEAP.dump_json(out))),
        (&Method::GET, "/map") => page("text/html; charset=utf-8", text(|out| HEAP.dump_html(out))),
        #[cfg(feature = "profile")]
        (&Method::GET, "/profile") => page("application/octet-stream", HEAP.profile().pprof()),
        (&Method::POST, "/purge") => page("text/plain; charset=utf-8", format!("{} bytes\n", HEAP.purge())),
        (method, path) => match (method, path.strip_prefix("/kv/")) {
            (&Method::PUT, Some(key)) => put(&store, key, request.into_body()).await,
            (&Method::GET, Some(key)) => store.get(key).map_or_else(
                || status(StatusCode::NOT_FOUND),
                |value| page("application/octet-stream", value),
            ),
            (&Method::DELETE, Some(key)) if store.delete(key) => status(StatusCode::NO_CONTENT),
            (&Method::DELETE, Some(_)) | (_, None) => status(StatusCode::NOT_FOUND),
            (_, Some(_)) => status(StatusCode::METHOD_NOT_ALLOWED),
        },
    })
}

async fn put(store: &Store, key: &str, body: Incoming) -> Response<Full<Bytes>> {
    match Limited::new(body, LONGEST_VALUE).collect().await {
        Err(_) => status(StatusCode::PAYLOAD_TOO_LARGE),
        Ok(body) => match store.put(key, &body.to_bytes()) {
            Ok(()) => status(StatusCode::NO_CONTENT),
            Err(_) => status(StatusCode::INSUFFICIENT_STORAGE),
        },
    }
}

fn figures(store: &Store) -> String {
    let mut text = format!("{}\n\n{}\n\n", HEAP.usage(), HEAP.summary());
    // Writing to a String cannot fail.
    HEAP.components(|stats| {
        let _ = writeln!(text, "{stats}");
    });
    let _ = writeln!(text, "The store's limit was met {} times.", store.stats().refusals);
    text
}

fn text(write: impl FnOnce(&mut String) -> fmt::Result) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text);
    text
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn page(kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
