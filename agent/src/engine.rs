//! The dedup engine as this node uses it: the cluster's settings, one tenant's key.

use std::num::NonZeroUsize;

use medes_dedup::{
    candidate::CandidateRules,
    delta::CODED_BYTES_MAX,
    encode::EncodeRules,
    fingerprint::{Fingerprinter, Sampling},
    key::DomainKey,
    paper,
};
use medes_proto::fleet::{EngineSettings, Level};

/// Everything the roads need to know about the engine to work for one tenant. Changes when the controller says so.
#[derive(Debug, Clone)]
pub struct Engine {
    key: DomainKey,
    settings: EngineSettings,
    /// Threads for the work on one sandbox's pages.
    pub threads: NonZeroUsize,
}

impl Engine {
    /// With a tenant's key and the cluster's settings.
    pub const fn new(key: DomainKey, settings: EngineSettings, threads: NonZeroUsize) -> Self {
        Self { key, settings, threads }
    }

    /// The same, with so many threads for the work on one sandbox's pages.
    #[must_use]
    pub fn with_threads(self, threads: NonZeroUsize) -> Self {
        Self { threads, ..self }
    }

    /// The key of everything that belongs to the tenant.
    pub const fn key(&self) -> &DomainKey {
        &self.key
    }

    /// Fingerprints pages of the tenant.
    pub fn fingerprinter(&self) -> Fingerprinter {
        Fingerprinter::new(&self.key, self.settings.sampling)
    }

    /// Bounds on what one image may depend on.
    pub fn candidate_rules(&self) -> CandidateRules {
        let bounded = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
        CandidateRules {
            snapshots_max: bounded(self.settings.bases_max),
            remote_nodes_max: bounded(self.settings.nodes_max),
            ..self.base_rules().0
        }
    }

    /// How pages are stored.
    pub fn encode_rules(&self) -> EncodeRules {
        let delta_bytes_max = usize::try_from(self.settings.delta_bytes_max).unwrap_or(usize::MAX);
        EncodeRules { delta_bytes_max: delta_bytes_max.min(CODED_BYTES_MAX), ..self.base_rules().1 }
    }

    /// Whether sandboxes are made of words of a base, and how. The paper's sampling goes without.
    pub const fn level(&self) -> Level {
        match self.settings.sampling {
            Sampling::Value { .. } => Level::None,
            Sampling::Bottom { .. } => self.settings.level,
        }
    }

    /// Value sampling is the paper's: it brings the paper's other choices along.
    fn base_rules(&self) -> (CandidateRules, EncodeRules) {
        match self.settings.sampling {
            Sampling::Value { .. } => (paper::candidate_rules(), paper::encode_rules()),
            Sampling::Bottom { .. } => (CandidateRules::default(), EncodeRules::default()),
        }
    }
}
