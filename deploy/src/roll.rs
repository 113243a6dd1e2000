//! One version replaces another, host after host: the controller first, then agents, a few at a time, each when all on its node rests or has
//! gone elsewhere. When one does not come up, every host that was changed goes back to what it was.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    control,
    health::{self, HealthError, NodeRow},
    hosts::Cluster,
    install,
    plan::{HostPlan, Need},
    remote::{Remote, RemoteError, quoted},
    service::Service,
    services::{AGENT, CONTROLLER, is_taken_over},
};

const QUICK: Duration = Duration::from_secs(30);
/// Hosts that are worked on at the same time where order does not matter.
const AT_ONCE_MAX: usize = 16;

/// How to go about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Agents that may be away at the same time.
    pub unavailable_max: usize,
    /// How long a service may take to be healthy.
    pub wait: Duration,
    /// How long an agent's requests may take to end.
    pub drain_within: Duration,
}

/// Why one host could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Something on a host.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A service does not do its work.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// A description on a host.
    #[error("{host}: the description of a service makes no sense")]
    Service {
        /// Which host.
        host: String,
        /// Why not.
        source: Box<toml::de::Error>,
    },
}

/// A deployment that did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum RollError {
    /// It failed, and every host is as it was before.
    #[error("{why}\nall hosts that were changed are back at what they ran before: {}", .back.join(", "))]
    RolledBack {
        /// What failed.
        why: Box<ChangeError>,
        /// The hosts that were changed.
        back: Vec<String>,
    },
    /// It failed, and so did the way back.
    #[error("{why}\nand going back failed: {}", .failed.iter().map(|(host, error)| format!("{host}: {error}")).collect::<Vec<_>>().join("; "))]
    Stuck {
        /// What failed.
        why: Box<ChangeError>,
        /// The hosts that are not as they were, and why.
        failed: Vec<(String, ChangeError)>,
    },
}

/// The hosts, and whom progress is told: host, then what.
pub struct Session<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// By what ssh calls them.
    pub remotes: BTreeMap<String, Remote>,
    /// For one line of progress.
    pub say: &'a (dyn Fn(&str, &str) + Sync),
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Session").field("remotes", &self.remotes).finish_non_exhaustive()
    }
}

impl Session<'_> {
    /// The host of that name, which the cluster has.
    pub fn remote(&self, host: &str) -> &Remote {
        self.remotes.get(host).unwrap_or_else(|| unreachable!("every host of the cluster has a connection"))
    }

    /// The controller's host.
    pub fn controller(&self) -> &Remote {
        self.remote(&self.cluster.controller.host)
    }

    fn prefix(&self) -> &str {
        &self.cluster.prefix
    }

    /// Does the same on several hosts at once. The outcomes are in the order of the hosts.
    pub fn each<T: Send, H: Sync>(&self, hosts: &[H], work: impl Fn(&H) -> T + Sync) -> Vec<T> {
        let mut all = Vec::new();
        for some in hosts.chunks(AT_ONCE_MAX) {
            std::thread::scope(|scope| {
                let running: Vec<_> = some.iter().map(|host| scope.spawn(|| work(host))).collect();
                all.extend(running.into_iter().map(|thread| match thread.join() {
                    Ok(done) => done,
                    Err(panic) => std::panic::resume_unwind(panic),
                }));
            });
        }
        all
    }
}

/// Brings every host to what its plan says. The versions are there already.
///
/// # Errors
/// When one host does not get there. Then all that were changed are brought back.
pub fn roll(session: &Session<'_>, plans: &[HostPlan], pace: Pace) -> Result<(), RollError> {
    let touched = Mutex::new(Vec::new());
    let Err(why) = forward(session, plans, pace, &touched) else { return Ok(()) };
    let touched = touched.into_inner().unwrap_or_else(PoisonError::into_inner);
    (session.say)("all", &format!("failed: {why}"));
    let mut failed = Vec::new();
    let mut back = Vec::new();
    // The controller first, as forward: agents must have one to come back to.
    let order = |plan: &&HostPlan| !plan.services.contains(&CONTROLLER);
    let mut changed: Vec<&HostPlan> = plans.iter().filter(|plan| touched.contains(&plan.host)).collect();
    changed.sort_by_key(order);
    for plan in changed {
        (session.say)(&plan.host, "going back");
        match go_back(session, plan, pace) {
            Ok(()) => back.push(plan.host.clone()),
            Err(error) => failed.push((plan.host.clone(), error)),
        }
    }
    let why = Box::new(why);
    Err(if failed.is_empty() {
        RollError::RolledBack { why, back }
    } else {
        RollError::Stuck { why, failed }
    })
}

