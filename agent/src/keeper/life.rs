//! The keeper's own life: get ready, hold what it is given, clean up, wait for the next agent.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use anyhow::Context;
use medes_proto::{ids::SandboxId, limits::MOVED_FILES_BYTES_MAX};
use nix::mount::{MntFlags, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{MsgFlags, recvmsg};

use super::line::{Heard, Key, Word, receive, send};
use super::takeover::{Heir, Left};
use super::{KeeperOrder, READY};
use crate::memory_file::MemoryFile;
use crate::private_files;
use crate::sandbox::TMPFS;
use crate::sandbox::cgroup::{Branch, KEEPER_GROUP, kill_and_remove};

/// Largest order the keeper reads.
const ORDER_BYTES_MAX: usize = 256 << 10;

/// What it holds for others.
#[derive(Debug, Default)]
struct Held {
    /// Second descriptors of userfaultfds, by their numbers.
    uffds: BTreeMap<u64, OwnedFd>,
    /// What the next agent is to have.
    left: BTreeMap<Key, Vec<OwnedFd>>,
}

/// The keeper's own life.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The agent is gone, so this goes wherever its own errors went.
            eprintln!("medes-agent keeper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // A stop signal to the whole service must not end the keeper before it has cleaned up behind the agent.
    let mut kept_out = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGPIPE] {
        kept_out.add(signal);
    }
    kept_out.thread_block().context("block signals")?;
    nix::unistd::setsid().context("start a session")?;
    let input = io::stdin().as_raw_fd();
    let order = read_order(input)?;
    if let Ok((_soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where that is refused it holds fewer, and says so for each.
        let _refused = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    for branch in &order.branches {
        branch.child(KEEPER_GROUP).join().with_context(|| format!("join {}", branch.dir.display()))?;
    }
    let heir = (!order.takeover.is_zero()).then(|| Heir::expect(&order.node));
    let heir = heir.transpose().context("wait for the next agent")?;
    let mut output = io::stdout().lock();
    output.write_all(READY).and_then(|()| output.flush()).context("say ready")?;
    let Held { uffds, left } = keep(input);
    let (left, cleaned) = clean_up(&order, left);
    // Only now: nobody is left who could come upon zeros.
    drop(uffds);
    cleaned?;
    match heir {
        Some(heir) if !left.is_empty() => heir.hand_over(&left, order.takeover).context("hand over"),
        _ => Ok(()),
    }
}

fn read_order(input: RawFd) -> anyhow::Result<KeeperOrder> {
    let mut order = vec![0; ORDER_BYTES_MAX];
    let mut parts = [IoSliceMut::new(&mut order)];
    let read = recvmsg::<()>(input, &mut parts, None, MsgFlags::empty()).context("read the order")?.bytes;
    serde_json::from_slice(&order[..read]).context("understand the order")
}

/// Holds what it is given until the agent's end of the socket closes.
fn keep(input: RawFd) -> Held {
    let mut held = Held::default();
    loop {
        let Heard { word, mut files } = match receive(input) {
            Ok(Some(heard)) => heard,
            // Not a word of ours: nobody else has this socket.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => continue,
            Ok(None) | Err(_) => return held,
        };
        match (word, files.pop()) {
            (Word::Hold(number), Some(uffd)) => {
                held.uffds.insert(number, uffd);
                // An agent that does not hear it parks nothing.
                let _gone = send(input, Word::Hold(number), &[]);
            }
            (Word::Hold(number), None) => {
                let _gone = send(input, Word::LetGo(number), &[]);
            }
            (Word::LetGo(number), _) => {
                held.uffds.remove(&number);
            }
            (Word::Leave(key), last) => {
                files.extend(last);
                held.left.insert(key, files);
            }
            (Word::TakeBack(key), _) => {
                held.left.remove(&key);
            }
            (Word::End(_), _) => {}
        }
    }
}

/// Ends what runs and frees what is not left to the next agent.
fn clean_up(order: &KeeperOrder, left: BTreeMap<Key, Vec<OwnedFd>>) -> (Vec<Left>, anyhow::Result<()>) {
    let removed = kill_and_remove(&order.branches, Some(KEEPER_GROUP));
    // Nothing writes to them any more.
    let left = left.into_iter().filter_map(|(key, files)| with_files(order, key, files)).collect();
    // With it go all mounts below: what the sandboxes wrote is freed even if another process holds this namespace.
    // Not mounted means that the agent did not get that far or has done it itself.
    let _not_mounted = umount2(&order.run_dir, MntFlags::MNT_DETACH);
    let _not_empty = fs::remove_dir(&order.run_dir);
    let leave_groups = || -> anyhow::Result<()> {
        removed?;
        for branch in &order.branches {
            // To where a process may be in any version of control groups; it is about to end.
            let top = Branch { dir: branch.top.clone(), ..branch.clone() };
            top.join()?;
        }
        kill_and_remove(&order.branches, None)?;
        Ok(())
    };
    (left, leave_groups())
}

/// A sandbox's private files go with it. Without them it would not be what it was, so it goes as well.
fn with_files(order: &KeeperOrder, key: Key, mut files: Vec<OwnedFd>) -> Option<Left> {
    if let Key::Sandbox(number) = key {
        match pack_files(order, number) {
            Ok(packed) => files.push(packed),
            Err(error) => {
                eprintln!(
                    "medes-agent keeper: the private files of sandbox {number} are lost, and so is it: {error}"
                );
                return None;
            }
        }
    }
    Some(Left { key, files })
}

fn pack_files(order: &KeeperOrder, number: u64) -> io::Result<OwnedFd> {
    let sandbox = SandboxId::new(number).ok_or(io::ErrorKind::InvalidInput)?;
    let folder = order.sandboxes.join(sandbox.to_string()).join(TMPFS);
    let bytes_max = usize::try_from(MOVED_FILES_BYTES_MAX).unwrap_or(usize::MAX);
    let packed = private_files::pack(&folder, bytes_max)?;
    if packed.len() > bytes_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(MemoryFile::sealed("medes-files", &packed)?.file().try_clone()?.into())
}
