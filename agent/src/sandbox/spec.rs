//! What the sandbox runtime is asked to run: identity and launch specification, checked before anything is touched.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest name of a function, a sandbox or a node. They become folder, cgroup and host names.
pub const NAME_BYTES_MAX: usize = 48;
/// Largest sum of the bytes of command and environment; the kernel's own limit is not far above.
pub const ARGUMENT_BYTES_MAX: usize = 96 * 1024;
/// Most words of a command, and most environment entries.
pub const ARGUMENTS_MAX: usize = 512;
/// Most host folders that stay visible in one sandbox.
pub const MOUNTS_MAX: usize = 33;
/// Longest a sandbox may take to become ready.
pub const READY_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Who owns nothing: the user of a sandbox of which nothing else is said.
pub const NOBODY: u32 = 65_534;
/// Smallest memory limit that lets any program start.
pub const MEMORY_BYTES_MIN: u64 = 4 << 20;

/// Name of one sandbox on its node. Letters, digits, `-` and `_` only, so that it can be a file name anywhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    /// Checks and takes a name.
    pub fn new(name: impl Into<String>) -> Result<Self, SpecError> {
        let name = name.into();
        check_name("sandbox", &name)?;
        Ok(Self(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sandbox {}", self.0)
    }
}

impl TryFrom<String> for SandboxId {
    type Error = SpecError;
    fn try_from(name: String) -> Result<Self, SpecError> {
        Self::new(name)
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

/// Why a launch specification or a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A name is empty, too long or has a character that cannot be in a file name.
    #[error(
        "{what} name {name:?} must be 1 to {NAME_BYTES_MAX} of a-z A-Z 0-9 - _ and start with a letter or digit"
    )]
    Name {
        /// What was named.
        what: &'static str,
        /// The refused name.
        name: String,
    },
    /// A field has a value that cannot work.
    #[error("{field}: {problem}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Everything needed to start one sandbox. Fields are plain; [`LaunchSpec::check`] is called by `Housing::create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The function's name; also the host name inside.
    pub name: String,
    /// Program and arguments. The program is looked up in the `PATH` of `env`, inside the sandbox.
    pub command: Vec<String>,
    /// The whole environment. `PORT` is set by the runtime; `PATH` and `HOME` get defaults.
    pub env: Vec<(String, String)>,
    /// Port on the sandbox's own loopback where it serves HTTP.
    pub port: u16,
    /// Path that answers 2xx once the function is ready.
    pub ready_path: String,
    /// How long it may take to get ready.
    pub ready_timeout: Duration,
    /// Memory limit of the cgroup: anonymous memory, private /tmp, kernel memory.
    pub memory_bytes_max: u64,
    /// Most processes and threads at once.
    pub pids_max: u32,
    /// Size of the private tmpfs behind /tmp, /run and /dev/shm together.
    pub tmp_bytes_max: u64,
    /// Root directory; `None` is the host's root, read-only.
    pub root: Option<PathBuf>,
    /// Working folder inside the sandbox.
    pub dir: PathBuf,
    /// Host folders that stay visible, read-only, at the same path (below /tmp too, which is private otherwise).
    pub mounts: Vec<PathBuf>,
    /// Requests that may be inside at the same time.
    pub requests_max: u32,
    /// User, inside and on the host. 0 has no capability either, but files of the host that belong to it are its own.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl LaunchSpec {
    /// A specification with the defaults of the sandbox contract.
    pub fn new(name: impl Into<String>, command: Vec<String>, port: u16) -> Self {
        Self {
            name: name.into(),
            command,
            env: Vec::new(),
            port,
            ready_path: "/".to_owned(),
            ready_timeout: Duration::from_secs(30),
            memory_bytes_max: 512 << 20,
            pids_max: 256,
            tmp_bytes_max: 64 << 20,
            root: None,
            dir: PathBuf::from("/"),
            mounts: Vec::new(),
            requests_max: 1,
            uid: NOBODY,
            gid: NOBODY,
        }
    }

    /// Checks every field.
    pub fn check(&self) -> Result<(), SpecError> {
        check_name("function", &self.name)?;
        self.check_arguments()?;
        let field =
            |bad: bool, field, problem| if bad { Err(SpecError::Field { field, problem }) } else { Ok(()) };
        field(self.port == 0, "port", "must not be 0")?;
        let path_ok =
            self.ready_path.starts_with('/') && self.ready_path.bytes().all(|byte| byte.is_ascii_graphic());
        field(!path_ok, "ready_path", "must start with / and have visible ASCII only")?;
        field(self.ready_path.len() > 1024, "ready_path", "is longer than 1024 bytes")?;
        field(self.ready_timeout.is_zero(), "ready_timeout", "must not be 0")?;
        field(self.ready_timeout > READY_TIMEOUT_MAX, "ready_timeout", "is longer than 10 minutes")?;
        field(self.memory_bytes_max < MEMORY_BYTES_MIN, "memory_bytes_max", "is below 4 MiB")?;
        field(!(1..=32_768).contains(&self.pids_max), "pids_max", "must be 1 to 32768")?;
        field(self.tmp_bytes_max < 4096, "tmp_bytes_max", "is below one page")?;
        field(!(1..=1024).contains(&self.requests_max), "requests_max", "must be 1 to 1024")?;
        field(self.mounts.len() > MOUNTS_MAX, "mounts", "has more than 33 entries")?;
        field(
            !self.mounts.iter().all(|path| is_plain(path)),
            "mounts",
            "must be absolute, without . and ..",
        )?;
        field(!is_plain(&self.dir), "dir", "must be absolute, without . and ..")?;
        field(
            self.root.as_deref().is_some_and(|root| !is_plain(root)),
            "root",
            "must be absolute, without . and ..",
        )?;
        Ok(())
    }

    fn check_arguments(&self) -> Result<(), SpecError> {
        let bad = |field, problem| Err(SpecError::Field { field, problem });
        if self.command.first().is_none_or(String::is_empty) {
            return bad("command", "is empty");
        }
        if self.command.len() > ARGUMENTS_MAX || self.env.len() > ARGUMENTS_MAX {
            return bad("command", "with its environment has too many words");
        }
        let env_bytes: usize = self.env.iter().map(|(key, value)| key.len() + value.len()).sum();
        if self.command.iter().map(String::len).sum::<usize>() + env_bytes > ARGUMENT_BYTES_MAX {
            return bad("command", "with its environment is longer than 96 KiB");
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return bad("command", "contains a NUL byte");
        }
        for (key, value) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                return bad("env", "has an empty key, or = in a key, or a NUL byte");
            }
        }
        Ok(())
    }

    /// The environment the function really gets: defaults, then `env`, then `PORT`.
    pub(crate) fn full_env(&self) -> Vec<(String, String)> {
        let mut env: std::collections::BTreeMap<String, String> = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/tmp"),
            ("LANG", "C.UTF-8"),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
        env.extend(self.env.iter().cloned());
        env.insert("PORT".to_owned(), self.port.to_string());
        env.into_iter().collect()
    }
}