fn forward(
    session: &Session<'_>,
    plans: &[HostPlan],
    pace: Pace,
    touched: &Mutex<Vec<String>>,
) -> Result<(), ChangeError> {
    let touch = |plan: &HostPlan| {
        let mut touched = touched.lock().unwrap_or_else(PoisonError::into_inner);
        if !touched.contains(&plan.host) {
            touched.push(plan.host.clone());
        }
    };
    let needed = |plan: &&HostPlan| plan.need != Need::Nothing;
    if let Some(plan) = plans.iter().filter(needed).find(|plan| plan.services.contains(&CONTROLLER)) {
        let awaited = connected(session);
        touch(plan);
        end_unwanted(session, plan)?;
        install::make_current(session.remote(&plan.host), session.prefix(), &plan.version)?;
        start(session, plan, CONTROLLER)?;
        health::controller_up(session.controller(), session.cluster, &plan.version, &awaited, pace.wait)?;
        (session.say)(&plan.host, "the controller is up");
    }
    let agents: Vec<&HostPlan> =
        plans.iter().filter(needed).filter(|plan| plan.services.contains(&AGENT)).collect();
    for some in agents.chunks(pace.unavailable_max.max(1)) {
        let outcomes = session.each(some, |plan| {
            touch(plan);
            change_agent(session, plan, &plan.version, pace)
        });
        outcomes.into_iter().collect::<Result<(), _>>()?;
    }
    Ok(())
}

/// Clears the node, replaces its agent, waits for it, and lets work come again.
fn change_agent(
    session: &Session<'_>,
    plan: &HostPlan,
    version: &str,
    pace: Pace,
) -> Result<(), ChangeError> {
    let Some(node) = session.cluster.node_on(&plan.host) else { return Ok(()) };
    let (agent, controller) = (session.remote(&plan.host), session.controller());
    let before = row(session, &node.name)?;
    if before.as_ref().is_some_and(|row| row.connected)
        && let Err(error) = clear(session, plan, &node.name, pace.drain_within)
    {
        open(session, &node.name)?;
        return Err(error);
    }
    if plan.version == version {
        end_unwanted(session, plan)?;
    }
    install::make_current(agent, session.prefix(), version)?;
    start(session, plan, AGENT)?;
    let before = before.map(|row| row.incarnation);
    health::agent_up((agent, controller), session.cluster, &node.name, version, before, pace.wait)?;
    open(session, &node.name)?;
    (session.say)(&plan.host, "the agent is up");
    Ok(())
}

/// Sees to it that nothing on a node is in the way of its agent's end: what rests may stay if the next agent takes it over, else the node is drained.
fn clear(session: &Session<'_>, plan: &HostPlan, node: &str, within: Duration) -> Result<(), ChangeError> {
    let ask = |verb: &str| {
        let verb = format!("node {verb} {} --within {}s", quoted(node), within.as_secs());
        health::medes(session.controller(), session.cluster, &verb, within + QUICK)
    };
    if described(session, session.remote(&plan.host), AGENT)?.is_some_and(|agent| is_taken_over(&agent)) {
        (session.say)(&plan.host, "putting to rest");
        match ask("rest") {
            Ok(_) => return Ok(()),
            // Also a controller that does not know it yet.
            Err(error) => (session.say)(&plan.host, &format!("not all of it rests: {error}")),
        }
    }
    (session.say)(&plan.host, "draining");
    ask("drain")?;
    Ok(())
}

fn open(session: &Session<'_>, node: &str) -> Result<(), ChangeError> {
    let verb = format!("node uncordon {}", quoted(node));
    health::medes(session.controller(), session.cluster, &verb, QUICK)?;
    Ok(())
}

