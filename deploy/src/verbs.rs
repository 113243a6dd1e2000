//! What a person asks for: deploy, status, rollback, remove.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{
    archive::What,
    certificates::{self, CertificatesError},
    check::{self, Unfit},
    control,
    health::{self, NodeRow},
    hosts::{Cluster, HostsError},
    install,
    plan::{self, HostPlan, Need},
    probe::{self, Probe},
    release::{HostRelease, Release, ReleaseError},
    remote::{self, Remote, RemoteError, RemoteLock, quoted},
    roll::{self, Pace, RollError, Session},
    services::{AGENT, CONTROLLER},
};

const LOCK_WITHIN: Duration = Duration::from_secs(6 * 3600);
const QUICK: Duration = Duration::from_secs(30);

/// Why a verb did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The description of the cluster.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// What is to be copied.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// No folder for connections.
    #[error("make a folder for connections")]
    Sockets(#[source] io::Error),
    /// The certificates.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// Some hosts did not answer or did not do what they were told, before anything ran differently.
    #[error("nothing was changed: {}", lines(.0))]
    Remote(Vec<RemoteError>),
    /// Some hosts will not do. Nothing was changed.
    #[error("nothing was changed: {}", .0.iter().map(|(host, why)| format!("{host}: {why}")).collect::<Vec<_>>().join("\n"))]
    Unfit(Vec<(String, Unfit)>),
    /// It began, and did not get to its end.
    #[error(transparent)]
    Roll(#[from] RollError),
    /// Everything runs; what was left on hosts did not go away.
    #[error("the hosts run the new version, but: {}", lines(.0))]
    After(Vec<RemoteError>),
    /// Nothing to go back to.
    #[error("{}: there is no earlier version to go back to", .0.join(", "))]
    NoEarlier(Vec<String>),
    /// Some hosts still have something.
    #[error("not everything is removed: {}", lines(.0))]
    NotRemoved(Vec<RemoteError>),
}

fn lines(all: &[RemoteError]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What to deploy, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder with the programs.
    pub binaries: PathBuf,
    /// A private CRIU to copy with them.
    pub criu: Option<PathBuf>,
    /// How to go about it.
    pub pace: Pace,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Go on where the doctor misses something.
    pub accept_missing: bool,
}

/// Connections to all hosts. They end with it.
#[derive(Debug)]
pub struct Hosts {
    // Dropped last: connections are closed through what is in it.
    _sockets: tempfile::TempDir,
    remotes: BTreeMap<String, Remote>,
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.remotes.values().for_each(Remote::close);
    }
}

impl Hosts {
    /// Connects nothing yet.
    ///
    /// # Errors
    /// When there is no place for the connections.
    pub fn of(cluster: &Cluster) -> Result<Self, DeployError> {
        let (sockets, path) = remote::socket_folder().map_err(DeployError::Sockets)?;
        let remotes =
            cluster.hosts().into_iter().map(|host| (host.to_owned(), Remote::new(host, &cluster.ssh, &path)));
        Ok(Self { remotes: remotes.collect(), _sockets: sockets })
    }

    /// For one verb.
    pub fn session<'a>(&self, cluster: &'a Cluster, say: &'a (dyn Fn(&str, &str) + Sync)) -> Session<'a> {
        Session { cluster, remotes: self.remotes.clone(), say }
    }
}

