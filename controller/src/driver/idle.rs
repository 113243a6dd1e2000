//! Reviews: what the policy says about idle sandboxes, and the view it sees.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use medes_proto::{
    ids::{FunctionName, SandboxId},
    sandbox::SandboxReport,
    standing::Standing,
    trace::{About, Cause, Choice, What},
};

use super::{
    Action, ConnectionId, Driver, PurgeReason, Tuning,
    state::{Life, Sandbox, SnapshotLife, Timer},
};
use crate::{
    now::Now,
    policy::{Arrivals, ClusterView, FunctionView, Gain, IdleLife, Review, SandboxView, Verdict, View},
};

/// A pause that an agent saw may look shorter from here by the time a message takes.
const CROSSING: Duration = Duration::from_secs(1);

pub(super) const POLICY_ASKS: &str = "the policy asks for it before a request does";

/// Whatever a policy says, a sandbox is not reviewed more often than this.
const REVIEW_GAP: Duration = Duration::from_millis(100);

impl Driver {
    /// Decides in another way from now on, also over those that are idle already.
    pub(super) fn tuned(&mut self, now: Now, tuning: &Tuning, out: &mut Vec<Action>) {
        let Tuning { policy, keeping } = *tuning;
        self.policy = policy.build();
        if keeping.idle != self.settings.keeping.idle {
            let idle = keeping.idle;
            out.extend(self.connections.keys().map(|&connection| Action::IdlePeriod { connection, idle }));
        }
        self.settings.keeping = keeping;
        // Whether bases stay is the policy's business, too.
        self.check_bases = true;
        self.tell(About::default(), What::Asked { operation: format!("policy {}", policy.kind) }, out);
        let all: Vec<SandboxId> = self.sandboxes.keys().copied().collect();
        all.into_iter().for_each(|id| self.arm_review(now, id));
    }

    /// Sees to it that an idle sandbox is reviewed some time.
    pub(super) fn arm_review(&mut self, now: Now, id: SandboxId) {
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        if !sandbox.is_idle() {
            return;
        }
        let first = |life| self.policy.first_review(life);
        let (from, wait) = match sandbox.life {
            Life::Parked => (sandbox.since, first(IdleLife::Dedup).min(self.settings.keeping.keep_parked)),
            Life::Dedup => (sandbox.since, first(IdleLife::Dedup)),
            _ => (sandbox.last_used, first(IdleLife::Warm)),
        };
        self.review_within(now, id, from.after(wait).since(now));
    }

    /// A review after `wait`, if none is due before that.
    fn review_within(&mut self, now: Now, id: SandboxId, wait: Duration) {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        let at = now.after(wait.max(REVIEW_GAP));
        if sandbox.review_at.is_none_or(|planned| planned > at) {
            sandbox.review_at = Some(at);
            self.arm(at, Timer::Review(id));
        }
    }

    pub(super) fn review_due(&mut self, now: Now, id: SandboxId, out: &mut Vec<Action>) {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        if sandbox.review_at.is_none_or(|planned| planned > now) {
            return;
        }
        sandbox.review_at = None;
        // One that serves a request is armed again when the request ends.
        if sandbox.is_idle() {
            self.review(now, id, out);
        }
    }

    pub(super) fn said_idle(
        &mut self,
        now: Now,
        connection: ConnectionId,
        id: SandboxId,
        idle: Duration,
        out: &mut Vec<Action>,
    ) {
        let Some(node) = self.connections.get(&connection) else { return };
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        if sandbox.node != *node || sandbox.life != Life::Warm || !sandbox.is_idle() {
            return;
        }
        if now.since(sandbox.last_used).saturating_add(CROSSING) < idle {
            // Said before the last request was sent: it is about an earlier pause.
            return;
        }
        sandbox.quiet = true;
        let (name, bytes) = (sandbox.function.clone(), sandbox.report.private_bytes);
        if let Some(function) = self.functions.get_mut(&name).filter(|_| bytes > 0) {
            function.warm_bytes.add(bytes as f64);
        }
        self.tell_of(id, What::Idle { idle, private_bytes: bytes }, out);
        self.review(now, id, out);
    }

