//! Where files lie on a machine that has Medes as a package, and how systemd starts it there: as on any host (`medes_deploy`), but for
//! what an administrator sets in `/etc/medes`.

use std::path::Path;

use medes_deploy::{
    archive::{ArchiveError, Entry, What},
    service::{Service, Socket},
    services::{AGENT, AGENT_CAPABILITIES, CONTROLLER, TAKEN_OVER_UNDER_SYSTEMD as TAKEOVER},
    units::{self, Settings, Unit},
};

use crate::sources::Sources;

/// Files that are the administrator's once they are there, without the first slash.
pub const SETTINGS: [&str; 3] =
    ["etc/medes/agent.env", "etc/medes/controller.env", "etc/medes/controller.toml"];
/// What they say at first.
const TEXTS: [&str; 3] = [
    include_str!("../package/agent.env"),
    include_str!("../package/controller.env"),
    include_str!("../package/controller.toml"),
];
/// State lies below.
const STATE: &str = "/var/lib/medes";
const CRIU: &str = "usr/lib/medes/criu";

/// Everything, without the first slash.
///
/// # Errors
/// When the CRIU that goes along cannot be looked through.
pub fn entries(sources: &Sources) -> Result<Vec<Entry>, ArchiveError> {
    let mut all = sources.programs("usr/bin/");
    all.extend(sources.criu(CRIU)?);
    all.extend(sources.documents("usr/share/doc/medes/"));
    all.extend(sources.observe("usr/share/medes/observe/"));
    all.push(sources.config("usr/share/medes/controller.toml"));
    let text = |name: String, text: String| Entry { name, what: What::Text(text.into_bytes()) };
    all.extend(SETTINGS.iter().zip(TEXTS).map(|(name, said)| text((*name).into(), said.into())));
    let units = units(sources.criu.is_some()).into_iter();
    all.extend(units.map(|unit| text(format!("usr/lib/systemd/system/{}", unit.name), unit.text)));
    Ok(all)
}

/// The units of both services. Out of the box they serve this machine alone: one node, and nobody shows a certificate.
pub fn units(criu: bool) -> Vec<Unit> {
    let settings = |service: &str, defaults: &[&str]| Settings {
        file: format!("/etc/medes/{service}.env"),
        arguments: format!("MEDES_{}_OPTIONS", service.to_uppercase()),
        defaults: defaults.iter().map(|line| (*line).to_owned()).collect(),
    };
    let of = |name, service: &Service, settings: &Settings| {
        units::with_settings(name, service, (STATE, Path::new("/")), Some(settings))
    };
    let controller = of(CONTROLLER, &controller(), &settings(CONTROLLER, &[]));
    // `%l`: this machine's name, up to its first dot.
    let agent = of(AGENT, &agent(criu), &settings(AGENT, &["MEDES_NODE=%l"]));
    [controller, agent].concat()
}

fn controller() -> Service {
    let address = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let socket = |name: &str, port| Socket { name: name.into(), address: address(port) };
    let args = [
        "--state-dir",
        "/var/lib/medes/state/controller",
        "--config",
        "/etc/medes/controller.toml",
        "--set",
        "stop.grace=30s",
    ];
    Service {
        description: "Medes controller".into(),
        program: "usr/bin/medes-controller".into(),
        args: args.map(str::to_owned).to_vec(),
        capabilities: Vec::new(),
        stop_within_s: 40,
        sockets: vec![socket("control", 7070), socket("gateway", 7080)],
    }
}

fn agent(criu: bool) -> Service {
    let mut args = vec!["--state-dir".to_owned(), "/var/lib/medes/state/agent".to_owned()];
    args.extend(TAKEOVER.map(str::to_owned));
    if criu {
        args.extend(["--criu".to_owned(), format!("/{CRIU}")]);
    }
    Service {
        description: "Medes agent".into(),
        program: "usr/bin/medes-agent".into(),
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
    fn units_start_what_the_package_brings_with_what_the_administrator_set() {
        let units = units(true);
        let names: Vec<_> = units.iter().map(|unit| &*unit.name).collect();
        let sockets = ["medes-controller-control.socket", "medes-controller-gateway.socket"];
        assert_eq!(names, [sockets[0], sockets[1], "medes-controller.service", "medes-agent.service"]);
        let agent = &units[3].text;
        let command = "ExecStart=/usr/bin/medes-agent --state-dir /var/lib/medes/state/agent \
                       --takeover 120 --systemd-scope --criu /usr/lib/medes/criu $MEDES_AGENT_OPTIONS\nEnvironment=MEDES_NODE=%l\n\
                       EnvironmentFile=-/etc/medes/agent.env\n";
        assert!(agent.contains(command), "{agent}");
        assert!(agent.contains(&format!("CapabilityBoundingSet={}\n", AGENT_CAPABILITIES.join(" "))));
        let controller = &units[2].text;
        assert!(controller.contains(" $MEDES_CONTROLLER_OPTIONS\nEnvironmentFile="), "{controller}");
        assert!(controller.contains("ReadWritePaths=/var/lib/medes/state/controller\n"), "{controller}");
        assert!(controller.contains("CapabilityBoundingSet=\n"), "{controller}");
    }
}
