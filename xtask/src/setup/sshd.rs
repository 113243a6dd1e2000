//! sshd, for the hosts that the test of `cargo xtask deploy` makes: the system's, else a private copy of the package,
//! so that no service of this machine is started.

use super::step::Step;
use super::{Name, Part};
use crate::command::{Call, on_path};
use crate::repo::Repo;

/// The package, and the one of its libraries that other packages seldom bring.
const PACKAGES: [&str; 2] = ["openssh-server", "libwrap0"];

pub(super) fn look(repo: &Repo, apt: bool) -> Part {
    let mut part = Part {
        name: Name::Sshd,
        found: Err("no sshd".into()),
        packages: Vec::new(),
        steps: Vec::new(),
        without: "the test that deploys to several hosts is skipped",
        by_hand: "Install OpenSSH's server; it need not run",
    };
    let copy = repo.installed("sshd");
    if let Some(system) = on_path("sshd") {
        part.found = Ok(system.display().to_string());
    } else if copy.join("usr/sbin/sshd").is_file() {
        part.found = Ok("private copy".into());
    } else if apt {
        let (archives, fresh) = (repo.installed("setup").join("sshd"), repo.installed("sshd.new"));
        let apt = || Call::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
        let download =
            apt().args(["-o", "APT::Sandbox::User=root", "download"]).args(PACKAGES).folder(&archives);
        part.steps = vec![
            Step::remove("clear an unfinished copy", fresh.clone()),
            Step::folders("make room for packages", vec![archives.clone()]),
            Step::run("bring the lists of packages up to date", apt().arg("update")),
            Step::run("fetch sshd and the library it needs", download),
            Step::unpack("unpack them", archives.clone(), fresh.clone()),
            Step::replace("put the copy in its place", fresh, copy),
            Step::remove("remove the packages", archives),
        ];
    }
    part
}
