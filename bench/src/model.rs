//! What sandboxes take and hold, by function: measured by `bench calibrate`, played back by `bench sim`.
//!
//! One JSON file with a version. It says on which machine it was measured, of which code and by which command; one such file is in the
//! repository and is used where none is named. Functions of a trace take their turns with those that were measured, as in the
//! paper's evaluation.

mod samples;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::{Deserialize, Serialize};

pub(crate) use samples::Samples;

use crate::{
    record::Record,
    show::{mib, ms},
};

/// Of the file. Another meaning of a field is another number.
const FORMAT: u32 = 1;
const FUNCTIONS_MAX: usize = 1_000;
/// No sandbox here holds more.
const BYTES_MAX: u64 = 1 << 40;

/// The one in the repository.
const BUILT_IN: &str = include_str!("../models/2026-11-28-xeon-2cpu.json");

/// A whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Model {
    format: u32,
    /// Where it was measured.
    #[serde(default)]
    pub(crate) machine: Machine,
    pub(crate) functions: Vec<FunctionModel>,
}

/// Where figures come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    pub(crate) commit: String,
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    pub(crate) command: String,
}

/// A start: until the sandbox says that it is ready, and how much longer its first request takes than one to a warm sandbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Start {
    pub(crate) ready_ms: Samples,
    pub(crate) first_ms: Samples,
}

/// Memory of a sandbox, as the kernel counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Held {
    /// Anonymous: what agents report of a sandbox.
    pub(crate) private_bytes: u64,
    /// Anonymous, shared and kernel memory: what a node's memory is made of.
    pub(crate) all_bytes: u64,
}

/// Pages of a warm sandbox that one request writes and touches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dirty {
    pub(crate) hot_pages: u64,
    pub(crate) written_pages: u64,
    pub(crate) touched_pages: u64,
}

/// One function.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FunctionModel {
    /// Its name where it was measured.
    pub(crate) function: String,
    /// A request to a warm sandbox.
    pub(crate) request_ms: Samples,
    pub(crate) cold: Start,
    /// Of its init snapshot; none: no sandbox is made of it.
    pub(crate) clone: Option<Start>,
    pub(crate) restore: Start,
    pub(crate) unpark: Start,
    pub(crate) dedup_ms: Samples,
    pub(crate) first_park_ms: Samples,
    pub(crate) park_ms: Samples,
    pub(crate) init_ms: Samples,
    pub(crate) base_ms: Samples,
    pub(crate) purge_ms: Samples,
    /// After some requests.
    pub(crate) warm: Held,
    /// The same of a clone.
    pub(crate) cloned: Held,
    pub(crate) parked: Held,
    /// What a dedup image holds whose base is the function's init snapshot.
    pub(crate) stored_bytes: u64,
    /// What one holds that was made without a base.
    pub(crate) alone_bytes: u64,
    /// What is stored of one that is parked.
    pub(crate) parked_stored_bytes: u64,
    /// A base snapshot after some requests.
    pub(crate) base_bytes: u64,
    pub(crate) init_bytes: u64,
    /// What an agent holds more while sandboxes are aligned with the init snapshot, and a few seconds longer.
    #[serde(default)]
    pub(crate) index_bytes: u64,
    pub(crate) dirty: Dirty,
}

impl Model {
    /// What was measured just now.
    pub(crate) fn measured(record: &Record, functions: Vec<FunctionModel>) -> Self {
        Self { format: FORMAT, machine: record.machine(), functions }
    }

    /// A file, or the one in the repository.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Self::parse(BUILT_IN).context("read the built-in model") };
        let doing = || format!("read the model {}", path.display());
        Self::parse(&fs::read_to_string(path).with_context(doing)?).with_context(doing)
    }

    fn parse(text: &str) -> Result<Self> {
        let model: Self = serde_json::from_str(text)?;
        model.check()?;
        Ok(model)
    }

    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.format == FORMAT, "its format is {}, this program reads {FORMAT}", self.format);
        let count = self.functions.len();
        ensure!((1..=FUNCTIONS_MAX).contains(&count), "{count} functions are not 1 to {FUNCTIONS_MAX}");
        for function in &self.functions {
            function.check().with_context(|| format!("function {:?}", function.function))?;
        }
        Ok(())
    }

    /// Medians, for people.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "function", "request", "cold", "clone", "restore", "unpark", "dedup", "park", "again", "init",
            "purge", "warm", "clone", "parked", "stored", "alone", "written",
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for function in &self.functions {
            let FunctionModel { cold, clone, restore, unpark, .. } = function;
            let start = |start: &Start| ms(start.ready_ms.p50() + start.first_ms.p50());
            let parked = function.parked.all_bytes + function.parked_stored_bytes;
            table.add_row([
                function.function.clone(),
                ms(function.request_ms.p50()),
                start(cold),
                clone.as_ref().map_or_else(|| "-".into(), start),
                start(restore),
                start(unpark),
                ms(function.dedup_ms.p50()),
                ms(function.first_park_ms.p50()),
                ms(function.park_ms.p50()),
                ms(function.init_ms.p50()),
                ms(function.purge_ms.p50()),
                mib(function.warm.all_bytes as f64),
                mib(function.cloned.all_bytes as f64),
                mib(parked as f64),
                mib(function.stored_bytes as f64),
                mib(function.alone_bytes as f64),
                function.dirty.written_pages.to_string(),
            ]);
        }
        format!("Medians; a start is counted to ready, and what its first request takes longer\n{table}")
    }

    /// Only these functions, in this order.
    pub(crate) fn only(&self, names: &[String]) -> Result<Self> {
        let find = |name: &String| {
            let found = self.functions.iter().find(|function| function.function == *name);
            found.cloned().with_context(|| format!("the model has no function {name:?}"))
        };
        Ok(Self { functions: names.iter().map(find).collect::<Result<_>>()?, ..self.clone() })
    }

    /// Of function `number` of a trace.
    pub(crate) fn of(&self, number: u32) -> &FunctionModel {
        &self.functions[number as usize % self.functions.len()]
    }
}

