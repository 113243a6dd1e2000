//! The public ways to speak to a cluster: `medes`, and requests through the gateway. Cheap to clone, so that many may speak at once.

use std::{
    io::Read as _,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    hosts::Place,
    http::{self, Asked},
    program::wait_for,
};

/// No answer of `medes` is awaited for longer, to be able to tell that it hung.
const GIVEN_UP: Duration = Duration::from_secs(60);

/// Where a cluster is, and whose.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    pub(crate) medes: PathBuf,
    /// host:port of the controller.
    pub(crate) control: String,
    pub(crate) gateway: SocketAddr,
    /// Begins the names of its nodes.
    pub(crate) mark: String,
}

impl Desk {
    /// The name of a node.
    pub(crate) fn node(&self, place: Place) -> String {
        format!("{}-{}", self.mark, place.word())
    }

    /// `medes --json` with these words: its exit code and what it printed.
    pub(crate) fn medes(&self, words: &[&str]) -> Result<(i32, Value)> {
        let mut child = Command::new(&self.medes)
            .env_remove("MEDES_IDENTITY")
            .args(words)
            .args(["--json", "--controller", &self.control])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start medes")?;
        let mut stdout = child.stdout.take().context("no standard output")?;
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text)
        });
        let Some(status) = wait_for(GIVEN_UP, || child.try_wait().ok().flatten()) else {
            child.kill().context("end medes")?;
            child.wait().context("wait for medes")?;
            bail!("medes {} hung", words.join(" "));
        };
        let text = reader.join().ok().context("a thread panicked")?.context("read its answer")?;
        Ok((status.code().unwrap_or(-1), serde_json::from_str(&text).unwrap_or_default()))
    }

    /// The same, where it must go well.
    pub(crate) fn ask(&self, words: &[&str]) -> Result<Value> {
        let (code, value) = self.medes(words)?;
        ensure!(code == 0, "medes {}: {value}", words.join(" "));
        Ok(value)
    }

    /// A request.
    pub(crate) fn post(&self, path: &str, prefer: Option<&str>) -> Asked {
        http::ask(self.gateway, path, prefer)
    }

    /// Starts a sandbox there; its name.
    pub(crate) fn start_on(&self, place: Place, function: &str) -> Result<String> {
        let done = self.ask(&["start", function, "--node", &self.node(place)])?;
        Ok(done["sandbox"]["sandbox"].as_str().context("no sandbox")?.to_owned())
    }

    /// Sandboxes as `medes ps` has them.
    pub(crate) fn rows(&self) -> Vec<Value> {
        let rows = self.medes(&["ps"]).ok();
        rows.and_then(|(_, rows)| rows.as_array().cloned()).unwrap_or_default()
    }

    /// A sandbox's state; "gone" if it is not known, "unknown" if there is nobody to ask.
    pub(crate) fn state(&self, sandbox: &str) -> String {
        let Ok((0, rows)) = self.medes(&["ps"]) else { return "unknown".into() };
        let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["sandbox"] == sandbox));
        row.map_or("gone", |row| row["state"].as_str().unwrap_or_default()).to_owned()
    }

    /// Nodes as `medes nodes` has them.
    pub(crate) fn rows_of_nodes(&self) -> Vec<Value> {
        let nodes = self.medes(&["nodes"]).ok().map(|(_, value)| value["nodes"].clone());
        nodes.and_then(|nodes| nodes.as_array().cloned()).unwrap_or_default()
    }
}
