//! The Debian package, on a host with systemd: installed, used, upgraded and purged, as its README says.

use std::{fs, path::PathBuf, process::Command};

use medes_deploy::probe::Init;
use serde_json::Value;

use crate::{
    lab::{self, Lab, checked, until},
    systemd,
};

const MAKER: &str = "medes-dist";

fn lacks() -> Option<String> {
    let missing = [MAKER, "medes-deploy"].into_iter().find(|name| !lab::binaries().join(name).is_file());
    let missing = missing.map(|name| format!("no {name} in {}", lab::binaries().display()));
    lab::lacks(Init::Systemd)
        .or_else(|| Command::new("dpkg").arg("--version").output().is_err().then(|| "no dpkg".into()))
        .or(missing)
}

/// The package, of the programs that are tested.
fn made(lab: &Lab) -> PathBuf {
    let out = lab.folder().join("dist");
    let mut command = Command::new(lab::binaries().join(MAKER));
    command.arg("--root").arg(lab::repo()).arg("--binaries").arg(lab::binaries()).arg("--out").arg(&out);
    if let Some(criu) = lab::criu() {
        command.arg("--criu").arg(criu);
    }
    checked(&command.output().unwrap(), "make a package");
    let mut files = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|extension| extension == "deb")).unwrap()
}

#[track_caller]
fn run(lab: &Lab, args: &[&str]) -> String {
    checked(&lab.on_host(0, args).output().unwrap(), &args.join(" "))
}

#[track_caller]
fn json(lab: &Lab, args: &[&str]) -> Value {
    let said = run(lab, &[&["medes"], args, &["--json"]].concat());
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"))
}

fn connected(lab: &Lab) {
    until("the node is there", || {
        let said = lab.on_host(0, &["medes", "nodes", "--json"]).output().unwrap().stdout;
        let nodes: Value = serde_json::from_slice(&said).unwrap_or_default();
        nodes["nodes"][0]["connected"] == true
    });
}

#[test]
fn a_package_is_installed_used_upgraded_and_purged() {
    if let Some(why) = lacks() {
        println!("SKIPPED a_package_is_installed_used_upgraded_and_purged: {why}");
        return;
    }
    let lab = Lab::start_with(1, Init::Systemd, systemd::OWN_WITH_PACKAGES);
    let package = made(&lab);
    let package = package.to_str().unwrap();
    run(&lab, &["dpkg", "--install", package]);
    run(&lab, &["systemctl", "enable", "--now", "medes-controller", "medes-agent"]);
    connected(&lab);

    run(&lab, &["medes", "function", "apply", lab.function("f").to_str().unwrap()]);
    let count = |expected: u64| {
        let said = run(&lab, &["medes", "invoke", "f", "--path", "/count"]);
        assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["count"], expected, "{said}");
    };
    count(1);
    let sandbox = json(&lab, &["ps"])[0]["sandbox"].as_str().unwrap().to_owned();
    run(&lab, &["medes", "dedup", &sandbox]);

    // The same version again: the controller is started anew, the agent when somebody says so.
    let said = run(&lab, &["dpkg", "--install", package]);
    assert!(said.contains("systemctl restart medes-agent"), "{said}");
    connected(&lab);
    let node = json(&lab, &["nodes"])["nodes"][0]["node"].as_str().unwrap().to_owned();
    run(&lab, &["medes", "node", "rest", &node]);
    run(&lab, &["systemctl", "restart", "medes-agent"]);
    connected(&lab);
    run(&lab, &["medes", "node", "uncordon", &node]);
    assert_eq!(json(&lab, &["ps"])[0]["state"], "dedup");
    count(2);

    run(&lab, &["dpkg", "--purge", "medes"]);
    let left = run(
        &lab,
        &[
            "sh",
            "-c",
            "ls -d /etc/medes /var/lib/medes /usr/bin/medes* /usr/lib/systemd/system/medes* 2>/dev/null || true",
        ],
    );
    assert_eq!(left, "");
    let units = run(&lab, &["systemctl", "list-units", "--no-legend", "--state=active", "medes*"]);
    assert_eq!(units, "");
    until("no process is left", || !run(&lab, &["ps", "-eo", "args"]).contains("bin/medes-"));
}
