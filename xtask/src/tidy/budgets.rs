//! How long a file and a function may be.

use std::collections::BTreeMap;

use super::rules::Rules;
use super::source::Source;

/// Without tests.
const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

pub(super) fn check(source: &Source, rules: &Rules) -> Vec<String> {
    let one = std::slice::from_ref(source);
    let files = excess(&long_files(one), &rules.long_files, FILE_LINES_MAX);
    let functions = excess(&long_functions(one), &rules.long_functions, FUNCTION_LINES_MAX);
    files.into_iter().chain(functions).collect()
}

fn excess(real: &BTreeMap<String, usize>, allowed: &BTreeMap<String, usize>, budget: usize) -> Vec<String> {
    let over = real.iter().filter(|(name, lines)| allowed.get(*name).is_none_or(|allowed| *lines > allowed));
    over.map(|(name, lines)| format!("{name}: {lines} lines; the budget is {budget}")).collect()
}

/// Files over the budget, with their lines.
pub(super) fn long_files(sources: &[Source]) -> BTreeMap<String, usize> {
    let lengths =
        of_ours(sources).map(|source| (source.name.clone(), source.without_tests().lines().count()));
    lengths.filter(|(_, lines)| *lines > FILE_LINES_MAX).collect()
}

/// Functions over the budget, as `FILE::FUNCTION`, with their lines.
pub(super) fn long_functions(sources: &[Source]) -> BTreeMap<String, usize> {
    let mut long = BTreeMap::new();
    for source in of_ours(sources) {
        for (name, lines) in functions(source.without_tests()) {
            if lines > FUNCTION_LINES_MAX {
                long.insert(format!("{}::{name}", source.name), lines);
            }
        }
    }
    long
}

fn of_ours(sources: &[Source]) -> impl Iterator<Item = &Source> {
    sources.iter().filter(|source| source.is_rust() && !source.is_test())
}

/// Names and lengths. Formatted code ends a function with a brace under its first letter.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        if line.ends_with([';', '}']) {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let ends = |line: &&str| line.trim_start() == "}" && line.len() == indent + 1;
        // A declaration in a trait ends with a semicolon and has no body.
        let declared = |line: &&str| line.ends_with(';') && line.len() - line.trim_start().len() == indent;
        let rest = lines.get(at..).unwrap_or_default();
        let stop = rest.iter().skip(1).position(|line| ends(line) || declared(line));
        if let Some(body) = stop {
            found.push((name.to_owned(), body + 2));
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let words = ["pub", "const", "async", "unsafe", "extern", "\"C\""];
    let qualifier = |word: &str| words.contains(&word) || word.starts_with("pub(") || word.ends_with(')');
    if !before.split_whitespace().all(qualifier) {
        return None;
    }
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    after.get(..end).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_from_their_first_to_their_last_line() {
        let text = "\
fn one() {}

impl A {
    pub(crate) async fn two(
        &self,
    ) {
        if x {
        }
    }
}

trait B {
    fn three(
        &self,
    ) -> u8;
}
// fn four() {
let call = |fn_ptr: fn ()| {
};
";
        let found = functions(text);
        assert_eq!(found, [("two".to_owned(), 6), ("three".to_owned(), 3)]);
    }

    #[test]
    fn a_long_file_is_reported_unless_excepted() {
        let body = "fn f() {}\n".repeat(FILE_LINES_MAX + 1);
        let source = Source { name: "a.rs".into(), text: body + "\n#[cfg(test)]\nmod tests {\n}\n" };
        let long = long_files(std::slice::from_ref(&source));
        assert_eq!(long.get("a.rs"), Some(&(FILE_LINES_MAX + 2)));
        let allowed = BTreeMap::from([("a.rs".to_owned(), FILE_LINES_MAX + 2)]);
        assert!(excess(&long, &allowed, FILE_LINES_MAX).is_empty());
        assert_eq!(excess(&long, &BTreeMap::new(), FILE_LINES_MAX).len(), 1);
    }
}
