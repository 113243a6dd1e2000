//! Which policy, and its numbers.

use std::{fmt, str::FromStr};

use super::{Fixed, FixedSettings, GreedyDual, Hybrid, Marginal, Medes, NeverUnload, Objective, Policy};

/// The policies there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PolicyKind {
    /// Fixed periods.
    #[default]
    Fixed,
    /// The paper's P1.
    MedesLatency,
    /// The paper's P2.
    MedesMemory,
    /// The hybrid histogram.
    Hybrid,
    /// FaasCache.
    GreedyDual,
    /// Until memory is needed.
    NeverUnload,
    /// Ours: what is worth most, at the price of memory.
    Marginal,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Fixed,
        Self::MedesLatency,
        Self::MedesMemory,
        Self::Hybrid,
        Self::GreedyDual,
        Self::NeverUnload,
        Self::Marginal,
    ];

    /// The word in configuration files, logs and the trace.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::MedesLatency => "medes-latency",
            Self::MedesMemory => "medes-memory",
            Self::Hybrid => "hybrid",
            Self::GreedyDual => "greedy-dual",
            Self::NeverUnload => "never-unload",
            Self::Marginal => "marginal",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

/// No policy has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not fixed, medes-latency, medes-memory, hybrid, greedy-dual, never-unload or marginal")]
pub struct UnknownPolicy;

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.word() == word).ok_or(UnknownPolicy)
    }
}

/// A policy and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicySettings {
    /// Which.
    pub kind: PolicyKind,
    /// Of the fixed policy and the paper's.
    pub periods: FixedSettings,
    /// Of the paper's P1: how much slower than warm ones starts may be on average.
    pub alpha: f64,
    /// Of the paper's P2: the share of the cluster's memory that functions may take.
    pub budget_share: f64,
    /// Of ours: the power of a start's latency that counts; 1 for the mean, more for the tail.
    pub tail: f64,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self {
            kind: PolicyKind::default(),
            periods: FixedSettings::default(),
            alpha: 2.5,
            budget_share: 0.95,
            tail: 1.0,
        }
    }
}

impl PolicySettings {
    /// The policy.
    pub fn build(&self) -> Box<dyn Policy> {
        let medes = |objective| Box::new(Medes { objective, periods: self.periods });
        match self.kind {
            PolicyKind::Fixed => Box::new(Fixed(self.periods)),
            PolicyKind::MedesLatency => medes(Objective::Latency { alpha: self.alpha }),
            PolicyKind::MedesMemory => medes(Objective::Memory { share: self.budget_share }),
            PolicyKind::Hybrid => Box::new(Hybrid),
            PolicyKind::GreedyDual => Box::new(GreedyDual),
            PolicyKind::NeverUnload => Box::new(NeverUnload),
            PolicyKind::Marginal => Box::new(Marginal { tail: self.tail, idle: self.periods.idle }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_called_what_it_calls_itself() {
        for kind in PolicyKind::ALL {
            let settings = PolicySettings { kind, ..PolicySettings::default() };
            assert_eq!(settings.build().name(), kind.word());
            assert_eq!(kind.word().parse(), Ok(kind));
        }
        assert_eq!("magic".parse::<PolicyKind>(), Err(UnknownPolicy));
    }
}
