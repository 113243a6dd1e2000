//! The service's listening sockets: opened once, handed from one life of the supervisor to the next.
//!
//! They are plain descriptor numbers from 64 on that survive an exec; their list is in an environment variable. A
//! child gets copies from 3 on, as systemd's protocol wants it, and not these.

use std::{net::SocketAddr, net::TcpListener, os::fd::RawFd};

use anyhow::{Context, Result};
use medes_deploy::service::Socket;
use nix::fcntl::{FcntlArg, fcntl};

/// `control@10.0.0.1:7070=64,gateway@...=65`: what one life leaves to the next.
pub(crate) const VARIABLE: &str = "MEDES_SUPERVISE_SOCKETS";
/// Below are those that a child finds its own at.
const FIRST: RawFd = 64;

/// One open socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) name: String,
    address: SocketAddr,
    pub(crate) number: RawFd,
}

/// Opens what the service wants and was not handed on; closes what it does not want any more.
pub(crate) fn open(wanted: &[Socket], handed_on: Option<&str>) -> Result<Vec<Open>> {
    let mut old = handed_on.map(parse).unwrap_or_default();
    let mut all = Vec::new();
    for Socket { name, address } in wanted {
        let same = old.iter().position(|open| open.name == *name && open.address == *address);
        all.push(match same {
            Some(at) => old.swap_remove(at),
            None => bind(name, *address)?,
        });
    }
    for unwanted in old {
        // Ours alone, and of no use to anybody.
        let _closed = nix::unistd::close(unwanted.number);
    }
    Ok(all)
}

fn bind(name: &str, address: SocketAddr) -> Result<Open> {
    let doing = || format!("listen on {address} for {name}");
    let listener = TcpListener::bind(address).with_context(doing)?;
    let number = fcntl(&listener, FcntlArg::F_DUPFD(FIRST)).with_context(doing)?;
    Ok(Open { name: name.to_owned(), address, number })
}

/// What the next life reads.
pub(crate) fn text(all: &[Open]) -> String {
    let one = |open: &Open| format!("{}@{}={}", open.name, open.address, open.number);
    all.iter().map(one).collect::<Vec<_>>().join(",")
}

fn parse(text: &str) -> Vec<Open> {
    let one = |part: &str| {
        let (name, rest) = part.split_once('@')?;
        let (address, number) = rest.rsplit_once('=')?;
        let number = number.parse().ok().filter(|number| *number >= FIRST)?;
        Some(Open { name: name.to_owned(), address: address.parse().ok()?, number })
    };
    text.split(',').filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(name: &str, address: &str) -> Socket {
        Socket { name: name.into(), address: address.parse().unwrap() }
    }

    #[test]
    fn a_socket_is_handed_on_while_its_address_stays() {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (one, two, three) = (free(), free(), free());
        let first = open(&[socket("a", &one), socket("b", &two)], None).unwrap();
        assert_eq!(parse(&text(&first)), first);
        let second = open(&[socket("b", &three), socket("a", &one)], Some(&text(&first))).unwrap();
        assert_eq!(second[1], first[0]);
        assert_ne!(second[0].address, first[1].address);
        // The old place of b is free again, that of a is not.
        assert!(TcpListener::bind(&two).is_ok());
        assert!(TcpListener::bind(&one).is_err());
        open(&[], Some(&text(&second))).unwrap();
        assert!(TcpListener::bind(&one).is_ok());
    }

    #[test]
    fn nonsense_is_no_socket() {
        for text in ["", "a", "a@127.0.0.1:1", "a@nowhere=64", "a@127.0.0.1:1=2"] {
            assert!(parse(text).is_empty(), "{text}");
        }
    }
}
