//! Where things are: the checkout, its tools, its build results.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One checkout of the repository.
pub(crate) struct Repo {
    root: PathBuf,
}

impl Repo {
    /// The checkout this xtask was started in. Cargo says so; a binary started by hand looks
    /// upwards from where it stands.
    pub(crate) fn find() -> Result<Self> {
        let start = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(folder) => PathBuf::from(folder),
            None => env::current_dir().context("find the current folder")?,
        };
        let root = start
            .ancestors()
            .find(|folder| folder.join("agent-ebpf/Cargo.toml").is_file())
            .with_context(|| format!("{} is not inside a checkout of Medes", start.display()))?;
        Ok(Self { root: root.to_owned() })
    }

    /// The top folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A file or folder of the checkout.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside)
    }

    /// The folders of the packages, as the workspace manifest lists them.
    pub(crate) fn packages(&self) -> Result<Vec<PathBuf>> {
        let file = self.root.join("Cargo.toml");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let manifest: toml::Table = text.parse().with_context(|| format!("parse {}", file.display()))?;
        let members = manifest.get("workspace").and_then(|workspace| workspace.get("members")?.as_array());
        let members = members.context("the workspace manifest lists no members")?;
        Ok(members.iter().filter_map(|member| Some(self.root.join(member.as_str()?))).collect())
    }

    /// Where setup keeps what it installs. Never moved by cargo's settings: build scripts look here.
    pub(crate) fn installed(&self, name: &str) -> PathBuf {
        self.root.join("target").join(name)
    }

    /// Where cargo leaves the binaries of a profile.
    pub(crate) fn binaries(&self, release: bool) -> PathBuf {
        self.binaries_of(if release { "release" } else { "dev" })
    }

    /// The same, for any profile.
    pub(crate) fn binaries_of(&self, profile: &str) -> PathBuf {
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from);
        target.join(if profile == "dev" { "debug" } else { profile })
    }

    /// What the binaries, tests and functions read to find each other. What a person has set
    /// already is left alone.
    pub(crate) fn environment(&self, release: bool) -> Vec<(&'static str, OsString)> {
        let mut all = vec![
            ("MEDES_BIN_DIR", self.binaries(release).into_os_string()),
            ("MEDES_FUNCTIONS_DIR", self.path("bench/functions").into_os_string()),
            ("MEDES_PROGRAMS_DIR", self.path("bench/programs").into_os_string()),
            ("MEDES_VENV", self.installed("venv").into_os_string()),
            ("MEDES_PYTHON", self.installed("venv/bin/python").into_os_string()),
        ];
        // A private copy exists only where the system's criu does not work.
        let private_criu = self.installed("criu");
        if private_criu.join("usr/sbin/criu").is_file() {
            all.push(("MEDES_CRIU", private_criu.into_os_string()));
        }
        let private_sshd = self.installed("sshd");
        if private_sshd.join("usr/sbin/sshd").is_file() {
            all.push(("MEDES_SSHD", private_sshd.into_os_string()));
        }
        all.retain(|(name, _)| env::var_os(name).is_none());
        all
    }
}
