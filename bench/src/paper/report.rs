//! One page about all experiments, readable without a network: the paper's values beside ours, and first of all where we lose.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};

use super::{
    EXPERIMENTS,
    leave::{FAILED, Kept, SECTION},
    published,
    section::{Drawing, Section, Sheet, Verdict},
};
use crate::plot::{STYLE, escaped};

const MORE_STYLE: &str = "table{border-collapse:collapse;font-size:13px;display:block;overflow:auto}td,th{padding:.2em .7em;text-align:right;\
border-bottom:1px solid #8884}td:first-child,th:first-child{text-align:left}.lost{border-left:4px solid #d55e00;padding-left:1em}\
.won{border-left:4px solid #009e73;padding-left:1em}.note{opacity:.8}h2{margin-top:2.5em}";

/// What is known of an experiment.
enum State {
    Done(Box<Kept>),
    Failed(String),
    NotRun,
}

/// Makes the page of what is in the folder.
pub(super) fn write(out: &Path) -> Result<()> {
    let mut states = Vec::new();
    for experiment in &EXPERIMENTS {
        states.push((experiment.name, state(&out.join(experiment.name))?));
    }
    let path = out.join("report.html");
    fs::write(&path, page(&states)).with_context(|| format!("write {}", path.display()))
}

fn state(folder: &Path) -> Result<State> {
    if let Ok(why) = fs::read_to_string(folder.join(FAILED)) {
        return Ok(State::Failed(why));
    }
    let path = folder.join(SECTION);
    if !path.exists() {
        return Ok(State::NotRun);
    }
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let kept = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    Ok(State::Done(Box::new(kept)))
}

fn page(states: &[(&str, State)]) -> String {
    let title = "The experiments of the Medes paper, repeated";
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>{STYLE}{MORE_STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"
    );
    let mut add = |text: &str| {
        html.push_str(text);
        html.push('\n');
    };
    add(
        "<p>Values of the paper are those of \u{201c}Memory Deduplication for Serverless Computing with Medes\u{201d} (EuroSys 2022): printed in its \
         text and tables, or read from its drawings; the table at the end says which. Its machines, functions and memory were others than ours: \
         compare ratios, not milliseconds.</p>",
    );
    add(&overview(states));
    add("<h2>Where we lose, or do not reach the paper's value</h2>");
    add(&verdicts(states, false));
    for (name, state) in states {
        match state {
            State::Done(kept) => add(&section(name, kept)),
            State::Failed(why) => add(&format!(
                "<h2 id=\"{name}\">{name}</h2><div class=\"lost\"><p>It failed. Its last words:</p><pre>{}</pre></div>",
                escaped(why)
            )),
            State::NotRun => {
                add(&format!("<h2 id=\"{name}\">{name}</h2><p class=\"lost\">It was not run.</p>"));
            }
        }
    }
    add("<h2>Where we do not lose</h2>");
    add(&verdicts(states, true));
    add("<h2>The paper's values</h2>");
    add(&sheet(&published::sheet()));
    add("</body></html>");
    html
}

fn overview(states: &[(&str, State)]) -> String {
    let item = |(name, state): &(&str, State)| {
        let what = match state {
            State::Done(kept) => format!("{} ({:.0} s)", kept.section.title, kept.seconds),
            State::Failed(_) => "FAILED".into(),
            State::NotRun => "not run".into(),
        };
        format!("<li><a href=\"#{name}\">{name}</a>: {}</li>", escaped(&what))
    };
    format!("<ol>{}</ol>", states.iter().map(item).collect::<String>())
}

/// All comparisons that went so.
fn verdicts(states: &[(&str, State)], won: bool) -> String {
    let mut all = Sheet::new("", &["what", "ours", "other", "experiment"]);
    for (name, state) in states {
        let State::Done(kept) = state else { continue };
        for Verdict { what, ours, other, .. } in kept.section.verdicts.iter().filter(|one| one.won == won) {
            all.push([what.clone(), ours.clone(), other.clone(), (*name).to_owned()]);
        }
    }
    if all.rows.is_empty() {
        return "<p>Nothing was compared that went so.</p>".into();
    }
    format!("<div class=\"{}\">{}</div>", if won { "won" } else { "lost" }, sheet(&all))
}

