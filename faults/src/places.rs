//! Where the programs are, and what this machine lacks. `cargo xtask` sets the environment.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use nix::unistd::geteuid;

/// Where things are.
#[derive(Debug, Clone, Args)]
pub(crate) struct Places {
    /// Folder of the programs of Medes; that of this program if absent
    #[arg(long, env = "MEDES_BIN_DIR")]
    bin_dir: Option<PathBuf>,
    /// A criu program, or the root of an extracted package tree; default: criu in PATH
    #[arg(long, env = "MEDES_CRIU")]
    pub(crate) criu: Option<PathBuf>,
    /// Where results go
    #[arg(long, default_value = "target/faults")]
    pub(crate) out: PathBuf,
}

impl Places {
    /// One of the programs of Medes.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        let path = match &self.bin_dir {
            Some(dir) => dir.join(name),
            None => std::env::current_exe().context("find this program")?.with_file_name(name),
        };
        path.canonicalize().with_context(|| format!("find the program {}", path.display()))
    }

    /// Why nothing can be broken here.
    pub(crate) fn lack(&self) -> Option<String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there =
            |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        if !geteuid().is_root() {
            return Some("not root".into());
        }
        if self.criu.is_none() && !is_there("criu") {
            return Some("no CRIU; see cargo xtask setup".into());
        }
        if !Path::new("/usr/bin/python3").exists() {
            return Some("no /usr/bin/python3".into());
        }
        let programs = ["ip", "tc", "nsenter", "unshare", "setpriv"];
        programs.into_iter().find(|program| !is_there(program)).map(|program| format!("no {program}"))
    }
}
