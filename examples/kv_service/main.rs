//! A key-value service over HTTP on this allocator: the values live in a component with a limit, what requests need in
//! another, and the heap can be looked at in a browser while a load runs.
//!
//! ```text
//! cargo run --release --example kv_service                                serves, puts itself under load, and ends
//! cargo run --release --example kv_service -- serve 127.0.0.1:8080        serves: open http://127.0.0.1:8080/
//! cargo run --release --example kv_service -- load 127.0.0.1:8080 100000  so many requests to that
//! ```

mod load;
mod service;
mod store;

use page_memory_allocator::PageAllocator;
use std::env;
use std::error::Error;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

#[global_allocator]
static HEAP: PageAllocator = PageAllocator::new();

/// Requests of the load that the service puts itself under.
const USUAL_LOAD: usize = 50_000;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> =
        env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let runtime = Runtime::new()?;
    let address = || match arguments.get(1) {
        Some(address) => address.parse::<SocketAddr>().map_err(|error| format!("{address}: {error}")),
        None => Err(String::from("an address is wanted, such as 127.0.0.1:8080")),
    };
    match arguments.first().map(String::as_str) {
        Some("serve") => {
            let address = address()?;
            runtime.block_on(async {
                let listener = TcpListener::bind(address).await?;
                println!("http://{}/", listener.local_addr()?);
                Ok(service::serve(listener).await?)
            })
        }
        Some("load") => {
            let address = address()?;
            let requests = arguments.get(2).map_or(Ok(USUAL_LOAD), |number| number.parse())?;
            let done = runtime.block_on(load::drive(address, requests))?;
            println!("{done}");
            Ok(())
        }
        Some(other) => Err(format!("{other}: neither serve nor load").into()),
        None => runtime.block_on(async {
            let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
            let address = listener.local_addr()?;
            tokio::spawn(service::serve(listener));
            println!("{}\n", load::drive(address, USUAL_LOAD).await?);
            println!("{}", load::get(address, "/stats").await?);
            println!("purged: {}", load::post(address, "/purge").await?);
            println!("{}", load::get(address, "/stats").await?);
            HEAP.check().map_err(|violation| format!("{violation:?}"))?;
            Ok(())
        }),
    }
}
