//! Starting the program: its output goes to the log, its sockets are at 3 and up, and it has no right too many.

use std::{
    ffi::{CString, OsString},
    fs::{File, OpenOptions},
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStringExt as _, fs::OpenOptionsExt as _},
    },
    path::Path,
};

use anyhow::{Context, Result};
use medes_deploy::service::Service;
use nix::{
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn},
    sys::signal::SigSet,
    unistd::Pid,
};

use super::sockets::{self, Open};

/// The first inherited socket's number.
const LISTEN_FIRST: i32 = 3;

/// Starts the service of the version in `folder`.
pub(crate) fn start(service: &Service, folder: &Path, log: &Path, open: &[Open]) -> Result<Pid> {
    // This version's own program: what is current may already be another.
    let supervise = folder.join("bin/medes-supervise");
    let mut args = vec![supervise.clone().into_os_string(), "enter".into()];
    if !service.capabilities.is_empty() {
        args.extend(["--keep".into(), service.capabilities.join(",").into()]);
    }
    args.extend(["--".into(), folder.join(&service.program).into_os_string()]);
    args.extend(service.args_in(folder).into_iter().map(OsString::from));
    let args = args.into_iter().map(c_string).collect::<Result<Vec<_>>>()?;
    let environment = environment(open).into_iter().map(c_string).collect::<Result<Vec<_>>>()?;
    let attributes = attributes().context("say how it is started")?;
    let nothing = File::open("/dev/null").context("open /dev/null")?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log).context("open its log")?;
    let files = files(&nothing, &log, open).context("say which files it has")?;
    posix_spawn(supervise.as_path(), &files, &attributes, &args, &environment)
        .with_context(|| format!("start {}", supervise.display()))
}

/// This process waits for signals by reading them; the program wants them as they are.
fn attributes() -> nix::Result<PosixSpawnAttr> {
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK)?;
    attributes.set_sigmask(&SigSet::empty())?;
    Ok(attributes)
}

fn files(nothing: &File, log: &File, open: &[Open]) -> nix::Result<PosixSpawnFileActions> {
    let mut files = PosixSpawnFileActions::init()?;
    files.add_dup2(nothing.as_raw_fd(), 0)?;
    files.add_dup2(log.as_raw_fd(), 1)?;
    files.add_dup2(log.as_raw_fd(), 2)?;
    for (number, socket) in (LISTEN_FIRST..).zip(open) {
        files.add_dup2(socket.number, number)?;
        files.add_close(socket.number)?;
    }
    Ok(files)
}

/// That of this process, with what the program must know of its sockets.
fn environment(open: &[Open]) -> Vec<OsString> {
    let ours = [sockets::VARIABLE, "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"];
    let others = std::env::vars_os().filter(|(name, _)| !ours.iter().any(|our| name == our));
    let mut all: Vec<OsString> = others
        .map(|(mut text, value)| {
            text.push("=");
            text.push(value);
            text
        })
        .collect();
    if !open.is_empty() {
        let names: Vec<&str> = open.iter().map(|socket| &*socket.name).collect();
        all.push(format!("LISTEN_FDS={}", open.len()).into());
        all.push(format!("LISTEN_FDNAMES={}", names.join(":")).into());
    }
    all
}

fn c_string(text: OsString) -> Result<CString> {
    CString::new(text.into_vec()).context("a zero byte in an argument")
}
