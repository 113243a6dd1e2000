//! How long something takes, on the one thread that does it.

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime},
};

/// What came out, and the seconds of the processor that this thread took for it: other programs on the machine do not count.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = now();
    let result = work();
    (result, seconds(now() - start))
}

/// The shortest of several attempts: other programs on the machine only ever make it longer.
pub(super) fn best_of(attempts: usize, mut work: impl FnMut()) -> f64 {
    (0..attempts).map(|_| timed(&mut work).1).fold(f64::INFINITY, f64::min)
}

/// The kernel has this clock for every thread; one without it would show as a time of nothing.
fn now() -> TimeSpec {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap_or_else(|_| TimeSpec::new(0, 0))
}

fn seconds(time: TimeSpec) -> f64 {
    time.tv_sec() as f64 + time.tv_nsec() as f64 * 1e-9
}
