//! The Helm chart, and what it says with its own values: manifests for those who have no Helm.
//!
//! Its templates use little of Helm's language, and this file knows just that much: values shown as they are, by `quote` or by `toJson`; `if`
//! and `range`, ended by `end`; `-` to take blanks away. Anything else is an error. Helm itself, where it is, must say the same (a test).

use std::path::{Path, PathBuf};

use medes_deploy::archive::{Entry, What};
use serde_json::{Value, json};

use crate::sources::{self, SourceError};

/// The chart's files, in its folder.
const FILES: [&str; 4] = ["Chart.yaml", "templates/agent.yaml", "templates/controller.yaml", "values.yaml"];
/// Those that become manifests.
const TEMPLATES: [&str; 2] = ["templates/controller.yaml", "templates/agent.yaml"];
/// The namespace that manifests without Helm are for.
const NAMESPACE: &str = "medes";
const NAMESPACE_MANIFEST: &str = include_str!("../package/namespace.yaml");

/// Manifests cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// A file of the chart.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Its values.
    #[error("understand the values of the chart")]
    Values(#[source] Box<serde_saphyr::Error>),
    /// A template.
    #[error("{problem}: {{{{{action}}}}}")]
    Template {
        /// What is wrong.
        problem: &'static str,
        /// Between the braces.
        action: String,
    },
}

fn folder(root: &Path) -> PathBuf {
    root.join("dist/chart")
}

/// The chart as Helm has it packed.
pub fn entries(root: &Path) -> Vec<Entry> {
    let entry = |name: &&str| Entry {
        name: format!("medes/{name}"),
        what: What::File { from: folder(root).join(name), program: false },
    };
    FILES.iter().map(entry).collect()
}

/// Everything in one file, for `kubectl apply`.
///
/// # Errors
/// When the chart is not there, or uses more of Helm's language than this file knows.
pub fn manifests(root: &Path) -> Result<String, ChartError> {
    let values = sources::text(&folder(root).join("values.yaml"))?;
    let values: Value =
        serde_saphyr::from_str(&values).map_err(|source| ChartError::Values(Box::new(source)))?;
    let context = json!({"Values": values, "Release": {"Namespace": NAMESPACE}});
    let mut all = NAMESPACE_MANIFEST.to_owned();
    for name in TEMPLATES {
        let text = sources::text(&folder(root).join(name))?;
        all += &format!("---\n{}", render(&text, &context)?);
    }
    Ok(all)
}

/// A part of a template.
enum Part<'t> {
    Text(&'t str),
    Show(&'t str),
    Block { action: &'t str, body: Vec<Part<'t>> },
}

/// What a template says in a context.
fn render(template: &str, context: &Value) -> Result<String, ChartError> {
    let mut rest = template;
    let parts = parse(&mut rest, None)?;
    let mut out = String::new();
    run(&parts, context, &mut out)?;
    Ok(out)
}

fn wrong(problem: &'static str, action: &str) -> ChartError {
    ChartError::Template { problem, action: action.into() }
}

/// Parts up to the end of the template, or to the `end` of the block that is open. A dash takes the blanks on its side away.
fn parse<'t>(rest: &mut &'t str, open: Option<&'t str>) -> Result<Vec<Part<'t>>, ChartError> {
    let mut parts = Vec::new();
    while let Some((text, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").ok_or_else(|| wrong("is not closed", after))?;
        let (text, action) = match action.strip_prefix('-') {
            Some(action) => (text.trim_end(), action),
            None => (text, action),
        };
        let (action, after) = match action.strip_suffix('-') {
            Some(action) => (action.trim(), after.trim_start()),
            None => (action.trim(), after),
        };
        parts.push(Part::Text(text));
        *rest = after;
        match action.split(' ').next() {
            Some("end") if open.is_some() => return Ok(parts),
            Some("end") => return Err(wrong("ends nothing", action)),
            Some("if" | "range") => parts.push(Part::Block { action, body: parse(rest, Some(action))? }),
            _ => parts.push(Part::Show(action)),
        }
    }
    match open {
        Some(action) => Err(wrong("has no end", action)),
        None => {
            parts.push(Part::Text(rest));
            Ok(parts)
        }
    }
}

fn run(parts: &[Part<'_>], context: &Value, out: &mut String) -> Result<(), ChartError> {
    for part in parts {
        match part {
            Part::Text(text) => *out += text,
            Part::Show(action) => *out += &shown(action, context)?,
            Part::Block { action, body } => {
                let (block, path) = action.split_once(' ').ok_or_else(|| wrong("lacks a value", action))?;
                match (block, look_up(context, path, action)?) {
                    ("range", Value::Array(items)) => {
                        items.iter().try_for_each(|item| run(body, item, out))?;
                    }
                    ("range", _) => return Err(wrong("goes through no list", action)),
                    (_, value) if is_true(value) => run(body, context, out)?,
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn shown(action: &str, context: &Value) -> Result<String, ChartError> {
    let (function, path) = action.split_once(' ').unwrap_or(("", action));
    if !["", "quote", "toJson"].contains(&function) {
        return Err(wrong("is more than is known here", action));
    }
    let value = look_up(context, path, action)?;
    let plain = || match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        _ => Err(wrong("is no single value", action)),
    };
    match function {
        "quote" => Ok(Value::String(plain()?).to_string()),
        "toJson" => Ok(value.to_string()),
        _ => plain(),
    }
}

/// A path such as `.Values.image`; a dot alone is the context itself.
fn look_up<'c>(context: &'c Value, path: &str, action: &str) -> Result<&'c Value, ChartError> {
    let path = path.strip_prefix('.').ok_or_else(|| wrong("is no path", action))?;
    let mut steps = path.split('.').filter(|step| !step.is_empty());
    steps.try_fold(context, |value, step| value.get(step)).ok_or_else(|| wrong("has no value", action))
}

/// As Helm has it: what is empty or zero is not.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(template: &str) -> Result<String, String> {
        let context = json!({"Values": {
            "name": "a b", "port": 70, "none": "", "list": ["x", 1], "map": {"k": "v"}, "off": false,
        }});
        render(template, &context).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_shown_in_three_ways() {
        let said = say(
            "{{ .Values.name }}|{{ quote .Values.port }}|{{ toJson .Values.map }}|{{ toJson .Values.name }}",
        );
        assert_eq!(said.unwrap(), r#"a b|"70"|{"k":"v"}|"a b""#);
    }

    #[test]
    fn blocks_come_as_often_as_their_values_say() {
        let said = say("a\n  {{- range .Values.list }}\n- {{ . }}\n  {{- end }}\nb");
        assert_eq!(said.unwrap(), "a\n- x\n- 1\nb");
        let said = say(
            "{{ if .Values.none }}no{{ end }}{{ if .Values.port }}{{ if .Values.off }}no{{ end }}yes{{ end }}",
        );
        assert_eq!(said.unwrap(), "yes");
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for (template, problem) in [
            ("{{ .Values.name | upper }}", "is more than is known here"),
            ("{{ .Values.names }}", "has no value"),
            ("{{ .Values.map }}", "is no single value"),
            ("{{ include \"x\" . }}", "is more than is known here"),
            ("{{ if .Values.port }}", "has no end"),
            ("{{ end }}", "ends nothing"),
            ("{{ range .Values.port }}{{ end }}", "goes through no list"),
            ("{{ .Values.name", "is not closed"),
        ] {
            let error = say(template).unwrap_err();
            assert!(error.starts_with(problem), "{template}: {error}");
        }
    }
}
