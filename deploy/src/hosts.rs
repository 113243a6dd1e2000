//! `hosts.toml`: the cluster as a person describes it. Raw form, checked form.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::certificates;

/// Hosts that one file may name.
const NODES_MAX: usize = 1024;

/// A description that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The file, or one that it names.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, or a field is unknown or of the wrong type.
    #[error("{}", .path.display())]
    Toml {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A field whose value cannot be.
    #[error("{field} = {value:?}: {problem}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default = "default_prefix")]
    prefix: String,
    #[serde(default = "default_certificates")]
    certificates: PathBuf,
    #[serde(default)]
    plaintext: bool,
    #[serde(default)]
    ssh: Ssh,
    controller: RawController,
    #[serde(default)]
    node_defaults: NodeSettings,
    node: Vec<RawNode>,
}

fn default_prefix() -> String {
    "/opt/medes".into()
}

fn default_certificates() -> PathBuf {
    "medes-certs".into()
}

/// How hosts are reached.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Ssh {
    /// Whom to log in as; root or somebody who is root without being asked.
    pub user: Option<String>,
    /// Where sshd listens.
    pub port: Option<u16>,
    /// More arguments for `ssh`.
    #[serde(default)]
    pub options: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawController {
    host: String,
    address: Option<IpAddr>,
    #[serde(default = "default_control")]
    control_port: u16,
    gateway: Option<SocketAddr>,
    #[serde(default = "default_gateway")]
    gateway_port: u16,
    metrics: Option<SocketAddr>,
    page: Option<SocketAddr>,
    config: Option<PathBuf>,
    https: Option<PathBuf>,
    #[serde(default)]
    set: Vec<String>,
}

fn default_control() -> u16 {
    7070
}

fn default_gateway() -> u16 {
    7080
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeSettings {
    port: Option<u16>,
    memory_cap: Option<String>,
    metrics_port: Option<u16>,
    #[serde(default)]
    args: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    name: String,
    host: String,
    address: Option<IpAddr>,
    port: Option<u16>,
    memory_cap: Option<String>,
    metrics_port: Option<u16>,
    #[serde(default)]
    args: Vec<String>,
}

/// A checked cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The folder on every host that everything lies in.
    pub prefix: String,
    /// The folder on this machine with the certificates by which the programs know each other. `None`: they do not.
    pub certificates: Option<PathBuf>,
    /// How hosts are reached.
    pub ssh: Ssh,
    /// The controller.
    pub controller: Controller,
    /// The agents, in the order of the file.
    pub nodes: Vec<Node>,
}

/// The controller and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// What ssh calls the host.
    pub host: String,
    /// For agents and tools.
    pub control: SocketAddr,
    /// For callers.
    pub gateway: SocketAddr,
    /// For Prometheus.
    pub metrics: Option<SocketAddr>,
    /// For people: the page.
    pub page: Option<SocketAddr>,
    /// Its configuration file's text.
    pub config: Option<String>,
    /// On this machine: the certificate that callers and people are shown. Its key lies beside it, as NAME-key.pem.
    pub https: Option<PathBuf>,
    /// Changes of single lines of it.
    pub set: Vec<String>,
}

/// An agent and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// What ssh calls the host.
    pub host: String,
    /// Where other agents and the controller reach it.
    pub listen: SocketAddr,
    /// For Prometheus.
    pub metrics: Option<SocketAddr>,
    /// Memory that sandboxes may use.
    pub memory_cap: Option<String>,
    /// More arguments for the agent.
    pub args: Vec<String>,
}

impl Cluster {
    /// Reads and checks a file. Paths in it start at its folder.
    ///
    /// # Errors
    /// When it, or a file that it names, cannot be read or makes no sense.
    pub fn read(path: &Path) -> Result<Self, HostsError> {
        let text = read(path)?;
        let raw = toml::from_str::<Raw>(&text);
        let raw = raw.map_err(|source| HostsError::Toml { path: path.into(), source: Box::new(source) })?;
        let beside = path.parent().unwrap_or(Path::new("."));
        let mut cluster = raw.check(|file| read(&beside.join(file)))?;
        cluster.certificates = cluster.certificates.map(|folder| beside.join(folder));
        cluster.controller.https = cluster.controller.https.map(|file| beside.join(file));
        Ok(cluster)
    }

