//! What goes wrong: nodes that end with all they hold and come back empty, nodes that are slow, messages that are lost.
//!
//! Messages of one stream are not lost one by one where TCP carries them. A driver that stands that stands a stream that breaks, too.

use std::time::Duration;

use anyhow::Result;
use medes_controller::driver::Event;

use super::{What, World};

const DAY: Duration = Duration::from_secs(86_400);
/// Until an agent whose stream was ended has another one.
pub(super) const RECONNECT: Duration = Duration::from_secs(1);

/// How much of it. By default nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Trouble {
    /// How often each node ends in a day, on average.
    pub(crate) failures_per_day: f64,
    /// Until it is there again, with nothing.
    pub(crate) repair: Duration,
    /// The share of nodes that are slow.
    pub(crate) slow_share: f64,
    /// So many times as long everything takes there.
    pub(crate) slow_factor: f64,
    /// The share of messages that are lost.
    pub(crate) lost_share: f64,
}

impl Default for Trouble {
    fn default() -> Self {
        let repair = Duration::from_secs(60);
        Self { failures_per_day: 0.0, repair, slow_share: 0.0, slow_factor: 4.0, lost_share: 0.0 }
    }
}

impl Trouble {
    /// Whether the driver may think of something that is not so: without it, every contradiction is a mistake of ours.
    pub(super) fn happens(&self) -> bool {
        self.failures_per_day > 0.0 || self.lost_share > 0.0 || self.slow_share > 0.0
    }
}

impl World<'_> {
    /// Whether the next message is lost.
    pub(super) fn is_lost(&mut self) -> bool {
        let lost =
            self.settings.trouble.lost_share > 0.0 && self.dice.part() < self.settings.trouble.lost_share;
        self.outcome.lost += u64::from(lost);
        lost
    }

    /// The moment at which a node ends, drawn as if it had no memory of the last time.
    pub(super) fn plan_failure(&mut self, agent: usize) {
        let rate = self.settings.trouble.failures_per_day;
        if rate > 0.0 {
            let days = -(1.0 - self.dice.part()).ln() / rate;
            self.plan(self.settings.trouble.repair + DAY.mul_f64(days), What::Fails(agent));
        }
    }

    /// A node ends.
    pub(super) fn fails(&mut self, agent: usize) -> Result<()> {
        self.outcome.failures += 1;
        let connection = self.agents[agent].connection;
        let snapshots: Vec<_> = self.agents[agent].snapshots.keys().copied().collect();
        for snapshot in snapshots {
            self.let_go(agent, snapshot);
        }
        let gone = self.agents[agent].end(self.settings.empty_bytes);
        let mut inside = Vec::new();
        for (sandbox, held) in gone {
            self.homes.remove(&sandbox);
            self.forget_references(&held.bases);
            inside.extend(held.open);
        }
        let repair = self.settings.trouble.repair;
        self.plan(repair, What::Comes(agent));
        self.agent_does(agent, repair + self.settings.heartbeat, super::Deed::Beats);
        self.plan_failure(agent);
        if let Some(connection) = connection {
            self.tell(Event::Detached { connection })?;
        }
        inside.into_iter().try_for_each(|request| self.cut_off(request))
    }
}
