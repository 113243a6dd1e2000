//! Dump, without a file system: the images become memory of this process as CRIU reads them.
//!
//! By CRIU's command line, not as a request to a worker: its service aborts when it is to stream ("not supported with CRIU's service
//! feature", its cr-service.c). A dump starts a CRIU of its own in either case, so nothing is lost but the last word of its answer, and that is
//! in the log.

use std::pin::pin;
use std::process::Stdio;

use super::capture::{self, Capture, CaptureError};
use super::dump::{self, DumpError, DumpRequest, Dumped, GHOST_FILE_BYTES_MAX, Leave};
use super::files::InMemory;
use super::find::Criu;
use super::log::{LEVEL_DEBUG, LEVEL_ERRORS};
use super::spawn::{self, Birthplace, Running};
use super::worker::{CallError, StartWorkerError};
use super::{LOG_FILE, named};
use crate::reaper::{ExitStatus, Reaper};

/// Dumps a tree into memory.
///
/// Not cancel-safe: dropping the future kills CRIU in the middle, see [`DumpError::leaves_doubt`].
pub async fn dump_to_memory(
    criu: &Criu,
    reaper: &Reaper,
    request: &DumpRequest<'_>,
) -> Result<(Dumped, InMemory), DumpError> {
    let pid = request.pid;
    let folder = dump::open(request)?;
    let failed = |source| DumpError::Capture { pid, source };
    let capture = Capture::listen(request.images).map_err(failed)?;
    let running = start(criu, reaper, request).await.map_err(|source| DumpError::Start { pid, source })?;
    let mut ended = pin!(end(running, request));
    let (ended, taken) = tokio::select! {
        line = capture.accept() => match line {
            // Both end: CRIU's ends of the pipes go with it.
            Ok(line) => tokio::join!(ended, capture::take(line)),
            Err(error) => (ended.await, Err(error)),
        },
        ended = &mut ended => (ended, Ok(InMemory::default())),
    };
    match (ended, taken) {
        // What CRIU could not write is ours to explain; what it did not send is its.
        (Ok(_), Err(error @ CaptureError::Take { .. })) => Err(failed(error)),
        (Ok(ExitStatus::Code(0)), taken) => Ok((dump::phases(request.images), taken.map_err(failed)?)),
        (Ok(ExitStatus::Code(_)), _) => Err(dump::refusal(request, &folder, None)),
        (Ok(_), _) => Err(DumpError::Worker { pid, source: CallError::Died }),
        (Err(source), _) => Err(DumpError::Worker { pid, source }),
    }
}

async fn start(criu: &Criu, reaper: &Reaper, request: &DumpRequest<'_>) -> Result<Running, StartWorkerError> {
    let birthplace = Birthplace::beside(request.pid)?;
    let mut command = criu.command();
    command.arg("dump").arg("--stream");
    command.arg("--tree").arg(request.pid.to_string());
    command.arg("--images-dir").arg(request.images);
    command.arg("--log-file").arg(LOG_FILE);
    command.arg(format!("-v{}", if request.verbose { LEVEL_DEBUG } else { LEVEL_ERRORS }));
    command.arg(match request.leave {
        Leave::Running => "--leave-running",
        Leave::Stopped => "--leave-stopped",
    });
    request.mounts.iter().for_each(|mount| {
        command.arg("--external").arg(named(mount));
    });
    // For these see the request.
    command.args(["--manage-cgroups=ignore", "--network-lock", "skip", "--file-locks", "--link-remap"]);
    command.arg("--ghost-limit").arg(GHOST_FILE_BYTES_MAX.to_string());
    command.arg("--timeout").arg(dump::alarm(request).to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let reaper = reaper.clone();
    let started = tokio::task::spawn_blocking(move || spawn::spawn(command, &reaper, birthplace)).await;
    let (running, _) = started.map_err(|join| StartWorkerError::Prepare(std::io::Error::other(join)))??;
    Ok(running)
}

/// How it ended. When its time is over it is killed.
async fn end(mut running: Running, request: &DumpRequest<'_>) -> Result<ExitStatus, CallError> {
    let limit = request.timeout;
    match tokio::time::timeout(limit, running.gone()).await {
        Ok(status) => Ok(status),
        Err(_elapsed) => {
            running.kill();
            running.finish().await;
            Err(CallError::Timeout { limit })
        }
    }
}
