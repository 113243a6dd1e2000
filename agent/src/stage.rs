//! The first step of a sandbox: `medes-agent stage`, started by the agent, single-threaded, never returning.
//!
//! It turns itself into the sandbox's first process: enter the network namespace, make the others, fork (so that
//! the child is process 1 inside), join the control group, put the file systems in place, give up every privilege,
//! and execute the function's program. What fails is reported through a pipe that closes by itself when the program
//! starts. Order matters; each step says why it is where it is.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Gid, Uid};

use crate::sandbox::mounts::PROC_READ_ONLY;
use crate::sandbox::order::{ORDER_BYTES_MAX, Order, Report, Step};
use crate::sandbox::{seccomp, sys};

/// Files a function may have open. The hard limit of the agent still holds.
const OPEN_FILES_MAX: u64 = 16_384;

/// The numbers of the inherited fds.
#[derive(Debug, clap::Args)]
pub struct StageArgs {
    /// Holds the order.
    order: RawFd,
    /// Takes the report.
    report: RawFd,
    /// The network namespace to enter.
    network: RawFd,
}

/// What went wrong in one step.
#[derive(Debug)]
struct Failure {
    step: Step,
    path: Option<PathBuf>,
    errno: i32,
}

/// Names the step of an error.
trait At<T> {
    fn at(self, step: Step) -> Result<T, Failure>;
    fn at_path(self, step: Step, path: &Path) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.map_err(|error| Failure { step, path: None, errno: errno_of(&error.into()) })
    }

    fn at_path(self, step: Step, path: &Path) -> Result<T, Failure> {
        self.map_err(|error| Failure { step, path: Some(path.to_owned()), errno: errno_of(&error.into()) })
    }
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EINVAL)
}

/// Runs the stage. Call it before any thread exists. Returns in the process that forked, and on failure.
pub fn main(args: &StageArgs) -> ExitCode {
    let Ok(report) = sys::take_inherited_fd(args.report).map(File::from) else {
        // Not started by an agent: nobody to tell but the person who typed it.
        eprintln!("medes-agent stage is started by the agent, not by hand");
        return ExitCode::from(2);
    };
    match run(args, &report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { step, path, errno }) => {
            tell(&report, &Report::Failed { step, path, errno });
            ExitCode::FAILURE
        }
    }
}

/// One report is one line and one write, below the size at which pipes stay atomic for all but absurd paths.
fn tell(mut report: &File, message: &Report) {
    if let Ok(mut line) = serde_json::to_vec(message) {
        line.push(b'\n');
        // If the agent is gone there is nobody left to tell; the keeper ends us.
        let _agent_gone = report.write_all(&line);
    }
}

fn run(args: &StageArgs, report: &File) -> Result<(), Failure> {
    // First: from here on no fd can reach the function's program by accident.
    sys::close_others_on_exec().at(Step::Order)?;
    let order = read_order(args).at(Step::Order)?;
    let network = sys::take_inherited_fd(args.network).at(Step::Network)?;
    setns(&network, CloneFlags::CLONE_NEWNET).at(Step::Network)?;
    drop(network);
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(own).at(Step::Unshare)?;
    match sys::fork_single_threaded().at(Step::Fork)? {
        ForkResult::Parent { child } => {
            tell(report, &Report::Forked { pid: child.as_raw() });
            Ok(())
        }
        ForkResult::Child => become_function(&order),
    }
}

fn read_order(args: &StageArgs) -> io::Result<Order> {
    let file = File::from(sys::take_inherited_fd(args.order)?);
    let mut json = Vec::new();
    file.take(ORDER_BYTES_MAX as u64).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// The rest of the way, as process 1 of the new pid namespace. Returns only on failure.
fn become_function(order: &Order) -> Result<(), Failure> {
    // In the child, not before the fork: the group's process limit then counts the function alone.
    for path in &order.procs_files {
        File::options()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(b"0"))
            .at_path(Step::Cgroup, path)?;
    }
    // The session leader must be inside the pid namespace, or CRIU refuses to dump.
    nix::unistd::setsid().at(Step::Session)?;
    nix::unistd::sethostname(&order.hostname).at(Step::Hostname)?;
    mount_all(order)?;
    enter_root(order)?;
    nix::unistd::chdir(&order.dir).at_path(Step::Dir, &order.dir)?;
    // Opened here and not inherited: CRIU must find the file on a mount of this namespace.
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).at(Step::Stdin)?;
    nix::unistd::dup2_stdin(&null).at(Step::Stdin)?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    set_limits().at(Step::Limits)?;
    give_up_privileges(order)?;
    Err(execute(order))
}

