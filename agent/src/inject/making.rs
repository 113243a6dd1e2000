//! Has a process make a userfaultfd for us, takes it, and has it closed there: the process holds nothing it could misuse,
//! and CRIU sees nothing it would refuse.
//!
//! One that also serves the kernel's own faults must be privileged or come from `/dev/userfaultfd`. A sandbox is neither and
//! has no such device: ours is handed to it through a socket pair it makes, and closed again. No host-wide setting is
//! needed.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;

use super::operator::{Operation, OperatorError};
use super::stop::{InjectError, Stage};
use crate::uffd;

/// What it is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ForWhat {
    /// Telling writes apart. Asynchronous protection never asks anybody, so one for faults of the program itself is enough,
    /// which everybody may make.
    Tracking,
    /// Bringing missing pages, to the kernel as well. The address of a page of the process that may be overwritten.
    Paging { scratch: u64 },
}

/// Faults of the program itself only: what a program without rights may ask for.
const USER_MODE_ONLY: u64 = 1;
const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
const DEVICE: &str = "/dev/userfaultfd";

/// Has a process that stands make a userfaultfd, and takes it. Nobody else holds it then.
pub(crate) fn make_userfaultfd(
    operation: &mut Operation,
    pid: Pid,
    what: ForWhat,
) -> Result<OwnedFd, OperatorError> {
    let number = match (what, File::options().read(true).write(true).open(DEVICE)) {
        (ForWhat::Paging { scratch }, Ok(device)) => {
            let own = give(operation, pid, &device, scratch)?;
            let made = operation.call(pid, libc::SYS_ioctl, &[own, uffd::DEVICE_NEW, FLAGS], Stage::Make);
            operation.call(pid, libc::SYS_close, &[own], Stage::Close)?;
            made?
        }
        // Without the device only a privileged process can, and says so.
        (ForWhat::Paging { .. }, Err(_)) => {
            operation.call(pid, libc::SYS_userfaultfd, &[FLAGS], Stage::Make)?
        }
        (ForWhat::Tracking, _) => {
            operation.call(pid, libc::SYS_userfaultfd, &[FLAGS | USER_MODE_ONLY], Stage::Make)?
        }
    };
    let taken = take(pid, number);
    operation.call(pid, libc::SYS_close, &[number], Stage::Close)?;
    taken
}

fn take(pid: Pid, number: u64) -> Result<OwnedFd, OperatorError> {
    let number = RawFd::try_from(number)
        .map_err(|_large| OperatorError::Inject { pid, source: InjectError::Unsupported })?;
    uffd::fd_of(pid, number).map_err(|error| failed(pid, Stage::Take, &error))
}

fn failed(pid: Pid, step: Stage, error: &io::Error) -> OperatorError {
    OperatorError::Refused { pid, step, errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// Gives the process a descriptor of ours; its number there.
fn give(operation: &mut Operation, pid: Pid, file: &File, scratch: u64) -> Result<u64, OperatorError> {
    /// Where in the scratch page the parts of the message are.
    const MESSAGE: u64 = 64;
    const VECTOR: u64 = 128;
    const CONTROL: u64 = 192;
    const BYTE: u64 = 320;
    const CONTROL_BYTES: u64 = 64;
    let broken = |error: io::Error| failed(pid, Stage::Give, &error);
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).map_err(broken)?;
    let pair = [libc::AF_UNIX as u64, (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64, 0, scratch];
    operation.call(pid, libc::SYS_socketpair, &pair, Stage::Give)?;
    let word = |at: u64| {
        let mut bytes = [0; 4];
        memory.read_exact_at(&mut bytes, scratch + at).map(|()| u32::from_ne_bytes(bytes))
    };
    let (theirs, ours) = (word(0).map_err(broken)?, word(4).map_err(broken)?);
    let received = (|| {
        let sender = take(pid, ours.into())?;
        let descriptors = [file.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(b"!")], &rights, MsgFlags::empty(), None)
            .map_err(|errno| broken(errno.into()))?;
        // `struct iovec` and `struct msghdr`.
        let vector = [scratch + BYTE, 1];
        let message = [0, 0, scratch + VECTOR, 1, scratch + CONTROL, CONTROL_BYTES, 0];
        let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        memory.write_all_at(&bytes(&vector), scratch + VECTOR).map_err(broken)?;
        memory.write_all_at(&bytes(&message), scratch + MESSAGE).map_err(broken)?;
        let receive = [theirs.into(), scratch + MESSAGE, libc::MSG_CMSG_CLOEXEC as u64];
        operation.call(pid, libc::SYS_recvmsg, &receive, Stage::Give)?;
        // Behind `struct cmsghdr`.
        word(CONTROL + 16).map(u64::from).map_err(broken)
    })();
    for number in [theirs, ours] {
        operation.call(pid, libc::SYS_close, &[number.into()], Stage::Close)?;
    }
    received
}
