//! Fence: stops a process and has one of its threads make system calls, and leaves it as it was.
//!
//! All threads are stopped; one of them makes the calls at an instruction in its vdso, nothing is written into its
//! code. Then registers and signal mask are put back and all go on: an interrupted system call is restarted by the kernel
//! as after any stop. This runs in a process of its own ([`super::helper`]), because the agent's reaper would take the
//! stops for its own children's; should that process die in between, the kernel kills the sandbox rather than let it run
//! with foreign registers.
#![allow(unsafe_code, reason = "ptrace has no safe wrapper for seized threads and suspended filters")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::maps;

/// How long threads may take to stop, and a call may take to return.
const STOP_MAX: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_micros(50);
/// Looks without a pause first: most stops are a matter of microseconds, a sleep is not.
const EAGER_LOOKS: u32 = 100;
/// Attempts at finding no thread inside a restartable sequence.
const SEQUENCE_TRIES: u32 = 20;
/// Threads of one process.
const THREADS_MAX: usize = 4096;
/// Where the vdso is looked through.
const VDSO_BYTES_MAX: u64 = 64 << 10;

/// Why a process was not made to do something. It is as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum InjectError {
    /// A debugger or another tracer holds it; it is left alone.
    #[error("process {tracer} traces it")]
    Traced {
        /// The tracer.
        tracer: i32,
    },
    /// It has ended.
    #[error("it has ended")]
    Gone,
    /// It did not stop, or the call did not return: it is frozen, or stuck in the kernel.
    #[error("it did not {step} in time")]
    Stuck {
        /// What was waited for.
        step: Stage,
    },
    /// A program for another kind of processor mode, a vdso without the instruction, or another architecture.
    #[error("this kind of program cannot be made to call the kernel")]
    Unsupported,
    /// The kernel refused.
    #[error("{step}: {}", io::Error::from_raw_os_error(*errno))]
    Refused {
        /// Which step.
        step: Stage,
        /// The error number.
        errno: i32,
    },
}

/// A step of an injection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Looking at it.
    Look,
    /// Stopping its threads.
    Stop,
    /// Reading or setting registers.
    Registers,
    /// Its call of userfaultfd.
    Make,
    /// Copying the descriptor.
    Take,
    /// Its call of close.
    Close,
    /// Handing it a descriptor.
    Give,
    /// Another call of it.
    Call,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Look => "look at the process",
            Self::Stop => "stop",
            Self::Registers => "exchange registers",
            Self::Make => "make a userfaultfd",
            Self::Take => "take the userfaultfd",
            Self::Close => "close the userfaultfd",
            Self::Give => "take a descriptor of ours",
            Self::Call => "make a system call",
        })
    }
}

type Registers = libc::user_regs_struct;

/// How often a thread may stop before the call it is to make has begun.
const EARLY_MAX: u32 = 4;
const SIGTRAP: libc::c_int = libc::SIGTRAP;
const PTRACE_EVENT_STOP: libc::c_int = 128;
/// Not in the libc crate for every target.
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const O_SUSPEND_SECCOMP: libc::c_int = 1 << 21;

