//! Whether a service does its work: its program is of the right version, and the controller says so.

use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::{
    certificates, control,
    hosts::Cluster,
    probe::{self, Init, Running},
    remote::{Remote, RemoteError, quoted},
    services::{AGENT, CONTROLLER},
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);
const ASK_WITHIN: Duration = Duration::from_secs(30);
/// A program that is started this often does not come up.
const STARTS_MAX: u32 = 3;

/// A node as the controller has it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub node: String,
    /// Its stream is open.
    pub connected: bool,
    /// open, cordoned or draining.
    pub standing: String,
    /// Of its agent's life.
    pub incarnation: u64,
    /// On it.
    pub sandboxes: u32,
    /// What it cannot do.
    #[serde(default)]
    pub lacks: Vec<String>,
}

#[derive(Deserialize)]
struct Nodes {
    nodes: Vec<NodeRow>,
}

/// A service does not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The host.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// What the controller said is not what it should be.
    #[error("{host}: medes nodes: what it says makes no sense")]
    Answer {
        /// The controller's.
        host: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// Time is up, or it ends again and again.
    #[error("{host}: the {service} is not healthy: {why}\n{log}")]
    Unhealthy {
        /// Which host.
        host: String,
        /// Which service.
        service: &'static str,
        /// What is missing.
        why: String,
        /// Its last lines.
        log: String,
    },
}

/// Runs a verb of `medes` on the controller's host, in the version that is current there.
///
/// # Errors
/// When the host cannot be reached or the verb fails.
pub fn medes(
    controller: &Remote,
    cluster: &Cluster,
    verb: &str,
    within: Duration,
) -> Result<String, RemoteError> {
    let (prefix, address) = (quoted(&cluster.prefix), cluster.controller.control);
    let identity = match cluster.certificates {
        Some(_) => {
            let file = certificates::on_host(&cluster.prefix, certificates::OPERATOR);
            format!(" --identity {}", quoted(&file))
        }
        None => String::new(),
    };
    let script = format!("{prefix}/current/bin/medes --controller {address}{identity} {verb}");
    controller.run(&format!("medes {verb}"), &script, within)
}

/// All nodes that the controller knows.
///
/// # Errors
/// When it does not answer.
pub fn nodes(controller: &Remote, cluster: &Cluster) -> Result<Vec<NodeRow>, HealthError> {
    let printed = medes(controller, cluster, "nodes --json", ASK_WITHIN)?;
    let host = controller.host().to_owned();
    let nodes = serde_json::from_str::<Nodes>(&printed);
    Ok(nodes.map_err(|source| HealthError::Answer { host, source })?.nodes)
}

/// Waits until the controller of a version answers and `awaited` nodes are connected to it.
///
/// # Errors
/// When that does not come about within `wait`.
pub fn controller_up(
    controller: &Remote,
    cluster: &Cluster,
    version: &str,
    awaited: &[String],
    wait: Duration,
) -> Result<(), HealthError> {
    until(controller, cluster, CONTROLLER, wait, |running| {
        if let Some(why) = not_running(running, version) {
            return Ok(Some(why));
        }
        let nodes = match nodes(controller, cluster) {
            Ok(nodes) => nodes,
            Err(HealthError::Remote(RemoteError::Failed { said, .. })) => return Ok(Some(said)),
            Err(error) => return Err(error),
        };
        let away = |name: &&String| !nodes.iter().any(|row| row.node == **name && row.connected);
        Ok(awaited.iter().find(away).map(|name| format!("node {name} is not connected")))
    })
}

/// Waits until an agent of a version is connected, in another life than `before`.
///
/// # Errors
/// When that does not come about within `wait`.
pub fn agent_up(
    (agent, controller): (&Remote, &Remote),
    cluster: &Cluster,
    node: &str,
    version: &str,
    before: Option<u64>,
    wait: Duration,
) -> Result<(), HealthError> {
    until(agent, cluster, AGENT, wait, |running| {
        if let Some(why) = not_running(running, version) {
            return Ok(Some(why));
        }
        let nodes = nodes(controller, cluster)?;
        Ok(match nodes.iter().find(|row| row.node == node) {
            None => Some(format!("the controller does not know node {node}")),
            Some(row) if !row.connected => Some("it is not connected to the controller".into()),
            Some(row) if Some(row.incarnation) == before => Some("the old agent still runs".into()),
            Some(_) => None,
        })
    })
}

fn not_running(running: &Running, version: &str) -> Option<String> {
    match running {
        Running { supervised: false, .. } => Some("nothing keeps it running".into()),
        Running { pid: None, last_end, .. } => {
            Some(format!("it does not run ({})", last_end.as_deref().unwrap_or("it never did")))
        }
        Running { version: Some(found), .. } if found == version => None,
        Running { .. } => Some("its program is of another version".into()),
    }
}

/// Looks again and again. `lacking`: what is still missing, given how the service stands.
fn until(
    remote: &Remote,
    cluster: &Cluster,
    service: &'static str,
    wait: Duration,
    lacking: impl Fn(&Running) -> Result<Option<String>, HealthError>,
) -> Result<(), HealthError> {
    let deadline = Instant::now() + wait;
    loop {
        let probe = probe::probe(remote, &cluster.prefix)?;
        let running = probe.service(service);
        let Some(why) = lacking(&running)? else { return Ok(()) };
        let hopeless = running.starts >= STARTS_MAX && running.pid.is_none();
        if hopeless || Instant::now() >= deadline {
            return Err(unhealthy(remote, cluster, service, probe.init, why));
        }
        std::thread::sleep(LOOK);
    }
}

fn unhealthy(
    remote: &Remote,
    cluster: &Cluster,
    service: &'static str,
    init: Init,
    why: String,
) -> HealthError {
    let log = control::log_tail(remote, init, &cluster.prefix, service);
    HealthError::Unhealthy { host: remote.host().into(), service, why, log: log.trim_end().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_of_the_right_version_runs() {
        let good =
            Running { pid: Some(1), version: Some("v2".into()), starts: 1, last_end: None, supervised: true };
        assert_eq!(not_running(&good, "v2"), None);
        assert!(not_running(&good, "v3").is_some());
        assert!(not_running(&Running { pid: None, ..good.clone() }, "v2").is_some());
        assert!(not_running(&Running { supervised: false, ..good }, "v2").is_some());
    }

    #[test]
    fn rows_are_read_as_medes_prints_them() {
        let text = r#"{"nodes":[{"node":"a","address":"x:1","version":"1","cap_bytes":1,"used_bytes":1,
            "base_bytes":0,"image_bytes":0,"agent_bytes":0,"silent_ms":3,"sandboxes":2,"snapshots":[],"lacks":[],
            "standing":"open","connected":true,"incarnation":18446744073709551615,"requests":0}],"registry":{}}"#;
        let nodes = serde_json::from_str::<Nodes>(text).unwrap().nodes;
        assert_eq!((nodes[0].incarnation, nodes[0].sandboxes), (u64::MAX, 2));
    }
}
