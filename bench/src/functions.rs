//! The benchmark functions: which there are, which were asked for, and which this machine can run.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use medes_proto::function::{self, FunctionSpec};

/// The order of the paper's table. A folder that is not named here is no benchmark function.
const NAMES: [&str; 10] = [
    "vanilla",
    "linalg",
    "image",
    "video",
    "mapreduce",
    "html",
    "auth",
    "feature",
    "model-serve",
    "model-train",
];

/// Functions that do next to nothing for a request: so it shows what it costs to get their memory back. From small to large.
const KINDS: [&str; 4] = ["lookup", "weights", "thumbnail", "forest"];

/// Programs that are nothing like the ten functions: what is said of the engine must hold for these too.
const PROGRAMS: [&str; 4] = ["web", "store", "node", "jvm"];

/// Python modules that `cargo xtask setup` cannot put into the virtual environment, so that a machine may lack them.
const MODULES: [(&str, &str, &str); 1] = [("model-serve", "torch", "Debian's package python3-torch has it")];

/// Programs that a machine may lack, where the function file does not name them itself.
const HELPERS: [(&str, &str, &str); 1] = [("store", "redis-server", "Debian's package redis-server has it")];

/// The environment's name for the seed of a function's data, and one that is shared. Any will do.
pub(crate) const SHARED_SEED: (&str, &str) = ("MEDES_SEED", "20220405");

/// Where things are. `cargo xtask` sets the environment, so that nothing here knows the repository.
#[derive(Debug, Args)]
pub(crate) struct Places {
    /// Folder with one folder per function
    #[arg(long, env = "MEDES_FUNCTIONS_DIR", default_value = "bench/functions")]
    pub(crate) functions_dir: PathBuf,
    /// Folder with one folder per other program
    #[arg(long, env = "MEDES_PROGRAMS_DIR", default_value = "bench/programs")]
    pub(crate) programs_dir: PathBuf,
    /// Folder of the programs of Medes; that of this program if absent
    #[arg(long, env = "MEDES_BIN_DIR")]
    bin_dir: Option<PathBuf>,
}

impl Places {
    /// One of the programs of Medes, by an absolute path.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        let path = match &self.bin_dir {
            Some(dir) => dir.join(name),
            None => std::env::current_exe().context("find this program")?.with_file_name(name),
        };
        path.canonicalize().with_context(|| format!("find the program {}", path.display()))
    }
}

/// A function that can be applied.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Its resolved function file.
    pub(crate) toml: String,
}

/// A benchmark function.
#[derive(Debug)]
pub(crate) enum Candidate {
    Ready(Function),
    /// This machine cannot run it.
    Skipped {
        name: String,
        reason: String,
    },
}

impl Candidate {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Ready(Function { name, .. }) | Self::Skipped { name, .. } => name,
        }
    }
}

/// Reads the function files in `dir`: those named in `wanted`, or the ten if it is empty.
pub(crate) fn find(dir: &Path, wanted: &[String]) -> Result<Vec<Candidate>> {
    let known = with_kinds();
    check(wanted, &known)?;
    named(dir, if wanted.is_empty() { &NAMES } else { &known }, wanted)
}

/// Names of the ten functions and of the four kinds.
pub(crate) fn with_kinds() -> Vec<&'static str> {
    [&NAMES[..], &KINDS].concat()
}

/// The place of a function among the four kinds, if it is one of them.
pub(crate) fn kind(name: &str) -> Option<usize> {
    KINDS.iter().position(|kind| *kind == name)
}

/// The same, of the ten functions and of the other programs, which are all if nothing is named.
pub(crate) fn find_with_programs(places: &Places, wanted: &[String]) -> Result<Vec<Candidate>> {
    check(wanted, &[&NAMES[..], &PROGRAMS].concat())?;
    let mut all = named(&places.functions_dir, &NAMES, wanted)?;
    all.extend(named(&places.programs_dir, &PROGRAMS, wanted)?);
    Ok(all)
}

/// The program of `bench guess`.
pub(crate) fn guess(places: &Places) -> Result<Candidate> {
    const NAME: [&str; 1] = ["guess"];
    named(&places.programs_dir, &NAME, &[])?.pop().context("there is one")
}

/// Whether a name is one of the ten functions'.
pub(crate) fn is_function(name: &str) -> bool {
    NAMES.contains(&name)
}

fn check(wanted: &[String], names: &[&str]) -> Result<()> {
    match wanted.iter().find(|name| !names.contains(&name.as_str())) {
        Some(unknown) => bail!("{unknown:?} is not a benchmark function; there are {}", names.join(", ")),
        None => Ok(()),
    }
}

fn named(dir: &Path, names: &[&str], wanted: &[String]) -> Result<Vec<Candidate>> {
    let dir = dir.canonicalize().with_context(|| format!("find the functions in {}", dir.display()))?;
    names
        .iter()
        .filter(|name| wanted.is_empty() || wanted.iter().any(|w| w == *name))
        .map(|name| candidate(name, &dir.join(name)))
        .collect()
}

