//! The function file: what a sandbox of a function runs, and within which limits.
//!
//! A file goes through two readers. [`resolve`] runs where the person is: it replaces `${NAME}` from the
//! environment and makes paths absolute. [`FunctionSpec::from_toml`] checks everything and runs at each
//! receiver again, since a wire message proves nothing.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{FunctionName, TenantName},
    limits::FUNCTION_BYTES_MAX,
    units::{ByteSize, Span},
};

/// A checked function file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionSpec {
    /// Its name in URLs and tables.
    pub name: FunctionName,
    /// Program and arguments. Looked up in the sandbox's PATH.
    pub command: Vec<String>,
    /// Working folder; visible read-only in the sandbox at this path.
    pub dir: PathBuf,
    /// More host folders that stay visible, read-only, at their own path.
    pub mounts: Vec<PathBuf>,
    /// Root directory of the sandbox; the host's, read-only, if absent.
    pub root: Option<PathBuf>,
    /// The port the program serves HTTP on; also its `$PORT`.
    pub port: u16,
    /// Environment, on top of PATH, PORT and the MEDES_ variables.
    pub env: BTreeMap<String, String>,
    /// Answered with 2xx when the program is ready.
    pub ready_path: String,
    /// How long it may take to get ready.
    pub ready_timeout: Duration,
    /// Memory limit of the sandbox, its /tmp included.
    pub memory_bytes: u64,
    /// Most processes and threads in the sandbox.
    pub pids_max: u32,
    /// Requests the sandbox serves at the same time.
    pub requests_max: u32,
    /// Whose function it is.
    pub tenant: TenantName,
    /// How new sandboxes come to be.
    pub start: StartMode,
}

