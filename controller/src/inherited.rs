//! Listening sockets that whoever started this program has opened and keeps: then nobody who comes while one controller
//! stops and the next one starts is turned away.
//!
//! The protocol is systemd's: they are the descriptors from 3 on, `LISTEN_FDS` says how many, `LISTEN_FDNAMES` their
//! names (`control`, `gateway`), `LISTEN_PID` whom they are meant for.
#![allow(unsafe_code, reason = "descriptors that are inherited come as numbers")]

use medes_controller::server::Sockets;
use std::{
    net::TcpListener,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

/// The first that may be inherited.
const FIRST: RawFd = 3;
/// More have no meaning.
const SOCKETS_MAX: usize = 16;

/// The variables do not make sense, or a descriptor is not what they say.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InheritError {
    /// Not a number, or a large one.
    #[error("LISTEN_FDS is not a number up to {SOCKETS_MAX}")]
    Count,
    /// Not `control` or `gateway`, or one of them twice.
    #[error("LISTEN_FDNAMES does not name each socket control or gateway, once")]
    Names,
    /// Not open.
    #[error("descriptor {number} of LISTEN_FDS is not an open socket")]
    NotOpen {
        /// Which.
        number: RawFd,
    },
}

/// Takes what was inherited. Call it once, before this process opens anything: the numbers it takes are then free
/// or inherited.
///
/// # Errors
/// When what the variables say cannot be.
pub(crate) fn take() -> Result<Sockets, InheritError> {
    let variable = |name| std::env::var(name).ok();
    let me = std::process::id().to_string();
    let names = match variable("LISTEN_PID") {
        Some(other) if other != me => Vec::new(),
        _ => names(variable("LISTEN_FDS").as_deref(), variable("LISTEN_FDNAMES").as_deref())?,
    };
    let mut inherited = Sockets::default();
    for (number, place) in (FIRST..).zip(names) {
        let socket = listener(number)?;
        match place {
            Name::Control => inherited.control = Some(socket),
            Name::Gateway => inherited.gateway = Some(socket),
        }
    }
    Ok(inherited)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Control,
    Gateway,
}

fn names(count: Option<&str>, names: Option<&str>) -> Result<Vec<Name>, InheritError> {
    let Some(count) = count else { return Ok(Vec::new()) };
    let count =
        count.parse::<usize>().ok().filter(|count| *count <= SOCKETS_MAX).ok_or(InheritError::Count)?;
    let name = |text| match text {
        "control" => Some(Name::Control),
        "gateway" => Some(Name::Gateway),
        _ => None,
    };
    let names: Option<Vec<Name>> = names.unwrap_or_default().split_terminator(':').map(name).collect();
    let names = names.filter(|names| names.len() == count).ok_or(InheritError::Names)?;
    let twice = |wanted| names.iter().filter(|name| **name == wanted).count() > 1;
    if twice(Name::Control) || twice(Name::Gateway) { Err(InheritError::Names) } else { Ok(names) }
}

fn listener(number: RawFd) -> Result<TcpListener, InheritError> {
    let link = std::fs::read_link(format!("/proc/self/fd/{number}"));
    if !link.is_ok_and(|target| target.to_string_lossy().starts_with("socket:")) {
        return Err(InheritError::NotOpen { number });
    }
    // SAFETY: the descriptor is open, as was just seen, and nobody else owns it: it was inherited for this use, this
    // function is called once for each number, and nothing of this process has been given a number that was taken.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_socket_has_a_name_and_each_name_is_there_once() {
        assert_eq!(names(None, None).unwrap(), []);
        assert_eq!(names(Some("0"), None).unwrap(), []);
        let both = names(Some("2"), Some("gateway:control")).unwrap();
        assert_eq!(both, [Name::Gateway, Name::Control]);
        for (count, text) in
            [("1", None), ("1", Some("other")), ("2", Some("control:control")), ("2", Some("control"))]
        {
            assert!(matches!(names(Some(count), text), Err(InheritError::Names)), "{count} {text:?}");
        }
        for count in ["", "x", "17", "-1"] {
            assert!(matches!(names(Some(count), None), Err(InheritError::Count)), "{count}");
        }
    }
}