    fn review(&mut self, now: Now, id: SandboxId, out: &mut Vec<Action>) {
        let Some(view) = self.sandbox_view(now, id) else { return };
        let Some(function) = self.sandboxes.get(&id).and_then(|s| self.function_view(&s.function)) else {
            return self.touch(now, id, out);
        };
        let review = self.policy.review(&Moment::of(self, now), &function, &view);
        let mut review = self.review_parked(id, &view, review);
        if review.verdict == Verdict::MakeBase && self.settings.init_snapshots {
            // What its requests left behind would be in what others are made of.
            review.rejected.insert(0, (Verdict::MakeBase, "bases are init snapshots, and it has served"));
            (review.verdict, review.because) =
                (Verdict::Dedup, "idle; its base is the init snapshot, if there is one");
        }
        let needed = |sandbox: &Sandbox| match view.private_bytes {
            0 => self.estimate(&sandbox.function),
            bytes => bytes,
        };
        let room = self.sandboxes.get(&id).is_some_and(|s| self.has_room(&s.node, needed(s)));
        let open = self.sandboxes.get(&id).is_some_and(|s| self.standing(&s.node) == Standing::Open);
        // A base costs what the sandbox holds, once more; so does a restore.
        if matches!(review.verdict, Verdict::MakeBase | Verdict::Restore) && !(room && open) {
            let (why_not, because) = match open {
                true => ("its node has no room for that", "its node has no room for more"),
                false => ("its node is kept from work", "its node is kept from work"),
            };
            review.rejected.insert(0, (review.verdict, why_not));
            (review.verdict, review.because) = (Verdict::Keep, because);
        }
        let kept = (review.verdict == Verdict::Keep).then_some(review.because);
        // What has been said is not said again.
        if kept.is_none() || self.sandboxes.get(&id).is_some_and(|sandbox| sandbox.kept != kept) {
            let choice = self.review_choice(&review, &function, &view);
            self.tell_review(id, kept, choice, out);
        }
        match review.verdict {
            Verdict::Keep => {}
            Verdict::Dedup if self.parks(id) => drop(self.park(now, id, out)),
            Verdict::Dedup => drop(self.dedup(now, id, false, None, out)),
            Verdict::MakeBase => drop(self.make_base(now, id, false, None, out)),
            Verdict::Restore => drop(self.restore(now, id, false, None, POLICY_ASKS, out)),
            Verdict::Purge => {
                if let Some(wait) = review.prewarm {
                    self.prewarm_after(now, id, wait);
                }
                self.purge(now, id, PurgeReason::Policy, None, out);
            }
        }
        if self.sandboxes.get(&id).is_some_and(|sandbox| sandbox.is_idle()) {
            self.review_within(now, id, review.again);
        }
    }

    /// A verdict is told; that a sandbox is kept, only when the reason is another than before.
    fn tell_review(
        &mut self,
        id: SandboxId,
        kept: Option<&'static str>,
        choice: Choice,
        out: &mut Vec<Action>,
    ) {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        sandbox.kept = kept;
        match kept {
            None => self.decide(id, What::Review(choice), out),
            Some(_) => drop(self.tell_of(id, What::Review(choice), out)),
        }
    }

    pub(super) fn dedup(
        &mut self,
        now: Now,
        id: SandboxId,
        digest_memory: bool,
        ticket: Option<super::Ticket>,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(node) = self.sandboxes.get(&id).map(|sandbox| sandbox.node.clone()) else { return false };
        let base = self.base_for(id);
        let claimed = base.as_ref().map(|place| place.snapshot);
        let command = medes_proto::fleet::Command::Dedup { sandbox: id, digest_memory, base };
        let limit = self.settings.dedup_max;
        if !self.issue(now, &node, command, super::state::Kind::Dedup, limit, ticket, 0, out) {
            return false;
        }
        self.claim(id, claimed);
        self.enter(now, id, Life::Deduping, Cause::Decided, out);
        true
    }

    /// Whether a sandbox is parked where the policy would have its memory taken.
    pub(super) fn parks(&self, id: SandboxId) -> bool {
        self.settings.keeping.park
            && self.sandboxes.get(&id).is_some_and(|sandbox| sandbox.life == Life::Warm)
    }

    pub(super) fn park(&mut self, now: Now, id: SandboxId, out: &mut Vec<Action>) -> bool {
        let Some(node) = self.sandboxes.get(&id).map(|sandbox| sandbox.node.clone()) else { return false };
        let (base, resident_percent) = (self.base_for(id), self.settings.keeping.parked_resident_percent);
        let claimed = base.as_ref().map(|place| place.snapshot);
        let command = medes_proto::fleet::Command::Park { sandbox: id, base, resident_percent };
        let limit = self.settings.dedup_max;
        if !self.issue(now, &node, command, super::state::Kind::Park, limit, None, 0, out) {
            return false;
        }
        self.claim(id, claimed);
        self.enter(now, id, Life::Deduping, Cause::Decided, out);
        true
    }

    /// To a policy parked is dedup. How long its processes stay nevertheless is the same for all policies.
    fn review_parked(&self, id: SandboxId, view: &SandboxView, review: Review) -> Review {
        let parked = self.sandboxes.get(&id).is_some_and(|sandbox| sandbox.life == Life::Parked);
        if !parked || review.verdict != Verdict::Keep {
            return review;
        }
        let left = self.settings.keeping.keep_parked.saturating_sub(view.in_life);
        match view.dump_blocked {
            Some(blocked) if left.is_zero() => Review { again: review.again.min(blocked), ..review },
            None if left.is_zero() => Review {
                verdict: Verdict::Dedup,
                because: "parked for keep_parked",
                rejected: vec![(Verdict::Keep, "keep_parked is over")],
                ..review
            },
            _ => Review { again: review.again.min(left), ..review },
        }
    }