fn candidate(name: &str, folder: &Path) -> Result<Candidate> {
    let path: PathBuf = folder.join("function.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let spec = function::resolve(&text, folder, |name| std::env::var(name).ok())
        .with_context(|| format!("function file {}", path.display()))?;
    if spec.name.as_str() != name {
        bail!("{} is about {}, not {name}", path.display(), spec.name);
    }
    let name = name.to_owned();
    Ok(match lacks(&spec) {
        Some(reason) => Candidate::Skipped { name, reason },
        None => Candidate::Ready(Function { name, toml: spec.to_toml() }),
    })
}

/// What this machine lacks to run a function.
fn lacks(spec: &FunctionSpec) -> Option<String> {
    closed_folder(spec).or_else(|| lacks_program(spec)).or_else(|| lacks_module(spec))
}

/// Sandboxes run as users that own nothing. Without this a start would fail for it, again and again.
fn closed_folder(spec: &FunctionSpec) -> Option<String> {
    const READ_AND_ENTER: u32 = 0o5;
    let is_closed = |path: &&PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.mode() & READ_AND_ENTER != READ_AND_ENTER)
    };
    let closed = spec.mounts.iter().chain([&spec.dir]).find(is_closed)?;
    Some(format!("{0} is not readable for everybody (`chmod -R o+rX {0}`)", closed.display()))
}

fn lacks_program(spec: &FunctionSpec) -> Option<String> {
    let is_there = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // An absolute path stays what it is when it is joined.
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    };
    let helper = HELPERS.iter().find(|(name, ..)| *name == spec.name.as_str());
    let own = spec.command.first().map(|program| (program.as_str(), "its function file wants it"));
    let mut needed = own.into_iter().chain(helper.map(|(_, program, remedy)| (*program, *remedy)));
    let (program, remedy) = needed.find(|(program, _)| !is_there(program))?;
    Some(format!("there is no program {program} ({remedy})"))
}

fn lacks_module(spec: &FunctionSpec) -> Option<String> {
    let (_, module, remedy) = MODULES.iter().find(|(name, ..)| *name == spec.name.as_str())?;
    let python = spec.command.first()?;
    // Looking for the module takes milliseconds, importing it takes seconds.
    let look = format!("import importlib.util, sys; sys.exit(importlib.util.find_spec({module:?}) is None)");
    let found = Command::new(python)
        .args(["-c", &look])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    (!found).then(|| format!("{python} has no module {module} ({remedy})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_of_this_repository_can_be_resolved() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("functions");
        for name in with_kinds() {
            let text = fs::read_to_string(dir.join(name).join("function.toml")).unwrap();
            let spec = function::resolve(&text, &dir.join(name), |_| Some("/somewhere".into())).unwrap();
            assert_eq!(spec.name.as_str(), name);
            assert_eq!(FunctionSpec::from_toml(&spec.to_toml()).unwrap(), spec);
            assert!(spec.mounts.iter().any(|path| path.ends_with("functions/runtime")), "{:?}", spec.mounts);
        }
    }

    #[test]
    fn every_other_program_can_be_resolved() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
        for name in PROGRAMS {
            let text = fs::read_to_string(dir.join(name).join("function.toml")).unwrap();
            let spec = function::resolve(&text, &dir.join(name), |_| None).unwrap();
            assert_eq!(spec.name.as_str(), name);
            assert!(!is_function(name));
        }
    }

    #[test]
    fn a_folder_that_sandboxes_may_not_read_is_told() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let spec = FunctionSpec::from_toml("name = 'f'\ncommand = ['x']").unwrap();
        let spec = FunctionSpec { mounts: vec![folder.path().into()], ..spec };
        for (mode, is_told) in [(0o750, true), (0o754, true), (0o755, false)] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(closed_folder(&spec).is_some(), is_told, "{mode:o}");
        }
    }

    #[test]
    fn the_program_of_guess_can_be_resolved() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/guess");
        let text = fs::read_to_string(dir.join("function.toml")).unwrap();
        let spec = function::resolve(&text, &dir, |_| Some("/somewhere".into())).unwrap();
        assert_eq!(spec.name.as_str(), "guess");
        assert!(spec.mounts.iter().any(|path| path.ends_with("functions/runtime")), "{:?}", spec.mounts);
    }

    #[test]
    fn an_unknown_function_is_refused_by_name() {
        let error = find(Path::new("."), &["html".into(), "fishing".into()]).unwrap_err();
        assert!(error.to_string().contains("fishing"), "{error}");
    }

    #[test]
    fn a_missing_interpreter_is_a_reason_to_skip() {
        let spec =
            FunctionSpec::from_toml("name = \"model-serve\"\ncommand = [\"/nowhere/python3\"]").unwrap();
        assert!(lacks(&spec).unwrap().contains("/nowhere/python3"));
        assert!(lacks_module(&spec).unwrap().contains("/nowhere/python3"));
        let spec = FunctionSpec::from_toml("name = \"html\"\ncommand = [\"sh\"]").unwrap();
        assert_eq!(lacks(&spec), None);
    }
}