fn request(request: libc::c_uint, tid: Pid, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: for the requests made through here the kernel either takes both as plain numbers, or `data` is the
    // address of a live buffer of ours of the size the request has (see the callers); a wrong thread is an ESRCH.
    let result = unsafe { libc::ptrace(request as _, tid.as_raw(), address, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn refused(step: Stage) -> impl Fn(io::Error) -> InjectError {
    move |error| match error.raw_os_error() {
        Some(libc::ESRCH) => InjectError::Gone,
        errno => InjectError::Refused { step, errno: errno.unwrap_or(0) },
    }
}

/// How a thread has stopped.
#[derive(Debug, PartialEq, Eq)]
enum Stopped {
    /// By our interruption.
    Interrupted,
    /// At the beginning or the end of a system call.
    AtCall,
    /// On its way to a signal handler.
    Signal(libc::c_int),
}

/// Waits until the thread stops.
fn wait(tid: Pid, step: Stage) -> Result<Stopped, InjectError> {
    let deadline = Instant::now() + STOP_MAX;
    let mut looks = 0;
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live integer; WNOHANG makes the call return at once.
        let found = unsafe { libc::waitpid(tid.as_raw(), &raw mut status, libc::__WALL | libc::WNOHANG) };
        if found < 0 {
            return Err(refused(step)(io::Error::last_os_error()));
        }
        if found > 0 {
            if !libc::WIFSTOPPED(status) {
                return Err(InjectError::Gone);
            }
            return Ok(match (libc::WSTOPSIG(status), status >> 16) {
                (_, PTRACE_EVENT_STOP) => Stopped::Interrupted,
                (signal, 0) if signal == SIGTRAP | 0x80 => Stopped::AtCall,
                (signal, _) => Stopped::Signal(signal),
            });
        }
        looks += 1;
        if looks < EAGER_LOOKS {
            std::thread::yield_now();
            continue;
        }
        if Instant::now() > deadline {
            return Err(InjectError::Stuck { step });
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets a thread go on until it stops because it was interrupted; signals on the way reach their handlers.
fn wait_interrupted(tid: Pid, step: Stage) -> Result<(), InjectError> {
    loop {
        match wait(tid, step)? {
            Stopped::Interrupted => return Ok(()),
            Stopped::AtCall => request(libc::PTRACE_CONT, tid, 0, 0).map_err(refused(step))?,
            Stopped::Signal(signal) => {
                request(libc::PTRACE_CONT, tid, 0, signal as usize).map_err(refused(step))?;
            }
        }
    }
}

/// Threads of a process that stand still; they go on when it is dropped.
struct Stop {
    threads: BTreeSet<Pid>,
}

impl Stop {
    /// Stops all threads. Those begun meanwhile are found by looking again.
    fn all(pid: Pid) -> Result<Self, InjectError> {
        let mut stop = Self { threads: BTreeSet::new() };
        loop {
            let before = stop.threads.len();
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(|_gone| InjectError::Gone)?;
            let tids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok());
            for tid in tids.map(Pid::from_raw).take(THREADS_MAX) {
                if stop.threads.contains(&tid) {
                    continue;
                }
                match stop.seize(tid) {
                    // A thread that ended, or the first one of a process that lives on in others.
                    Err(InjectError::Gone) => {}
                    seized => seized?,
                }
            }
            if stop.threads.len() == before {
                return if before == 0 { Err(InjectError::Gone) } else { Ok(stop) };
            }
        }
    }

    fn seize(&mut self, tid: Pid) -> Result<(), InjectError> {
        // Not yet the option to kill it with this process: as long as its registers are its own, one that does not
        // stop (it is frozen) must live on untouched.
        request(libc::PTRACE_SEIZE, tid, 0, libc::PTRACE_O_TRACESYSGOOD as usize).map_err(|error| {
            // A thread on its way out answers as if it were somebody else's.
            let ends = !fs::read_to_string(format!("/proc/{tid}/stat"))
                .is_ok_and(|stat| !matches!(state(&stat), Some('Z' | 'X')));
            if ends { InjectError::Gone } else { refused(Stage::Stop)(error) }
        })?;
        // From here on it is let go whatever happens.
        self.threads.insert(tid);
        request(libc::PTRACE_INTERRUPT, tid, 0, 0).map_err(refused(Stage::Stop))?;
        match wait_interrupted(tid, Stage::Stop) {
            Err(InjectError::Gone) => {
                self.threads.remove(&tid);
                Err(InjectError::Gone)
            }
            other => other,
        }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        for &tid in &self.threads {
            // One that was killed meanwhile needs nothing.
            drop(request(libc::PTRACE_DETACH, tid, 0, 0));
        }
    }
}

/// The letter behind the name, which may hold anything.
fn state(stat: &str) -> Option<char> {
    stat.rsplit(')').next()?.trim_start().chars().next()
}

fn tracer(pid: Pid) -> Result<i32, InjectError> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_gone| InjectError::Gone)?;
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    Ok(line.and_then(|number| number.trim().parse().ok()).unwrap_or(0))
}

/// Address of a `syscall` instruction in the vdso, which every process has and nobody writes to.
#[cfg(target_arch = "x86_64")]
fn call_instruction(pid: Pid, memory: &File) -> Result<u64, InjectError> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let maps = maps::read(pid).map_err(|_gone| InjectError::Gone)?;
    let area = maps::areas(&maps).find(maps::Area::is_vdso).ok_or(InjectError::Unsupported)?;
    let bytes = (area.end - area.start).min(VDSO_BYTES_MAX);
    let mut code = vec![0; usize::try_from(bytes).map_err(|_large| InjectError::Unsupported)?];
    memory.read_exact_at(&mut code, area.start).map_err(refused(Stage::Look))?;
    let at = code.windows(2).position(|two| two == SYSCALL).ok_or(InjectError::Unsupported)?;
    Ok(area.start + at as u64)
}

/// Whether the thread was stopped inside a restartable sequence, which must not be left by another way than its own.
fn in_sequence(tid: Pid, memory: &File, registers: &Registers) -> bool {
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        area: u64,
        bytes: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut found = Configuration::default();
    let size = size_of::<Configuration>();
    let asked = request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, (&raw mut found).addr());
    if asked.is_err() || found.area == 0 {
        return false;
    }
    let word = |at: u64| {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, at).ok().map(|()| u64::from_ne_bytes(bytes))
    };
    // `rseq.rseq_cs`, and of `struct rseq_cs` the start and the length.
    let Some(sequence) = word(found.area + 8).filter(|&at| at != 0) else { return false };
    let (Some(start), Some(length)) = (word(sequence + 8), word(sequence + 16)) else { return false };
    registers.rip.wrapping_sub(start) < length
}

