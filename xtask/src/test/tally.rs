//! How many passed, failed and were skipped, read from what test runners print.

use std::fmt;

/// The count of one level.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    passed: usize,
    failed: usize,
    /// `TEST: REASON`, for tests that found they cannot run here.
    skipped: Vec<String>,
    /// Tests that their runner says it leaves out (`#[ignore]`). Filters leave out whole files, so
    /// nextest's "skipped" are these too.
    ignored: usize,
    failures: Vec<String>,
}

impl Tally {
    /// Counts one check.
    pub(super) fn count(&mut self, name: &str, good: bool) {
        if good {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.failures.push(name.to_owned());
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.ignored += other.ignored;
        self.failures.extend(other.failures);
    }

    /// Takes in one line of a runner's output.
    pub(super) fn read(&mut self, line: &str) {
        // nextest repeats, indented, what each test's own process printed: a "test result" there is
        // already in its summary.
        let own = !line.starts_with(' ');
        let line = line.trim();
        if let Some(at) = line.find("SKIPPED ") {
            let skip = line.get(at + "SKIPPED ".len()..).unwrap_or_default().to_owned();
            // Some runners print a test's output twice.
            if !self.skipped.contains(&skip) {
                self.skipped.push(skip);
            }
        } else if (own && line.starts_with("test result: ")) || line.starts_with("Summary [") {
            self.read_counts(line);
        } else if let Some(count) = line.strip_prefix("Ran ").and_then(first_number) {
            // Python's: what failed comes on a later line.
            self.passed += count;
        } else if let Some(counts) = line.strip_prefix("FAILED (") {
            let failed: usize = counts.split(['=', ',', ')']).filter_map(first_number).sum();
            self.failed += failed;
            self.passed = self.passed.saturating_sub(failed);
        } else if let Some(name) = failed_name(line, own) {
            self.failures.push(name.to_owned());
        }
    }

    /// `N passed`, `N failed` wherever they stand; cargo test and nextest differ in the rest.
    fn read_counts(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            let [number, what] = pair else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            match what.trim_end_matches([',', ';', '.']) {
                "passed" => self.passed += number,
                "failed" | "timed" | "exec" => self.failed += number,
                "ignored" | "skipped" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// A run that failed without any failed test did not even build, or was ended.
    pub(super) fn finish(mut self, name: &str, good: bool) -> Self {
        if !good && self.failed == 0 {
            self.count(name, false);
        }
        // A test that cannot run says so and returns: its runner takes that for passed.
        self.passed = self.passed.saturating_sub(self.skipped.len());
        self.failures.sort();
        self.failures.dedup();
        self
    }

    pub(super) fn is_good(&self) -> bool {
        self.failed == 0
    }

    pub(super) fn failures(&self) -> impl Iterator<Item = &str> {
        self.failures.iter().map(String::as_str)
    }

    /// What was skipped, and why.
    pub(super) fn skips(&self) -> impl Iterator<Item = String> {
        let ignored = (self.ignored > 0).then(|| format!("{} tests: ignored by their runner", self.ignored));
        self.skipped.iter().cloned().chain(ignored)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed,
            self.skipped.len() + self.ignored
        )
    }
}

fn first_number(text: &str) -> Option<usize> {
    text.split_whitespace().next()?.parse().ok()
}

/// The name in `test NAME ... FAILED` (cargo test) or `FAIL [ 0.1s] NAME` (nextest).
fn failed_name(line: &str, own: bool) -> Option<&str> {
    if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
        return own.then_some(name);
    }
    let rest = line.strip_prefix("FAIL [").or_else(|| line.strip_prefix("TIMEOUT ["))?;
    // nextest puts a progress count before the name: `( 3/10) PACKAGE NAME`.
    let rest = rest.split_once(']')?.1.trim();
    let name =
        rest.strip_prefix('(').and_then(|counted| counted.split_once(')')).map_or(rest, |(_, name)| name);
    Some(name.trim())
}

#[cfg(test)]
mod tests {
    use super::Tally;

    fn read(lines: &[&str], good: bool) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.read(line));
        tally.finish("run", good)
    }

    #[test]
    fn cargo_test_is_understood() {
        let tally = read(
            &[
                "test a::b ... ok",
                "test a::c ... FAILED",
                "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.0s",
                "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.0s",
            ],
            false,
        );
        assert_eq!(tally.to_string(), "4 passed, 1 failed, 0 skipped");
        assert_eq!(tally.failures().collect::<Vec<_>>(), ["a::c"]);
    }

    #[test]
    fn nextest_is_understood() {
        let tally = read(
            &[
                "        PASS [   0.280s] (1/9) medes-agent kernel::w",
                "    test kernel::w ... ok",
                "    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.26s",
                "    test kernel::x ... FAILED",
                "        FAIL [   0.003s] (2/9) medes-agent kernel::x",
                "        FAIL [   0.003s] (2/9) medes-agent kernel::x",
                "     Summary [   0.272s] 9 tests run: 6 passed (1 slow), 2 failed, 1 timed out, 4 skipped",
            ],
            false,
        );
        assert_eq!(tally.to_string(), "6 passed, 3 failed, 4 skipped");
        assert_eq!(tally.failures().collect::<Vec<_>>(), ["medes-agent kernel::x"]);
    }

    #[test]
    fn unittest_is_understood() {
        let tally = read(&["Ran 12 tests in 3.4s", "FAILED (failures=1, errors=2)"], false);
        assert_eq!(tally.to_string(), "9 passed, 3 failed, 0 skipped");
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let lines = [
            "    SKIPPED dump: no criu",
            "SKIPPED dump: no criu",
            "Summary [ 1s] 2 tests run: 2 passed, 0 skipped",
        ];
        let tally = read(&lines, true);
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 1 skipped");
        assert_eq!(tally.skips().collect::<Vec<_>>(), ["dump: no criu"]);
        assert!(tally.is_good());
    }

    #[test]
    fn a_run_that_does_not_build_has_failed() {
        let tally = read(&["error: could not compile"], false);
        assert_eq!(tally.to_string(), "0 passed, 1 failed, 0 skipped");
        assert!(!tally.is_good());
    }
}
