//! Python and the libraries of the example functions, in an environment of their own.

use std::fs;
use std::path::Path;

use super::step::Step;
use super::{Name, Part, apt};
use crate::command::Call;
use crate::repo::Repo;

/// The system's: a sandbox sees the host's root folder, and not every person's home.
const PYTHON: &str = "/usr/bin/python3";
const REQUIREMENTS: &str = "bench/functions/requirements.txt";

pub(super) fn look(repo: &Repo) -> Part {
    let venv = repo.installed("venv");
    let python = venv.join("bin/python");
    let requirements = repo.path(REQUIREMENTS);
    let stamp = venv.join("medes-setup.txt");
    let wanted = fs::read_to_string(&requirements).unwrap_or_default();
    let version = Call::new(python.to_string_lossy()).arg("--version").output();
    let installed = fs::read_to_string(&stamp).ok();

    let mut packages = Vec::new();
    let mut steps = Vec::new();
    let found = match version {
        Some(version) if installed.as_ref() == Some(&wanted) => Ok(version.trim().to_owned()),
        Some(_) => Err("the functions' libraries are not those of requirements.txt".to_owned()),
        None => {
            if !Call::new(PYTHON).args(["-c", "import ensurepip, venv"]).succeeds() {
                packages = apt::missing(&["python3", "python3-venv"]);
            }
            steps.push(create(&venv));
            Err("no Python environment for the functions".to_owned())
        }
    };
    steps.push(install(&python, &requirements));
    steps.push(Step::write("note what is installed", stamp, wanted));
    Part {
        name: Name::Python,
        found,
        packages,
        steps,
        without: "the example functions cannot run",
        by_hand: "Install Python 3.11 or newer with its venv module as /usr/bin/python3",
    }
}

fn create(venv: &Path) -> Step {
    let call = Call::new(PYTHON).args(["-m", "venv", "--clear"]).path(venv);
    Step::run("make a Python environment", call)
}

fn install(python: &Path, requirements: &Path) -> Step {
    let call = Call::new(python.to_string_lossy())
        .args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--requirement"])
        .path(requirements);
    Step::run("install the functions' libraries (some 200 MB)", call)
}
