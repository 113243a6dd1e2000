//! Services as systemd has them: as hardened as each one's work allows.

use std::path::Path;

use crate::{
    service::Service,
    services::{AGENT, CONTROLLER},
};

/// A unit's file name and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// As in the folder of units.
    pub name: String,
    /// The whole file.
    pub text: String,
}

/// The unit of a service, without the dot and what follows.
pub fn name(service: &str) -> String {
    format!("medes-{service}")
}

/// What an administrator may set without touching a unit: a file of variables, one of which holds more arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Read when the service starts, if it is there.
    pub file: String,
    /// Its words come after the unit's own arguments.
    pub arguments: String,
    /// `NAME=VALUE` that hold unless the file says otherwise.
    pub defaults: Vec<String>,
}

impl Settings {
    fn lines(&self) -> String {
        let defaults = self.defaults.iter().map(|line| format!("Environment={line}\n"));
        defaults.chain([format!("EnvironmentFile=-{}\n", self.file)]).collect()
    }
}

/// The units of one service of the version in `folder`. Sockets have units of their own: they stay open while the
/// service is replaced.
pub fn of_service(service: &str, what: &Service, prefix: &str, folder: &Path) -> Vec<Unit> {
    with_settings(service, what, (prefix, folder), None)
}

/// The same, with what an administrator may set.
pub fn with_settings(
    service: &str,
    what: &Service,
    (prefix, folder): (&str, &Path),
    settings: Option<&Settings>,
) -> Vec<Unit> {
    let name = name(service);
    let mut units: Vec<Unit> = what
        .sockets
        .iter()
        .map(|socket| Unit {
            name: format!("{name}-{}.socket", socket.name),
            text: format!(
                "[Unit]\nDescription={} ({})\n\n[Socket]\nListenStream={}\nFileDescriptorName={}\n\
                 Service={name}.service\nBacklog=1024\nNoDelay=true\n\n[Install]\nWantedBy=sockets.target\n",
                what.description, socket.name, socket.address, socket.name
            ),
        })
        .collect();
    let sockets: Vec<&str> = units.iter().map(|unit| &*unit.name).collect();
    let sockets = match sockets.is_empty() {
        true => String::new(),
        false => format!("Requires={0}\nAfter={0}\n", sockets.join(" ")),
    };
    let sockets_of_service = sockets
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("Requires="))
        .map(|list| format!("Sockets={list}\n"));
    let program = folder.join(&what.program);
    let command = std::iter::once(quoted(&program.to_string_lossy()))
        .chain(what.args_in(folder).iter().map(|arg| quoted(arg)))
        .chain(settings.map(|settings| format!("${}", settings.arguments)))
        .collect::<Vec<_>>()
        .join(" ");
    let hardening = match service {
        CONTROLLER => controller_hardening(prefix),
        AGENT => agent_hardening(),
        _ => String::new(),
    };
    units.push(Unit {
        name: format!("{name}.service"),
        text: format!(
            "[Unit]\nDescription={}\nWants=network-online.target\nAfter=network-online.target\n{sockets}\
             StartLimitIntervalSec=0\n\n\
             [Service]\nExecStart={command}\n{}{}Restart=always\nRestartSec=1s\nTimeoutStopSec={}s\n\
             LimitNOFILE=1048576\nCapabilityBoundingSet={}\nAmbientCapabilities=\n{hardening}\n\
             [Install]\nWantedBy=multi-user.target\n",
            what.description,
            settings.map(Settings::lines).unwrap_or_default(),
            sockets_of_service.unwrap_or_default(),
            what.stop_within_s,
            what.capabilities.join(" "),
        ),
    });
    units
}

/// It reads its file again when it is told to; it needs its state folder, its sockets, and nothing else.
fn controller_hardening(prefix: &str) -> String {
    format!(
        "ExecReload=/bin/kill -HUP $MAINPID\nNoNewPrivileges=yes\nProtectSystem=strict\nReadWritePaths={prefix}/state/controller\nProtectHome=yes\n\
         PrivateTmp=yes\nPrivateDevices=yes\nProtectKernelTunables=yes\nProtectKernelModules=yes\n\
         ProtectKernelLogs=yes\nProtectControlGroups=yes\nProtectClock=yes\nProtectHostname=yes\n\
         ProtectProc=invisible\nRestrictNamespaces=yes\nRestrictSUIDSGID=yes\nRestrictRealtime=yes\n\
         RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX\nLockPersonality=yes\nMemoryDenyWriteExecute=yes\n\
         SystemCallArchitectures=native\nSystemCallFilter=@system-service\nUMask=0077\n"
    )
}

