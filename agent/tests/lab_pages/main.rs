//! Base pages between two hosts of the lab, by RDMA with TCP behind it: `holder ADDRESS` on one, `reader ADDRESS` on the
//! other, which gives the orders over a line of text each.
//!
//! Without arguments there is no lab: nothing is tested, and it says so.

mod holder;
#[path = "../page_service/support.rs"]
#[allow(dead_code, reason = "shared with the tests on loopback, which need more of it")]
mod support;
mod tests;

use std::{net::IpAddr, process::ExitCode};

/// Where the holder takes orders.
const ORDER_PORT: u16 = 7473;
/// Pages of its snapshot.
const PAGES: u32 = 1024;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("works");
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["holder", host] => runtime.block_on(holder::run(address(host))),
        ["reader", host] => runtime.block_on(tests::run(address(host), tests::Line::Good)),
        ["reader", host, "--lossy"] => runtime.block_on(tests::run(address(host), tests::Line::Lossy)),
        ["reader", host, "--slow", device] => {
            runtime.block_on(tests::run(address(host), tests::Line::Slow { device }));
        }
        _ => println!("SKIPPED base pages by RDMA: `cargo xtask lab` runs it"),
    }
    ExitCode::SUCCESS
}
