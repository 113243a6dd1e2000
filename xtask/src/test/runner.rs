//! Runs the tests of one level, with nextest where it is installed, else with `cargo test`.
//!
//! A test's level is in the name of its file: `kernel_*.rs`, `e2e_*.rs` and `lab_*.rs` under a package's
//! `tests/`; everything else is pure.

use anyhow::Result;

use super::tally::Tally;
use crate::build;
use crate::command::Call;
use crate::repo::Repo;

const FUNCTIONS_TEST: &str = "bench/functions/test_functions.py";

pub(super) struct Runner<'a> {
    repo: &'a Repo,
    nextest: bool,
}

impl<'a> Runner<'a> {
    pub(super) fn choose(repo: &'a Repo) -> Self {
        Self { repo, nextest: Call::cargo(repo).args(["nextest", "--version"]).succeeds() }
    }

    pub(super) fn pure(&self) -> Result<Tally> {
        let mut tally = if self.nextest {
            self.tests("pure tests", &self.nextest("not binary(/^(kernel|e2e)_/)"))?
        } else {
            let call = self.cargo_test().args(["--lib", "--bins"]).args(self.pure_files()?);
            self.tests("pure tests", &call.args(["--", "--show-output"]))?
        };
        let examples = self.cargo_test().args(["--doc"]);
        tally.add(self.tests("examples in the documentation", &examples)?);
        tally.add(self.unit_tests_of_rdma()?);
        Ok(tally)
    }

    /// What is pure of a crate that is empty without its feature.
    fn unit_tests_of_rdma(&self) -> Result<Tally> {
        if let Some(lack) = build::rdma_lacks() {
            let skip =
                format!("SKIPPED unit tests of RDMA: {lack}; `cargo xtask setup --only rdma` installs it");
            println!("{skip}");
            let mut tally = Tally::default();
            tally.read(&skip);
            return Ok(tally);
        }
        let call =
            Call::cargo(self.repo).args(["test", "--package", "medes-rdma", "--features", "verbs", "--lib"]);
        self.tests("unit tests of RDMA", &call)
    }

    /// One after the other: they change what belongs to the whole machine, and time each other out
    /// on two cores.
    pub(super) fn kernel(&self) -> Result<Tally> {
        self.one_by_one("kernel")
    }

    pub(super) fn end_to_end(&self) -> Result<Tally> {
        self.one_by_one("e2e")
    }

    /// The example functions as plain processes, by their own test.
    pub(super) fn functions(&self) -> Result<Tally> {
        let test = self.repo.path(FUNCTIONS_TEST);
        let python = self.repo.installed("venv/bin/python");
        if !test.is_file() {
            return Ok(Tally::default());
        }
        if !python.is_file() {
            let mut tally = Tally::default();
            tally.read("SKIPPED example functions: no Python environment; see `cargo xtask setup`");
            return Ok(tally);
        }
        self.tests("example functions", &Call::new(python.to_string_lossy()).path(&test))
    }

    fn one_by_one(&self, level: &str) -> Result<Tally> {
        let call = if self.nextest {
            // A test that skips says why on its output.
            let filter = format!("binary(/^{level}_/)");
            self.nextest(&filter).args(["--test-threads", "1", "--success-output", "immediate"])
        } else {
            if !self.files()?.iter().any(|name| name.starts_with(level)) {
                return Ok(Tally::default());
            }
            let pattern = format!("{level}_*");
            self.cargo_test().args(["--test", &pattern, "--", "--show-output", "--test-threads", "1"])
        };
        self.tests(&format!("{level} tests"), &call)
    }

    fn nextest(&self, filter: &str) -> Call {
        Call::cargo(self.repo)
            .args(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests", "pass"])
            .args(["--filterset", filter])
    }

    fn cargo_test(&self) -> Call {
        Call::cargo(self.repo).args(["test", "--workspace", "--no-fail-fast"])
    }

    fn tests(&self, name: &str, call: &Call) -> Result<Tally> {
        println!("-- {name}: {call}");
        let mut tally = Tally::default();
        let good = call.clone().envs(self.repo.environment(false)).run_through(|line| {
            println!("{line}");
            tally.read(line);
        })?;
        Ok(tally.finish(name, good))
    }

    /// `--test NAME` for each test file of no other level.
    fn pure_files(&self) -> Result<Vec<String>> {
        let mut names = self.files()?;
        names.retain(|name| !["kernel_", "e2e_", "lab_"].iter().any(|level| name.starts_with(level)));
        Ok(names.into_iter().flat_map(|name| ["--test".to_owned(), name]).collect())
    }

    /// Names of all integration tests.
    fn files(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for package in self.repo.packages()? {
            let Ok(entries) = package.join("tests").read_dir() else { continue };
            // A test is a file, or a folder with a main.rs.
            let tests = entries.flatten().map(|entry| entry.path()).filter(|path| {
                path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file()
            });
            names.extend(tests.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())));
        }
        names.sort();
        Ok(names)
    }
}
