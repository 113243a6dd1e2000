//! What is to run on a host, with exactly the rights it needs.

use crate::{
    certificates,
    hosts::{Cluster, Node},
    probe::Init,
    service::{HERE, Service, Socket},
};

/// The controller opens sockets and a file of its own. Nothing of that needs a right.
const CONTROLLER_CAPABILITIES: [&str; 0] = [];

/// What an agent may ever do, and what for. `medes doctor` says what is missing on a machine.
pub const AGENT_CAPABILITIES: [&str; 19] = [
    "CAP_BPF",                // loads its kernel programs
    "CAP_CHECKPOINT_RESTORE", // CRIU: process numbers, links to files of other processes
    "CAP_CHOWN",              // CRIU: owners of restored files
    "CAP_DAC_OVERRIDE",       // reads what functions' users own
    "CAP_DAC_READ_SEARCH",    // CRIU: opens files by handle
    "CAP_FOWNER",             // CRIU: times and modes of restored files
    "CAP_FSETID",             // CRIU: modes of restored files
    "CAP_KILL",               // ends sandboxes of any user
    "CAP_MKNOD",              // a sandbox's own /dev
    "CAP_NET_ADMIN",          // a sandbox's own network namespace
    "CAP_PERFMON",            // its kernel programs look at tasks
    "CAP_SETGID",             // a sandbox runs as its own group
    "CAP_SETPCAP",            // sandboxes lose their rights
    "CAP_SETUID",             // a sandbox runs as its own user
    "CAP_SYS_ADMIN",          // namespaces, mounts, control groups
    "CAP_SYS_CHROOT",         // a sandbox's own root
    "CAP_SYS_PTRACE",         // stops sandboxes, reads their memory
    "CAP_SYS_RESOURCE",       // limits of restored processes
    "CAP_SYS_TIME",           // CRIU: the clocks of a restored sandbox's own time namespace
];

/// The names of the services, as units and files have them.
pub const CONTROLLER: &str = "controller";
/// See [`CONTROLLER`].
pub const AGENT: &str = "agent";

/// The argument by which an agent leaves what rests on its node to the next one there.
const TAKEOVER: &str = "--takeover";
/// For how long. The next one comes in a second; if none does, the host has its memory back after that.
const TAKEOVER_SECONDS: &str = "120";
/// systemd ends all that is in a service's control groups with the service. So what is left is elsewhere.
const SCOPE: &str = "--systemd-scope";
/// The arguments of an agent that systemd keeps, if what rests on its node is to outlive it.
pub const TAKEN_OVER_UNDER_SYSTEMD: [&str; 3] = [TAKEOVER, TAKEOVER_SECONDS, SCOPE];

/// Whether what rests on the node of this agent outlives it.
pub fn is_taken_over(agent: &Service) -> bool {
    takeover(&agent.args).is_some_and(|seconds| seconds != "0")
}

/// What these arguments say of it.
fn takeover(args: &[String]) -> Option<&str> {
    let mut args = args.iter();
    let seconds = args.find_map(|arg| match arg.strip_prefix(TAKEOVER)? {
        "" => Some(None),
        rest => Some(Some(rest.strip_prefix('=')?)),
    })?;
    seconds.or_else(|| args.next().map(|next| &**next))
}

/// The services of one host, by name, in the order in which they start.
pub fn of_host(cluster: &Cluster, host: &str, criu: bool, init: Init) -> Vec<(&'static str, Service)> {
    let mut all = Vec::new();
    if cluster.controller.host == host {
        all.push((CONTROLLER, controller(cluster)));
    }
    if let Some(node) = cluster.node_on(host) {
        all.push((AGENT, agent(cluster, node, criu, init)));
    }
    all
}

/// By what a program is known to others.
fn identity(cluster: &Cluster, holder: &str) -> Vec<String> {
    match cluster.certificates {
        Some(_) => vec!["--identity".into(), certificates::on_host(&cluster.prefix, holder)],
        None => vec!["--plaintext".into()],
    }
}

fn controller(cluster: &Cluster) -> Service {
    let Cluster { prefix, controller, .. } = cluster;
    let mut args = vec!["--state-dir".to_owned(), format!("{prefix}/state/controller")];
    args.extend(["--control".into(), controller.control.to_string()]);
    args.extend(["--gateway".into(), controller.gateway.to_string()]);
    args.extend(identity(cluster, certificates::CONTROLLER));
    if controller.https.is_some() {
        args.extend(["--https".into(), certificates::on_host(prefix, certificates::HTTPS)]);
    }
    if controller.config.is_some() {
        args.extend(["--config".into(), format!("{HERE}/etc/controller.toml")]);
    }
    if let Some(address) = controller.metrics {
        args.extend(["--metrics".into(), address.to_string()]);
    }
    if let Some(address) = controller.page {
        args.extend(["--page".into(), address.to_string()]);
    }
    // Requests that wait when it is told to stop are seen to their end, not cut off: others wait at the door.
    let grace = ["stop.grace=30s".to_owned()];
    args.extend(grace.iter().chain(&controller.set).flat_map(|line| ["--set".to_owned(), line.clone()]));
    let socket = |name: &str, address| Socket { name: name.into(), address };
    Service {
        description: "Medes controller".into(),
        program: "bin/medes-controller".into(),
        args,
        capabilities: CONTROLLER_CAPABILITIES.map(str::to_owned).to_vec(),
        stop_within_s: 40,
        sockets: vec![socket("control", controller.control), socket("gateway", controller.gateway)],
    }
}

fn agent(cluster: &Cluster, node: &Node, criu: bool, init: Init) -> Service {
    let Cluster { prefix, controller, .. } = cluster;
    let mut args = vec!["--node".to_owned(), node.name.clone()];
    args.extend(["--controller".into(), controller.control.to_string()]);
    args.extend(["--state-dir".into(), format!("{prefix}/state/agent")]);
    args.extend(["--listen".into(), node.listen.to_string()]);
    args.extend(identity(cluster, &node.name));
    if let Some(cap) = &node.memory_cap {
        args.extend(["--memory-cap".into(), cap.clone()]);
    }
    if let Some(address) = node.metrics {
        args.extend(["--metrics".into(), address.to_string()]);
    }
    if criu {
        args.extend(["--criu".into(), format!("{HERE}/criu")]);
    }
    if takeover(&node.args).is_none() {
        args.extend([TAKEOVER.into(), TAKEOVER_SECONDS.into()]);
    }
    if init == Init::Systemd {
        args.push(SCOPE.into());
    }
    args.extend(node.args.iter().cloned());
    Service {
        description: format!("Medes agent of node {}", node.name),
        program: "bin/medes-agent".into(),
        args,
        capabilities: AGENT_CAPABILITIES.map(str::to_owned).to_vec(),
        stop_within_s: 60,
        sockets: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_says_whether_it_is_taken_over() {
        let agent = |args: &[&str]| Service {
            description: String::new(),
            program: String::new(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            capabilities: Vec::new(),
            stop_within_s: 1,
            sockets: Vec::new(),
        };
        for args in [&["--takeover", "120"][..], &["--node", "n", "--takeover=5", "--x"]] {
            assert!(is_taken_over(&agent(args)), "{args:?}");
        }
        for args in [&["--takeover", "0"][..], &["--takeover=0"], &["--takeover"], &["--takeovers", "3"], &[]]
        {
            assert!(!is_taken_over(&agent(args)), "{args:?}");
        }
    }
}
