//! What somebody who guesses can tell.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use super::{
    round::Shown,
    statistic::{Apart, spread},
};
use crate::{
    record::Record,
    show::{mib, ms},
    stats::Spread,
};

/// Less often than this by chance alone: told apart. Six comparisons in a report make one such in some hundred and seventy reports.
const CHANCE_MAX: f64 = 0.001;
/// So many standard deviations are further out that seldom, on both sides of a normal distribution.
const DEVIATIONS: f64 = 3.290_5;

/// What was asked for.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Asked {
    pub(super) rounds: u32,
    pub(super) mib: u32,
    pub(super) seed: u64,
}

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
    #[serde(flatten)]
    asked: Asked,
    /// Nobody below this is said to tell anything.
    chance_max: f64,
    /// Areas between these two are not told with so few rounds: a leak that shows no more may be there.
    unseen: [f64; 2],
    who: Vec<Who>,
    verdicts: Vec<Judged>,
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

#[derive(Debug, Serialize)]
struct Judged {
    what: &'static str,
    verdict: Verdict,
}

/// Of one thing that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// Another tenant tells nothing by it, where the tenant itself does.
    Met,
    /// Another tenant tells a right guess by it.
    Missed,
    /// Nobody tells anything by it, so it would not have shown a leak either.
    Void,
}

impl Verdict {
    const fn of(other: bool, own: bool) -> Self {
        match (other, own) {
            (true, _) => Self::Missed,
            (false, false) => Self::Void,
            (false, true) => Self::Met,
        }
    }
}

type Of = fn(&Shown) -> f64;

const STORED: &str = "stored_bytes";
const SEEN: [(&str, Of); 3] = [
    (STORED, |shown| shown.stored_bytes),
    ("dedup_ms", |shown| shown.dedup_ms),
    ("restore_ms", |shown| shown.restore_ms),
];

/// Who guesses.
const OTHER: &str = "another tenant";
const OWN: &str = "the same tenant";

impl Report {
    /// `other` guesses what another tenant has, `own` what its own has: where that one sees nothing, nothing can be seen this way.
    pub(super) fn new(asked: Asked, other: &Guesses, own: &Guesses) -> Self {
        let seen =
            |guesses: &Guesses| -> Vec<_> { SEEN.map(|kind| Seen::of(kind, guesses, asked.seed)).into() };
        let (other, own) = (seen(other), seen(own));
        let verdicts = other
            .iter()
            .zip(&own)
            .map(|(other, own)| Judged { what: other.what, verdict: Verdict::of(other.told, own.told) })
            .collect();
        let half = DEVIATIONS * spread(asked.rounds as usize, asked.rounds as usize);
        Self {
            record: Record::here("guess"),
            asked,
            chance_max: CHANCE_MAX,
            unseen: [(0.5 - half).max(0.0), (0.5 + half).min(1.0)],
            who: vec![Who { who: OTHER, seen: other }, Who { who: OWN, seen: own }],
            verdicts,
        }
    }

    /// Whether nothing is told, and bytes, which no other work on the machine changes, would have been.
    pub(super) fn is_good(&self) -> bool {
        let good = |judged: &Judged| match judged.verdict {
            Verdict::Met => true,
            Verdict::Missed => false,
            Verdict::Void => judged.what != STORED,
        };
        self.verdicts.iter().all(good)
    }

    pub(super) fn text(&self) -> String {
        let lines = "Medians. area: how often a right guess is above a wrong one, 0.5 if they are the same. by chance: how often other\n\
                     labels give an area as far from that; normal: the same, by the normal approximation";
        let verdicts: String =
            self.verdicts.iter().map(|judged| format!("{}\n", self.line(judged))).collect();
        let [low, high] = self.unseen;
        let Asked { rounds, mib, .. } = self.asked;
        let limit = format!(
            "{mib} MiB, {rounds} rounds: a leak of an area from {low:.2} to {high:.2} would more often than not go unseen"
        );
        format!("{lines}\n{}\n\n{verdicts}{limit}\n{}", self.table(), self.record.line())
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        let header = ["who", "what", "right", "wrong", "area", "by chance", "normal", ""];
        table.load_style(NOTHING).set_header(header);
        for column in table.column_iter_mut().skip(2).take(5) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for (who, seen) in self.who.iter().flat_map(|who| who.seen.iter().map(|seen| (who.who, seen))) {
            let Apart { area, chance, normal } = seen.apart;
            table.add_row([
                who.to_owned(),
                seen.what.to_owned(),
                seen.middle(&seen.right),
                seen.middle(&seen.wrong),
                format!("{area:.3}"),
                format!("{chance:.4}"),
                format!("{normal:.4}"),
                if seen.told { "TOLD APART" } else { "" }.to_owned(),
            ]);
        }
        table
    }

