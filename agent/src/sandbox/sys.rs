//! The unsafe fence of the sandbox folder: the few system calls the standard library and nix do not offer safely.
//! Nothing here knows what a sandbox is.
#![allow(unsafe_code, reason = "system calls without a safe wrapper; each block says why it is sound")]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockFlag, accept4, cmsg_space, recvmsg};
use nix::unistd::{ForkResult, Pid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the child of `command` inherit `fds` under the numbers they have here.
///
/// The numbers are kept (instead of being moved to 3, 4, 5) because the standard library holds
/// fds of its own between fork and exec, and a fixed target could hit one of them.
/// The caller keeps `fds` open until the command has been spawned.
pub(crate) fn inherit_fds(command: &mut Command, fds: Vec<RawFd>) {
    let clear = move || {
        for &fd in &fds {
            // SAFETY: fcntl(F_SETFD) takes plain integers; a number that is no open fd is an EBADF, not harm.
            let result = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec. It reads a Vec made before the fork, calls fcntl,
    // which is async-signal-safe, and allocates nothing (`last_os_error` only reads errno).
    unsafe { command.pre_exec(clear) };
}

/// Takes over an fd whose number came on the command line. It must be open.
pub(crate) fn take_inherited_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl(F_GETFD) takes plain integers and changes nothing.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the fd is open (checked above). It was inherited across exec for this purpose, so nothing
    // else in this fresh process owns it, and each number is taken once by the only caller, the stage.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Marks everything above the three standard streams close-on-exec, so that the function inherits nothing by accident.
pub(crate) fn close_others_on_exec() -> io::Result<()> {
    // SAFETY: close_range with CLOEXEC takes plain integers and closes nothing now; it only sets a flag.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Forks a process that has a single thread; refuses otherwise.
pub(crate) fn fork_single_threaded() -> io::Result<ForkResult> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    // SAFETY: with one thread no lock can be held by a thread that the child lacks (checked above, and
    // nobody else could start one in between), so the child may run ordinary code.
    let forked = unsafe { nix::unistd::fork() };
    Ok(forked?)
}

/// The next message, as much of it as there is room for, and at most so many of the descriptors that came with it.
pub(crate) fn receive(
    socket: RawFd,
    bytes: &mut [u8],
    files_max: usize,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut room = vec![0; cmsg_space::<RawFd>() * files_max];
    let mut parts = [IoSliceMut::new(bytes)];
    let received = loop {
        match recvmsg::<()>(socket, &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            received => break received?,
        }
    };
    let rights = received.cmsgs().into_iter().flatten().filter_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    // SAFETY: the kernel has just made these descriptors for this message; nothing else owns them, and each is named once.
    let files = rights.flatten().map(|file| unsafe { OwnedFd::from_raw_fd(file) }).collect();
    Ok((received.bytes, files))
}

/// The next one who has come to this door.
pub(crate) fn accept(door: &OwnedFd) -> io::Result<OwnedFd> {
    let visitor = accept4(door.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just made this descriptor for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(visitor) })
}

/// Makes this user and group the real ones of the calling thread alone, and of what it starts. It keeps its rights: those go by
/// the effective ones, which stay.
pub(crate) fn be_really(uid: u32, gid: u32) -> io::Result<()> {
    const KEEP: u32 = u32::MAX;
    // The calls of the C library would change all threads.
    for (call, id) in [(libc::SYS_setresgid, gid), (libc::SYS_setresuid, uid)] {
        // SAFETY: both take plain integers and change nothing but the calling thread's credentials.
        let result = unsafe { libc::syscall(call, id, KEEP, KEEP) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A handle to a process that cannot be confused with a later process of the same number.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes plain integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), libc::PIDFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(|_too_big| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just made this fd for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal through a pidfd.
pub(crate) fn pidfd_kill(pidfd: BorrowedFd<'_>, signal: nix::sys::signal::Signal) -> io::Result<()> {
    // SAFETY: the fd is open for the duration of the borrow; a null siginfo is allowed; flags must be 0.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the runtime wait until an fd is readable. Must be called inside a runtime.
pub(crate) fn wait_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open fd and gives the same number every time; the result owns it until it is
    // dropped and hands out shared references only, so nobody can close or replace it before.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}

/// Brings the loopback interface of the calling thread's network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    for (slot, byte) in name.iter_mut().zip(*b"lo") {
        *slot = byte as libc::c_char;
    }
    let up = libc::c_short::try_from(libc::IFF_UP)
        .map_err(|_too_big| io::Error::from_raw_os_error(libc::EINVAL))?;
    let request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: up } };
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`; the pointer is to a live, fully set one of the right layout,
    // and the socket is open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
