//! The driver's limits and waits. `config` makes them from a file; tests make them by hand.

use std::time::Duration;

use crate::policy::PolicySettings;

/// Limits and waits of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Upper half of every sandbox's and snapshot's number.
    pub incarnation: u32,
    /// A node that says nothing for this long is lost.
    pub silent_max: Duration,
    /// After the start: no cold starts yet, nodes with warm sandboxes may still connect.
    pub settle: Duration,
    /// Requests that may wait for one function.
    pub queue_max: usize,
    /// Sandboxes of one function, in any state. `None`: as many as memory allows.
    pub function_sandboxes_max: Option<usize>,
    /// Cold starts and restores under way on one node.
    pub node_starts_max: usize,
    /// Dedups under way on one node that the policy may ask for.
    pub node_dedups_max: usize,
    /// Nodes.
    pub nodes_max: usize,
    /// How often a request is put back in the queue, for reasons that are not its function's.
    pub attempts_max: u8,
    /// What a sandbox is taken to need before one of its function has been seen.
    pub sandbox_bytes: u64,
    /// Replaces the cap that nodes report.
    pub node_cap_bytes: Option<u64>,
    /// On top of the function's own ready timeout.
    pub start_slack: Duration,
    /// For a restore.
    pub restore_max: Duration,
    /// For a dedup and for making a base.
    pub dedup_max: Duration,
    /// For a purge and for dropping a snapshot.
    pub purge_max: Duration,
    /// After a request's deadline, for the agent to say so itself.
    pub answer_slack: Duration,
    /// What is the same for all policies.
    pub keeping: Keeping,
    /// A node that could not start a sandbox is avoided this long.
    pub avoid: Duration,
    /// Whether the state in which a function becomes ready is kept, for new sandboxes to be clones of it.
    pub init_snapshots: bool,
    /// Nodes that hold each base that an image refers to, where there is room: with more than one, none of them is missed.
    pub base_copies: u32,
    /// How long references and snapshots of a lost node are remembered: it may only have been cut off.
    pub lost_memory: Duration,
}

/// What becomes of idle sandboxes, whatever the policy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// How long a sandbox is idle before its agent says so.
    pub idle: Duration,
    /// A sandbox that cannot be dumped is left alone this long, then twice this long, and so on.
    pub dump_pause: Duration,
    /// Up to this.
    pub dump_pause_max: Duration,
    /// Whether sandboxes are parked where the policy would have their memory taken.
    pub park: bool,
    /// Parked for this long: dedup.
    pub keep_parked: Duration,
    /// Of a hundred pages of a parked sandbox so many may stay: those that its next request will touch.
    pub parked_resident_percent: u32,
}

impl Default for Keeping {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            idle: seconds(60),
            dump_pause: seconds(600),
            dump_pause_max: seconds(86_400),
            park: false,
            keep_parked: seconds(300),
            parked_resident_percent: 10,
        }
    }
}

/// All that may be changed while the controller runs: the section `policy` of its configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// The policy and its numbers.
    pub policy: PolicySettings,
    /// What is the same for all of them.
    pub keeping: Keeping,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            incarnation: 1,
            silent_max: seconds(3),
            settle: Duration::ZERO,
            queue_max: 1_000,
            function_sandboxes_max: None,
            node_starts_max: 10,
            node_dedups_max: 4,
            nodes_max: 1_024,
            attempts_max: 3,
            sandbox_bytes: 64 << 20,
            node_cap_bytes: None,
            start_slack: seconds(10),
            restore_max: seconds(30),
            dedup_max: seconds(120),
            purge_max: seconds(30),
            answer_slack: seconds(2),
            keeping: Keeping::default(),
            avoid: seconds(5),
            init_snapshots: false,
            base_copies: 2,
            lost_memory: seconds(600),
        }
    }
}
