//! What the programs have in common: an answer for each path, over HTTP on `$PORT`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use medes_agent::sandbox::LaunchSpec;

use crate::{node::LIMIT, runner::ONE};

/// This program as a sandbox, started as `name`.
pub(crate) fn program(name: &str) -> LaunchSpec {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap().to_owned();
    let mut spec = LaunchSpec::new("checker", vec![program.display().to_string()], 8080);
    spec.env = vec![(ONE.to_owned(), name.to_owned())];
    spec.mounts = vec![folder];
    spec.ready_timeout = LIMIT;
    spec
}

/// Answers one request after the other, for ever.
pub(crate) fn answer(mut answer: impl FnMut(&str) -> String) {
    let port: u16 = std::env::var("PORT").unwrap().parse().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    loop {
        let Ok((stream, _)) = listener.accept() else { continue };
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        while lines.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
        let body = answer(first.split(' ').nth(1).unwrap_or_default());
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        // Who asked may have gone.
        let _gone = (&stream).write_all(format!("{head}{body}").as_bytes());
    }
}

/// Numbers that look random and are not.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
