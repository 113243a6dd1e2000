//! One thing that setup does, as data: it can be printed before it is done.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::build;
use crate::command::{Call, quoted};
use crate::repo::Repo;

const LOG_TAIL_LINES: usize = 15;
const LOG_TAIL_BYTES: u64 = 8192;
/// Packages that one unpacking may meet. The private CRIU has 25.
const ARCHIVES_MAX: usize = 500;

/// What is done, and how it is announced.
#[derive(Clone)]
pub(super) struct Step {
    pub(super) title: String,
    act: Act,
}

#[derive(Clone)]
enum Act {
    Run(Call),
    Write {
        path: PathBuf,
        text: String,
    },
    Folders(Vec<PathBuf>),
    Remove(PathBuf),
    /// Every package file in `from` into `to`, without installing any.
    Unpack {
        from: PathBuf,
        to: PathBuf,
    },
    /// `to` gets what `from` holds; what was there goes away.
    Replace {
        from: PathBuf,
        to: PathBuf,
    },
    /// The agent's build script looks for the tool chain again.
    LookAgain,
}

impl Step {
    pub(super) fn run(title: impl Into<String>, call: Call) -> Self {
        Self { title: title.into(), act: Act::Run(call) }
    }

    pub(super) fn write(title: impl Into<String>, path: PathBuf, text: String) -> Self {
        Self { title: title.into(), act: Act::Write { path, text } }
    }

    pub(super) fn folders(title: impl Into<String>, folders: Vec<PathBuf>) -> Self {
        Self { title: title.into(), act: Act::Folders(folders) }
    }

    pub(super) fn remove(title: impl Into<String>, path: PathBuf) -> Self {
        Self { title: title.into(), act: Act::Remove(path) }
    }

    pub(super) fn unpack(title: impl Into<String>, from: PathBuf, to: PathBuf) -> Self {
        Self { title: title.into(), act: Act::Unpack { from, to } }
    }

    pub(super) fn replace(title: impl Into<String>, from: PathBuf, to: PathBuf) -> Self {
        Self { title: title.into(), act: Act::Replace { from, to } }
    }

    pub(super) fn look_again() -> Self {
        Self { title: "let the next build find the tool chain".into(), act: Act::LookAgain }
    }

    /// Does it. What programs print goes to a file under `target/setup`; an error carries its end.
    pub(super) fn carry_out(&self, repo: &Repo, part: &str) -> Result<()> {
        match &self.act {
            Act::Run(call) => run_logged(repo, part, call),
            Act::Write { path, text } => {
                fs::write(path, text).with_context(|| format!("write {}", path.display()))
            }
            Act::Folders(folders) => folders.iter().try_for_each(|folder| create(folder)),
            Act::Remove(path) => remove(path),
            Act::Unpack { from, to } => unpack(repo, part, from, to),
            Act::Replace { from, to } => {
                remove(to)?;
                fs::rename(from, to).with_context(|| format!("rename {} to {}", from.display(), to.display()))
            }
            Act::LookAgain => build::look_again(repo),
        }
    }
}

/// The command that does the same, for a person to read.
impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.act {
            Act::Run(call) => write!(out, "{call}"),
            Act::Write { path, text } if text.lines().count() > 1 => {
                write!(out, "write {} ({} lines)", path.display(), text.lines().count())
            }
            Act::Write { path, text } => write!(out, "echo {} > {}", quoted(text.trim_end()), path.display()),
            Act::Folders(folders) => {
                out.write_str("mkdir -p")?;
                folders.iter().try_for_each(|folder| write!(out, " {}", folder.display()))
            }
            Act::Remove(path) => write!(out, "rm -rf {}", path.display()),
            Act::Unpack { from, to } => {
                write!(
                    out,
                    "for deb in {}/*.deb; do dpkg-deb -x \"$deb\" {}; done",
                    from.display(),
                    to.display()
                )
            }
            Act::Replace { from, to } => {
                write!(out, "rm -rf {0} && mv {1} {0}", to.display(), from.display())
            }
            Act::LookAgain => out.write_str("touch agent/build.rs"),
        }
    }
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

/// Removes a file or folder. That it is not there is fine.
fn remove(path: &Path) -> Result<()> {
    let outcome = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn run_logged(repo: &Repo, part: &str, call: &Call) -> Result<()> {
    let folder = repo.installed("setup");
    create(&folder)?;
    let path = folder.join(format!("{part}.log"));
    let mut log = File::options()
        .create(true)
        .read(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let start = log.seek(SeekFrom::End(0)).context("find the end of the log")?;
    if !call.run_into(&log)? {
        bail!("{call}\n{}\n(all of it: {})", tail(&mut log, start)?, path.display());
    }
    Ok(())
}

/// The last lines that were written since `start`.
fn tail(log: &mut File, start: u64) -> Result<String> {
    let end = log.seek(SeekFrom::End(0)).context("find the end of the log")?;
    log.seek(SeekFrom::Start(start.max(end.saturating_sub(LOG_TAIL_BYTES)))).context("go back in the log")?;
    let mut bytes = Vec::new();
    log.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).context("read the log")?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines.get(lines.len().saturating_sub(LOG_TAIL_LINES)..).unwrap_or_default().join("\n"))
}

fn unpack(repo: &Repo, part: &str, from: &Path, to: &Path) -> Result<()> {
    create(to)?;
    let entries = fs::read_dir(from).with_context(|| format!("list {}", from.display()))?;
    let archives: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .take(ARCHIVES_MAX)
        .collect();
    ensure!(!archives.is_empty(), "no packages in {}", from.display());
    for archive in archives {
        run_logged(repo, part, &Call::new("dpkg-deb").arg("-x").path(&archive).path(to))?;
    }
    Ok(())
}
