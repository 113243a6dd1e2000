//! Other programs: how they are named, started and reported.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::repo::Repo;

/// A command that can be shown before it is run.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    program: String,
    args: Vec<String>,
    env: Vec<(&'static str, OsString)>,
    folder: Option<PathBuf>,
}

impl Call {
    /// A program by name or path.
    pub(crate) fn new(program: impl Into<String>) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new(), folder: None }
    }

    /// Cargo, the same one that runs this xtask, at the top of the checkout.
    pub(crate) fn cargo(repo: &Repo) -> Self {
        let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        Self::new(cargo).folder(repo.root())
    }

    pub(crate) fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn path(self, path: &Path) -> Self {
        self.arg(path.to_string_lossy())
    }

    pub(crate) fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    pub(crate) fn envs(mut self, all: Vec<(&'static str, OsString)>) -> Self {
        self.env.extend(all);
        self
    }

    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// As the standard library starts it. What `cargo run` told this xtask about itself is taken
    /// away: an inner cargo would take it for settings and build everything again.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_")
                || text.starts_with("CARGO_MANIFEST_")
                || text == "LD_LIBRARY_PATH"
            {
                command.env_remove(&name);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    /// Runs it with its output on the terminal.
    pub(crate) fn run(&self) -> Result<()> {
        let status = self.command().status().with_context(|| format!("start {self}"))?;
        if !status.success() {
            bail!("{self} failed ({status})");
        }
        Ok(())
    }

    /// Runs it with its output in a file; true when it went well.
    pub(crate) fn run_into(&self, log: &File) -> Result<bool> {
        let doing = || format!("start {self}");
        let (out, err) = (log.try_clone().with_context(doing)?, log.try_clone().with_context(doing)?);
        let status = self.command().stdin(Stdio::null()).stdout(out).stderr(err).status();
        Ok(status.with_context(doing)?.success())
    }

    /// Runs it and gives every line of its output, also of its error output, to `line` as it comes.
    pub(crate) fn run_through(&self, mut line: impl FnMut(&str)) -> Result<bool> {
        let doing = || format!("start {self}");
        let (from, to) = std::io::pipe().with_context(doing)?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(to.try_clone().with_context(doing)?).stderr(to);
        let mut child = command.spawn().with_context(doing)?;
        // Holds the writing ends of the pipe: reading would never end.
        drop(command);
        let mut reader = BufReader::new(from);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).with_context(doing)? > 0 {
            line(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']));
            bytes.clear();
        }
        Ok(child.wait().with_context(doing)?.success())
    }

    /// What it prints, when it goes well.
    pub(crate) fn output(&self) -> Option<String> {
        let output = self.command().stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether it can be started and goes well. Its output is nobody's business.
    pub(crate) fn succeeds(&self) -> bool {
        self.output().is_some()
    }
}

/// As one would type it.
impl fmt::Display for Call {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.env {
            write!(out, "{name}={} ", quoted(&value.to_string_lossy()))?;
        }
        write!(out, "{}", quoted(&self.program))?;
        self.args.iter().try_for_each(|arg| write!(out, " {}", quoted(arg)))
    }
}

/// A word as a shell would need it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A program on `PATH` or among the administrators' programs, which `PATH` often lacks.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_reads_as_one_would_type_it() {
        let call = Call::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "a b", "it's", ""]);
        assert_eq!(call.to_string(), "DEBIAN_FRONTEND=noninteractive apt-get install 'a b' 'it'\\''s' ''");
    }

    #[test]
    fn both_outputs_come_through_line_by_line() {
        let mut lines = Vec::new();
        let call = Call::new("sh").args(["-c", "echo one; echo two >&2; printf three; exit 3"]);
        let well = call.run_through(|line| lines.push(line.to_owned())).unwrap();
        assert_eq!((well, lines), (false, vec!["one".to_owned(), "two".to_owned(), "three".to_owned()]));
    }
}
