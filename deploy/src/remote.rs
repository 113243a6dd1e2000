//! The only file that starts `ssh`: a few lines of `sh` on a host, files to a host.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    archive::{self, ArchiveError, Entry},
    hosts::Ssh,
};

/// A host that does not answer is given up after this long.
const CONNECT_SECONDS: u32 = 10;
/// Lines of a host's error output that are told.
const LINES_MAX: usize = 12;
/// Bytes of a host's output that are read.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;

/// What ssh itself ends with when it cannot reach a host.
const SSH_FAILED: i32 = 255;
/// What `timeout` ends with when time was up.
const TIMED_OUT: i32 = 124;

/// Something on a host did not go as it should.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// There is no ssh.
    #[error("start ssh")]
    Start(#[source] io::Error),
    /// No connection, or it broke.
    #[error("{host}: cannot be reached: {said}")]
    Unreachable {
        /// Which host.
        host: String,
        /// By ssh.
        said: String,
    },
    /// It took too long.
    #[error("{host}: {doing} took longer than {} s", .within.as_secs())]
    Late {
        /// Which host.
        host: String,
        /// What was done there.
        doing: String,
        /// The time it had.
        within: Duration,
    },
    /// What was done there failed.
    #[error("{host}: {doing} failed: {said}")]
    Failed {
        /// Which host.
        host: String,
        /// What was done there.
        doing: String,
        /// Its last words.
        said: String,
        /// Its exit code, unless a signal ended it.
        code: Option<i32>,
        /// What it printed.
        printed: String,
    },
    /// The files could not be packed.
    #[error("{host}: copy")]
    Archive {
        /// Which host.
        host: String,
        /// Why not.
        source: ArchiveError,
    },
}

/// One host. Connections are shared: the second command on a host does not log in again.
#[derive(Clone, Debug)]
pub struct Remote {
    host: String,
    args: Vec<String>,
}

impl Remote {
    /// A host by what ssh calls it. `sockets`: a folder for shared connections, short and private.
    pub fn new(host: &str, ssh: &Ssh, sockets: &Path) -> Self {
        let mut args: Vec<String> = ["-T", "-o", "BatchMode=yes"].map(str::to_owned).to_vec();
        let mut option = |text: String| args.extend(["-o".to_owned(), text]);
        option(format!("ConnectTimeout={CONNECT_SECONDS}"));
        option("ServerAliveInterval=5".into());
        option("ServerAliveCountMax=4".into());
        option("ControlMaster=auto".into());
        option(format!("ControlPath={}", sockets.join("%C").display()));
        // Long enough for the next command, short enough to be gone soon after the last.
        option("ControlPersist=15".into());
        if let Some(user) = &ssh.user {
            args.extend(["-l".into(), user.clone()]);
        }
        if let Some(port) = ssh.port {
            args.extend(["-p".into(), port.to_string()]);
        }
        args.extend(ssh.options.iter().cloned());
        Self { host: host.into(), args }
    }

    /// Closes the shared connection, if there is one.
    pub fn close(&self) {
        let mut command = Command::new("ssh");
        command.args(&self.args).args(["-O", "exit", "--"]).arg(&self.host);
        // Where none is open there is nothing to close.
        let _none = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }

    /// Its name.
    pub fn host(&self) -> &str {
        &self.host
    }

    fn ssh(&self, script: &str, within: Duration) -> Command {
        let mut command = Command::new("ssh");
        let seconds = within.as_secs().max(1);
        command.args(&self.args).arg("--").arg(&self.host);
        command.arg(format!("timeout -k 5 {seconds} sh -c {}", quoted(&format!("set -eu\n{script}"))));
        command
    }

    /// Runs a script as root of the host. `doing` is what a person is told of it. Returns what it prints.
    ///
    /// # Errors
    /// When the host cannot be reached, the script fails, or takes longer than `within`.
    pub fn run(&self, doing: &str, script: &str, within: Duration) -> Result<String, RemoteError> {
        let mut command = self.ssh(script, within);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        self.outcome(doing, within, child.map_err(RemoteError::Start)?)
    }

