//! Raw figures as comma-separated values: one line for each thing that was measured, a header in front.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};

/// A table of text and numbers.
#[derive(Debug, Clone)]
pub(crate) struct Csv {
    head: &'static [&'static str],
    text: String,
}

/// One field.
#[derive(Debug, Clone)]
pub(crate) struct Field(String);

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        // What a reader could take for something else stands in quotes, and quotes twice.
        let quoted = text.contains([',', '"', '\n', '\r']);
        Self(if quoted { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() })
    }
}

impl From<&String> for Field {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl From<String> for Field {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// What is not a number was not measured: an empty field.
impl From<f64> for Field {
    fn from(value: f64) -> Self {
        Self(if value.is_finite() { format!("{value}") } else { String::new() })
    }
}

impl From<bool> for Field {
    fn from(value: bool) -> Self {
        Self(value.to_string())
    }
}

macro_rules! whole_numbers {
    ($($number:ty),*) => {
        $(impl From<$number> for Field {
            fn from(value: $number) -> Self {
                Self(value.to_string())
            }
        })*
    };
}
whole_numbers!(u32, u64, usize);

/// A row of fields of any kinds: `row![a, 1.5, 3]`.
macro_rules! row {
    ($($field:expr),* $(,)?) => { [$($crate::paper::csv::Field::from($field)),*] };
}
pub(crate) use row;

impl Csv {
    /// Without a row.
    pub(crate) fn new(head: &'static [&'static str]) -> Self {
        Self { head, text: format!("{}\n", head.join(",")) }
    }

    /// One more row.
    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = Field>) {
        let fields: Vec<String> = row.into_iter().map(|Field(text)| text).collect();
        debug_assert_eq!(fields.len(), self.head.len(), "{fields:?}");
        // Writing to a string cannot fail.
        let _written = writeln!(self.text, "{}", fields.join(","));
    }

    /// Names of the columns.
    pub(crate) fn head(&self) -> &'static [&'static str] {
        self.head
    }

    /// How many rows there are.
    #[cfg(test)]
    pub(crate) fn lines(&self) -> usize {
        self.text.lines().count() - 1
    }

    /// Writes the file.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, &self.text).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_cannot_break_out() {
        let mut csv = Csv::new(&["name", "ms", "count"]);
        csv.push(row!["a,b", 1.5, 3_u64]);
        csv.push(row!["say \"no\"\nnow", f64::NAN, 0_usize]);
        assert_eq!(csv.text, "name,ms,count\n\"a,b\",1.5,3\n\"say \"\"no\"\"\nnow\",,0\n");
    }

    #[test]
    fn a_file_has_a_header_and_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        let mut csv = Csv::new(&["a"]);
        csv.push(row![true]);
        csv.write(&path).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "a\ntrue\n");
        assert_eq!(csv.head(), ["a"]);
    }
}