/// It makes namespaces, mounts and control groups and restores whatever processes it dumped, so most walls would be in
/// its way, and all that are seccomp filters are (CRIU could suspend no sandbox's): its capabilities are the wall. Its keeper and its sandboxes are in a scope beside it (`--systemd-scope`), and all of that is counted in their slice.
fn agent_hardening() -> String {
    "Slice=medes.slice\nDelegate=yes\nKillMode=mixed\nOOMScoreAdjust=-500\nUMask=0077\n".into()
}

/// A word of a command line, for systemd: `%` and `$` mean something to it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::service::{HERE, Socket};

    fn service(sockets: &[(&str, &str)]) -> Service {
        Service {
            description: "A test".into(),
            program: "bin/true".into(),
            args: vec!["--here".into(), format!("{HERE}/x"), "a b%".into()],
            capabilities: vec!["CAP_KILL".into(), "CAP_CHOWN".into()],
            stop_within_s: 9,
            sockets: sockets
                .iter()
                .map(|(name, address)| Socket { name: (*name).into(), address: address.parse().unwrap() })
                .collect(),
        }
    }

    fn units(service: &str, sockets: &[(&str, &str)], folder: &Path) -> Vec<Unit> {
        of_service(service, &self::service(sockets), "/opt/medes", folder)
    }

    #[test]
    fn a_service_runs_its_version_with_its_rights() {
        let units = units(AGENT, &[], Path::new("/opt/medes/versions/v"));
        assert_eq!(units.len(), 1);
        let text = &units[0].text;
        let command = "ExecStart=/opt/medes/versions/v/bin/true --here /opt/medes/versions/v/x \"a b%%\"\n";
        assert!(text.contains(command), "{text}");
        assert!(text.contains("CapabilityBoundingSet=CAP_KILL CAP_CHOWN\n"), "{text}");
        assert!(text.contains("TimeoutStopSec=9s\n"), "{text}");
    }

    #[test]
    fn sockets_are_units_of_their_own_and_keep_their_names() {
        let units =
            units(CONTROLLER, &[("control", "10.0.0.1:1"), ("gateway", "10.0.0.1:2")], Path::new("/v"));
        let names: Vec<_> = units.iter().map(|unit| &*unit.name).collect();
        let sockets = ["medes-controller-control.socket", "medes-controller-gateway.socket"];
        assert_eq!(names, [sockets[0], sockets[1], "medes-controller.service"]);
        assert!(units[1].text.contains("ListenStream=10.0.0.1:2\nFileDescriptorName=gateway\n"));
        assert!(units[2].text.contains(&format!("Sockets={}\n", sockets.join(" "))), "{}", units[2].text);
    }

    /// What systemd itself says of them, where it is there.
    #[test]
    fn systemd_finds_nothing_wrong_with_them() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        std::os::unix::fs::symlink("/bin/true", folder.path().join("bin/true")).unwrap();
        let mut files = Vec::new();
        for unit in [
            units(AGENT, &[], folder.path()),
            units(CONTROLLER, &[("control", "127.0.0.1:1"), ("gateway", "127.0.0.1:2")], folder.path()),
        ]
        .concat()
        {
            let path = folder.path().join(unit.name);
            std::fs::write(&path, unit.text).unwrap();
            files.push(path);
        }
        let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&files).output();
        let Ok(verify) = verify else {
            println!("SKIPPED systemd_finds_nothing_wrong_with_them: no systemd-analyze");
            return;
        };
        let said = String::from_utf8_lossy(&verify.stderr);
        let about_ours: Vec<&str> = said.lines().filter(|line| line.contains("medes-")).collect();
        assert!(about_ours.is_empty(), "{said}");
    }
}