fn section(name: &str, kept: &Kept) -> String {
    let Kept { section, line, seed, debug_build, .. } = kept;
    let Section { title, figures, about, drawings, sheets, cautions, .. } = section;
    let mut html = format!("<h2 id=\"{name}\">{}</h2>\n", escaped(title));
    let mut add = |tag: &str, text: &str| {
        // Writing to a string cannot fail.
        let _written = writeln!(html, "<{tag}>{}</p>", escaped(text));
    };
    if !figures.is_empty() {
        add("p", &format!("About {figures} of the paper."));
    }
    about.iter().for_each(|text| add("p", text));
    add("p class=\"note\"", &format!("{line}. Seed {seed}."));
    if *debug_build {
        add("p class=\"lost\"", "This was a debug build: its times mean little.");
    }
    cautions.iter().for_each(|text| add("p class=\"lost\"", text));
    for drawing in drawings {
        html.push_str(&match drawing {
            Drawing::Lines(plot) => plot.figure(),
            Drawing::Bars(bars) => bars.figure(),
        });
    }
    sheets.iter().for_each(|one| html.push_str(&sheet(one)));
    html
}

fn sheet(sheet: &Sheet) -> String {
    let line = |tag: &str, cells: &[String]| {
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let rows: String = sheet.rows.iter().map(|row| line("td", row)).collect();
    let title =
        if sheet.title.is_empty() { String::new() } else { format!("<h3>{}</h3>\n", escaped(&sheet.title)) };
    format!("{title}<table>{}{rows}</table>\n", line("th", &sheet.head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{
        Line, Plot,
        bars::{Bar, Bars},
    };

    fn kept() -> Kept {
        let mut section = Section::new("Title <one>", "Fig 1");
        section.say("What was done.");
        section.warn("html was skipped");
        section.verdicts.push(Verdict::less("time", (2.0, 1.0), |ms| format!("{ms} ms")));
        section.verdicts.push(Verdict::less("memory", (1.0, 2.0), |mb| format!("{mb} MB")));
        let lines = vec![Line { name: "a".into(), points: vec![(0.0, 1.0), (1.0, 2.0)] }];
        let plot = Plot { title: "t".into(), x: "x".into(), y: "y".into(), lines };
        let bars = vec![Bar { name: "b".into(), heights: vec![1.0] }];
        let bars = Bars { title: "t".into(), y: "y".into(), parts: vec!["p".into()], bars };
        section.drawings = vec![Drawing::Lines(plot), Drawing::Bars(bars)];
        Kept { section, line: "Commit x".into(), seed: 1, seconds: 2.0, debug_build: false }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let html = page(&[("redundancy", State::Done(Box::new(kept()))), ("startup", State::NotRun)]);
        for outside in ["src=", "url(", "@import", "<script", "<link", "://", "<iframe"] {
            assert!(!html.contains(outside), "{outside}");
        }
        let elsewhere = html.split("href=\"").skip(1).any(|rest| !rest.starts_with('#'));
        assert!(!elsewhere, "a link leads out of the page");
        assert!(html.contains("color-scheme:light dark") && html.contains("<svg"));
    }

    #[test]
    fn what_is_lost_failed_or_missing_is_said() {
        let failed = State::Failed("no <space>".into());
        let html = page(&[
            ("redundancy", State::Done(Box::new(kept()))),
            ("startup", failed),
            ("policies", State::NotRun),
        ]);
        let (lost, rest) = html.split_once("Where we do not lose").unwrap();
        assert!(lost.contains("<td>time</td><td>2 ms</td><td>1 ms</td>"), "{lost}");
        assert!(rest.contains("<td>memory</td>") && !lost.contains("<td>memory</td>"));
        assert!(
            lost.contains("no &lt;space&gt;")
                && lost.contains("It was not run")
                && lost.contains("html was skipped")
        );
        assert!(lost.contains("Title &lt;one&gt;"));
    }

    #[test]
    fn a_section_comes_back_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        crate::record::write_json(&folder.path().join(SECTION), &kept()).unwrap();
        let State::Done(read) = state(folder.path()).unwrap() else { panic!("there is one") };
        assert_eq!((read.section.verdicts, read.seed), (kept().section.verdicts, 1));
    }
}