    fn line(&self, judged: &Judged) -> String {
        let Judged { what, verdict } = judged;
        let said = match verdict {
            Verdict::Met => "met    another tenant tells nothing by",
            Verdict::Missed => "MISSED another tenant tells right guesses by",
            Verdict::Void => "VOID   the tenant itself tells nothing either by",
        };
        let figures = self.who.iter().flat_map(|who| {
            who.seen.iter().filter(|seen| seen.what == *what).map(|Seen { apart, .. }| {
                format!("{}: area {:.3}, by chance {:.4}", who.who, apart.area, apart.chance)
            })
        });
        format!("{said} {what} ({})", figures.collect::<Vec<_>>().join("; "))
    }
}

impl Seen {
    fn of((what, of): (&'static str, Of), guesses: &Guesses, seed: u64) -> Self {
        let values = |shown: &[Shown]| shown.iter().map(of).collect::<Vec<_>>();
        let (right, wrong) = (values(&guesses.right), values(&guesses.wrong));
        let apart = Apart::of(&right, &wrong, seed);
        Self { what, right, wrong, apart, told: apart.chance < CHANCE_MAX }
    }

    fn middle(&self, values: &[f64]) -> String {
        let Spread { p50, .. } = Spread::of(values.iter().copied());
        if self.what == STORED { mib(p50) } else { ms(p50) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes stored and milliseconds of a dedup, of right guesses and of wrong ones.
    fn guesses(bytes: (f64, f64), dedup_ms: (f64, f64)) -> Guesses {
        let shown = |bytes: f64, dedup_ms: f64| {
            (0..20).map(f64::from).map(move |more| Shown {
                stored_bytes: bytes + more,
                dedup_ms: dedup_ms + more,
                restore_ms: 50.0 + more,
            })
        };
        Guesses { right: shown(bytes.0, dedup_ms.0).collect(), wrong: shown(bytes.1, dedup_ms.1).collect() }
    }

    fn verdicts(other: &Guesses, own: &Guesses) -> (Vec<Verdict>, bool, String) {
        let report = Report::new(Asked { rounds: 20, mib: 4, seed: 1 }, other, own);
        (report.verdicts.iter().map(|judged| judged.verdict).collect(), report.is_good(), report.text())
    }

    #[test]
    fn each_thing_is_judged_by_itself_and_what_its_own_tenant_does_not_see_is_void() {
        use Verdict::{Met, Missed, Void};
        let blind = guesses((1e6, 1e6), (100.0, 100.0));
        let sharp = guesses((1e3, 1e6), (100.0, 300.0));
        let (verdict, good, text) = verdicts(&blind, &sharp);
        assert_eq!((verdict, good), (vec![Met, Met, Void], true), "{text}");
        assert!(text.contains("met    another tenant tells nothing by stored_bytes"), "{text}");
        assert!(text.contains("VOID   the tenant itself tells nothing either by restore_ms"), "{text}");
        let (verdict, good, text) = verdicts(&sharp, &sharp);
        assert_eq!((verdict, good), (vec![Missed, Missed, Void], false), "{text}");
        // Without a difference in bytes the measurement itself is not to be trusted.
        let (verdict, good, text) = verdicts(&blind, &blind);
        assert_eq!((verdict, good), (vec![Void, Void, Void], false), "{text}");
    }

    #[test]
    fn fewer_rounds_leave_more_unseen() {
        let half = |rounds| {
            let asked = Asked { rounds, mib: 4, seed: 1 };
            let Report { unseen: [low, high], .. } =
                Report::new(asked, &Guesses::default(), &Guesses::default());
            (high - low) / 2.0
        };
        // 3.2905 * sqrt(61 / 10,800), and of 1,000 rounds 3.2905 * sqrt(2,001 / 12,000,000).
        assert!((half(30) - 0.2473).abs() < 1e-4 && (half(1_000) - 0.0425).abs() < 1e-4);
    }
}
