//! The fence around what must happen in a child between fork and exec.
#![allow(
    unsafe_code,
    reason = "code that runs between fork and exec can only be given through an unsafe call"
)]

use std::{io, process::Stdio};

use nix::{
    errno::Errno,
    sys::{prctl, signal::Signal},
    unistd::{getpid, getppid},
};
use tokio::process::{Child, Command};

/// Starts `command` as a child that is asked to end (SIGTERM) when this process ends in any way.
///
/// It gets its own process group: Ctrl-C in a terminal reaches only us, and we stop children in order.
/// Call it on the main thread: the kernel counts the thread that forked as the parent.
pub(super) fn spawn(mut command: Command) -> io::Result<Child> {
    // Between themselves they speak plainly, on loopback: a certificate of whoever types is not for them.
    command.env_remove("MEDES_IDENTITY");
    command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    let parent = getpid();
    let die_with_parent = move || {
        prctl::set_pdeathsig(Signal::SIGTERM)?;
        // The parent may have ended before the line above; then nobody would ever tell us.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from(Errno::ESRCH)) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls may run. The closure calls prctl and getppid,
    // which are plain system calls; it takes no lock, and makes errors from numbers without allocating.
    unsafe { command.pre_exec(die_with_parent) };
    command.spawn()
}
