//! A cluster of one function for the tests of all policies: one warm sandbox, idle for a minute, and a base.

use super::*;

struct Cluster<'a> {
    now: Duration,
    view: ClusterView,
    function: FunctionView<'a>,
    gain: Gain,
}

impl View for Cluster<'_> {
    fn now(&self) -> Duration {
        self.now
    }

    fn cluster(&self) -> ClusterView {
        self.view
    }

    fn function(&self, name: &FunctionName) -> Option<FunctionView<'_>> {
        (self.function.name == name).then(|| self.function.clone())
    }

    fn gain(&self, _sandbox: SandboxId) -> Gain {
        self.gain
    }

    fn rates_max(&self, minutes: usize) -> f64 {
        self.function.arrivals.rate_max(self.now, minutes)
    }
}

/// The clock of most tests.
const NOW: Duration = Duration::from_secs(1_000_000);

/// Of two idle sandboxes of a node that may both be taken, the one that brings less.
const SECOND: Gain = Gain { won_bytes: 0, work_pages: 0, ahead: 1, among: 2, slots: 2 };

fn with<T>(
    (now, gain): (Duration, Gain),
    (arrivals, idle_times): (&Arrivals, &IdleTimes),
    change: impl FnOnce(&mut FunctionView<'_>, &mut SandboxView),
    ask: impl FnOnce(&dyn View, &FunctionView<'_>, &SandboxView) -> T,
) -> T {
    let name = "f".parse().unwrap();
    let reuses = IdleTimes::default();
    let mut function = FunctionView {
        name: &name,
        warm: 1,
        running: 0,
        dedup: 0,
        starting: 0,
        bases: 1,
        bases_coming: 0,
        queued: 0,
        arrivals,
        warm_bytes: None,
        dedup_bytes: None,
        cold_start: None,
        restore: None,
        warm_start: None,
        execution: None,
        idle_times,
        reuses: &reuses,
        uses: 0,
    };
    let mut sandbox = SandboxView {
        id: SandboxId::new(1).unwrap(),
        life: IdleLife::Warm,
        idle: Duration::from_secs(60),
        in_life: Duration::from_secs(60),
        quiet: true,
        private_bytes: 0,
        stored_bytes: 0,
        is_base_source: false,
        dump_blocked: None,
        clock: 0.0,
        price: 0.0,
        free: 0.0,
        heat: Default::default(),
    };
    change(&mut function, &mut sandbox);
    let view = ClusterView { nodes: 1, cap_bytes: 1_000 << 20, used_bytes: 0 };
    let cluster = Cluster { now, view, function: function.clone(), gain };
    ask(&cluster, &function, &sandbox)
}

/// What a policy says of a sandbox of a function that nobody has asked for.
pub(super) fn of(
    policy: &dyn Policy,
    change: impl FnOnce(&mut FunctionView<'_>, &mut SandboxView),
) -> Review {
    at(policy, NOW, &IdleTimes::default(), change)
}

/// At another time, of a function with these idle times.
pub(super) fn at(
    policy: &dyn Policy,
    now: Duration,
    idle_times: &IdleTimes,
    change: impl FnOnce(&mut FunctionView<'_>, &mut SandboxView),
) -> Review {
    with((now, SECOND), (&Arrivals::default(), idle_times), change, |view, function, sandbox| {
        policy.review(view, function, sandbox)
    })
}

/// Of one that is held against others of its node.
pub(super) fn among(
    policy: &dyn Policy,
    gain: Gain,
    change: impl FnOnce(&mut FunctionView<'_>, &mut SandboxView),
) -> Review {
    with((NOW, gain), (&Arrivals::default(), &IdleTimes::default()), change, |view, function, sandbox| {
        policy.review(view, function, sandbox)
    })
}

/// Of a function that had so many requests in the last minute.
pub(super) fn busy(
    policy: &dyn Policy,
    requests: u32,
    change: impl FnOnce(&mut FunctionView<'_>, &mut SandboxView),
) -> Review {
    let mut arrivals = Arrivals::default();
    (0..requests).for_each(|_| arrivals.count(NOW));
    with((NOW, SECOND), (&arrivals, &IdleTimes::default()), change, |view, function, sandbox| {
        policy.review(view, function, sandbox)
    })
}

/// What keeping a sandbox is worth to a policy.
pub(super) fn worth_of(
    policy: &dyn Policy,
    change: impl FnOnce(&mut FunctionView<'_>, &mut SandboxView),
) -> f64 {
    with((NOW, SECOND), (&Arrivals::default(), &IdleTimes::default()), change, |view, function, sandbox| {
        policy.worth(view, function.name, sandbox)
    })
}

/// When a function is wanted back that has lost its sandbox for room, `idle` after its last request. 100 MiB, and a second from nothing.
pub(super) fn back_after(
    policy: &dyn Policy,
    mut idle_times: IdleTimes,
    idle: Duration,
    price: f64,
) -> Option<Duration> {
    idle_times.end(NOW);
    let change = |f: &mut FunctionView<'_>, _: &mut SandboxView| {
        (f.warm_bytes, f.cold_start) = (Some(100 << 20), Some(Duration::from_secs(1)));
    };
    with((NOW + idle, SECOND), (&Arrivals::default(), &idle_times), change, |view, function, _| {
        policy.back_after(view, function, price)
    })
}
