//! The configuration file: raw form, checked form. `config.toml` beside this file is what `--print-config` prints.

use std::time::Duration;

use medes_dedup::fingerprint::{ChunkCount, Sampling};
use medes_proto::{
    fleet::{EngineSettings, Level},
    limits,
    units::{ByteSize, Span},
};
use serde::Deserialize;

use crate::{
    driver,
    policy::{FixedSettings, PolicySettings},
    registry::TableSettings,
};

/// The defaults, with their units and what they mean.
pub const DEFAULTS: &str = include_str!("config.toml");

/// A configuration as it is written: the defaults, changed by a file, changed by flags, changed while the controller runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Document(toml::Table);

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What was written.
    pub document: Document,
    /// Of the driver; `incarnation` and `settle` are filled in when the store is open.
    pub driver: driver::Settings,
    /// Of the policy.
    pub policy: PolicySettings,
    /// As agents are told.
    pub engine: EngineSettings,
    /// As agents are told.
    pub heartbeat: Duration,
    /// Of the registry.
    pub registry: TableSettings,
    /// Of the gateway.
    pub requests: RequestSettings,
    /// How long requests may go on after the stop signal.
    pub stop_grace: Duration,
}

/// Limits of the ways in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestSettings {
    /// If the request names none.
    pub deadline: Duration,
    /// The longest a request may name.
    pub deadline_max: Duration,
    /// Bytes of a body.
    pub body_max: usize,
    /// Requests open at a time.
    pub open_max: usize,
}

