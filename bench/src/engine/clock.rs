//! How long something takes, on the one thread that does it.

use std::time::Instant;

/// What came out, and the seconds it took.
pub(super) fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed().as_secs_f64())
}

/// The shortest of several attempts: other programs on the machine only ever make it longer.
pub(super) fn best_of(attempts: usize, mut work: impl FnMut()) -> f64 {
    (0..attempts).map(|_| timed(&mut work).1).fold(f64::INFINITY, f64::min)
}
