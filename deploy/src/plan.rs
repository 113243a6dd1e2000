//! What has to be done on a host, decided before anything is: from what was found, nothing else.

use std::fmt;

use crate::probe::{Init, Probe};

/// What a host needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// The version runs.
    Nothing,
    /// The version is there and current, and something of it does not run.
    Start,
    /// Another version is to take the place of what is there, if anything is.
    Change,
}

/// One host's part of a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPlan {
    /// Which host.
    pub host: String,
    /// What is to run there.
    pub version: String,
    /// It is not there yet.
    pub copy: bool,
    /// What follows.
    pub need: Need,
    /// What is current now.
    pub current: Option<String>,
    /// What was before.
    pub previous: Option<String>,
    /// What keeps services running there.
    pub init: Init,
    /// The services of the version.
    pub services: Vec<&'static str>,
}

/// Decides for one host.
pub fn of_host(host: &str, version: &str, services: &[&'static str], probe: &Probe) -> HostPlan {
    let current = probe.current.as_deref() == Some(version);
    let runs = |name: &&str| {
        let running = probe.service(name);
        running.supervised && running.pid.is_some() && running.version.as_deref() == Some(version)
    };
    let need = match (current, services.iter().all(runs)) {
        (true, true) => Need::Nothing,
        (true, false) => Need::Start,
        (false, _) => Need::Change,
    };
    HostPlan {
        host: host.into(),
        version: version.into(),
        copy: !probe.versions.iter().any(|there| there == version),
        need,
        current: probe.current.clone(),
        previous: probe.previous.clone(),
        init: probe.init,
        services: services.to_vec(),
    }
}

impl fmt::Display for HostPlan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, version, copy, need, current, init, services, .. } = self;
        let copy = if *copy { format!("copy {version}; ") } else { String::new() };
        let (services, init) = (services.join(", "), init.word());
        match need {
            Need::Nothing => write!(out, "{host}: runs {version} already"),
            Need::Start => write!(out, "{host}: {copy}start {services} ({init}) in {version}"),
            Need::Change => match current {
                None => write!(out, "{host}: {copy}start {services} ({init}) for the first time"),
                Some(current) => {
                    write!(out, "{host}: {copy}replace {current} by {version}, restart {services} ({init})")
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        probe::Running,
        services::{AGENT, CONTROLLER},
    };

    fn probe(current: Option<&str>, versions: &[&str], runs: &[(&'static str, &str)]) -> Probe {
        let running = |version: &str| Running {
            pid: Some(7),
            version: Some(version.into()),
            starts: 1,
            last_end: None,
            supervised: true,
        };
        Probe {
            kernel: String::new(),
            machine: String::new(),
            uid: 0,
            init: Init::Supervise,
            glibc: None,
            free_bytes: 0,
            lacks: Vec::new(),
            ours: true,
            versions: versions.iter().map(|version| (*version).into()).collect(),
            current: current.map(Into::into),
            previous: None,
            running: runs.iter().map(|(name, version)| (*name, running(version))).collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn what_is_done_follows_from_what_is_there() {
        let both = [CONTROLLER, AGENT];
        let plan = |probe: &Probe| {
            let plan = of_host("a", "v2", &both, probe);
            (plan.copy, plan.need)
        };
        assert_eq!(plan(&probe(None, &[], &[])), (true, Need::Change));
        let runs = [(CONTROLLER, "v2"), (AGENT, "v2")];
        assert_eq!(plan(&probe(Some("v2"), &["v2"], &runs)), (false, Need::Nothing));
        assert_eq!(plan(&probe(Some("v2"), &["v2"], &runs[..1])), (false, Need::Start));
        // A deployment that was cut off after the links had changed.
        let mixed = [(CONTROLLER, "v2"), (AGENT, "v1")];
        assert_eq!(plan(&probe(Some("v2"), &["v1", "v2"], &mixed)), (false, Need::Start));
        let old = [(CONTROLLER, "v1"), (AGENT, "v1")];
        assert_eq!(plan(&probe(Some("v1"), &["v1"], &old)), (true, Need::Change));
        assert_eq!(plan(&probe(Some("v1"), &["v1", "v2"], &old)), (false, Need::Change));
    }
}