fn row(session: &Session<'_>, node: &str) -> Result<Option<NodeRow>, ChangeError> {
    let nodes = health::nodes(session.controller(), session.cluster)?;
    Ok(nodes.into_iter().find(|row| row.node == node))
}

/// Nodes of this cluster that are connected now. None when there is no controller to ask.
fn connected(session: &Session<'_>) -> Vec<String> {
    let nodes = health::nodes(session.controller(), session.cluster).unwrap_or_default();
    let ours = |row: &NodeRow| session.cluster.nodes.iter().any(|node| node.name == row.node);
    nodes.into_iter().filter(|row| row.connected && ours(row)).map(|row| row.node).collect()
}

fn start(session: &Session<'_>, plan: &HostPlan, name: &'static str) -> Result<(), ChangeError> {
    let remote = session.remote(&plan.host);
    // As the current version has it, which may be the one that is gone back to.
    if let Some(service) = described(session, remote, name)? {
        control::start(remote, plan.init, session.prefix(), name, &service)?;
    }
    Ok(())
}

/// Ends services that the old version had here and the new one has not.
fn end_unwanted(session: &Session<'_>, plan: &HostPlan) -> Result<(), ChangeError> {
    let remote = session.remote(&plan.host);
    for name in [AGENT, CONTROLLER] {
        if !plan.services.contains(&name) && described(session, remote, name)?.is_some() {
            control::stop(remote, plan.init, session.prefix(), name)?;
        }
    }
    Ok(())
}

/// A service of the version that is current on a host.
fn described(
    session: &Session<'_>,
    remote: &Remote,
    name: &'static str,
) -> Result<Option<Service>, ChangeError> {
    let script = format!("cat {}/current/service/{name}.toml 2>/dev/null || true", quoted(session.prefix()));
    let text = remote.run("read the description of a service", &script, QUICK)?;
    if text.is_empty() {
        return Ok(None);
    }
    let service = toml::from_str(&text).map_err(Box::new);
    service.map(Some).map_err(|source| ChangeError::Service { host: remote.host().into(), source })
}

/// Makes a host what it was before: the version that ran, or nothing.
fn go_back(session: &Session<'_>, plan: &HostPlan, pace: Pace) -> Result<(), ChangeError> {
    let remote = session.remote(&plan.host);
    let prefix = session.prefix();
    let (current, previous) = (plan.current.as_deref(), plan.previous.as_deref());
    let Some(version) = current else {
        for name in [AGENT, CONTROLLER] {
            if plan.services.contains(&name) {
                control::stop(remote, plan.init, prefix, name)?;
            }
        }
        install::restore_links(remote, prefix, None, None)?;
        return Ok(());
    };
    if version == plan.version {
        // It was only started again. There is nothing else to go back to.
        return Ok(());
    }
    let awaited = connected(session);
    install::restore_links(remote, prefix, current, previous)?;
    // What the new version had here and the old one has not.
    for name in [AGENT, CONTROLLER] {
        if plan.services.contains(&name) && described(session, remote, name)?.is_none() {
            control::stop(remote, plan.init, prefix, name)?;
        }
    }
    if described(session, remote, CONTROLLER)?.is_some() {
        start(session, plan, CONTROLLER)?;
        health::controller_up(session.controller(), session.cluster, version, &awaited, pace.wait)?;
    }
    if described(session, remote, AGENT)?.is_some() {
        change_agent_back(session, plan, version, pace)?;
    }
    (session.say)(&plan.host, &format!("runs {version} again"));
    Ok(())
}

/// An agent that does its work is drained; one that does not has nothing to lose.
fn change_agent_back(
    session: &Session<'_>,
    plan: &HostPlan,
    version: &str,
    pace: Pace,
) -> Result<(), ChangeError> {
    let remote = session.remote(&plan.host);
    let still_old = crate::probe::probe(remote, session.prefix())?.service(AGENT);
    let node = session.cluster.node_on(&plan.host);
    if still_old.version.as_deref() == Some(version) {
        // It had not been replaced yet, but it may be drained.
        return node.map_or(Ok(()), |node| open(session, &node.name));
    }
    change_agent(session, plan, version, pace)
}
