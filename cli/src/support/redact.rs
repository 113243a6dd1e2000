//! What must not leave a machine is taken out: keys, tokens, passwords, whatever looks like one.
//!
//! Rather one word too many than one too few: a long word of letters and digits may be a token of anything.

use serde_json::Value;

/// What stands in place of it.
pub(super) const GONE: &str = "[redacted]";
/// A word of so many letters and digits is nobody's name.
const WORD_MAX: usize = 32;
/// A value that is called so, or something like it, is one.
const NAMES: [&str; 8] =
    ["secret", "password", "passwd", "token", "credential", "apikey", "api_key", "private_key"];

/// A text without what looks like a secret.
pub(super) fn text(text: &str) -> String {
    let mut out = String::new();
    let mut inside_key = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN ") && line.contains("PRIVATE KEY") {
            inside_key = true;
            out += GONE;
            out += "\n";
        }
        let ends = line.contains("-----END ");
        if !inside_key {
            out += &words(&values(line));
        }
        inside_key &= !ends;
    }
    out
}

/// The same for every string in a value, and for whatever is called like a secret.
pub(super) fn json(value: &mut Value) {
    match value {
        Value::String(said) => *said = text(said),
        Value::Array(items) => items.iter_mut().for_each(json),
        Value::Object(fields) => {
            for (name, value) in fields {
                if value.is_string() && is_secret(name) { *value = GONE.into() } else { json(value) }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase().replace('-', "_");
    NAMES.iter().any(|secret| name.contains(secret))
}

/// `NAME=VALUE` and `NAME: VALUE` where the name is a secret's, and `Bearer VALUE`.
fn values(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((start, length)) = next_value(rest) {
        out += &rest[..start];
        out += GONE;
        rest = &rest[start + length..];
    }
    out + rest
}

/// Where the next secret's value is, and how long.
fn next_value(text: &str) -> Option<(usize, usize)> {
    let lower = text.to_ascii_lowercase();
    let after_name = NAMES.iter().filter_map(|name| {
        lower.match_indices(name).find_map(|(at, _)| {
            let rest = &text[at..];
            // The rest of the name, a quote that ends it, blanks, and what says that a value comes.
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')?;
            let after = rest[end..].trim_start_matches(['"', '\'', ' ']);
            let after = after.strip_prefix(['=', ':'])?.trim_start();
            value_at(text, text.len() - after.len())
        })
    });
    let bearer = lower.match_indices("bearer ").find_map(|(at, word)| value_at(text, at + word.len()));
    after_name.chain(bearer).min()
}

/// The value that begins there, unless it is gone already.
fn value_at(text: &str, start: usize) -> Option<(usize, usize)> {
    let value = &text[start..];
    let (quote, inside) = match value.chars().next()? {
        quote @ ('"' | '\'') => (1, value[1..].find(quote).unwrap_or(value.len() - 1)),
        _ => (0, value.find(|c: char| c.is_whitespace() || ",;}\"'".contains(c)).unwrap_or(value.len())),
    };
    let found = &value[quote..quote + inside];
    (!found.is_empty() && found != GONE).then_some((start + quote, inside))
}

/// Words that are too long to be a name.
fn words(line: &str) -> String {
    let of_word = |c: char| c.is_ascii_alphanumeric() || "_-+".contains(c);
    let mut out = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(of_word) {
        let word = &rest[start..];
        let word = &word[..word.find(|c| !of_word(c)).unwrap_or(word.len())];
        let (digits, letters) =
            (word.bytes().any(|c| c.is_ascii_digit()), word.bytes().any(|c| c.is_ascii_alphabetic()));
        out += &rest[..start];
        out += if word.len() >= WORD_MAX && digits && letters { GONE } else { word };
        rest = &rest[start + word.len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_goes_and_the_rest_stays() {
        for (with, without) in [
            ("a=1 password=hunter2 b=2\n", "a=1 password=[redacted] b=2\n"),
            ("DB_PASSWORD: 'two words', x", "DB_PASSWORD: '[redacted]', x"),
            ("{\"apiToken\": \"abc\", \"n\": 1}", "{\"apiToken\": \"[redacted]\", \"n\": 1}"),
            ("authorization: Bearer abc.def-1 end", "authorization: Bearer [redacted] end"),
            ("secret = 1, my-secret-2=x;", "secret = [redacted], my-secret-2=[redacted];"),
            ("id 0123456789abcdef0123456789abcdef.", "id [redacted]."),
            (
                "medes_dedup_stored_bytes_total 5, sb-1-2 no token here\n",
                "medes_dedup_stored_bytes_total 5, sb-1-2 no token here\n",
            ),
            ("tokens: none", "tokens: [redacted]"),
        ] {
            assert_eq!(text(with), without);
            assert_eq!(text(without), without, "once is enough");
        }
    }

    #[test]
    fn a_private_key_goes_as_a_whole_and_a_certificate_is_none() {
        let pem = |what: &str| format!("-----BEGIN {what}-----\nAb/c\n-----END {what}-----\n");
        let with = format!("a\n{}b\n{}c", pem("PRIVATE KEY"), pem("CERTIFICATE"));
        assert_eq!(text(&with), format!("a\n[redacted]\nb\n{}c", pem("CERTIFICATE")));
        assert_eq!(text("-----BEGIN EC PRIVATE KEY-----\nAb/c\ncut off"), "[redacted]\n");
    }

    #[test]
    fn values_of_json_go_by_their_names_too() {
        let mut value = serde_json::json!({"token": "a", "n": [{"text": "password=b"}], "tokens": 3});
        json(&mut value);
        let gone = serde_json::json!({"token": GONE, "n": [{"text": "password=[redacted]"}], "tokens": 3});
        assert_eq!(value, gone);
    }
}
