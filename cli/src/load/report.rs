//! What a run came to: one JSON value, or a table.

use std::{collections::BTreeMap, time::Duration};

use medes_load::tally::{Failures, Percentiles, Tally};
use serde::Serialize;

use crate::{human, output::Sheet};

/// A whole run. Times run from when a request was due until its answer was there.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    /// Requests that were to be sent.
    due: u64,
    sent: u64,
    answered: u64,
    failed: u64,
    /// Sent later than they were due, because too many were under way or this machine was busy.
    late: u64,
    late_max_ms: f64,
    seconds: f64,
    answers_per_second: f64,
    all: Percentiles,
    by_start: BTreeMap<&'static str, Percentiles>,
    failures: BTreeMap<String, Failures>,
}

impl Summary {
    pub(super) fn of(tally: &Tally, due: u64, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        Self {
            due,
            sent: tally.sent,
            answered: tally.answers(),
            failed: tally.failure_count(),
            late: tally.late,
            late_max_ms: human::millis(tally.late_max),
            seconds,
            answers_per_second: if seconds > 0.0 { tally.answers() as f64 / seconds } else { 0.0 },
            all: tally.all(),
            by_start: tally.by_start().collect(),
            failures: tally.failures.clone(),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut sheet =
            Sheet::new(&["START", ">ANSWERS", ">SHARE", ">MEAN", ">P50", ">P90", ">P99", ">P99.9", ">MAX"]);
        let rows = self.by_start.iter().map(|(start, times)| (*start, times)).chain([("all", &self.all)]);
        for (start, times) in rows {
            let ms = |ms: f64| human::took(Duration::from_secs_f64(ms / 1e3));
            sheet.row(vec![
                start.into(),
                times.count.to_string(),
                human::percent(times.count, self.answered).unwrap_or_else(|| "-".into()),
                ms(times.mean_ms),
                ms(times.p50_ms),
                ms(times.p90_ms),
                ms(times.p99_ms),
                ms(times.p999_ms),
                ms(times.max_ms),
            ]);
        }
        let mut text = sheet.text("");
        text += &format!(
            "\n{} of {} sent in {:.1} s, {} answered ({:.1}/s), {} failed, {} late (at most {})\n",
            self.sent,
            self.due,
            self.seconds,
            self.answered,
            self.answers_per_second,
            self.failed,
            self.late,
            human::took(Duration::from_secs_f64(self.late_max_ms / 1e3)),
        );
        for (kind, Failures { count, first }) in &self.failures {
            text += &format!("  {count} x {kind}: {}\n", crate::output::plain(first));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use medes_proto::sandbox::StartKind;

    #[test]
    fn a_run_is_told_in_100_columns_with_its_failures() {
        let mut tally = Tally::default();
        (tally.sent, tally.late, tally.late_max) = (3, 1, Duration::from_millis(1500));
        tally.answered(StartKind::Cold, Duration::from_millis(812));
        tally.answered(StartKind::Warm, Duration::from_micros(3_120));
        tally.failed("busy", "no\nroom");
        let summary = Summary::of(&tally, 4, Duration::from_secs(2));
        let text = summary.text();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.contains("cold         1   50.0 %"), "{text}");
        assert!(
            text.contains("3 of 4 sent in 2.0 s, 2 answered (1.0/s), 1 failed, 1 late (at most 1.50 s)"),
            "{text}"
        );
        assert!(text.contains("1 x busy: no room"), "{text}");
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(
            (&json["by_start"]["cold"]["p99_ms"], &json["failures"]["busy"]["count"]),
            (&812.0.into(), &1.into())
        );
    }
}
