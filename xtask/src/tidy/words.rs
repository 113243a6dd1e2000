//! What must not stand in a committed file: notes to oneself, paths of one machine, addresses.

use super::source::Source;

/// Written in two halves, so that this file does not complain about itself.
const NOTES: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
const SCHEMES: [&str; 2] = [concat!("http", "://"), concat!("https", "://")];

pub(super) fn check(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for (at, line) in source.text.lines().enumerate() {
        let mut complain = |what: &str| complaints.push(format!("{}:{}: {what}", source.name, at + 1));
        if NOTES.iter().any(|note| has_word(line, note)) {
            complain("a note to oneself; do it or file an issue");
        }
        if MACHINE_PATHS.iter().any(|path| line.contains(path)) {
            complain("a path of one machine");
        }
        if SCHEMES.iter().any(|scheme| line.split(scheme).skip(1).any(is_host)) {
            complain("an address of a host");
        }
    }
    complaints
}

/// As a word of its own: a page of such letters is test data.
fn has_word(line: &str, word: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line.get(at + word.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(letter) && !after.is_some_and(letter)
    })
}

/// A name with a dot in it. Loopback addresses and formats are none.
fn is_host(after_scheme: &str) -> bool {
    let end = after_scheme.find(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-');
    let host = after_scheme.get(..end.unwrap_or(after_scheme.len())).unwrap_or_default();
    let reserved = [".test", ".invalid", ".example", ".localhost"].iter().any(|end| host.ends_with(end));
    host.starts_with(|c: char| c.is_ascii_alphabetic()) && host.contains('.') && !reserved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(line: &str) -> usize {
        check(&Source { name: "a.rs".into(), text: line.into() }).len()
    }

    #[test]
    fn notes_paths_and_hosts_are_found() {
        assert_eq!(complaints(&format!("// {}: later", NOTES[0])), 1);
        assert_eq!(complaints(&format!("open(\"{}data\")", MACHINE_PATHS[1])), 1);
        assert_eq!(complaints(&format!("get(\"{}some.host/x\")", SCHEMES[1])), 1);
    }

    #[test]
    fn local_addresses_and_longer_words_are_fine() {
        for host in ["127.0.0.1:80", "{address}/x", "localhost:80", "node.test", "[::1]"] {
            assert_eq!(complaints(&format!("\"{}{host}\"", SCHEMES[0])), 0, "{host}");
        }
        assert_eq!(complaints(&format!("let a = \"{0}{0}\";", NOTES[2])), 0);
    }
}
