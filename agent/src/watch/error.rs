//! Why there is no watch: reasons a person can act on.

use std::error::Error;
use std::io;

use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::{BtfError, EbpfError};

/// A verifier log can be megabytes; its end says what was wrong.
const LOG_LINES_MAX: usize = 12;
const LOG_BYTES_MAX: usize = 2048;

/// The watch could not start. The agent goes on without it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The agent was compiled on a machine without an eBPF tool chain.
    #[error("this agent was built without kernel programs: {reason}")]
    NotBuilt {
        /// What the build lacked.
        reason: &'static str,
    },
    /// The kernel does not describe its own types.
    #[error("read the kernel's type information (BTF)")]
    NoBtf {
        /// What reading it met.
        source: BtfError,
    },
    /// There is no cgroup v2 hierarchy, and processes cannot be followed from inside a pid namespace either.
    #[error("sandboxes cannot be told apart: no cgroup v2 hierarchy holds them")]
    NoCgroup,
    /// Asked of a watch that has none.
    #[error("only the kernel programs see this, and they are not loaded")]
    OnlyEbpf,
    /// The kernel has no such tracepoint.
    #[error("the kernel has no tracepoint {tracepoint}")]
    NoTracepoint {
        /// The name that was looked for.
        tracepoint: &'static str,
        /// What the search met.
        source: BtfError,
    },
    /// The kernel does not let this process use eBPF.
    #[error("the kernel refuses eBPF to this process (needs CAP_BPF and CAP_PERFMON, or root)")]
    NoPermission {
        /// The refused call.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The verifier did not accept the program.
    #[error("the kernel's verifier refused {program}; its log ends with:\n{log_tail}")]
    Refused {
        /// Which program.
        program: &'static str,
        /// The last lines the verifier wrote.
        log_tail: String,
        /// The error of the call.
        source: io::Error,
    },
    /// The program was accepted but not attached, or could not be described to the kernel.
    #[error("load and attach kernel program {program}")]
    Attach {
        /// Which program.
        program: &'static str,
        /// What the library met.
        source: ProgramError,
    },
    /// The object file or its maps were not accepted.
    #[error("load the kernel programs' object file and create its maps")]
    Load {
        /// What the library met.
        source: EbpfError,
    },
    /// A map is not of the expected kind.
    #[error("open map {map}")]
    Map {
        /// Which map.
        map: &'static str,
        /// What the library met.
        source: MapError,
    },
    /// The kernel does not count what programs cost.
    #[error("have the kernel count what programs cost")]
    Count {
        /// What the call met.
        source: aya::sys::SyscallError,
    },
    /// The object file is not the one this agent was written for.
    #[error("the kernel programs' object file has no {lacks}")]
    Foreign {
        /// The missing program or map.
        lacks: &'static str,
    },
    /// The programs' own log could not be opened.
    #[error("open the kernel programs' log")]
    Log {
        /// What the library met.
        source: aya_log::Error,
    },
}

impl WatchError {
    /// A failure while the object was loaded and its maps made.
    pub(super) fn from_load(source: EbpfError) -> Self {
        if refuses_rights(&source) {
            return Self::NoPermission { source: Box::new(source) };
        }
        Self::Load { source }
    }

    /// A failure while one program was loaded or attached.
    pub(super) fn from_program(program: &'static str, source: ProgramError) -> Self {
        match source {
            ProgramError::Btf(source) => Self::NoTracepoint { tracepoint: program, source },
            ProgramError::LoadError { io_error, verifier_log } => {
                Self::from_verifier(program, io_error, &verifier_log.to_string())
            }
            source if refuses_rights(&source) => Self::NoPermission { source: Box::new(source) },
            source => Self::Attach { program, source },
        }
    }

    /// The verifier's "no" is an EPERM or EACCES, just as a missing right is: only what it wrote
    /// tells the two apart.
    fn from_verifier(program: &'static str, source: io::Error, log: &str) -> Self {
        let log_tail = tail(log);
        if log_tail.is_empty() && source.kind() == io::ErrorKind::PermissionDenied {
            return Self::NoPermission { source: Box::new(source) };
        }
        Self::Refused { program, log_tail, source }
    }
}

/// Whether a permission error lies at the root of this one.
fn refuses_rights(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.kind() == io::ErrorKind::PermissionDenied;
        }
        next = error.source();
    }
    false
}

/// The last lines, within both limits.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(LOG_LINES_MAX);
    let text = lines.get(from..).unwrap_or_default().join("\n");
    let cut = text.len().saturating_sub(LOG_BYTES_MAX);
    let cut = (cut..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text.get(cut..).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_told_from_a_refused_program() {
        let denied = || io::Error::from_raw_os_error(1);
        let plain = WatchError::from_verifier("p", denied(), "");
        assert!(matches!(plain, WatchError::NoPermission { .. }));
        let refused = WatchError::from_verifier("p", denied(), "R1 invalid mem access");
        assert!(matches!(refused, WatchError::Refused { log_tail, .. } if log_tail.contains("R1")));
        let map = EbpfError::MapError(MapError::CreateError { name: "m".into(), io_error: denied() });
        assert!(matches!(WatchError::from_load(map), WatchError::NoPermission { .. }));
        let other = EbpfError::MapError(MapError::CreateError {
            name: "m".into(),
            io_error: io::Error::from_raw_os_error(12),
        });
        assert!(matches!(WatchError::from_load(other), WatchError::Load { .. }));
    }

    #[test]
    fn the_tail_of_a_long_log_is_its_end_and_is_bounded() {
        let log: String = (0..10_000).map(|line| format!("{line}: é {}\n", "x".repeat(300))).collect();
        let tail = tail(&log);
        assert!(tail.len() <= LOG_BYTES_MAX);
        assert!(tail.contains("9999: é"));
        assert!(!tail.contains("9900:"));
    }
}
