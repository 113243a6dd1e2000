//! Whether this machine has more to do than it can: what can wait then waits.

use std::fs;

/// Of the last ten seconds, in so many of a hundred parts some task waited for a processor, or for memory.
const CPU_PERCENT: f32 = 50.0;
const MEMORY_PERCENT: f32 = 10.0;

/// Whether tasks wait, as the kernel tells in `/proc/pressure` (PSI). Where it does not tell, nothing is known to wait.
pub(crate) fn is_high() -> bool {
    [("cpu", CPU_PERCENT), ("memory", MEMORY_PERCENT)].into_iter().any(|(of, percent)| {
        let text = fs::read_to_string(format!("/proc/pressure/{of}")).unwrap_or_default();
        some_of_ten_seconds(&text).is_some_and(|found| found > percent)
    })
}

/// The percentage in `some avg10=1.23 avg60=...`.
fn some_of_ten_seconds(text: &str) -> Option<f32> {
    let words = text.lines().find_map(|line| line.strip_prefix("some "))?;
    words.split_ascii_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_some_tasks_is_read() {
        let text = "full avg10=9.00 avg60=0.00 avg300=0.00 total=0\nsome avg10=3.43 avg60=2.84 avg300=2.49 total=21\n";
        assert_eq!(some_of_ten_seconds(text), Some(3.43));
        for other in ["", "some", "some avg10=x", "full avg10=1.0"] {
            assert_eq!(some_of_ten_seconds(other), None, "{other}");
        }
    }
}