fn mount_all(order: &Order) -> Result<(), Failure> {
    let everything_private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, everything_private, None::<&str>)
        .at_path(Step::Mount, Path::new("/"))?;
    let root = open(&order.root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .at_path(Step::Mount, &order.root)?;
    for bind in &order.binds {
        let base = MsFlags::MS_NOSUID | if bind.devices { MsFlags::MS_NOEXEC } else { MsFlags::MS_NODEV };
        let flags = if bind.read_only { base | MsFlags::MS_RDONLY } else { base };
        bind_into(&root, &bind.outside, &bind.inside, flags)?;
    }
    let point = reach(&root, Path::new("/proc"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), &point.path(), Some("proc"), flags, None::<&str>)
        .at_path(Step::Mount, Path::new("/proc"))?;
    for name in PROC_READ_ONLY {
        let inside = Path::new("/proc").join(name);
        match reach(&root, &inside) {
            Ok(point) => {
                let from = point.path();
                bind_point(&from, &root, &inside, flags | MsFlags::MS_RDONLY)?;
            }
            Err(failure) if failure.errno == libc::ENOENT => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// A place below the new root, found without leaving it: links in a foreign root directory cannot lead outside.
struct Point(OwnedFd);

impl Point {
    /// The outer /proc is still there at this time, and `self` is right in it, in whatever pid namespace we are.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

fn reach(root: &OwnedFd, inside: &Path) -> Result<Point, Failure> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, inside, how).map(Point).at_path(Step::Mount, inside)
}

fn bind_into(root: &OwnedFd, outside: &Path, inside: &Path, flags: MsFlags) -> Result<(), Failure> {
    bind_point(outside, root, inside, flags)
}

fn bind_point(from: &Path, root: &OwnedFd, inside: &Path, flags: MsFlags) -> Result<(), Failure> {
    let point = reach(root, inside)?;
    mount(Some(from), &point.path(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .at_path(Step::Mount, inside)?;
    // The flags of a bind only count in a second call, and on the new mount, which a new look finds.
    let mounted = reach(root, inside)?;
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, &mounted.path(), None::<&str>, flags, None::<&str>).at_path(Step::Mount, inside)
}

/// Makes the prepared tree the root and drops every mount of the agent's namespace with the old one.
fn enter_root(order: &Order) -> Result<(), Failure> {
    nix::unistd::chdir(&order.root).at_path(Step::Root, &order.root)?;
    // New on top of old at the same place: needs no folder for the old one inside the new one.
    nix::unistd::pivot_root(".", ".").at_path(Step::Root, &order.root)?;
    umount2(".", MntFlags::MNT_DETACH).at(Step::Root)?;
    nix::unistd::chdir("/").at(Step::Root)
}

fn set_limits() -> nix::Result<()> {
    // A core file would hold request data.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // It counts what all sandboxes of a user have. Each has its control group's limit.
    match setrlimit(Resource::RLIMIT_NPROC, libc::RLIM_INFINITY, libc::RLIM_INFINITY) {
        Ok(()) | Err(Errno::EPERM) => {}
        other => return other,
    }
    let (_soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let files = hard.min(OPEN_FILES_MAX);
    match setrlimit(Resource::RLIMIT_NOFILE, files, files) {
        // Where even lowering is forbidden, the inherited limit is good enough.
        Err(Errno::EPERM) => Ok(()),
        other => other,
    }
}

/// After this nothing can be regained: not by exec (no_new_privs, empty bounding set), not by user 0.
fn give_up_privileges(order: &Order) -> Result<(), Failure> {
    use caps::{CapSet, CapsHashSet};
    let no_caps = CapsHashSet::new();
    let failed = |_error| Failure { step: Step::Capabilities, path: None, errno: libc::EPERM };
    // The bounding set first: emptying it takes a capability itself.
    for cap in caps::all() {
        if caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, cap).map_err(failed)?;
        }
    }
    // Groups before user: afterwards the right to do so is gone.
    nix::unistd::setgroups(&[]).at(Step::User)?;
    let (uid, gid) = (Uid::from_raw(order.uid), Gid::from_raw(order.gid));
    nix::unistd::setresgid(gid, gid, gid).at(Step::User)?;
    nix::unistd::setresuid(uid, uid, uid).at(Step::User)?;
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    // Effective before permitted: it may never be the larger one.
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::set(None, set, &no_caps).map_err(failed)?;
    }
    nix::sys::prctl::set_no_new_privs().at(Step::Capabilities)?;
    // Last: the filters forbid some of what was done above.
    let refused = Failure { step: Step::Seccomp, path: None, errno: libc::EINVAL };
    let Ok(programs) = seccomp::programs() else { return Err(refused) };
    for program in &programs {
        if seccompiler::apply_filter(program).is_err() {
            return Err(refused);
        }
    }
    Ok(())
}

fn execute(order: &Order) -> Failure {
    let Some((program, arguments)) = order.command.split_first() else {
        return Failure { step: Step::Exec, path: None, errno: libc::ENOENT };
    };
    // `exec` of the standard library also gives signals their default meaning back.
    let error = Command::new(program).args(arguments).env_clear().envs(order.env.iter().cloned()).exec();
    let there = program.contains('/') && Path::new(program).exists();
    let missing_interpreter = error.kind() == io::ErrorKind::NotFound && there;
    let step = if missing_interpreter { Step::Interpreter } else { Step::Exec };
    Failure { step, path: Some(program.into()), errno: errno_of(&error) }
}
