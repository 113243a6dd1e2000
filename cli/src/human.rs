//! Numbers as people read them: sizes, ages, lengths of time.

use std::time::Duration;

use medes_proto::sandbox::Phase;

/// `41.2 MiB`. Three digits are enough to compare two rows.
#[expect(clippy::cast_precision_loss, reason = "three digits are printed")]
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 99.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// A size, or a dash for nothing.
pub(crate) fn bytes_or_dash(size: u64) -> String {
    if size == 0 { "-".into() } else { bytes(size) }
}

/// How long ago: `0s`, `12s`, `3m12s`, `2h05m`, `3d04h`.
pub(crate) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// How long it took: `0.31 ms`, `8.4 ms`, `187 ms`, `2.10 s`.
pub(crate) fn took(took: Duration) -> String {
    let ms = millis(took);
    match ms {
        _ if ms < 0.995 => format!("{ms:.2} ms"),
        _ if ms < 99.95 => format!("{ms:.1} ms"),
        _ if ms < 999.5 => format!("{ms:.0} ms"),
        _ => format!("{:.2} s", ms / 1e3),
    }
}

/// Milliseconds with their fraction, to a microsecond.
#[expect(clippy::cast_precision_loss, reason = "exact for 285 years")]
pub(crate) fn millis(took: Duration) -> f64 {
    took.as_micros() as f64 / 1e3
}

/// `queue 0.10 ms, restore 34.2 ms`.
pub(crate) fn phases(phases: &[Phase]) -> String {
    let parts: Vec<_> = phases.iter().map(|phase| format!("{} {}", phase.name, took(phase.took))).collect();
    parts.join(", ")
}

/// `part` of `whole` in percent, if there is a whole.
#[expect(clippy::cast_precision_loss, reason = "two digits are printed")]
pub(crate) fn percent(part: u64, whole: u64) -> Option<String> {
    (whole > 0).then(|| format!("{:.1} %", part as f64 * 100.0 / whole as f64))
}

/// `1 sandbox`, `2 sandboxes`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_three_digits_and_never_say_1024() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (43_201_331, "41.2 MiB"),
            (150 << 20, "150 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16777216 TiB"),
        ];
        for (size, text) in cases {
            assert_eq!(bytes(size), text);
        }
        assert_eq!(bytes_or_dash(0), "-");
    }

    #[test]
    fn ages_use_the_two_largest_units() {
        let cases =
            [(0, "0s"), (59, "59s"), (60, "1m00s"), (192, "3m12s"), (7_500, "2h05m"), (273_600, "3d04h")];
        for (seconds, text) in cases {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn lengths_of_time_change_unit_without_a_gap() {
        let cases = [
            (312, "0.31 ms"),
            (999, "1.0 ms"),
            (8_400, "8.4 ms"),
            (99_960, "100 ms"),
            (187_000, "187 ms"),
            (999_600, "1.00 s"),
            (2_099_000, "2.10 s"),
        ];
        for (micros, text) in cases {
            assert_eq!(took(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn nothing_of_nothing_is_no_percentage() {
        assert_eq!(percent(1, 0), None);
        assert_eq!(percent(5, 200).as_deref(), Some("2.5 %"));
    }
}
