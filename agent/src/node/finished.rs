//! Long work that has ended, as it is told outside: counted, and as a span with a child for each of its steps.

use std::time::{Duration, SystemTime};

use medes_metrics::spans::{KeyValue, Span};
use medes_proto::{
    failure::Failure,
    ids::{NodeId, SandboxId},
    sandbox::Phase,
};

use crate::metrics;

/// Work on one sandbox.
#[derive(Debug)]
pub(super) struct Finished<'a> {
    /// launch, clone, dedup, shrink, base or restore.
    pub(super) operation: &'static str,
    pub(super) sandbox: SandboxId,
    /// Its steps, or why it failed.
    pub(super) result: Result<&'a [Phase], &'a Failure>,
    pub(super) at: SystemTime,
}

impl Finished<'_> {
    pub(super) fn count(&self) {
        metrics::operation(self.operation, self.result.ok());
    }

    /// Of what failed it is not known how long it took.
    pub(super) fn span(&self, node: &NodeId) -> Span {
        let steps = self.result.unwrap_or_default().iter().map(|step| (step.name.clone(), step.took));
        let steps: Vec<(String, Duration)> = steps.collect();
        let mut attributes = vec![
            KeyValue::new("medes.node", node.to_string()),
            KeyValue::new("medes.sandbox", self.sandbox.to_string()),
        ];
        let failed = self.result.err().map(|why| KeyValue::new("medes.failed", why.kind.as_str_name()));
        attributes.extend(failed);
        let took = steps.iter().map(|(_, took)| *took).sum();
        Span { name: self.operation.into(), end: self.at, took, attributes, steps }
    }
}

#[cfg(test)]
mod tests {
    use medes_proto::failure::FailureKind;

    use super::*;

    fn finished<'a>(result: Result<&'a [Phase], &'a Failure>) -> Span {
        let sandbox = SandboxId::of(1, 7).unwrap();
        Finished { operation: "dedup", sandbox, result, at: SystemTime::UNIX_EPOCH }
            .span(&"n1".parse().unwrap())
    }

    #[test]
    fn what_was_done_has_its_steps_and_what_failed_its_reason() {
        let phases =
            [Phase::new("dump", Duration::from_millis(3)), Phase::new("encode", Duration::from_millis(9))];
        let done = finished(Ok(&phases));
        assert_eq!((done.name.as_str(), done.took), ("dedup", Duration::from_millis(12)));
        assert_eq!(done.steps.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>(), ["dump", "encode"]);
        let keys = |span: &Span| span.attributes.iter().map(|one| one.key.to_string()).collect::<Vec<_>>();
        assert_eq!(keys(&done), ["medes.node", "medes.sandbox"]);
        let why = Failure::new(FailureKind::Corrupt, "x");
        let failed = finished(Err(&why));
        assert_eq!((failed.took, failed.steps.len()), (Duration::ZERO, 0));
        assert_eq!(keys(&failed).last().map(String::as_str), Some("medes.failed"));
    }
}