    /// What ssh calls the hosts, each once, the controller's first.
    pub fn hosts(&self) -> Vec<&str> {
        let mut hosts = vec![&*self.controller.host];
        for node in &self.nodes {
            if !hosts.contains(&&*node.host) {
                hosts.push(&node.host);
            }
        }
        hosts
    }

    /// The agent on a host, if one is to be there.
    pub fn node_on(&self, host: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.host == host)
    }
}

fn read(path: &Path) -> Result<String, HostsError> {
    fs::read_to_string(path).map_err(|source| HostsError::Read { path: path.into(), source })
}

impl Raw {
    fn check(self, read: impl Fn(&Path) -> Result<String, HostsError>) -> Result<Cluster, HostsError> {
        let prefix = check_prefix(self.prefix)?;
        let raw = self.controller;
        let host = check_host(raw.host)?;
        let address = address_of("controller.address", raw.address, &host)?;
        let controller = Controller {
            control: SocketAddr::new(address, raw.control_port),
            gateway: raw.gateway.unwrap_or(SocketAddr::new(address, raw.gateway_port)),
            metrics: raw.metrics,
            page: raw.page,
            config: raw.config.as_deref().map(read).transpose()?,
            https: raw.https,
            set: raw.set,
            host,
        };
        let field = |field, value: &str, problem| HostsError::Field { field, value: value.into(), problem };
        if self.node.is_empty() || self.node.len() > NODES_MAX {
            return Err(field("node", "", "at least one and at most 1024 of them"));
        }
        let (mut names, mut hosts) = (BTreeSet::new(), BTreeSet::new());
        let mut nodes = Vec::new();
        for raw in self.node {
            let node = raw.check(&self.node_defaults)?;
            if !names.insert(node.name.clone()) {
                return Err(field("node.name", &node.name, "there is another node of this name"));
            }
            // Certificates are files by name.
            if certificates::OTHERS.contains(&&*node.name) {
                return Err(field("node.name", &node.name, "another holder of a certificate has this name"));
            }
            // One agent is all a host needs: it uses every processor and all the memory it is given.
            if !hosts.insert(node.host.clone()) {
                return Err(field("node.host", &node.host, "there is another node on this host"));
            }
            nodes.push(node);
        }
        if self.plaintext
            && let Some(file) = &controller.https
        {
            let problem = "where the cluster itself speaks in the clear, this would promise too much";
            return Err(field("controller.https", &file.to_string_lossy(), problem));
        }
        let certificates = (!self.plaintext).then_some(self.certificates);
        Ok(Cluster { prefix, certificates, ssh: self.ssh, controller, nodes })
    }
}

impl RawNode {
    fn check(self, defaults: &NodeSettings) -> Result<Node, HostsError> {
        let name_ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        if self.name.is_empty() || self.name.len() > 63 || !self.name.chars().all(name_ok) {
            let problem = "up to 63 small letters, digits, '-', '_', '.'";
            return Err(HostsError::Field { field: "node.name", value: self.name, problem });
        }
        let host = check_host(self.host)?;
        let address = address_of("node.address", self.address, &host)?;
        let port = self.port.or(defaults.port).unwrap_or(7071);
        let metrics_port = self.metrics_port.or(defaults.metrics_port);
        Ok(Node {
            name: self.name,
            listen: SocketAddr::new(address, port),
            metrics: metrics_port.map(|port| SocketAddr::new(address, port)),
            memory_cap: self.memory_cap.or_else(|| defaults.memory_cap.clone()),
            args: defaults.args.iter().chain(&self.args).cloned().collect(),
            host,
        })
    }
}

/// It is removed as a whole one day, and it stands in scripts and units: so nothing short, nothing odd.
fn check_prefix(prefix: String) -> Result<String, HostsError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let parts: Vec<&str> = prefix.split('/').skip(1).collect();
    let part_ok = |part: &&str| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain);
    if prefix.starts_with('/') && parts.len() >= 2 && parts.iter().all(part_ok) {
        return Ok(prefix);
    }
    let problem = "an absolute path of at least two plain names, such as /opt/medes";
    Err(HostsError::Field { field: "prefix", value: prefix, problem })
}