/// Whether the path is absolute and made of ordinary names only.
pub(crate) fn is_plain(path: &Path) -> bool {
    use std::path::Component;
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// Whether a name may become a file name, a cgroup name and a host name.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), SpecError> {
    let ok = name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if ok { Ok(()) } else { Err(SpecError::Name { what, name: name.chars().take(NAME_BYTES_MAX).collect() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> LaunchSpec {
        LaunchSpec::new("hello", vec!["/bin/true".to_owned()], 8080)
    }

    #[test]
    fn defaults_pass_the_check() {
        assert_eq!(good().check(), Ok(()));
    }

    #[test]
    fn each_bad_field_is_named() {
        type Change = fn(&mut LaunchSpec);
        let cases: [(&str, Change); 12] = [
            ("command", |spec| spec.command.clear()),
            ("command", |spec| spec.command.push("a\0b".to_owned())),
            ("command", |spec| spec.command.push("x".repeat(ARGUMENT_BYTES_MAX))),
            ("env", |spec| spec.env.push(("A=B".to_owned(), String::new()))),
            ("port", |spec| spec.port = 0),
            ("ready_path", |spec| spec.ready_path = "/a b".to_owned()),
            ("ready_timeout", |spec| spec.ready_timeout = Duration::ZERO),
            ("memory_bytes_max", |spec| spec.memory_bytes_max = 0),
            ("pids_max", |spec| spec.pids_max = 0),
            ("requests_max", |spec| spec.requests_max = 0),
            ("mounts", |spec| spec.mounts.push(PathBuf::from("/a/../etc"))),
            ("dir", |spec| spec.dir = PathBuf::from("relative")),
        ];
        for (expected, change) in cases {
            let mut spec = good();
            change(&mut spec);
            match spec.check() {
                Err(SpecError::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for name in ["", "..", "a/b", "-a", "a.b", "ä", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(SandboxId::new(name).is_err(), "{name:?}");
        }
        assert!(SandboxId::new("node-1_a").is_ok());
    }

    #[test]
    fn port_cannot_be_overridden_by_the_environment() {
        let mut spec = good();
        spec.env.push(("PORT".to_owned(), "1".to_owned()));
        assert!(spec.full_env().contains(&("PORT".to_owned(), "8080".to_owned())));
    }
}
