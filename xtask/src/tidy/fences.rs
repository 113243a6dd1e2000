//! Unsafe code stands only in the files that are listed for it.

use super::rules::Rules;
use super::source::Source;

/// What opens unsafe code. A word in a comment or a string is no code, but a fence that is opened
/// by `allow` is one even before the first block.
const OPENINGS: [&str; 5] = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code"];

pub(super) fn check(source: &Source, rules: &Rules) -> Vec<String> {
    if rules.unsafe_fences.contains_key(&source.name) {
        return Vec::new();
    }
    let lines = source.text.lines().enumerate();
    let open = lines.filter(|(_, line)| {
        let code = line.split("//").next().unwrap_or_default();
        OPENINGS.iter().any(|opening| code.contains(opening)) && !code.contains(['"', '\''])
            || code.trim_start().starts_with("#![allow(unsafe_code")
    });
    open.map(|(at, _)| format!("{}:{}: unsafe code outside the listed fences", source.name, at + 1)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn only_listed_files_may_hold_unsafe_code() {
        let text = "#![allow(unsafe_code, reason = \"calls\")]\n// unsafe { no }\nlet a = \"unsafe { no }\";\nunsafe { yes() }\n";
        let source = Source { name: "a.rs".into(), text: text.into() };
        let mut rules = Rules {
            unsafe_fences: BTreeMap::new(),
            long_files: BTreeMap::new(),
            long_functions: BTreeMap::new(),
            two_versions: BTreeMap::new(),
        };
        let complaints = check(&source, &rules);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[1].starts_with("a.rs:4:"));
        rules.unsafe_fences.insert("a.rs".into(), "calls".into());
        assert!(check(&source, &rules).is_empty());
    }
}