/// ssh takes what begins with a dash for an option.
fn check_host(host: String) -> Result<String, HostsError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    if !host.is_empty() && !host.starts_with('-') && host.chars().all(plain) {
        return Ok(host);
    }
    Err(HostsError::Field { field: "host", value: host, problem: "not a name or address of a host" })
}

fn address_of(field: &'static str, address: Option<IpAddr>, host: &str) -> Result<IpAddr, HostsError> {
    let problem = "an IP address that the other hosts reach it at is needed, since `host` is none";
    let address = address.or_else(|| host.parse().ok());
    address.ok_or_else(|| HostsError::Field { field, value: host.into(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(text: &str) -> Result<Cluster, HostsError> {
        toml::from_str::<Raw>(text).unwrap().check(|path| Ok(format!("text of {}", path.display())))
    }

    #[test]
    fn a_short_file_is_enough() {
        let cluster = cluster(
            "[controller]\nhost = '10.0.0.1'\n[[node]]\nname = 'a'\nhost = '10.0.0.1'\n\
             [[node]]\nname = 'b'\nhost = 'b.test'\naddress = '10.0.0.2'\n",
        )
        .unwrap();
        assert_eq!(cluster.prefix, "/opt/medes");
        assert_eq!(cluster.controller.control.to_string(), "10.0.0.1:7070");
        assert_eq!(cluster.controller.gateway.to_string(), "10.0.0.1:7080");
        assert_eq!(cluster.certificates.as_deref(), Some(Path::new("medes-certs")), "unless told otherwise");
        assert_eq!(cluster.hosts(), ["10.0.0.1", "b.test"]);
        assert_eq!(cluster.node_on("b.test").unwrap().listen.to_string(), "10.0.0.2:7071");
    }

    #[test]
    fn a_node_has_the_defaults_and_its_own() {
        let cluster = cluster(
            "plaintext = true\n[controller]\nhost = '10.0.0.1'\nconfig = 'c.toml'\n\
             [node_defaults]\nmemory_cap = '4GiB'\nargs = ['--hot-pages', 'pack']\n\
             [[node]]\nname = 'a'\nhost = '10.0.0.2'\nargs = ['--threads', '2']\nmemory_cap = '8GiB'\n",
        )
        .unwrap();
        assert_eq!(cluster.controller.config.as_deref(), Some("text of c.toml"));
        assert_eq!(cluster.certificates, None);
        assert_eq!(cluster.nodes[0].args, ["--hot-pages", "pack", "--threads", "2"]);
        assert_eq!(cluster.nodes[0].memory_cap.as_deref(), Some("8GiB"));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = "[controller]\nhost = '10.0.0.1'\n";
        let node = |name: &str, host: &str| format!("[[node]]\nname = '{name}'\nhost = '{host}'\n");
        let one = node("a", "10.0.0.1");
        for (text, field) in [
            (format!("prefix = '/'\n{base}{one}"), "prefix"),
            (format!("prefix = '/opt'\n{base}{one}"), "prefix"),
            (format!("prefix = '/opt/../etc'\n{base}{one}"), "prefix"),
            (format!("prefix = '/opt/a b'\n{base}{one}"), "prefix"),
            (format!("[controller]\nhost = 'c.test'\n{one}"), "controller.address"),
            (format!("{base}{}", node("A", "10.0.0.1")), "node.name"),
            (format!("{base}{}", node("operator", "10.0.0.1")), "node.name"),
            (format!("{base}{}", node("https", "10.0.0.1")), "node.name"),
            (format!("plaintext = true\n{base}https = 'x.pem'\n{one}"), "controller.https"),
            (format!("{base}{}", node("a", "-oProxyCommand=x")), "host"),
            (format!("{base}{one}{}", node("a", "10.0.0.2")), "node.name"),
            (format!("{base}{one}{}", node("b", "10.0.0.1")), "node.host"),
        ] {
            match cluster(&text) {
                Err(HostsError::Field { field: found, .. }) => assert_eq!(found, field, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
