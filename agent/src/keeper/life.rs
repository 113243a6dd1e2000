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
use super::takeover::{Fate, Heir, Left};
use super::{KeeperOrder, READY};
use crate::memory_file::MemoryFile;
use crate::private_files;
use crate::sandbox::cgroup::{Branch, KEEPER_GROUP, SandboxCgroup, group_name, kill_and_remove};
use crate::sandbox::claim::Place;
use crate::sandbox::{TMPFS, housing};

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
    for branch in &order.place.branches {
        branch.child(KEEPER_GROUP).join().with_context(|| format!("join {}", branch.dir.display()))?;
    }
    let heir = (!order.takeover.is_zero()).then(|| Heir::expect(&order.node, order.in_scope));
    let heir = heir.transpose().context("wait for the next agent")?;
    let mut output = io::stdout().lock();
    output.write_all(READY).and_then(|()| output.flush()).context("say ready")?;
    let Held { uffds, mut left } = keep(input);
    let parked = order.parked(&mut left);
    let stay =
        if parked.is_empty() { Vec::new() } else { [&parked[..], &[KEEPER_GROUP.to_owned()]].concat() };
    let (mut left, cleaned) = order.clean_up(&stay, left);
    if parked.is_empty() {
        // Only now: nobody is left who could come upon zeros.
        drop(uffds);
        cleaned?;
        if let Some(heir) = heir.filter(|_| !left.is_empty()) {
            heir.hand_over(&left, order.takeover).context("hand over")?;
        }
        return Ok(());
    }
    let handed_over = cleaned.and_then(|()| {
        left.push(order.standing()?);
        Ok(heir.context("nobody is to come")?.hand_over(&left, order.takeover)?)
    });
    match handed_over {
        // The next agent's keeper has a descriptor of each.
        Ok(Fate::Served) => Ok(()),
        // Whatever else is on this node is that agent's, and its keeper's.
        Ok(Fate::Dropped) => {
            parked.iter().for_each(|group| SandboxCgroup::at(&order.place.branches, group).kill_now());
            Ok(())
        }
        not => {
            let (_, cleaned) = order.clean_up(&[], BTreeMap::new());
            drop(uffds);
            not.context("hand over")?;
            cleaned
        }
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
            // There is to be no next agent.
            (Word::End(_), _) => held.left.clear(),
        }
    }
}

impl KeeperOrder {
    /// Groups of the parked sandboxes that are left. One that is not frozen could come upon zeros while it is handed over: it ends.
    fn parked(&self, left: &mut BTreeMap<Key, Vec<OwnedFd>>) -> Vec<String> {
        let mut groups = Vec::new();
        left.retain(|key, _| {
            let Key::Parked(number) = *key else { return true };
            let Some(name) = name(number) else { return false };
            let group = group_name(&name);
            let is_frozen = SandboxCgroup::at(&self.place.branches, &group).is_frozen();
            if is_frozen {
                groups.push(group);
            }
            is_frozen
        });
        groups
    }

    /// Ends what runs and frees what is not left to the next agent. `stay`: groups that are, and that of the keeper itself; if there are none,
    /// nothing of the node stays.
    fn clean_up(
        &self,
        stay: &[String],
        left: BTreeMap<Key, Vec<OwnedFd>>,
    ) -> (Vec<Left>, anyhow::Result<()>) {
        let Place { branches, run_dir } = &self.place;
        let spare = if stay.is_empty() { &[KEEPER_GROUP.to_owned()] } else { stay };
        let removed = kill_and_remove(branches, spare);
        // Nothing writes to them any more.
        let left = left.into_iter().filter_map(|(key, files)| self.with_files(key, files)).collect();
        if !stay.is_empty() {
            let stays = |name: &str| stay.contains(&group_name(name));
            // What stays behind is freed with the run directory.
            let failed = |error| eprintln!("medes-agent keeper: {error}");
            housing::clear_others(&self.sandboxes, stays, failed);
            return (left, removed.map_err(Into::into));
        }
        // With it go all mounts below: what the sandboxes wrote is freed even if another process holds this namespace.
        // Not mounted means that the agent did not get that far or has done it itself.
        let _not_mounted = umount2(run_dir, MntFlags::MNT_DETACH);
        let _not_empty = fs::remove_dir(run_dir);
        let leave_groups = || -> anyhow::Result<()> {
            removed?;
            for branch in branches {
                // To where a process may be in any version of control groups; it is about to end. systemd removes what is in a scope.
                let elsewhere = match self.in_scope {
                    true => branch.parent().child(KEEPER_GROUP),
                    false => Branch { dir: branch.top.clone(), ..branch.clone() },
                };
                fs::create_dir_all(&elsewhere.dir)?;
                elsewhere.join()?;
            }
            kill_and_remove(branches, &[])?;
            Ok(())
        };
        (left, leave_groups())
    }

    /// The node itself, for the next agent: with it come the mounts that the parked sandboxes are in.
    fn standing(&self) -> io::Result<Left> {
        let place = MemoryFile::sealed("medes-place", &serde_json::to_vec(&self.place)?)?;
        let mounts = fs::File::open("/proc/self/ns/mnt")?;
        Ok(Left { key: Key::Node, files: vec![place.file().try_clone()?.into(), mounts.into()] })
    }

    /// A sandbox's private files go with it. Without them it would not be what it was, so it goes as well.
    fn with_files(&self, key: Key, mut files: Vec<OwnedFd>) -> Option<Left> {
        if let Key::Sandbox(number) = key {
            match self.pack_files(number) {
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

    fn pack_files(&self, number: u64) -> io::Result<OwnedFd> {
        let folder = self.sandboxes.join(name(number).ok_or(io::ErrorKind::InvalidInput)?).join(TMPFS);
        let bytes_max = usize::try_from(MOVED_FILES_BYTES_MAX).unwrap_or(usize::MAX);
        let packed = private_files::pack(&folder, bytes_max)?;
        if packed.len() > bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(MemoryFile::sealed("medes-files", &packed)?.file().try_clone()?.into())
    }
}

/// What a sandbox's folder and group are named after.
fn name(number: u64) -> Option<String> {
    SandboxId::new(number).map(|sandbox| sandbox.to_string())
}