/// Brings the hosts to what the cluster's description and the programs say. Returns what was to be done.
///
/// # Errors
/// When a host will not do, or does not come up: then everything is as it was before.
pub fn deploy(session: &Session<'_>, options: &Options) -> Result<Vec<HostPlan>, DeployError> {
    let release = Release::gather(&options.binaries, options.criu.as_deref())?;
    let hosts = session.cluster.hosts();
    let probes = probe_all(session, &hosts)?;
    let unfit = hosts.iter().zip(&probes).flat_map(|(host, probe)| {
        let unfit = check::unfit(probe, &session.cluster.prefix, release.glibc);
        unfit.into_iter().map(|why| ((*host).to_owned(), why))
    });
    let unfit: Vec<_> = unfit.collect();
    if !unfit.is_empty() {
        return Err(DeployError::Unfit(unfit));
    }
    let releases =
        hosts.iter().zip(&probes).map(|(host, probe)| release.of_host(session.cluster, host, probe.init));
    let releases = releases.collect::<Result<Vec<_>, _>>()?;
    let plans: Vec<HostPlan> = hosts
        .iter()
        .zip(&probes)
        .zip(&releases)
        .map(|((host, probe), release)| {
            let services: Vec<_> = release.services.iter().map(|(name, _)| *name).collect();
            plan::of_host(host, &release.version, &services, probe)
        })
        .collect();
    plans.iter().for_each(|plan| (session.say)("plan", &plan.to_string()));
    make_certificates(session, options)?;
    if options.dry_run {
        return Ok(plans);
    }
    if plans.iter().all(|plan| plan.need == Need::Nothing) {
        // They may have been renewed.
        bring_certificates(session, &plans)?;
        return Ok(plans);
    }
    if let Err(error) = bring(session, &plans, &releases, options) {
        let discarded = session.each(&plans, |plan| {
            let fresh = plan.current.is_none();
            let remote = session.remote(&plan.host);
            if fresh {
                // Nothing runs there, so nothing of the copy is wanted.
                remove_versions(remote, &session.cluster.prefix)
            } else {
                install::discard(remote, &session.cluster.prefix)
            }
        });
        discarded
            .into_iter()
            .filter_map(Result::err)
            .for_each(|left| (session.say)("all", &left.to_string()));
        return Err(error);
    }
    let pruned =
        session.each(&plans, |plan| install::prune(session.remote(&plan.host), &session.cluster.prefix));
    let left: Vec<_> = pruned.into_iter().filter_map(Result::err).collect();
    if left.is_empty() { Ok(plans) } else { Err(DeployError::After(left)) }
}

fn remove_versions(remote: &Remote, prefix: &str) -> Result<(), RemoteError> {
    let script = format!("[ -L {0}/current ] || rm -rf {0}/versions", quoted(prefix));
    remote.run("take away what was copied", &script, QUICK)?;
    install::discard(remote, prefix)
}

/// Copies, asks the doctor of the copy, and rolls.
fn bring(
    session: &Session<'_>,
    plans: &[HostPlan],
    releases: &[HostRelease],
    options: &Options,
) -> Result<(), DeployError> {
    let prefix = &session.cluster.prefix;
    let pairs: Vec<(&HostPlan, &HostRelease)> = plans.iter().zip(releases).collect();
    install::make_room(session.controller(), prefix).map_err(|error| DeployError::Remote(vec![error]))?;
    let _lock = lock(session)?;
    let copied = session.each(&pairs, |(plan, release)| copy(session, plan, release));
    gathered(copied)?;
    let asked = session.each(plans, |plan| {
        let folder = match plan.copy {
            true => install::incoming(prefix, &plan.version),
            false => install::folder(prefix, &plan.version),
        };
        let has_agent = plan.services.contains(&AGENT);
        let remote = session.remote(&plan.host);
        match has_agent {
            true => check::doctor(remote, &folder, options.criu.is_some()).map(Some),
            false => Ok(None),
        }
    });
    let mut unfit = Vec::new();
    for (plan, said) in plans.iter().zip(gathered(asked)?) {
        match said {
            None => {}
            Some(Err(why)) => unfit.push((plan.host.clone(), why)),
            Some(Ok(said)) => {
                if !said.degraded.is_empty() {
                    (session.say)(
                        &plan.host,
                        &format!("medes doctor: less than it could: {}", said.degraded.join(", ")),
                    );
                }
                if !said.missing.is_empty() && !options.accept_missing {
                    unfit.push((plan.host.clone(), Unfit::Doctor(said.missing)));
                }
            }
        }
    }
    if !unfit.is_empty() {
        return Err(DeployError::Unfit(unfit));
    }
    let settled = session.each(plans, |plan| match plan.copy {
        true => install::settle(session.remote(&plan.host), prefix, &plan.version),
        false => Ok(()),
    });
    gathered(settled)?;
    bring_certificates(session, plans)?;
    roll::roll(session, plans, options.pace)?;
    Ok(())
}