impl FunctionModel {
    fn check(&self) -> Result<()> {
        let Self { cold, clone, restore, unpark, .. } = self;
        let starts = [cold, restore, unpark]
            .into_iter()
            .chain(clone)
            .flat_map(|start| [&start.ready_ms, &start.first_ms]);
        let others = [
            &self.request_ms,
            &self.dedup_ms,
            &self.first_park_ms,
            &self.park_ms,
            &self.init_ms,
            &self.base_ms,
            &self.purge_ms,
        ];
        starts.chain(others).try_for_each(Samples::check)?;
        for (name, held) in [("warm", self.warm), ("cloned", self.cloned), ("parked", self.parked)] {
            let good = held.private_bytes <= held.all_bytes && held.all_bytes <= BYTES_MAX;
            ensure!(good, "{name}: {held:?} makes no sense");
        }
        ensure!(self.warm.all_bytes > 0, "a warm sandbox holds memory");
        let sizes = [
            self.stored_bytes,
            self.alone_bytes,
            self.parked_stored_bytes,
            self.base_bytes,
            self.init_bytes,
            self.index_bytes,
        ];
        ensure!(sizes.iter().all(|bytes| *bytes <= BYTES_MAX), "a size is more than {BYTES_MAX} bytes");
        ensure!(self.base_bytes > 0, "a base has pages");
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A function of which everything always takes and holds the same.
    pub(crate) fn plain() -> FunctionModel {
        let ms = |value: f64| Samples::of([value]);
        let start = |ready, first| Start { ready_ms: ms(ready), first_ms: ms(first) };
        FunctionModel {
            function: "vanilla".into(),
            request_ms: ms(20.0),
            cold: start(60.0, 0.0),
            clone: Some(start(15.0, 5.0)),
            restore: start(40.0, 2.0),
            unpark: start(1.0, 10.0),
            dedup_ms: ms(70.0),
            first_park_ms: ms(50.0),
            park_ms: ms(20.0),
            init_ms: ms(80.0),
            base_ms: ms(75.0),
            purge_ms: ms(10.0),
            warm: Held { private_bytes: 9_000_000, all_bytes: 9_000_000 },
            cloned: Held { private_bytes: 5_000_000, all_bytes: 5_000_000 },
            parked: Held { private_bytes: 0, all_bytes: 500_000 },
            stored_bytes: 300_000,
            alone_bytes: 2_600_000,
            parked_stored_bytes: 400_000,
            base_bytes: 9_000_000,
            init_bytes: 8_000_000,
            index_bytes: 4_000_000,
            dirty: Dirty { hot_pages: 5, written_pages: 10, touched_pages: 20 },
        }
    }

    pub(crate) fn model() -> Model {
        Model { format: FORMAT, machine: Machine::default(), functions: vec![plain()] }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = serde_json::to_string(&model()).unwrap();
        assert_eq!(Model::parse(&text).unwrap(), model());
        assert_eq!(model().of(0), model().of(7));
    }

    #[test]
    fn the_model_of_this_repository_says_where_it_was_measured() {
        let Model { machine, functions, .. } = Model::open(None).unwrap();
        assert!(functions.len() >= 4, "{}", functions.len());
        assert!(!machine.commit.is_empty() && machine.command.contains("calibrate"), "{machine:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = serde_json::to_value(model()).unwrap();
            change(&mut value);
            assert!(Model::parse(&value.to_string()).is_err(), "{value}");
        };
        refused(&|value| value["format"] = 2.into());
        refused(&|value| value["functions"] = serde_json::json!([]));
        refused(&|value| value["functions"][0]["dedup_ms"] = serde_json::json!([]));
        refused(&|value| value["functions"][0]["dedup_ms"] = serde_json::json!([-1.0]));
        refused(&|value| value["functions"][0]["warm"]["all_bytes"] = 1.into());
        refused(&|value| value["functions"][0]["stored_bytes"] = u64::MAX.into());
        refused(&|value| value["functions"][0]["unknown"] = 1.into());
        refused(&|value| drop(value["functions"][0].as_object_mut().unwrap().remove("cold")));
    }
}
