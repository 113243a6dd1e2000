//! Brings a worker process into being.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::find::Criu;
use super::worker::{Output, StartWorkerError};
use crate::{
    reaper::{ExitWatch, Reaper},
    sandbox::sys,
};

/// User and group.
pub(super) type Ids = (u32, u32);

/// Starts `criu swrk 0` inside `netns`, in a process group of its own; gives our end of its socket.
/// Blocks for about a millisecond.
///
/// `real`: what its real user and group are, if not the agent's.
pub(super) fn spawn_in(
    criu: &Criu,
    reaper: &Reaper,
    (netns, real): (OwnedFd, Option<Ids>),
    output: Option<Output>,
) -> Result<(ExitWatch, OwnedFd, OwnedFd), StartWorkerError> {
    let prepare = |errno: Errno| StartWorkerError::Prepare(errno.into());
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )
    .map_err(prepare)?;
    // CRIU waits with plain blocking calls.
    let blocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty());
    nix::fcntl::fcntl(&theirs, blocking).map_err(prepare)?;

    let mut command = criu.command();
    command.args(["swrk", "0"]).process_group(0).stdin(theirs);
    match output {
        Some(Output { stdout, stderr }) => command.stdout(stdout).stderr(stderr),
        None => command.stdout(Stdio::null()).stderr(Stdio::null()),
    };
    // A child is born in the network namespace of the thread that makes it, as the users that it is, and a thread that has changed
    // its own is of no use to anyone else: so it is a thread for this one call. This keeps std's cheap way of starting programs
    // open, which a hook between fork and exec would close.
    let reaper = reaper.clone();
    let born = thread::Builder::new().name("criu-start".into()).spawn(move || {
        setns(&netns, CloneFlags::CLONE_NEWNET).map_err(|e| StartWorkerError::EnterNetns(e.into()))?;
        if let Some((uid, gid)) = real {
            sys::be_really(uid, gid).map_err(StartWorkerError::Prepare)?;
        }
        let (_child, exit) = reaper.spawn(&mut command).map_err(|source| StartWorkerError::Start {
            program: command.get_program().to_string_lossy().into_owned(),
            source,
        })?;
        Ok((exit, netns))
    });
    let born = born.map_err(StartWorkerError::Prepare)?.join();
    let (exit, netns) = born.unwrap_or_else(|_| {
        Err(StartWorkerError::Prepare(io::Error::other("the starting thread panicked")))
    })?;
    Ok((exit, ours, netns))
}
