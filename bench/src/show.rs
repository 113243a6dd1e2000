//! Figures as people read them in tables: with units, and no more digits than they mean.

/// A size in MiB. May be below zero: the difference of two sizes.
pub(crate) fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

/// A time given in milliseconds.
pub(crate) fn ms(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// A fraction.
pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}

/// How many times as much.
pub(crate) fn times(ratio: f64) -> String {
    format!("{ratio:.2}x")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_times_keep_a_digit() {
        assert_eq!(
            (ms(1.25).as_str(), ms(9.96).as_str(), ms(123.4).as_str()),
            ("1.2 ms", "10.0 ms", "123 ms")
        );
    }

    #[test]
    fn figures_have_units() {
        assert_eq!(mib(-f64::from(3 << 19)), "-1.5 MiB");
        assert_eq!(percent(0.0345), "3.5 %");
        assert_eq!(times(0.5), "0.50x");
    }
}
