//! The service of the example `kv_service`: what it answers, under load and when its store is full.

use hyper::{Method, StatusCode};
use page_memory_allocator::PageAllocator;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

#[path = "../examples/kv_service/load.rs"]
mod load;
#[path = "../examples/kv_service/service.rs"]
mod service;
#[path = "../examples/kv_service/store.rs"]
mod store;
use load::{Failure, ask, connect, get, post};

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

#[test]
fn the_service_keeps_values_shows_its_heap_and_refuses_what_is_too_much() {
    let runtime = Runtime::new().expect("threads can be had");
    runtime.block_on(use_service()).unwrap();
    drop(runtime);
    HEAP.check().unwrap();
}

async fn use_service() -> Result<(), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(service::serve(listener));

    load::drive(address, 2_000).await?;
    keeps_values(address).await?;
    shows_its_heap(address).await?;
    is_full_at_its_limit(address).await
}

async fn keeps_values(address: SocketAddr) -> Result<(), Failure> {
    let connection = &mut connect(address).await?;
    let value = vec![7u8; 100_000];
    for (method, path, body, expected) in [
        (Method::GET, "/kv/none", vec![], StatusCode::NOT_FOUND),
        (Method::PUT, "/kv/one", value.clone(), StatusCode::NO_CONTENT),
        (Method::GET, "/kv/one", vec![], StatusCode::OK),
        (Method::DELETE, "/kv/one", vec![], StatusCode::NO_CONTENT),
        (Method::DELETE, "/kv/one", vec![], StatusCode::NOT_FOUND),
        (Method::GET, "/kv/one", vec![], StatusCode::NOT_FOUND),
        (Method::POST, "/kv/one", vec![], StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/elsewhere", vec![], StatusCode::NOT_FOUND),
    ] {
        let (status, answer) = ask(connection, address, method.clone(), path, body).await?;
        assert_eq!(status, expected, "{method} {path}");
        assert_eq!(answer.to_vec(), if status == StatusCode::OK { value.clone() } else { vec![] });
    }
    // The connection ends with this one: its body is not read.
    let (status, _) = ask(connection, address, Method::PUT, "/kv/one", vec![0; 2 << 20]).await?;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    Ok(())
}

async fn shows_its_heap(address: SocketAddr) -> Result<(), Failure> {
    assert!(get(address, "/").await?.starts_with("<!doctype html>"));
    let stats = get(address, "/stats").await?;
    for part in ["allocated ", "Divided pages:", "\nstore: ", "\nrequests: "] {
        assert!(stats.contains(part), "{stats}");
    }
    assert!(get(address, "/dump").await?.contains(";Component: store;"));
    let json: serde_json::Value = serde_json::from_str(&get(address, "/json").await?)?;
    let components = json["components"].as_array().expect("an array");
    let store = components.iter().find(|component| component["name"] == "store").expect("it was entered");
    assert_eq!(store["limit_bytes"], store::LIMIT);
    assert!(store["live_bytes"].as_u64() > Some(0));
    assert!(get(address, "/map").await?.contains("<h1>Heap map</h1>"));
    shows_its_profile(address).await?;
    assert!(post(address, "/purge").await?.ends_with(" bytes\n"));
    Ok(())
}

#[cfg(feature = "profile")]
async fn shows_its_profile(address: SocketAddr) -> Result<(), Failure> {
    assert!(get(address, "/").await?.contains(r#"<a href="/profile">"#));
    let connection = &mut connect(address).await?;
    let (status, profile) = ask(connection, address, Method::GET, "/profile", vec![]).await?;
    // Compressed, as pprof wants it.
    assert_eq!((status, profile.get(..2)), (StatusCode::OK, Some(&[0x1F, 0x8B][..])));
    Ok(())
}

#[cfg(not(feature = "profile"))]
async fn shows_its_profile(address: SocketAddr) -> Result<(), Failure> {
    assert!(!get(address, "/").await?.contains("/profile"));
    let connection = &mut connect(address).await?;
    let (status, _) = ask(connection, address, Method::GET, "/profile", vec![]).await?;
    assert_eq!(status, StatusCode::NOT_FOUND);
    Ok(())
}

async fn is_full_at_its_limit(address: SocketAddr) -> Result<(), Failure> {
    let connection = &mut connect(address).await?;
    let most = store::LIMIT >> 20;
    let mut kept = 0;
    for number in 0..2 * most {
        let path = format!("/kv/large-{number}");
        let (status, _) = ask(connection, address, Method::PUT, &path, vec![1; 1 << 20]).await?;
        match status {
            StatusCode::NO_CONTENT => kept += 1,
            _ => assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE),
        }
    }
    // The load before has left something, too.
    assert!(kept > most / 2 && kept < most, "{kept} of {most}");
    // It goes on with what it has.
    let (status, value) = ask(connection, address, Method::GET, "/kv/large-0", vec![]).await?;
    assert_eq!((status, value.len()), (StatusCode::OK, 1 << 20));
    Ok(())
}
