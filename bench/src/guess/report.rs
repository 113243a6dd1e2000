//! What somebody who guesses can tell.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use super::{round::Shown, statistic::Apart};
use crate::{
    record::Record,
    show::{mib, ms},
};

/// Less often than this by chance alone: told apart. Nine comparisons in a report make one such in some hundred reports.
const CHANCE_MAX: f64 = 0.001;

/// Right and wrong guesses of one who guesses.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    pub(super) right: Vec<Shown>,
    pub(super) wrong: Vec<Shown>,
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    record: Record,
    rounds: u32,
    seed: u64,
    /// Nobody below this is said to tell anything.
    chance_max: f64,
    who: Vec<Who>,
}

#[derive(Debug, Serialize)]
struct Who {
    who: &'static str,
    seen: Vec<Seen>,
}

/// One thing that is shown.
#[derive(Debug, Serialize)]
struct Seen {
    what: &'static str,
    right: Vec<f64>,
    wrong: Vec<f64>,
    #[serde(flatten)]
    apart: Apart,
    told: bool,
}

type Of = fn(&Shown) -> f64;

const SEEN: [(&str, Of); 3] = [
    ("stored_bytes", |shown| shown.stored_bytes),
    ("dedup_ms", |shown| shown.dedup_ms),
    ("restore_ms", |shown| shown.restore_ms),
];

/// Who guesses. The second is of the tenant whose bytes they are: if nothing is seen there, nothing can be seen this way.
pub(super) const OTHER: &str = "another tenant";
pub(super) const OWN: &str = "the same tenant";

impl Report {
    pub(super) fn new(rounds: u32, seed: u64, guesses: [(&'static str, Guesses); 2]) -> Self {
        let who = guesses.into_iter().map(|(who, guesses)| {
            let seen = SEEN.iter().map(|&(what, of)| {
                let values = |shown: &[Shown]| shown.iter().map(of).collect::<Vec<_>>();
                let (right, wrong) = (values(&guesses.right), values(&guesses.wrong));
                let apart = Apart::of(&right, &wrong, seed);
                Seen { what, right, wrong, apart, told: apart.chance < CHANCE_MAX }
            });
            Who { who, seen: seen.collect() }
        });
        Self { record: Record::here("guess"), rounds, seed, chance_max: CHANCE_MAX, who: who.collect() }
    }

    fn of(&self, who: &str) -> impl Iterator<Item = &Seen> {
        self.who.iter().filter(move |one| one.who == who).flat_map(|one| &one.seen)
    }

    /// Whether the tenant itself sees its bytes again, without which a report says nothing.
    pub(super) fn is_sharp(&self) -> bool {
        self.of(OWN).any(|seen| seen.what == "stored_bytes" && seen.told)
    }

    /// What another tenant can tell.
    pub(super) fn told(&self) -> Vec<&'static str> {
        self.of(OTHER).filter(|seen| seen.told).map(|seen| seen.what).collect()
    }

    pub(super) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(["who", "what", "right", "wrong", "area", "by chance", ""]);
        for column in table.column_iter_mut().skip(2).take(4) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for who in &self.who {
            for seen in &who.seen {
                let middle = |values: &[f64]| {
                    let middle = middle(values);
                    if seen.what == "stored_bytes" { mib(middle) } else { ms(middle) }
                };
                table.add_row([
                    who.who.to_owned(),
                    seen.what.to_owned(),
                    middle(&seen.right),
                    middle(&seen.wrong),
                    format!("{:.3}", seen.apart.area),
                    format!("{:.4}", seen.apart.chance),
                    if seen.told { "TOLD APART" } else { "" }.to_owned(),
                ]);
            }
        }
        let verdict = match (self.is_sharp(), self.told().as_slice()) {
            (false, _) => {
                "VOID: the tenant itself does not see its bytes again, so nothing can be seen this way".into()
            }
            (true, []) => "met    another tenant tells nothing".into(),
            (true, told) => format!("MISSED another tenant tells right guesses by {}", told.join(", ")),
        };
        let lines = "Medians. area: how often a right guess is above a wrong one, 0.5 if they are the same";
        format!("{lines}\n{table}\n\n{verdict}\n{}", self.record.line())
    }
}

fn middle(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guesses(right: f64, wrong: f64) -> Guesses {
        let shown = |at: u32, bytes: f64| Shown {
            stored_bytes: bytes + f64::from(at),
            dedup_ms: 100.0 + f64::from(at),
            restore_ms: 50.0 + f64::from(at),
        };
        Guesses {
            right: (0..20).map(|at| shown(at, right)).collect(),
            wrong: (0..20).map(|at| shown(at, wrong)).collect(),
        }
    }

    #[test]
    fn what_another_tenant_tells_is_said_and_a_blind_measurement_is_void() {
        let report = |other, own| Report::new(20, 1, [(OTHER, other), (OWN, own)]);
        let good = report(guesses(1e6, 1e6), guesses(1e3, 1e6));
        assert!(good.is_sharp() && good.told().is_empty());
        assert!(good.text().contains("met    another tenant tells nothing"), "{}", good.text());
        let bad = report(guesses(1e3, 1e6), guesses(1e3, 1e6));
        assert_eq!(bad.told(), ["stored_bytes"]);
        assert!(bad.text().contains("MISSED"), "{}", bad.text());
        let blind = report(guesses(1e6, 1e6), guesses(1e6, 1e6));
        assert!(blind.text().contains("VOID"), "{}", blind.text());
    }
}