/// Those that are missing. A dry run only tells of them.
fn make_certificates(session: &Session<'_>, options: &Options) -> Result<(), DeployError> {
    let Some(folder) = &session.cluster.certificates else { return Ok(()) };
    let missing = certificates::missing(session.cluster, folder);
    if !missing.is_empty() {
        (session.say)("plan", &format!("make certificates in {}: {}", folder.display(), missing.join(", ")));
    }
    if options.dry_run {
        return Ok(());
    }
    certificates::make(session.cluster, folder, &options.binaries)?;
    for file in certificates::ending(folder, &options.binaries, SystemTime::now())? {
        let advice = "is good for less than a month: `medes cert rotate`, then deploy again";
        (session.say)("all", &format!("{file} {advice}"));
    }
    Ok(())
}

fn bring_certificates(session: &Session<'_>, plans: &[HostPlan]) -> Result<(), DeployError> {
    let Some(folder) = &session.cluster.certificates else { return Ok(()) };
    let brought = session.each(plans, |plan| {
        let entries = certificates::of_host(session.cluster, folder, &plan.host);
        install::certificates(session.remote(&plan.host), &session.cluster.prefix, &entries)
    });
    gathered(brought).map(drop)
}

fn copy(session: &Session<'_>, plan: &HostPlan, release: &HostRelease) -> Result<(), RemoteError> {
    if !plan.copy {
        return Ok(());
    }
    let files = release.entries.iter().filter(|entry| matches!(entry.what, What::File { .. })).count();
    (session.say)(&plan.host, &format!("copying {} ({files} files)", plan.version));
    let remote = session.remote(&plan.host);
    let bytes = install::copy(remote, &session.cluster.prefix, &plan.version, &release.entries)?;
    (session.say)(&plan.host, &format!("copied {} MiB", bytes >> 20));
    Ok(())
}

fn lock(session: &Session<'_>) -> Result<RemoteLock, DeployError> {
    let file = format!("{}/lock", session.cluster.prefix);
    session.controller().lock(&file, LOCK_WITHIN).map_err(|error| DeployError::Remote(vec![error]))
}

fn probe_all(session: &Session<'_>, hosts: &[&str]) -> Result<Vec<Probe>, DeployError> {
    gathered(session.each(hosts, |host| probe::probe(session.remote(host), &session.cluster.prefix)))
}

/// All outcomes, or all errors: a person wants to hear of every host at once.
fn gathered<T>(outcomes: Vec<Result<T, RemoteError>>) -> Result<Vec<T>, DeployError> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        match outcome {
            Ok(value) => good.push(value),
            Err(error) => bad.push(error),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(DeployError::Remote(bad)) }
}

/// One host, for people and programs.
#[derive(Debug, Serialize)]
pub struct HostStatus {
    /// Which host.
    pub host: String,
    /// What is to run there.
    pub current: Option<String>,
    /// What ran before.
    pub previous: Option<String>,
    /// By service: the version that runs, if one does.
    pub running: BTreeMap<&'static str, Option<String>>,
    /// The node there, as the controller has it.
    pub node: Option<NodeStatus>,
    /// All that should run does, in the current version.
    pub healthy: bool,
}

/// A node, as the controller has it.
#[derive(Debug, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its stream is open.
    pub connected: bool,
    /// open, cordoned or draining.
    pub standing: String,
    /// On it.
    pub sandboxes: u32,
}

/// How all hosts stand.
///
/// # Errors
/// When one cannot be reached.
pub fn status(session: &Session<'_>) -> Result<Vec<HostStatus>, DeployError> {
    let hosts = session.cluster.hosts();
    let probes = probe_all(session, &hosts)?;
    let rows = health::nodes(session.controller(), session.cluster).unwrap_or_default();
    Ok(hosts.iter().zip(probes).map(|(host, probe)| host_status(session, host, &probe, &rows)).collect())
}