/// One stopped thread that makes calls for us.
struct Caller {
    tid: Pid,
    registers: Registers,
    mask: u64,
    instruction: u64,
    /// Whether it is known to stand still; not while a call is under way.
    stands: bool,
}

impl Caller {
    fn get(tid: Pid) -> io::Result<Registers> {
        // SAFETY: all-zero bytes are a valid value of this struct of integers.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        request(libc::PTRACE_GETREGS, tid, 0, (&raw mut registers).addr())?;
        Ok(registers)
    }

    fn set(&self, registers: &Registers) -> io::Result<()> {
        request(libc::PTRACE_SETREGS, self.tid, 0, std::ptr::from_ref(registers).addr())
    }

    fn set_mask(&self, mask: u64) -> io::Result<()> {
        request(PTRACE_SETSIGMASK, self.tid, 8, (&raw const mask).addr())
    }

    /// Prepares: the filter is lifted for this thread while we hold it, signals wait, and from here on it dies with
    /// this process.
    fn take(tid: Pid, instruction: u64, registers: Registers) -> Result<Self, InjectError> {
        /// `cs` of a 64-bit program.
        const LONG_MODE: u64 = 0x33;
        if registers.cs != LONG_MODE {
            return Err(InjectError::Unsupported);
        }
        let failed = refused(Stage::Registers);
        let mut mask = 0u64;
        request(PTRACE_GETSIGMASK, tid, 8, (&raw mut mask).addr()).map_err(&failed)?;
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD | O_SUSPEND_SECCOMP;
        request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map_err(&failed)?;
        let caller = Self { tid, registers, mask, instruction, stands: true };
        caller.set_mask(u64::MAX).map_err(&failed)?;
        Ok(caller)
    }

