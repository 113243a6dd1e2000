//! A cluster on this machine: `medes up` as a child process, from its ready line to its end.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use crate::scratch::Scratch;

const START_MAX: Duration = Duration::from_secs(60);
/// `medes up` ends its agents, which end their sandboxes; each has a deadline of its own below this one.
const STOP_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// The ready line has two addresses; anything much longer is not it.
const READY_BYTES_MAX: u64 = 4096;
const TAIL_LINES: usize = 15;

/// Where to reach the cluster, as `medes up --json` prints it when everything listens.
#[derive(Debug, Deserialize)]
pub(crate) struct Addresses {
    /// host:port of the gRPC service.
    pub(crate) control: String,
    /// host:port of the HTTP gateway.
    pub(crate) gateway: String,
}

/// What every cluster has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Up<'u> {
    pub(crate) nodes: u32,
    /// Its state folder.
    pub(crate) state: &'u Path,
    /// What it writes goes to this file.
    pub(crate) log: &'u Path,
}

/// A running `medes up`. End it with [`Cluster::stop`]; a dropped one is told to end, but not waited for.
#[derive(Debug)]
pub(crate) struct Cluster {
    child: Child,
    log: PathBuf,
    pub(crate) addresses: Addresses,
}

/// Has something done on a cluster that is there for that alone, with this configuration of its controller. What fails ends with the last lines
/// that the cluster wrote.
pub(crate) async fn on_one<T>(
    (medes, log): (&Path, &Path),
    (nodes, config): (u32, &str),
    more: &[&str],
    work: impl AsyncFnOnce(&Cluster) -> Result<T>,
) -> Result<T> {
    let scratch = Scratch::make()?;
    let file = scratch.path().join("controller.toml");
    std::fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
    let file = file.to_string_lossy();
    let up = Up { nodes, state: scratch.path(), log };
    let cluster = Cluster::start(medes, up, &[&["--config", &file], more].concat()).await?;
    let done = work(&cluster).await;
    let tail = if done.is_err() { cluster.log_tail() } else { String::new() };
    cluster.stop().await?;
    let done = done.with_context(|| format!("work with a real cluster{tail}"))?;
    scratch.remove()?;
    Ok(done)
}

impl Cluster {
    /// Starts `medes up`, with more of its options, and waits until it is ready.
    pub(crate) async fn start(medes: &Path, up: Up<'_>, more: &[&str]) -> Result<Self> {
        let Up { nodes, state, log } = up;
        let errors = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let mut child = Command::new(medes)
            .args(["up", "--json", "--nodes", &nodes.to_string()])
            .args(more)
            // Any free ports: another cluster may have the usual ones.
            .args(["--control", "127.0.0.1:0", "--gateway", "127.0.0.1:0", "--state-dir"])
            .arg(state)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            // Its own group: a Ctrl-C of the terminal reaches us alone, and we end the cluster in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", medes.display()))?;
        let line = match child.stdout.take() {
            Some(stdout) => first_line(stdout),
            None => bail!("{} has no standard output", medes.display()),
        };
        // From here on the child ends with this value, whatever happens.
        let nowhere = Addresses { control: String::new(), gateway: String::new() };
        let mut cluster = Self { child, log: log.to_owned(), addresses: nowhere };
        match cluster.ready(line).await {
            Ok(addresses) => {
                cluster.addresses = addresses;
                Ok(cluster)
            }
            Err(error) => {
                let tail = cluster.log_tail();
                // The first error is the one to tell.
                drop(cluster.stop().await);
                Err(error.context(format!("start a cluster with {}{tail}", medes.display())))
            }
        }
    }

    async fn ready(&mut self, line: oneshot::Receiver<io::Result<String>>) -> Result<Addresses> {
        let line = timeout(START_MAX, line)
            .await
            .with_context(|| format!("not ready after {} s", START_MAX.as_secs()))?
            .context("its standard output broke")?
            .context("read its standard output")?;
        if line.is_empty() {
            bail!("it ended before it was ready");
        }
        serde_json::from_str(&line).with_context(|| format!("its first line is not the addresses: {line:?}"))
    }