fn host_status(session: &Session<'_>, host: &str, probe: &Probe, rows: &[NodeRow]) -> HostStatus {
    let node = session.cluster.node_on(host);
    let wanted =
        [(session.cluster.controller.host == host).then_some(CONTROLLER), node.is_some().then_some(AGENT)];
    let running: BTreeMap<_, _> =
        wanted.into_iter().flatten().map(|name| (name, probe.service(name).version)).collect();
    let row = node.and_then(|node| rows.iter().find(|row| row.node == node.name));
    let runs = running.values().all(|version| version.is_some() && *version == probe.current);
    let connected = node.is_none() || row.is_some_and(|row| row.connected);
    HostStatus {
        host: host.into(),
        current: probe.current.clone(),
        previous: probe.previous.clone(),
        healthy: probe.current.is_some() && runs && connected,
        running,
        node: row.map(|row| NodeStatus {
            name: row.node.clone(),
            connected: row.connected,
            standing: row.standing.clone(),
            sandboxes: row.sandboxes,
        }),
    }
}

/// Brings every host back to the version that it ran before, as carefully as forward.
///
/// # Errors
/// When a host has none, or does not come up in it.
pub fn rollback(session: &Session<'_>, pace: Pace, dry_run: bool) -> Result<Vec<HostPlan>, DeployError> {
    let hosts = session.cluster.hosts();
    let probes = probe_all(session, &hosts)?;
    let there =
        |probe: &Probe| probe.previous.as_ref().is_some_and(|version| probe.versions.contains(version));
    let none =
        hosts.iter().zip(&probes).filter(|(_, probe)| !there(probe)).map(|(host, _)| (*host).to_owned());
    let none: Vec<String> = none.collect();
    // Hosts that did not change in the last deployment may have none; they stay as they are.
    if none.len() == hosts.len() {
        return Err(DeployError::NoEarlier(none));
    }
    let plans = hosts.iter().zip(&probes).filter(|(_, probe)| there(probe)).map(|(host, probe)| {
        let services = [
            (session.cluster.controller.host == **host).then_some(CONTROLLER),
            session.cluster.node_on(host).map(|_| AGENT),
        ];
        let services: Vec<_> = services.into_iter().flatten().collect();
        plan::of_host(host, probe.previous.as_deref().unwrap_or_default(), &services, probe)
    });
    let plans: Vec<HostPlan> = plans.collect();
    plans.iter().for_each(|plan| (session.say)("plan", &plan.to_string()));
    if !dry_run {
        let _lock = lock(session)?;
        roll::roll(session, &plans, pace)?;
    }
    Ok(plans)
}

/// Ends all services and removes all files, of agents before the controller. What no deployment made is left alone.
///
/// # Errors
/// When something is left.
pub fn remove(session: &Session<'_>, keep_state: bool, dry_run: bool) -> Result<(), DeployError> {
    let hosts = session.cluster.hosts();
    let probes = probe_all(session, &hosts)?;
    let prefix = &session.cluster.prefix;
    let there: Vec<(&str, &Probe)> = hosts.iter().copied().zip(&probes).collect();
    for (host, probe) in &there {
        let what = match &probe.current {
            Some(version) => format!("end what runs, remove {prefix} ({version})"),
            None => "nothing is deployed there".into(),
        };
        (session.say)(host, &what);
    }
    if dry_run {
        return Ok(());
    }
    for service in [AGENT, CONTROLLER] {
        let ended = session.each(&there, |(host, probe)| {
            if probe.current.is_none() && !probe.service(service).supervised {
                return Ok(());
            }
            control::stop(session.remote(host), probe.init, prefix, service)
        });
        not_removed(ended)?;
    }
    let removed = session.each(&there, |(host, _)| {
        install::remove(session.remote(host), prefix, keep_state)?;
        (session.say)(host, "removed");
        Ok(())
    });
    not_removed(removed)
}

fn not_removed(outcomes: Vec<Result<(), RemoteError>>) -> Result<(), DeployError> {
    let left: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    if left.is_empty() { Ok(()) } else { Err(DeployError::NotRemoved(left)) }
}