/// A configuration that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, or a field is unknown or of the wrong type.
    #[error("read configuration")]
    Toml(#[from] toml::de::Error),
    /// Not `section.key=value`.
    #[error("{text:?} is not section.key=value")]
    Override {
        /// The text.
        text: String,
    },
    /// A field whose value cannot be.
    #[error("configuration: {field}: {problem}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    requests: RawRequests,
    sandboxes: RawSandboxes,
    fleet: RawFleet,
    limits: RawLimits,
    policy: RawPolicy,
    engine: RawEngine,
    registry: RawRegistry,
    stop: RawStop,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRequests {
    queue_max: usize,
    deadline: Span,
    deadline_max: Span,
    body_max: ByteSize,
    attempts_max: u8,
    open_max: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSandboxes {
    per_function_max: usize,
    starts_per_node_max: usize,
    dedups_per_node_max: usize,
    estimate: ByteSize,
    init_snapshots: bool,
    node_memory: ByteSize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFleet {
    heartbeat: Span,
    heartbeats_missed_max: u32,
    settle: Span,
    lost_node_memory: Span,
    base_copies: u32,
    nodes_max: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    start_slack: Span,
    restore: Span,
    dedup: Span,
    purge: Span,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    name: String,
    alpha: f64,
    budget_share: f64,
    tail: f64,
    idle: Span,
    keep_alive: Span,
    keep_dedup: Span,
    dedups_per_base: u32,
    dedup: bool,
    park: bool,
    keep_parked: Span,
    parked_resident_percent: u32,
    dump_pause: Span,
    dump_pause_max: Span,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEngine {
    level: String,
    small_after: Span,
    sampling: String,
    chunks: u8,
    delta_bytes_max: u32,
    bases_max: u32,
    nodes_max: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegistry {
    entries_max: u64,
    list_max: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStop {
    grace: Span,
}

/// The section that may be changed while the controller runs.
const POLICY: &str = "policy";

impl Document {
    /// The defaults, changed by a file's text. What it says is only looked at by [`Self::check`].
    pub fn read(file: &str) -> Result<Self, ConfigError> {
        let mut table: toml::Table = DEFAULTS.parse()?;
        merge(&mut table, file.parse()?);
        Ok(Self(table))
    }

    /// The same with `section.key=value` changes.
    pub fn with(&self, changes: &[String]) -> Result<Self, ConfigError> {
        let mut table = self.0.clone();
        for text in changes {
            merge(&mut table, parse_override(text)?);
        }
        Ok(Self(table))
    }

    /// The same with `key=value` changes of the policy, which may come while the controller runs.
    pub fn with_policy(&self, changes: &[String]) -> Result<Self, ConfigError> {
        self.with(&changes.iter().map(|change| format!("{POLICY}.{change}")).collect::<Vec<_>>())
    }

    /// The same with the policy of another one, and the names of the other sections in which that one differs.
    pub(crate) fn with_policy_of(&self, other: &Self) -> (Self, Vec<String>) {
        let mut table = self.0.clone();
        if let Some(policy) = other.0.get(POLICY) {
            table.insert(POLICY.to_owned(), policy.clone());
        }
        let others =
            other.0.iter().filter(|(name, section)| *name != POLICY && self.0.get(*name) != Some(*section));
        (Self(table), others.map(|(name, _)| name.clone()).collect())
    }

    /// The section of the policy, as a file would have it.
    pub fn policy(&self) -> String {
        let section = self.0.get(POLICY).map(|section| (POLICY.to_owned(), section.clone()));
        section.into_iter().collect::<toml::Table>().to_string()
    }

    /// What it means.
    pub fn check(&self) -> Result<Config, ConfigError> {
        self.0.clone().try_into::<Raw>()?.check(self.clone())
    }
}

impl Config {
    /// The defaults, changed by a file's text, changed by `section.key=value` overrides.
    pub fn read(file: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        Document::read(file)?.with(overrides)?.check()
    }

    /// What of it may be changed while the controller runs.
    pub const fn tuning(&self) -> driver::Tuning {
        driver::Tuning { policy: self.policy, keeping: self.driver.keeping }
    }
}

/// One level of sections is all there is. What is unknown stays, and is refused when the whole is read.
fn merge(table: &mut toml::Table, changes: toml::Table) {
    for (key, value) in changes {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(section)), toml::Value::Table(changes)) => section.extend(changes),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

fn parse_override(text: &str) -> Result<toml::Table, ConfigError> {
    let parts = || {
        let (path, value) = text.split_once('=')?;
        let (section, key) = path.trim().split_once('.')?;
        // `policy.idle=5s` is no TOML value, and meant as text.
        let parsed =
            format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("v"));
        let value = parsed.unwrap_or_else(|| toml::Value::String(value.trim().into()));
        let section_table = toml::Table::from_iter([(key.to_owned(), value)]);
        Some(toml::Table::from_iter([(section.to_owned(), toml::Value::Table(section_table))]))
    };
    parts().ok_or_else(|| ConfigError::Override { text: text.chars().take(100).collect() })
}

fn within<T: PartialOrd>(
    value: T,
    range: std::ops::RangeInclusive<T>,
    field: &'static str,
    problem: &'static str,
) -> Result<T, ConfigError> {
    if range.contains(&value) { Ok(value) } else { Err(ConfigError::Field { field, problem }) }
}

impl RawSandboxes {
    fn check(&self) -> Result<(), ConfigError> {
        within(self.starts_per_node_max, 1..=10_000, "sandboxes.starts_per_node_max", "not 1 to 10000")?;
        within(self.dedups_per_node_max, 1..=10_000, "sandboxes.dedups_per_node_max", "not 1 to 10000")
            .map(drop)
    }
}

impl RawFleet {
    fn check(&self) -> Result<(), ConfigError> {
        let ms = Duration::from_millis;
        within(self.heartbeat.0, ms(10)..=ms(600_000), "fleet.heartbeat", "not 10ms to 10m")?;
        within(self.heartbeats_missed_max, 1..=1_000, "fleet.heartbeats_missed_max", "not 1 to 1000")?;
        within(self.base_copies, 1..=16, "fleet.base_copies", "not 1 to 16")?;
        within(self.nodes_max, 1..=100_000, "fleet.nodes_max", "not 1 to 100000").map(drop)
    }
}

impl Raw {
    fn check(self, document: Document) -> Result<Config, ConfigError> {
        let ms = Duration::from_millis;
        let Raw { requests, sandboxes, fleet, limits, policy, engine, registry, stop } = self;
        within(requests.queue_max, 1..=1_000_000, "requests.queue_max", "not 1 to 1000000")?;
        within(requests.open_max, 1..=1_000_000, "requests.open_max", "not 1 to 1000000")?;
        within(requests.attempts_max, 1..=100, "requests.attempts_max", "not 1 to 100")?;
        within(requests.deadline_max.0, ms(1)..=ms(86_400_000), "requests.deadline_max", "not 1ms to 24h")?;
        within(
            requests.deadline,
            Span(ms(1))..=requests.deadline_max,
            "requests.deadline",
            "not 1ms to deadline_max",
        )?;
        let body_max = usize::try_from(requests.body_max.0).unwrap_or(usize::MAX);
        within(body_max, 1..=limits::BODY_BYTES_MAX, "requests.body_max", "not 1B to 6MiB")?;
        sandboxes.check()?;
        fleet.check()?;
        within(registry.list_max, 1..=1_024, "registry.list_max", "not 1 to 1024")?;
        within(
            policy.dump_pause.0,
            ms(1)..=policy.dump_pause_max.0,
            "policy.dump_pause",
            "not 1ms to dump_pause_max",
        )?;
        for (limit, field) in [
            (limits.restore, "limits.restore"),
            (limits.dedup, "limits.dedup"),
            (limits.purge, "limits.purge"),
        ] {
            within(limit.0, ms(1)..=ms(86_400_000), field, "not 1ms to 24h")?;
        }
        let driver = driver::Settings {
            silent_max: fleet.heartbeat.0 * fleet.heartbeats_missed_max,
            settle: fleet.settle.0,
            queue_max: requests.queue_max,
            function_sandboxes_max: Some(sandboxes.per_function_max).filter(|&max| max > 0),
            node_starts_max: sandboxes.starts_per_node_max,
            node_dedups_max: sandboxes.dedups_per_node_max,
            nodes_max: fleet.nodes_max,
            attempts_max: requests.attempts_max,
            sandbox_bytes: sandboxes.estimate.0,
            node_cap_bytes: Some(sandboxes.node_memory.0).filter(|&max| max > 0),
            start_slack: limits.start_slack.0,
            restore_max: limits.restore.0,
            dedup_max: limits.dedup.0,
            purge_max: limits.purge.0,
            lost_memory: fleet.lost_node_memory.0,
            init_snapshots: sandboxes.init_snapshots,
            base_copies: fleet.base_copies,
            keeping: policy.keeping(),
            ..driver::Settings::default()
        };
        Ok(Config {
            document,
            driver,
            policy: policy.check()?,
            engine: engine.check()?,
            heartbeat: fleet.heartbeat.0,
            registry: TableSettings { entries_max: registry.entries_max, list_max: registry.list_max },
            requests: RequestSettings {
                deadline: requests.deadline.0,
                deadline_max: requests.deadline_max.0,
                body_max,
                open_max: requests.open_max,
            },
            stop_grace: stop.grace.0,
        })
    }
}

impl RawPolicy {
    /// What is the same whatever the policy says.
    fn keeping(&self) -> driver::Keeping {
        driver::Keeping {
            idle: self.idle.0,
            dump_pause: self.dump_pause.0,
            dump_pause_max: self.dump_pause_max.0,
            park: self.park,
            keep_parked: self.keep_parked.0,
            parked_resident_percent: self.parked_resident_percent,
        }
    }

    fn check(self) -> Result<PolicySettings, ConfigError> {
        let kind = self.name.parse().map_err(|_unknown| ConfigError::Field {
            field: "policy.name",
            problem: "not fixed, medes-latency, medes-memory, hybrid, greedy-dual, never-unload or marginal",
        })?;
        Ok(PolicySettings {
            kind,
            periods: FixedSettings {
                idle: self.idle.0,
                keep_alive: self.keep_alive.0,
                keep_dedup: self.keep_dedup.0,
                dedups_per_base: self.dedups_per_base,
                dedup: self.dedup,
            },
            alpha: within(self.alpha, 1.0..=1e6, "policy.alpha", "not 1 to 1000000")?,
            budget_share: within(self.budget_share, 0.0..=1.0, "policy.budget_share", "not 0 to 1")?,
            tail: within(self.tail, 1.0..=4.0, "policy.tail", "not 1 to 4")?,
        })
    }
}

impl RawEngine {
    fn check(self) -> Result<EngineSettings, ConfigError> {
        let page = medes_dedup::page::PAGE_BYTES as u32;
        let most = limits::IMAGE_BASES_MAX as u32;
        within(self.delta_bytes_max, 1..=page - 1, "engine.delta_bytes_max", "not 1 to 4095")?;
        within(self.bases_max, 1..=most, "engine.bases_max", "not 1 to 64")?;
        within(self.nodes_max, 1..=most, "engine.nodes_max", "not 1 to 64")?;
        let chunks = ChunkCount::new(self.chunks)
            .ok_or(ConfigError::Field { field: "engine.chunks", problem: "not 1 to 32" })?;
        let sampling = match self.sampling.as_str() {
            "bottom" => Sampling::Bottom { chunks },
            "value" => Sampling::Value { chunks },
            _ => return Err(ConfigError::Field { field: "engine.sampling", problem: "not bottom or value" }),
        };
        let level = match self.level.as_str() {
            "none" => Level::None,
            "fast" => Level::Fast,
            "small" => Level::Small,
            _ => {
                return Err(ConfigError::Field { field: "engine.level", problem: "not none, fast or small" });
            }
        };
        Ok(EngineSettings {
            level,
            small_after: self.small_after.0,
            sampling,
            delta_bytes_max: self.delta_bytes_max,
            bases_max: self.bases_max,
            nodes_max: self.nodes_max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicyKind;

    #[test]
    fn what_is_printed_is_what_the_code_has_as_default() {
        let config = Config::read("", &[]).unwrap();
        assert_eq!(config.policy, PolicySettings::default());
        assert_eq!(config.engine, EngineSettings::default());
        assert_eq!(config.registry, TableSettings::default());
        // The driver's tests are about one thing at a time.
        let (settle, init_snapshots) = (Duration::from_secs(1), true);
        assert_eq!(config.driver, driver::Settings { settle, init_snapshots, ..driver::Settings::default() });
    }

    #[test]
    fn a_file_and_flags_change_single_lines() {
        let flags = ["policy.idle=3s".to_owned(), "engine.chunks=5".into(), "policy.dedup = false".into()];
        let config = Config::read("[policy]\nidle = \"2s\"\nkeep_dedup = \"1h\"", &flags).unwrap();
        assert_eq!(config.policy.periods.idle, Duration::from_secs(3));
        assert_eq!(config.policy.periods.keep_dedup, Duration::from_secs(3_600));
        assert_eq!(config.policy.periods.keep_alive, Duration::from_secs(600));
        assert!(!config.policy.periods.dedup);
    }

    #[test]
    fn the_policy_changes_while_everything_else_stays() {
        let file = "[policy]\nkeep_alive = \"1h\"\n[requests]\nqueue_max = 7";
        let first = Document::read(file).unwrap();
        let changes = ["name=medes-memory", "budget_share=0.5", "park=true", "idle=5s"].map(String::from);
        let second = first.with_policy(&changes).unwrap();
        let (before, after) = (first.check().unwrap(), second.check().unwrap());
        assert_eq!(after.tuning().policy.kind, PolicyKind::MedesMemory);
        assert_eq!(after.tuning().policy.periods.keep_alive, Duration::from_secs(3_600));
        assert_eq!(after.tuning().keeping.idle, Duration::from_secs(5));
        assert!(after.tuning().keeping.park && !before.tuning().keeping.park);
        assert_eq!((after.driver.queue_max, after.requests), (7, before.requests));
        // What is shown can be written into a file again.
        assert_eq!(Document::read(&second.policy()).unwrap().check().unwrap().tuning(), after.tuning());
        for wrong in ["idel=5s", "alpha=0.5", "name=magic", "park", "x.y=1"] {
            let changed = first.with_policy(&[wrong.to_owned()]).and_then(|next| next.check());
            assert!(changed.is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_name() {
        for (text, name) in [
            ("[policy]\nidel = '1s'", "idel"),
            ("[polcy]\nidle = '1s'", "polcy"),
            ("[policy]\nname = 'magic'", "policy.name"),
            ("[policy]\nalpha = 0.5", "policy.alpha"),
            ("[policy]\nbudget_share = 1.5", "policy.budget_share"),
            ("[policy]\ntail = 0.5", "policy.tail"),
            ("[policy]\nidle = 5", "string"),
            ("[engine]\nchunks = 0", "engine.chunks"),
            ("[engine]\nsampling = 'top'", "engine.sampling"),
            ("[engine]\nlevel = 'tiny'", "engine.level"),
            ("[requests]\nbody_max = '7MiB'", "requests.body_max"),
            ("[requests]\ndeadline = '2h'", "requests.deadline"),
            ("[fleet]\nheartbeat = '0s'", "fleet.heartbeat"),
            ("nonsense", "read configuration"),
        ] {
            let error = Config::read(text, &[]).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let said = format!("{error}: {source}");
            assert!(said.contains(name), "{text:?} said {said}");
        }
        for bad in ["policy", "policy.idle", "idle=3s"] {
            assert!(matches!(Config::read("", &[bad.into()]), Err(ConfigError::Override { .. })), "{bad}");
        }
    }
}