    /// Asks the cluster to end, as Ctrl-C would, and waits. Kills it at the deadline and says so.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.interrupt();
        let deadline = Instant::now() + STOP_MAX;
        loop {
            if let Some(status) = self.child.try_wait().context("wait for `medes up`")? {
                return judge(status);
            }
            if Instant::now() > deadline {
                self.child.kill().context("kill `medes up`")?;
                self.child.wait().context("wait for `medes up`")?;
                bail!("`medes up` did not end within {} s and was killed", STOP_MAX.as_secs());
            }
            sleep(POLL).await;
        }
    }

    /// Its process: controller and agents are children of it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last lines the cluster wrote, each on a line of its own; empty if there are none.
    pub(crate) fn log_tail(&self) -> String {
        // Only to make an error easier to understand; without a log the error stands for itself.
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("\n    {line}")).collect()
    }

    fn interrupt(&mut self) {
        // After `try_wait` has seen its end, the number may be somebody else's.
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            // An error here means that it is gone, which is what we want.
            kill(Pid::from_raw(pid), Signal::SIGINT).ok();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.interrupt();
    }
}

fn judge(status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`medes up` ended with {status}");
    }
    Ok(())
}

/// The first line of a pipe. What follows is read and thrown away, so that the writer never blocks.
fn first_line(pipe: impl Read + Send + 'static) -> oneshot::Receiver<io::Result<String>> {
    let (sender, receiver) = oneshot::channel();
    // A thread, because the pipe may stay open for as long as we live; it ends with the writer.
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = String::new();
        let read = pipe.by_ref().take(READY_BYTES_MAX).read_line(&mut line).map(|_| line);
        // Nobody waits any more: the start was given up. Reading on still keeps the writer going.
        drop(sender.send(read));
        io::copy(&mut pipe, &mut io::sink())
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program in place of `medes`, in a folder that lives as long as the value.
    ///
    /// A shell writes it: a file that this process had open for writing could still be open in a child
    /// that another test is just starting, and the kernel refuses to run such a file.
    fn script(body: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("medes");
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$2" && chmod 755 "$2""#;
        let status = Command::new("sh").args(["-c", write, "sh", body]).arg(&path).status().unwrap();
        assert!(status.success());
        (folder, path)
    }

    async fn start(body: &str) -> Result<Cluster> {
        let (folder, medes) = script(body);
        let up = Up { nodes: 2, state: folder.path(), log: &folder.path().join("log") };
        Cluster::start(&medes, up, &["--idle", "1h"]).await
    }

    #[tokio::test]
    async fn a_cluster_is_ready_when_it_says_so_and_ends_on_interrupt() {
        let body =
            r#"trap 'exit 0' INT; echo '{"control":"c:1","gateway":"g:2"}'; while :; do sleep 0.05; done"#;
        let cluster = start(body).await.unwrap();
        assert_eq!((&*cluster.addresses.control, &*cluster.addresses.gateway), ("c:1", "g:2"));
        cluster.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_cluster_that_fails_at_once_says_why() {
        let error = start("echo no memory for agents >&2; exit 3").await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("no memory for agents") && text.contains("ended before"), "{text}");
    }

    #[tokio::test]
    async fn a_first_line_that_is_not_addresses_is_shown() {
        let error = start("echo hello").await.unwrap_err();
        assert!(format!("{error:#}").contains("hello"), "{error:#}");
    }

    #[tokio::test]
    async fn a_bad_end_is_an_error() {
        let body =
            r#"trap 'exit 4' INT; echo '{"control":"c:1","gateway":"g:2"}'; while :; do sleep 0.05; done"#;
        let cluster = start(body).await.unwrap();
        assert!(format!("{:#}", cluster.stop().await.unwrap_err()).contains('4'));
    }
}
