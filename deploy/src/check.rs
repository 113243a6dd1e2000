//! Whether a host will do, before anything on it is changed: what was found there, and what `medes doctor` says.

use std::time::Duration;

use serde::Deserialize;

use crate::{
    elf::Glibc,
    probe::Probe,
    remote::{Remote, RemoteError, quoted},
};

/// Room for two versions, at least.
pub const FREE_BYTES_MIN: u64 = 512 << 20;
const DOCTOR_WITHIN: Duration = Duration::from_secs(60);

/// Why a host will not do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Agents make namespaces; services are installed for all.
    #[error("we are not root there; name a user who is, in [ssh] user")]
    NotRoot,
    /// Programs are for one kind of machine.
    #[error("it is a {found} machine, and the programs are for {needed}")]
    Machine {
        /// Of the host.
        found: String,
        /// Of the release.
        needed: &'static str,
    },
    /// The programs would not start.
    #[error("its C library is {}, and the programs need glibc {needed}", .found.map_or("unknown".to_owned(), |found| found.to_string()))]
    Glibc {
        /// Of the host.
        found: Option<Glibc>,
        /// Of the release.
        needed: Glibc,
    },
    /// Programs of the host that are used.
    #[error("it lacks {}", .0.join(", "))]
    Programs(Vec<String>),
    /// Not enough room.
    #[error("only {} MiB are free there, of {} that are needed", .free_bytes >> 20, FREE_BYTES_MIN >> 20)]
    Room {
        /// Where the version goes.
        free_bytes: u64,
    },
    /// Somebody else's files.
    #[error("{prefix} is there and no deployment made it; move it away or choose another prefix")]
    Strange {
        /// The folder.
        prefix: String,
    },
    /// Medes does not work there.
    #[error("medes doctor: {}", .0.join("; "))]
    Doctor(Vec<String>),
    /// The doctor did not get to say anything.
    #[error("medes doctor said nothing that makes sense: {0}")]
    NoDoctor(String),
}

/// Everything that is wrong with a host.
pub fn unfit(probe: &Probe, prefix: &str, glibc: Option<Glibc>) -> Vec<Unfit> {
    let mut all = Vec::new();
    if probe.uid != 0 {
        all.push(Unfit::NotRoot);
    }
    if probe.machine != std::env::consts::ARCH {
        all.push(Unfit::Machine { found: probe.machine.clone(), needed: std::env::consts::ARCH });
    }
    if let Some(needed) = glibc.filter(|needed| probe.glibc.is_none_or(|found| found < *needed)) {
        all.push(Unfit::Glibc { found: probe.glibc, needed });
    }
    if !probe.lacks.is_empty() {
        all.push(Unfit::Programs(probe.lacks.clone()));
    }
    if probe.free_bytes < FREE_BYTES_MIN {
        all.push(Unfit::Room { free_bytes: probe.free_bytes });
    }
    if !probe.ours {
        all.push(Unfit::Strange { prefix: prefix.into() });
    }
    all
}

#[derive(Deserialize)]
struct Report {
    checks: Vec<Check>,
}

#[derive(Deserialize)]
struct Check {
    name: String,
    found: String,
    verdict: String,
    follows: Option<String>,
}

/// What `medes doctor` said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// What works with less than it could.
    pub degraded: Vec<String>,
    /// What does not work.
    pub missing: Vec<String>,
}

/// Asks the doctor of a version that lies on a host already.
///
/// # Errors
/// When the host cannot be reached.
pub fn doctor(remote: &Remote, folder: &str, criu: bool) -> Result<Result<Diagnosis, Unfit>, RemoteError> {
    let folder = quoted(folder);
    let criu = if criu { format!("--criu {folder}/criu") } else { String::new() };
    // It ends badly when something is missing; what it prints says what.
    let printed = match remote.run(
        "medes doctor",
        &format!("{folder}/bin/medes doctor --json {criu}"),
        DOCTOR_WITHIN,
    ) {
        Ok(printed) => printed,
        Err(RemoteError::Failed { printed, code: Some(1), .. }) => printed,
        Err(RemoteError::Failed { said, .. }) => return Ok(Err(Unfit::NoDoctor(said))),
        Err(error) => return Err(error),
    };
    Ok(diagnosis(&printed))
}

fn diagnosis(printed: &str) -> Result<Diagnosis, Unfit> {
    let report: Report = serde_json::from_str(printed).map_err(|error| Unfit::NoDoctor(error.to_string()))?;
    let mut diagnosis = Diagnosis::default();
    for Check { name, found, verdict, follows } in report.checks {
        let said = format!("{name}: {found}{}", follows.map(|so| format!(", so {so}")).unwrap_or_default());
        match &*verdict {
            "ok" => {}
            "degraded" => diagnosis.degraded.push(name),
            _ => diagnosis.missing.push(said),
        }
    }
    Ok(diagnosis)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::probe::Init;

    fn good() -> Probe {
        Probe {
            kernel: "6.1".into(),
            machine: std::env::consts::ARCH.into(),
            uid: 0,
            init: Init::Supervise,
            glibc: Some(Glibc(2, 36)),
            free_bytes: FREE_BYTES_MIN,
            lacks: Vec::new(),
            ours: true,
            versions: Vec::new(),
            current: None,
            previous: None,
            running: BTreeMap::new(),
        }
    }

    #[test]
    fn each_lack_is_named() {
        let check = |change: &dyn Fn(&mut Probe)| {
            let mut probe = good();
            change(&mut probe);
            unfit(&probe, "/opt/medes", Some(Glibc(2, 34)))
        };
        assert_eq!(check(&|_| {}), []);
        assert_eq!(check(&|probe| probe.uid = 1000), [Unfit::NotRoot]);
        assert!(matches!(check(&|probe| probe.machine = "riscv64".into())[..], [Unfit::Machine { .. }]));
        assert!(matches!(check(&|probe| probe.glibc = Some(Glibc(2, 31)))[..], [Unfit::Glibc { .. }]));
        assert!(matches!(check(&|probe| probe.glibc = None)[..], [Unfit::Glibc { found: None, .. }]));
        assert!(matches!(check(&|probe| probe.lacks = vec!["tar".into()])[..], [Unfit::Programs(_)]));
        assert!(matches!(check(&|probe| probe.free_bytes = 1)[..], [Unfit::Room { .. }]));
        assert!(matches!(check(&|probe| probe.ours = false)[..], [Unfit::Strange { .. }]));
    }

    #[test]
    fn what_the_doctor_misses_is_told_with_what_follows() {
        let printed = r#"{"verdict":"missing","checks":[{"name":"kernel","found":"6.1","verdict":"ok"},
            {"name":"ebpf","found":"none","verdict":"degraded","follows":"x","fix":"y"},
            {"name":"criu","found":"no criu","verdict":"missing","follows":"nothing is dumped","fix":"z"}]}"#;
        let said = diagnosis(printed).unwrap();
        assert_eq!(said.degraded, ["ebpf"]);
        assert_eq!(said.missing, ["criu: no criu, so nothing is dumped"]);
        assert!(matches!(diagnosis("bash: not found"), Err(Unfit::NoDoctor(_))));
    }
}