    fn sandbox_view(&self, now: Now, id: SandboxId) -> Option<SandboxView> {
        let sandbox = self.sandboxes.get(&id)?;
        let price = self.nodes.get(&sandbox.node).map_or(0.0, |node| node.price.at(now));
        let free = self
            .cap(&sandbox.node)
            .map_or(1.0, |cap| cap.saturating_sub(self.projected(&sandbox.node)) as f64 / cap as f64);
        Some(SandboxView { price, free, ..sandbox.view(now)? })
    }

    pub(super) fn function_view(&self, name: &FunctionName) -> Option<FunctionView<'_>> {
        let (name, function) = self.functions.get_key_value(name)?;
        let mut view = FunctionView {
            name,
            warm: 0,
            running: 0,
            dedup: 0,
            starting: 0,
            bases: 0,
            bases_coming: 0,
            uses: 0,
            queued: function.queue.len(),
            arrivals: &function.arrivals,
            warm_bytes: function.warm_bytes.bytes(),
            dedup_bytes: function.dedup_bytes.bytes(),
            cold_start: function.fresh.time(),
            restore: function.restore.time(),
            warm_start: function.warm_start.time(),
            execution: function.execution.time(),
            idle_times: &function.idle_times,
            reuses: &function.reuses,
        };
        for sandbox in self.of_function(name) {
            view.running += usize::from(!sandbox.open.is_empty());
            view.uses += sandbox.uses;
            match sandbox.life {
                Life::Warm | Life::MakingBase => view.warm += 1,
                Life::Starting | Life::Restoring => view.starting += 1,
                Life::Dedup | Life::Parked | Life::Deduping | Life::Moving => view.dedup += 1,
                Life::Purging => {}
            }
        }
        for (_, snapshot) in self.bases_of(name) {
            match snapshot.life {
                SnapshotLife::Live => view.bases += 1,
                SnapshotLife::Making => view.bases_coming += 1,
                SnapshotLife::Hidden { .. } | SnapshotLife::Dropping => {}
            }
        }
        Some(view)
    }
}

impl Sandbox {
    /// As a policy sees it by itself, without its rank among others; `None` if it is not in a life in which it can be idle.
    pub(super) fn view(&self, now: Now) -> Option<SandboxView> {
        let blocked = self.dump_blocked_until.map(|until| until.since(now));
        let SandboxReport { private_bytes, stored_bytes, .. } = self.report;
        let (private_bytes, stored_bytes) = match self.life {
            // What is left of its memory is no measure of what it takes when it is wanted.
            Life::Parked => (self.warm_bytes, stored_bytes.saturating_add(private_bytes)),
            _ => (private_bytes, stored_bytes),
        };
        Some(SandboxView {
            id: self.id,
            life: self.idle_life()?,
            idle: now.since(self.last_used),
            in_life: now.since(self.since),
            quiet: self.quiet,
            private_bytes,
            stored_bytes,
            is_base_source: self.report.base_snapshot.is_some(),
            dump_blocked: blocked.filter(|left| !left.is_zero()),
            clock: self.clock,
            price: 0.0,
            free: 1.0,
            heat: self.report.heat,
        })
    }
}

/// The driver at one moment, as a policy sees it.
pub(super) struct Moment<'a> {
    driver: &'a Driver,
    now: Now,
    /// Functions that were looked at: a policy asks again for each of their sandboxes.
    seen: RefCell<BTreeMap<&'a FunctionName, FunctionView<'a>>>,
}

impl<'a> Moment<'a> {
    pub(super) fn of(driver: &'a Driver, now: Now) -> Self {
        Self { driver, now, seen: RefCell::default() }
    }
}

impl View for Moment<'_> {
    fn now(&self) -> Duration {
        self.now.since_origin()
    }

    fn cluster(&self) -> ClusterView {
        let reachable = self.driver.nodes.iter().filter(|(_, node)| node.connection.is_some());
        let mut view = ClusterView::default();
        for (name, node) in reachable {
            view.nodes += 1;
            view.cap_bytes = view.cap_bytes.saturating_add(self.driver.cap(name).unwrap_or(0));
            view.used_bytes = view.used_bytes.saturating_add(node.memory.used_bytes);
        }
        view
    }

    fn function(&self, name: &FunctionName) -> Option<FunctionView<'_>> {
        if let Some(seen) = self.seen.borrow().get(name) {
            return Some(seen.clone());
        }
        let view = self.driver.function_view(name)?;
        self.seen.borrow_mut().insert(view.name, view.clone());
        Some(view)
    }

    fn gain(&self, sandbox: SandboxId) -> Gain {
        let sandbox = self.driver.sandboxes.get(&sandbox);
        sandbox.map_or_else(Gain::default, |sandbox| self.driver.ranked_enough(sandbox))
    }

    fn rates_max(&self, minutes: usize) -> f64 {
        let key = (self.now().as_secs(), minutes);
        // Asked for each idle sandbox, and it is about all functions.
        match self.driver.rates.get().filter(|(of, _)| *of == key) {
            Some((_, rates)) => rates,
            None => {
                let of = |arrivals: &Arrivals| arrivals.rate_max(self.now(), minutes);
                let rates = self.driver.functions.values().map(|function| of(&function.arrivals)).sum();
                self.driver.rates.set(Some((key, rates)));
                rates
            }
        }
    }
}
