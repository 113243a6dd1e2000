//! Verbs between two hosts of the lab: `holder ADDRESS` on one, `reader ADDRESS` on the other.
//!
//! The holder takes orders over a line of text each, so that the reader can have it expose, revoke and die. Without
//! arguments there is no lab: nothing is tested, and it says so.

mod holder;
mod reader;

use std::{net::IpAddr, process::ExitCode};

/// What readers must show.
const WORD: [u8; 32] = [0x5a; 32];
const RDMA_PORT: u16 = 7471;
const ORDER_PORT: u16 = 7472;
const PAGE: usize = 4096;
/// Pages of the exposed file.
const PAGES: usize = 2048;

/// What lies there.
fn word_at(page: usize, word: usize) -> u64 {
    (page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word as u64
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["holder", address] => runtime.block_on(holder::run(address.parse::<IpAddr>().expect("an address"))),
        ["reader", address, ..] => {
            let lossy = arguments.iter().any(|it| it == "--lossy");
            runtime.block_on(reader::run(address.parse::<IpAddr>().expect("an address"), lossy));
        }
        _ => println!("SKIPPED RDMA between two hosts: `cargo xtask lab` runs it"),
    }
    ExitCode::SUCCESS
}
