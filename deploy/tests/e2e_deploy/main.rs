//! Several hosts, each a network namespace with its own sshd, address and /opt: deployed to, upgraded while requests
//! flow, brought back when one does not come up, and left as they were found.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lab;
mod package;
mod story;
mod systemd;
mod traffic;