/// How new sandboxes of a function come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartMode {
    /// The fastest way there is: a clone of the function's init snapshot, if the program said when it was asked that it can
    /// live with that (`POST /medes/snapshot`).
    #[default]
    Auto,
    /// A clone, also of a program that knows nothing of clones: it keeps nothing that must differ between two sandboxes.
    Clone,
    /// Always from nothing; never a clone of another sandbox.
    Cold,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFunction {
    name: FunctionName,
    command: Vec<String>,
    #[serde(default = "root_dir")]
    dir: PathBuf,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root: Option<PathBuf>,
    #[serde(default = "default_port")]
    port: u16,
    #[serde(default = "default_memory")]
    memory: ByteSize,
    #[serde(default = "default_pids")]
    pids_max: u32,
    #[serde(default = "one")]
    requests_max: u32,
    #[serde(default = "default_tenant")]
    tenant: TenantName,
    #[serde(default)]
    start: StartMode,
    #[serde(default)]
    ready: RawReady,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReady {
    #[serde(default = "default_ready_path")]
    path: String,
    #[serde(default = "default_ready_timeout")]
    timeout: Span,
}

impl Default for RawReady {
    fn default() -> Self {
        Self { path: default_ready_path(), timeout: default_ready_timeout() }
    }
}

fn root_dir() -> PathBuf {
    "/".into()
}
const fn default_port() -> u16 {
    8080
}
const fn default_memory() -> ByteSize {
    ByteSize(512 << 20)
}
const fn default_pids() -> u32 {
    256
}
const fn one() -> u32 {
    1
}
fn default_ready_path() -> String {
    "/".into()
}
const fn default_ready_timeout() -> Span {
    Span(Duration::from_secs(30))
}
#[expect(clippy::expect_used, reason = "a constant that is a name")]
fn default_tenant() -> TenantName {
    "default".parse().expect("a valid name")
}

/// A function file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
pub enum FunctionFileError {
    /// Larger than anybody needs.
    #[error("function file is {bytes} bytes, more than {FUNCTION_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not TOML, a field missing, unknown or of the wrong type. The source says where.
    #[error("read function file")]
    Toml(#[from] toml::de::Error),
    /// Cannot be written back.
    #[error("write function file")]
    Write(#[from] toml::ser::Error),
    /// A field whose value cannot be.
    #[error("function file: {field}: {problem}")]
    Field {
        /// Its name in the file.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// `${NAME}` where NAME is not set.
    #[error("function file: ${{{name}}} is not set in the environment")]
    Unset {
        /// The variable.
        name: String,
    },
}

fn field(field: &'static str, problem: impl Into<String>) -> FunctionFileError {
    FunctionFileError::Field { field, problem: problem.into() }
}

/// Reads a function file as its author wrote it and returns it with absolute paths and no `${NAME}`.
///
/// `base` is the file's folder, `variable` looks a name up in the environment.
pub fn resolve(
    text: &str,
    base: &Path,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<FunctionSpec, FunctionFileError> {
    check_size(text)?;
    let mut raw: RawFunction = toml::from_str(text)?;
    let expand = |text: &str| substitute(text, &variable);
    let absolute = |path: &Path| -> Result<PathBuf, FunctionFileError> {
        let text = path.to_str().ok_or_else(|| field("dir", "not UTF-8"))?;
        Ok(normalise(&base.join(expand(text)?)))
    };
    raw.dir = absolute(&raw.dir)?;
    raw.mounts = raw.mounts.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?;
    raw.root = raw.root.as_deref().map(absolute).transpose()?;
    raw.command = raw.command.iter().map(|word| expand(word)).collect::<Result<_, _>>()?;
    for value in raw.env.values_mut() {
        *value = expand(value)?;
    }
    raw.check()
}

fn check_size(text: &str) -> Result<(), FunctionFileError> {
    match text.len() {
        bytes if bytes > FUNCTION_BYTES_MAX => Err(FunctionFileError::TooLarge { bytes }),
        _ => Ok(()),
    }
}

/// Removes `.` and `..` by text, so that a checked path is the path that is used.
fn normalise(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

fn substitute(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, FunctionFileError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let Some(length) = rest[start..].find('}') else { break };
        let name = &rest[start + 2..start + length];
        out.push_str(&rest[..start]);
        out.push_str(&variable(name).ok_or_else(|| FunctionFileError::Unset { name: name.into() })?);
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

impl FunctionSpec {
    /// Parses and checks a resolved function file.
    pub fn from_toml(text: &str) -> Result<Self, FunctionFileError> {
        check_size(text)?;
        toml::from_str::<RawFunction>(text)?.check()
    }

    /// The file's text; [`FunctionSpec::from_toml`] reads it back to the same value.
    pub fn to_toml(&self) -> String {
        let spec = self.clone();
        let raw = RawFunction {
            name: spec.name,
            command: spec.command,
            dir: spec.dir,
            mounts: spec.mounts,
            root: spec.root,
            port: spec.port,
            memory: ByteSize(spec.memory_bytes),
            pids_max: spec.pids_max,
            requests_max: spec.requests_max,
            tenant: spec.tenant,
            start: spec.start,
            ready: RawReady { path: spec.ready_path, timeout: Span(spec.ready_timeout) },
            env: spec.env,
        };
        // Strings, numbers and tables only: nothing that TOML cannot write.
        toml::to_string(&raw).unwrap_or_default()
    }
}

impl RawFunction {
    fn check(self) -> Result<FunctionSpec, FunctionFileError> {
        let no_nul = |text: &str| !text.contains('\0');
        if self.command.first().is_none_or(String::is_empty) {
            return Err(field("command", "empty"));
        }
        if !self.command.iter().all(|word| no_nul(word)) {
            return Err(field("command", "contains a NUL byte"));
        }
        for path in [&self.dir].into_iter().chain(&self.mounts).chain(&self.root) {
            let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
            if !path.is_absolute() || !plain || path.to_str().is_none_or(|text| !no_nul(text)) {
                return Err(field("dir, mounts or root", format!("{path:?} is not an absolute plain path")));
            }
        }
        if self.mounts.len() > 32 {
            return Err(field("mounts", "more than 32"));
        }
        if self.port == 0 {
            return Err(field("port", "zero"));
        }
        if !(16 << 20..=1 << 40).contains(&self.memory.0) {
            return Err(field("memory", format!("{} is not 16MiB to 1024GiB", self.memory)));
        }
        if !(1..=65_536).contains(&self.pids_max) {
            return Err(field("pids_max", "not 1 to 65536"));
        }
        if !(1..=1_024).contains(&self.requests_max) {
            return Err(field("requests_max", "not 1 to 1024"));
        }
        if !self.ready.path.starts_with('/') || self.ready.path.bytes().any(|c| c <= b' ' || c == 0x7f) {
            return Err(field("ready.path", "not a path that begins with '/'"));
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&self.ready.timeout.0) {
            return Err(field("ready.timeout", format!("{} is not 10ms to 1h", self.ready.timeout)));
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains('=') || !no_nul(name) || !no_nul(value) {
                return Err(field("env", format!("{name:?} is not a variable")));
            }
            if name == "PORT" || name.starts_with("MEDES_SANDBOX") {
                return Err(field("env", format!("{name} is set by Medes")));
            }
        }
        Ok(FunctionSpec {
            name: self.name,
            command: self.command,
            dir: self.dir,
            mounts: self.mounts,
            root: self.root,
            port: self.port,
            env: self.env,
            ready_path: self.ready.path,
            ready_timeout: self.ready.timeout.0,
            memory_bytes: self.memory.0,
            pids_max: self.pids_max,
            requests_max: self.requests_max,
            tenant: self.tenant,
            start: self.start,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
        name = "linalg"
        command = ["${PY}", "main.py"]
        dir = "."
        mounts = ["../runtime", "${VENV}"]
        port = 9000
        memory = "64MiB"
        tenant = "acme"
        start = "cold"
        requests_max = 2
        [ready]
        path = "/ready"
        timeout = "5s"
        [env]
        OMP_NUM_THREADS = "1"
    "#;

    fn variables(name: &str) -> Option<String> {
        match name {
            "PY" => Some("/usr/bin/python3".into()),
            "VENV" => Some("/opt/venv".into()),
            _ => None,
        }
    }

    #[test]
    fn a_file_is_resolved_where_the_person_is() {
        let spec = resolve(FULL, Path::new("/srv/functions/linalg"), variables).unwrap();
        assert_eq!(spec.command, ["/usr/bin/python3", "main.py"]);
        assert_eq!(spec.dir, Path::new("/srv/functions/linalg"));
        assert_eq!(spec.mounts, [Path::new("/srv/functions/runtime"), Path::new("/opt/venv")]);
        assert_eq!(FunctionSpec::from_toml(&spec.to_toml()).unwrap(), spec);
    }

    #[test]
    fn the_smallest_file_has_sensible_limits() {
        let spec = resolve("name = 'a'\ncommand = ['x']", Path::new("/d"), variables).unwrap();
        assert_eq!((spec.port, spec.requests_max, spec.memory_bytes), (8080, 1, 512 << 20));
        assert_eq!(spec.tenant.as_str(), "default");
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_fields_name() {
        let cases = [
            ("name = 'A'\ncommand = ['x']", "a name is"),
            ("name = 'a'\ncommand = []", "command"),
            ("name = 'a'", "command"),
            ("name = 'a'\ncommand = ['x']\nporrt = 1", "porrt"),
            ("name = 'a'\ncommand = ['x']\nport = 0", "port"),
            ("name = 'a'\ncommand = ['x']\nport = 70000", "port"),
            ("name = 'a'\ncommand = ['x']\nmemory = '1KiB'", "memory"),
            ("name = 'a'\ncommand = ['x']\nmemory = 'lots'", "not a size"),
            ("name = 'a'\ncommand = ['${NO}']", "NO"),
            ("name = 'a'\ncommand = ['x']\n[env]\nPORT = '1'", "set by Medes"),
            ("name = 'a'\ncommand = ['x']\n[ready]\npath = 'ready'", "ready.path"),
            ("not toml at all", "read function file"),
        ];
        for (text, expected) in cases {
            let error = resolve(text, Path::new("/d"), variables).unwrap_err();
            let mut said = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                said += &source.to_string();
            }
            assert!(said.contains(expected), "{text:?} said {said:?}, not {expected:?}");
        }
        let large = "#".repeat(FUNCTION_BYTES_MAX + 1);
        assert!(matches!(FunctionSpec::from_toml(&large), Err(FunctionFileError::TooLarge { .. })));
    }
}
