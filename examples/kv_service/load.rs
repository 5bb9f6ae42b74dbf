//! A load: clients that put, get and delete values of all sizes.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Whatever may go wrong.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Connections at a time.
const CLIENTS: usize = 16;
/// Keys that the clients use.
const KEYS: usize = 5_000;
/// Values are shorter than so many bytes; most are much shorter.
const LONGEST: usize = 64 << 10;

/// What a load came to.
pub struct Done {
    requests: usize,
    refused: usize,
    took: Duration,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Done { requests, refused, took } = self;
        let rate = *requests as f64 / took.as_secs_f64();
        write!(
            f,
            "{requests} requests in {:.2} s, {rate:.0} a second; {refused} puts refused",
            took.as_secs_f64()
        )
    }
}

/// Puts the service at `address` under a load of about so many requests.
///
/// # Errors
/// The service cannot be reached, or answers what it should not.
pub async fn drive(address: SocketAddr, requests: usize) -> Result<Done, Failure> {
    let start = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(client(address, number as u64, requests.div_ceil(CLIENTS))))
        .collect();
    let (mut done, mut refused) = (0, 0);
    for client in clients {
        let (client_done, client_refused) = client.await??;
        done += client_done;
        refused += client_refused;
    }
    Ok(Done { requests: done, refused, took: start.elapsed() })
}

/// One client; returns how many requests were answered, and how many puts refused.
async fn client(address: SocketAddr, seed: u64, requests: usize) -> Result<(usize, usize), Failure> {
    let mut connection = connect(address).await?;
    let mut random = 0x9E37_79B9_7F4A_7C15 ^ (seed + 1);
    let mut below = move |bound: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as usize % bound
    };
    let mut refused = 0;
    for _ in 0..requests {
        let path = format!("/kv/{}", below(KEYS));
        let (method, body) = match below(10) {
            0..4 => {
                let bound = 1 << below(LONGEST.ilog2() as usize + 1);
                (Method::PUT, vec![b'v'; below(bound)])
            }
            4..9 => (Method::GET, Vec::new()),
            _ => (Method::DELETE, Vec::new()),
        };
        let (status, _) = ask(&mut connection, address, method, &path, body).await?;
        refused += usize::from(status == StatusCode::INSUFFICIENT_STORAGE);
        let expected = status.is_success() || status == StatusCode::NOT_FOUND;
        if !expected && status != StatusCode::INSUFFICIENT_STORAGE {
            return Err(format!("{path}: {status}").into());
        }
    }
    Ok((requests, refused))
}

/// The text that the service answers to a request without a body.
///
/// # Errors
/// The service cannot be reached, or answers no text.
pub async fn get(address: SocketAddr, path: &str) -> Result<String, Failure> {
    let (_, body) = ask(&mut connect(address).await?, address, Method::GET, path, Vec::new()).await?;
    Ok(String::from_utf8(body.into())?)
}

/// As [`get`], for what changes something.
///
/// # Errors
/// As for [`get`].
pub async fn post(address: SocketAddr, path: &str) -> Result<String, Failure> {
    let (_, body) = ask(&mut connect(address).await?, address, Method::POST, path, Vec::new()).await?;
    Ok(String::from_utf8(body.into())?)
}

/// A connection to the service.
///
/// # Errors
/// There is none to be had.
pub async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let (sender, connection) = handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends one request, and waits for the whole answer.
///
/// # Errors
/// The service cannot be reached.
pub async fn ask(
    connection: &mut SendRequest<Full<Bytes>>,
    address: SocketAddr,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), Failure> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address.to_string())
        .body(Full::new(Bytes::from(body)))?;
    connection.ready().await?;
    let response = connection.send_request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}
