//! Dashboard and alerts: they name what Medes counts, by the labels that it has, and every alert says what to do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use medes_metrics::list::{self, Kind, Metric};
use serde_json::Value;

/// Labels that Prometheus itself gives.
const OF_PROMETHEUS: [&str; 3] = ["instance", "job", "le"];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/observe")
}

fn text(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

fn rules() -> Vec<Value> {
    let alerts: Value = serde_saphyr::from_str(&text("alerts.yaml")).unwrap();
    alerts["groups"][0]["rules"].as_array().unwrap().clone()
}

fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    dashboard["panels"].as_array().unwrap().clone()
}

/// All that is asked of Prometheus.
fn expressions() -> Vec<String> {
    let targets = panels().into_iter().flat_map(|panel| panel["targets"].as_array().unwrap().clone());
    targets.chain(rules()).map(|asks| asks["expr"].as_str().unwrap().to_owned()).collect()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The metric that a name in an expression is of. Histograms have names for their parts.
fn metric(name: &str) -> Option<&'static Metric> {
    list::all().find(|metric| match metric.kind {
        Kind::Histogram => {
            ["_bucket", "_sum", "_count"].iter().any(|end| name.strip_suffix(end) == Some(metric.name))
        }
        Kind::Counter | Kind::Gauge => name == metric.name,
    })
}

/// Names of metrics in an expression, each with the labels that it is asked by.
fn asked(expression: &str) -> Vec<(&str, Vec<&str>)> {
    let starts = expression.match_indices("medes_").map(|(at, _)| at);
    let starts = starts.filter(|at| !expression[..*at].ends_with(is_word));
    starts
        .map(|at| {
            let rest = &expression[at..];
            let (name, after) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
            let inside =
                after.strip_prefix('{').and_then(|after| after.split('}').next()).unwrap_or_default();
            let labels = inside.split(',').filter_map(|line| line.split(['=', '!']).next());
            (name, labels.map(str::trim).filter(|label| !label.is_empty()).collect())
        })
        .collect()
}

fn check(expression: &str) -> Result<(), String> {
    for (name, labels) in asked(expression) {
        let metric = metric(name).ok_or(format!("{name} is not counted: {expression}"))?;
        let known: BTreeSet<_> = metric.labels.split(", ").chain(OF_PROMETHEUS).collect();
        if let Some(label) = labels.into_iter().find(|label| !known.contains(label)) {
            return Err(format!("{name} has no label {label}: {expression}"));
        }
    }
    Ok(())
}

#[test]
fn everything_that_is_asked_for_is_counted() {
    let expressions = expressions();
    assert!(expressions.iter().map(|expression| asked(expression).len()).sum::<usize>() > 30);
    expressions.iter().for_each(|expression| check(expression).unwrap());
}

#[test]
fn what_is_not_counted_is_seen() {
    check(r#"sum(rate(medes_start_seconds_bucket{start!="cold", job="x"}[5m]))"#).unwrap();
    for wrong in ["medes_nothing_total", "medes_start_seconds", r#"medes_starts_total{kind="cold"}"#] {
        check(wrong).unwrap_err();
    }
}

#[test]
fn every_alert_has_its_lines_in_the_runbook() {
    let runbook = text("README.md");
    let sections: BTreeSet<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let rules = rules();
    let names: BTreeSet<_> = rules.iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    assert_eq!(names, sections);
    for rule in &rules {
        let name = rule["alert"].as_str().unwrap();
        let link = format!("runbook.md#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook"], link, "{name}");
        assert!(
            rule["annotations"]["summary"].is_string() && rule["labels"]["severity"].is_string(),
            "{name}"
        );
        let after = runbook.split_once(&format!("## {name}\n")).unwrap().1;
        assert!(!after.split("## ").next().unwrap().trim().is_empty(), "{name}");
    }
}

#[test]
fn panels_are_apart_and_named() {
    let mut titles = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in panels() {
        assert!(titles.insert(panel["title"].as_str().unwrap().to_owned()), "{}", panel["title"]);
        let place = &panel["gridPos"];
        assert!(places.insert((place["y"].as_u64(), place["x"].as_u64())), "{}", panel["title"]);
    }
}

/// Prometheus itself, where it is (`MEDES_PROMTOOL`, or on the path), has each rule speak when it should and only then.
#[test]
fn rules_speak_when_they_should() {
    let promtool = std::env::var_os("MEDES_PROMTOOL").unwrap_or_else(|| "promtool".into());
    let test =
        Command::new(promtool).args(["test", "rules", "alerts.test.yaml"]).current_dir(folder()).output();
    let Ok(output) = test else {
        return println!("SKIPPED rules_speak_when_they_should: no promtool");
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
