//! `medes function apply|list|rm`: what the controller may run.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use medes_proto::{
    function::{self, FunctionFileError, FunctionSpec},
    ids::FunctionName,
    limits::FUNCTION_BYTES_MAX,
    wire,
};
use serde::Serialize;

use crate::{
    client::{Client, OPERATION, QUICK},
    error::{CliError, sentence},
    human,
    output::{Output, Sheet},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum FunctionVerb {
    /// Make functions known, or replace them by a new text
    ///
    /// All files are checked before the first one is applied. In a file, ${NAME} comes from the environment of
    /// this command and relative paths start at the file's folder. A folder stands for its function.toml.
    Apply {
        /// Function files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// List functions
    List,
    /// Forget a function and purge its sandboxes
    Rm {
        /// Its name
        name: FunctionName,
    },
}

#[derive(Serialize)]
struct AppliedView {
    file: String,
    name: String,
    revision: u64,
    changed: bool,
}

/// A function and what became of it.
#[derive(Serialize)]
pub(crate) struct FunctionView {
    name: String,
    revision: u64,
    tenant: String,
    warm: u32,
    dedup: u32,
    bases: u32,
    requests: u64,
    cold_starts: u64,
    restores: u64,
    clones: u64,
    toml: String,
}

#[derive(Serialize)]
struct RemovedView {
    name: String,
    sandboxes_purged: u32,
}

pub(crate) async fn run(
    verb: FunctionVerb,
    connect: impl AsyncFnOnce() -> Result<Client, CliError>,
    output: &Output,
) -> Result<(), CliError> {
    match verb {
        FunctionVerb::Apply { files } => {
            // Before connecting: a mistake in a file is told even when no controller runs.
            let specs = files.iter().map(|file| read(file)).collect::<Result<Vec<_>, _>>()?;
            apply(specs, &connect().await?, output).await
        }
        FunctionVerb::List => list(&connect().await?, output).await,
        FunctionVerb::Rm { name } => remove(name, &connect().await?, output).await,
    }
}

async fn apply(
    specs: Vec<(PathBuf, FunctionSpec)>,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let mut applied = Vec::new();
    for (path, spec) in specs {
        let doing = format!("apply {}", path.display());
        let request = wire::ApplyFunctionRequest { toml: spec.to_toml() };
        let reply = client.call(&doing, QUICK, async |mut control| control.apply_function(request).await);
        let wire::ApplyFunctionReply { name, revision, changed } = reply.await?;
        applied.push(AppliedView { file: path.display().to_string(), name, revision, changed });
    }
    output.answer(&applied, || {
        let line = |done: &AppliedView| {
            let what = if done.changed { "applied" } else { "unchanged" };
            format!("{} {what}, revision {}\n", done.name, done.revision)
        };
        applied.iter().map(line).collect()
    })
}

async fn list(client: &Client, output: &Output) -> Result<(), CliError> {
    let functions = views(client).await?;
    output.answer(&functions, || table(&functions))
}

/// All functions, by name.
pub(crate) async fn views(client: &Client) -> Result<Vec<FunctionView>, CliError> {
    let reply = client.call("list functions", QUICK, async |mut control| {
        control.list_functions(wire::ListFunctionsRequest {}).await
    });
    let mut functions: Vec<_> = reply.await?.functions.into_iter().map(FunctionView::from).collect();
    functions.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(functions)
}

impl FunctionView {
    /// Leaves out what a function's owner may have hidden in it: arguments of its program, and values of its environment.
    pub(crate) fn forget_secrets(&mut self) {
        self.toml = match FunctionSpec::from_toml(&self.toml) {
            Ok(mut spec) => {
                spec.command.truncate(1);
                spec.env.values_mut().for_each(|value| "[redacted]".clone_into(value));
                spec.to_toml()
            }
            // What makes no sense may hold anything.
            Err(_) => String::new(),
        };
    }
}

async fn remove(name: FunctionName, client: &Client, output: &Output) -> Result<(), CliError> {
    let request = wire::RemoveFunctionRequest { name: name.to_string() };
    let doing = format!("remove {name}");
    let reply = client.call(&doing, OPERATION, async |mut control| control.remove_function(request).await);
    let wire::RemoveFunctionReply { sandboxes_purged } = reply.await?;
    let view = RemovedView { name: name.to_string(), sandboxes_purged };
    let purged = human::count(sandboxes_purged.into(), "sandbox", "sandboxes");
    output.answer(&view, || format!("{name} removed, {purged} purged\n"))
}

impl From<wire::FunctionRow> for FunctionView {
    fn from(row: wire::FunctionRow) -> Self {
        let wire::FunctionRow {
            name,
            revision,
            tenant,
            toml,
            warm,
            dedup,
            bases,
            requests,
            cold_starts,
            restores,
            clones,
        } = row;
        Self { name, revision, tenant, warm, dedup, bases, requests, cold_starts, restores, clones, toml }
    }
}

fn table(functions: &[FunctionView]) -> String {
    let mut sheet = Sheet::new(&[
        "FUNCTION",
        ">REVISION",
        "TENANT",
        ">WARM",
        ">DEDUP",
        ">BASES",
        ">REQUESTS",
        ">COLD",
        ">RESTORED",
        ">CLONED",
    ]);
    for row in functions {
        sheet.row(vec![
            row.name.clone(),
            row.revision.to_string(),
            row.tenant.clone(),
            row.warm.to_string(),
            row.dedup.to_string(),
            row.bases.to_string(),
            row.requests.to_string(),
            row.cold_starts.to_string(),
            row.restores.to_string(),
            row.clones.to_string(),
        ]);
    }
    sheet.text("no functions")
}

/// Reads and resolves one function file.
fn read(path: &Path) -> Result<(PathBuf, FunctionSpec), CliError> {
    let failed = |source| CliError::ReadFile { path: path.into(), source };
    let path = std::path::absolute(path).map_err(failed)?;
    let path = if path.is_dir() { path.join("function.toml") } else { path };
    let failed = |source| CliError::ReadFile { path: path.clone(), source };
    let mut text = String::new();
    // One byte more than allowed is enough for `resolve` to refuse it.
    let limit = FUNCTION_BYTES_MAX as u64 + 1;
    File::open(&path).map_err(failed)?.take(limit).read_to_string(&mut text).map_err(failed)?;
    let base = path.parent().unwrap_or(Path::new("/"));
    let spec = function::resolve(&text, base, |name| std::env::var(name).ok())
        .map_err(|error| point_at(&path, &text, &error))?;
    Ok((path, spec))
}

/// `FILE:LINE:COLUMN: problem` where the parser knows the place, else `FILE: field: problem`.
fn point_at(path: &Path, text: &str, error: &FunctionFileError) -> CliError {
    let file = path.display();
    let (place, problem) = match error {
        FunctionFileError::Toml(error) => {
            let place = match error.span() {
                Some(span) => {
                    let (line, column) = line_and_column(text, span.start);
                    format!("{file}:{line}:{column}")
                }
                None => file.to_string(),
            };
            (place, error.message().to_owned())
        }
        other => {
            let said = sentence(other);
            let said = said.strip_prefix("function file: ").unwrap_or(&said);
            (file.to_string(), said.to_owned())
        }
    };
    CliError::FunctionFile { place, problem: problem.replace('\n', " ") }
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("function.toml");
        std::fs::write(&file, text).unwrap();
        let error = read(&file).unwrap_err().to_string();
        error.replace(&*folder.path().to_string_lossy(), "DIR")
    }

    #[test]
    fn a_mistake_is_shown_with_file_line_and_field() {
        let unknown = error_of("name = 'a'\ncommand = ['x']\nporrt = 1\n");
        assert!(unknown.starts_with("DIR/function.toml:3:1: unknown field `porrt`"), "{unknown}");
        assert_eq!(error_of("name = 'a'\ncommand = ['x']\nport = 0\n"), "DIR/function.toml: port: zero");
        let unset = error_of("name = 'a'\ncommand = ['${MEDES_TEST_SURELY_UNSET}']\n");
        assert_eq!(unset, "DIR/function.toml: ${MEDES_TEST_SURELY_UNSET} is not set in the environment");
        let large = error_of(&"#".repeat(FUNCTION_BYTES_MAX + 10));
        assert!(large.contains("more than"), "{large}");
    }

    #[test]
    fn paths_start_at_the_files_folder_and_a_folder_stands_for_its_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("function.toml"), "name = 'a'\ncommand = ['x']\ndir = '.'\n")
            .unwrap();
        let (path, spec) = read(folder.path()).unwrap();
        assert_eq!(path, folder.path().join("function.toml"));
        assert_eq!(spec.dir, folder.path());
    }

    #[test]
    fn places_count_lines_and_characters_from_one() {
        assert_eq!(line_and_column("ab", 0), (1, 1));
        assert_eq!(line_and_column("é = 1\nxy", 3), (1, 3));
        assert_eq!(line_and_column("a\nxy", 3), (2, 2));
        assert_eq!(line_and_column("a\n", 99), (2, 1));
    }
}