    /// Unpacks files into a folder of the host, which is made. Returns the bytes that went over.
    ///
    /// # Errors
    /// When a file cannot be read, or as for [`Remote::run`].
    pub fn send(&self, entries: &[Entry], to: &str, within: Duration) -> Result<u64, RemoteError> {
        let script = format!("mkdir -p {0} && tar -xpf - -C {0}", quoted(to));
        let mut command = self.ssh(&script, within);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(RemoteError::Start)?;
        let mut written = Ok(0);
        if let Some(mut stdin) = child.stdin.take() {
            written = archive::write(entries, &mut stdin);
        }
        let outcome = self.outcome("copy", within, child);
        match written {
            // The host's own words say more than a broken pipe.
            Err(ArchiveError::Write(_)) if outcome.is_err() => outcome.map(|_| 0),
            Err(source) => Err(RemoteError::Archive { host: self.host.clone(), source }),
            Ok(bytes) => outcome.map(|_| bytes),
        }
    }

    /// Takes a lock on the host that holds until the returned value is dropped, or this process or the connection ends.
    ///
    /// # Errors
    /// When somebody else has it, or as for [`Remote::run`].
    pub fn lock(&self, file: &str, within: Duration) -> Result<RemoteLock, RemoteError> {
        // The host gives it up when our end of the pipe is closed, however that comes.
        let script = format!("flock -n {} sh -c 'echo locked; cat >/dev/null'", quoted(file));
        let mut command = self.ssh(&script, within);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(RemoteError::Start)?;
        let mut first = [0; 6];
        let locked = match &mut child.stdout {
            Some(out) => out.read_exact(&mut first).is_ok() && &first == b"locked",
            None => false,
        };
        if locked {
            return Ok(RemoteLock { child });
        }
        let failed = self.outcome("take the lock of deployments", within, child);
        Err(failed.err().unwrap_or_else(|| RemoteError::Failed {
            host: self.host.clone(),
            doing: "take the lock of deployments".into(),
            said: "another deployment is under way".into(),
            code: None,
            printed: String::new(),
        }))
    }

    fn outcome(&self, doing: &str, within: Duration, mut child: Child) -> Result<String, RemoteError> {
        drop(child.stdin.take());
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (printed, said) = std::thread::scope(|scope| {
            let said = scope.spawn(|| err.map(whole).unwrap_or_default());
            let printed = out.map(whole).unwrap_or_default();
            (printed, said.join().unwrap_or_default())
        });
        let status = child.wait().map_err(RemoteError::Start)?;
        let host = self.host.clone();
        match status.code() {
            Some(0) => Ok(printed),
            Some(SSH_FAILED) => Err(RemoteError::Unreachable { host, said: tail(&said) }),
            Some(TIMED_OUT) => Err(RemoteError::Late { host, doing: doing.into(), within }),
            code => {
                let said = if said.trim().is_empty() { tail(&printed) } else { tail(&said) };
                Err(RemoteError::Failed { host, doing: doing.into(), said, code, printed })
            }
        }
    }
}

/// A lock on a host.
#[derive(Debug)]
pub struct RemoteLock {
    child: Child,
}

impl Drop for RemoteLock {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.child.stdin.take() {
            // Closing it is what counts.
            let _closed = stdin.flush();
        }
        let _ended = self.child.wait();
    }
}

fn whole(from: impl io::Read) -> String {
    let mut bytes = Vec::new();
    // What came before an error is what there is to tell.
    let _broken = from.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].join("; ")
}

/// A word as a shell needs it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A folder for shared connections. Names of sockets have little room, so it is not below a long path.
///
/// # Errors
/// When it cannot be made.
pub fn socket_folder() -> io::Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::Builder::new().prefix("medes-ssh-").tempdir()?;
    let path = folder.path().to_owned();
    Ok((folder, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_survives_the_shell() {
        for word in ["plain", "", "a b", "it's", "$HOME `x` \\", "a\nb"] {
            let out =
                Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&out.stdout), word);
        }
    }

    #[test]
    fn only_the_last_lines_are_told() {
        let text: String = (0..100).map(|n| format!("line {n}\n\n")).collect();
        let told = tail(&text);
        assert!(told.ends_with("line 98; line 99") && told.starts_with("line 88"), "{told}");
    }
}
