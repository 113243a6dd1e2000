//! System packages: installed by name, where this is Debian or Ubuntu and we are root.

use super::machine::Machine;
use super::step::Step;
use crate::command::Call;

/// Asks for packages. The lists are updated once, and only when something is missing.
pub(super) struct Apt<'a> {
    machine: &'a Machine,
    updated: bool,
}

impl<'a> Apt<'a> {
    pub(super) fn new(machine: &'a Machine) -> Self {
        Self { machine, updated: false }
    }

    /// The steps that install these packages, or why that is not possible here.
    pub(super) fn steps(&mut self, packages: &[&str]) -> Result<Vec<Step>, String> {
        if packages.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(reason) = self.machine.cannot_install() {
            return Err(format!("{reason}; missing packages: {}", packages.join(" ")));
        }
        let mut steps = Vec::new();
        if !self.updated {
            self.updated = true;
            steps.push(Step::run("bring the lists of packages up to date", quiet("update")));
        }
        let install = quiet("install").args(["-y", "--no-install-recommends"]).args(packages.iter().copied());
        steps.push(Step::run(format!("install {}", packages.join(" ")), install));
        Ok(steps)
    }
}

/// `apt-get` that asks nothing and waits for another one to finish, but not for ever.
fn quiet(verb: &str) -> Call {
    Call::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .arg(verb)
}

/// Those of the packages that are not installed. Where there is no dpkg, all of them.
pub(super) fn missing(packages: &[&'static str]) -> Vec<&'static str> {
    let installed = |package: &&&'static str| {
        let status = Call::new("dpkg-query").args(["-W", "-f", "${Status}"]).arg(**package).output();
        status.is_some_and(|status| status.ends_with(" installed"))
    };
    packages.iter().filter(|package| !installed(package)).copied().collect()
}
