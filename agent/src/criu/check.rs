//! Questions to CRIU that concern no sandbox: its version, and whether it works on this kernel.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PassCred};

use super::find::Version;
use super::log::Reason;
use super::wire::rpc;
use super::worker::{CallError, StartWorkerError, Worker};

/// A first run probes the kernel, which takes a tenth of a second on an idle machine.
const TIME_MAX: Duration = Duration::from_secs(30);

/// Why CRIU did not tell its version.
#[derive(Debug, thiserror::Error)]
pub enum AskCriuError {
    /// It does not start.
    #[error("ask CRIU for its version")]
    Start(#[from] StartWorkerError),
    /// It gave no answer.
    #[error("ask CRIU for its version")]
    Call(#[from] CallError),
    /// It answered without a version.
    #[error("CRIU does not tell its version")]
    NoVersion,
}

/// Why CRIU cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum CheckCriuError {
    /// It does not start.
    #[error("run criu check")]
    Start(#[from] StartWorkerError),
    /// The scratch folder is of no use.
    #[error("open the scratch folder {path} for criu check")]
    Scratch {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It gave no answer.
    #[error("run criu check")]
    Call(#[from] CallError),
    /// It is too old for this kernel, which its own check does not see.
    #[error("CRIU {version} cannot dump TCP sockets on this kernel; {needed} can")]
    TooOld {
        /// What it is.
        version: Version,
        /// What it takes.
        needed: Version,
    },
    /// The kernel lets only a process without a seccomp filter suspend the filter of another one (PTRACE_O_SUSPEND_SECCOMP), and CRIU's own
    /// check does not look.
    #[error(
        "this service runs under a seccomp filter, and CRIU can then dump no sandbox, each of which has one; \
         take the filter away (systemd: RestrictNamespaces=, SystemCallFilter=, ProtectKernelModules= and their like)"
    )]
    Filtered,
    /// It does not tell its version.
    #[error("run criu check")]
    Version(#[from] AskCriuError),
    /// It says what the kernel or our rights lack.
    #[error("criu check says no: {reason}")]
    Lacking {
        /// CRIU's own words.
        reason: Reason,
    },
}

/// The first CRIU that asks only those sockets for SO_PASSCRED that have it.
const ASKS_RIGHTLY: Version = Version { major: 4, minor: 2, patch: 0 };

/// Linux 6.16 refuses an option on TCP sockets that CRIU before 4.2 asks every socket for.
pub(super) fn age(version: Version) -> Result<(), CheckCriuError> {
    if version >= ASKS_RIGHTLY || tcp_has_passcred() {
        return Ok(());
    }
    Err(CheckCriuError::TooOld { version, needed: ASKS_RIGHTLY })
}

/// What a filter of our own would be in the way of.
pub(super) fn filter() -> Result<(), CheckCriuError> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    if is_filtered(&status) { Err(CheckCriuError::Filtered) } else { Ok(()) }
}

/// A kernel without seccomp does not say.
fn is_filtered(status: &str) -> bool {
    status.lines().filter_map(|line| line.strip_prefix("Seccomp:")).any(|mode| mode.trim() != "0")
}

fn tcp_has_passcred() -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).is_ok_and(|socket| getsockopt(&socket, PassCred).is_ok())
}

pub(super) async fn version(mut worker: Worker) -> Result<Version, AskCriuError> {
    let request = rpc::Request { r#type: rpc::RequestType::Version.into(), opts: None, notify_success: None };
    let response = worker.call(&request, TIME_MAX, |_| ()).await?;
    worker.finish().await;
    let rpc::Version { major_number, minor_number, sublevel, .. } =
        response.version.ok_or(AskCriuError::NoVersion)?;
    let number = |n: i32| u32::try_from(n).map_err(|_negative| AskCriuError::NoVersion);
    Ok(Version {
        major: number(major_number)?,
        minor: number(minor_number)?,
        patch: number(sublevel.unwrap_or(0))?,
    })
}

pub(super) async fn check(mut worker: Worker, scratch: &Path) -> Result<(), CheckCriuError> {
    let folder =
        File::open(scratch).map_err(|source| CheckCriuError::Scratch { path: scratch.to_owned(), source })?;
    let request = rpc::Request {
        r#type: rpc::RequestType::Check.into(),
        opts: Some(rpc::Options {
            images_dir_fd: folder.as_raw_fd(),
            log_level: Some(super::log::LEVEL_ERRORS),
            log_file: Some(super::LOG_FILE.into()),
            network_lock: Some(rpc::NetworkLock::Skip.into()),
            ..Default::default()
        }),
        notify_success: None,
    };
    let response = worker.call(&request, TIME_MAX, |_| ()).await?;
    worker.finish().await;
    if response.success {
        return Ok(());
    }
    Err(CheckCriuError::Lacking {
        reason: Reason::read(&super::log_path(scratch), response.cr_errmsg.as_deref()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_seen() {
        assert!(!is_filtered("Name:\tx\nNoNewPrivs:\t0\nSeccomp:\t0\nSeccomp_filters:\t0\n"));
        assert!(is_filtered("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!is_filtered("Name:\tx\n"));
    }
}
