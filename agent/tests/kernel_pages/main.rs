//! The page service between two hosts: two network namespaces with a wire between them, at the kernel's own speed.
//!
//! Needs root; skips itself loudly otherwise.

#[path = "../page_service/support.rs"]
#[allow(dead_code, reason = "shared with the tests on loopback")]
mod support;
mod wire;

use std::time::Duration;

use medes_agent::bases::{ReadPagesError, tcp::ConnectionError};

use crate::{
    support::{PATIENCE, assert_right, bases, place, read, reader, scattered},
    wire::{Holder, at_both_ends},
};

const PAGES: u32 = 4096;

fn selections() -> Vec<Vec<medes_dedup::page::BasePage>> {
    let neighbours = (0..PAGES).map(|page| place(1, page)).collect();
    let apart = scattered(1000, PAGES).into_iter().map(|page| place(1, page)).collect();
    vec![vec![place(1, 7)], neighbours, apart]
}

#[test]
fn every_page_comes_over_a_wire() {
    at_both_ends("every_page_comes_over_a_wire", bases(&[(1, PAGES)]), async |holder: Holder| {
        let pages = reader(holder.address, holder.token, PATIENCE);
        for wanted in selections() {
            assert_right(&wanted, &read(&pages, &wanted).await.expect("works"));
        }
    });
}

#[test]
fn every_page_comes_over_a_bad_wire() {
    at_both_ends("every_page_comes_over_a_bad_wire", bases(&[(1, PAGES)]), async |holder: Holder| {
        // Small pieces at a trickle: every frame is cut wherever it can be.
        holder.wire(&["link", "set", "reader", "mtu", "600"]);
        let pages = reader(holder.address, holder.token, PATIENCE);
        for wanted in selections() {
            assert_right(&wanted, &read(&pages, &wanted).await.expect("works"));
        }
    });
}

/// No process ends and nothing is closed: the other host is just not there any more.
#[test]
fn a_host_that_vanishes_is_noticed_in_time() {
    at_both_ends("a_host_that_vanishes_is_noticed_in_time", bases(&[(1, PAGES)]), async |holder: Holder| {
        let patience = Duration::from_millis(500);
        let pages = reader(holder.address, holder.token, patience);
        assert_right(&[place(1, 1)], &read(&pages, &[place(1, 1)]).await.expect("works"));
        holder.wire(&["link", "set", "reader", "down"]);
        let error = read(&pages, &[place(1, 2)]).await.expect_err("there is no wire");
        match error {
            ReadPagesError::Connection { source, .. } => {
                assert!(matches!(*source, ConnectionError::Silent(_) | ConnectionError::Io(_)), "{source:?}");
            }
            ReadPagesError::Connect { .. } => {}
            other => panic!("{other:?}"),
        }
        // It comes back, and so do the pages.
        holder.wire(&["link", "set", "reader", "up"]);
        let pages = reader(holder.address, holder.token, PATIENCE);
        assert_right(&[place(1, 2)], &read(&pages, &[place(1, 2)]).await.expect("works"));
    });
}