    /// Has the thread make one call.
    fn call(&mut self, number: i64, arguments: [u64; 6], step: Stage) -> Result<i64, InjectError> {
        let failed = refused(step);
        let mut registers = self.registers;
        registers.rip = self.instruction;
        registers.rax = number.cast_unsigned();
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
        // So that the kernel does not take the stop for one inside a call that is to be restarted.
        registers.orig_rax = u64::MAX;
        self.set(&registers).map_err(&failed)?;
        // First the entry, then the exit.
        let (mut at_call, mut early, mut signal) = (0, 0, 0);
        while at_call < 2 {
            request(libc::PTRACE_SYSCALL, self.tid, 0, signal).map_err(&failed)?;
            self.stands = false;
            let stopped = wait(self.tid, step)?;
            self.stands = true;
            (at_call, early, signal) = match stopped {
                Stopped::AtCall => (at_call + 1, early, 0),
                _ if at_call > 0 || early == EARLY_MAX => return Err(InjectError::Stuck { step }),
                // One that was stopped by a signal stops for us twice: as it is seized, and as it is interrupted.
                Stopped::Interrupted => (at_call, early + 1, 0),
                // One that is about to be: it is to stay so when we let it go.
                Stopped::Signal(stop) => (at_call, early + 1, stop as usize),
            };
        }
        Ok(Self::get(self.tid).map_err(&failed)?.rax.cast_signed())
    }

    /// Puts everything back, at a stop after which the kernel looks whether a call is to be restarted.
    fn put_back(&self) -> Result<(), InjectError> {
        let failed = refused(Stage::Registers);
        request(libc::PTRACE_INTERRUPT, self.tid, 0, 0).map_err(&failed)?;
        // Otherwise a call never began or returned (the process is frozen): the interruption gets through to it, and
        // the stop to wait for may be there already.
        if self.stands {
            request(libc::PTRACE_CONT, self.tid, 0, 0).map_err(&failed)?;
        }
        wait_interrupted(self.tid, Stage::Registers)?;
        self.set(&self.registers).map_err(&failed)?;
        self.set_mask(self.mask).map_err(&failed)
    }
}

/// A process that stands still. It goes on when this is dropped, or dies if it could not be put back.
pub(super) struct Held {
    stop: Option<Stop>,
    caller: Caller,
    /// Whether the caller has its own registers.
    is_itself: bool,
    /// Since when.
    begun: Instant,
}

impl Held {
    /// Stops a process. Only for a process that has one thread and no children of its own.
    pub(super) fn take(pid: Pid) -> Result<Self, InjectError> {
        match tracer(pid)? {
            0 => {}
            tracer => return Err(InjectError::Traced { tracer }),
        }
        let memory = File::open(format!("/proc/{pid}/mem")).map_err(refused(Stage::Look))?;
        let instruction = call_instruction(pid, &memory)?;
        for _ in 0..SEQUENCE_TRIES {
            let begun = Instant::now();
            let stop = Stop::all(pid)?;
            let Some(&tid) = stop.threads.first() else { return Err(InjectError::Gone) };
            let registers = Caller::get(tid).map_err(refused(Stage::Registers))?;
            if in_sequence(tid, &memory, &registers) {
                // It is over in a moment.
                continue;
            }
            let caller = Caller::take(tid, instruction, registers)?;
            return Ok(Self { stop: Some(stop), caller, is_itself: false, begun });
        }
        Err(InjectError::Stuck { step: Stage::Stop })
    }

    /// Has it make one system call; what that returned.
    pub(super) fn call(&mut self, number: i64, arguments: [u64; 6], step: Stage) -> Result<i64, InjectError> {
        self.is_itself = false;
        self.caller.call(number, arguments, step)
    }

    /// Gives it its registers and its signal mask back; it still stands.
    pub(super) fn put_back(&mut self) -> Result<(), InjectError> {
        if !self.is_itself {
            if let Err(error) = self.caller.put_back() {
                // It must not go on like this; the kernel ends it when this process ends without letting it go.
                std::mem::forget(self.stop.take());
                return Err(error);
            }
            self.is_itself = true;
        }
        Ok(())
    }

    /// Since when it stands.
    pub(super) const fn begun(&self) -> Instant {
        self.begun
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Its error has ended the process's stop for good already.
        let _put_back = self.put_back();
    }
}
