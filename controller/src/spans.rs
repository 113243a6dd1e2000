//! Spans from the same events as the trace: one for each start, dedup, base and request, with a child for each of its steps.
//! Off unless an endpoint is given.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use medes_metrics::spans::{Exporter, KeyValue, Span, StartExporterError};
use medes_proto::{
    sandbox::Phase,
    trace::{Event, Filter, Item, TraceKind, What},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::trace::{Hub, TooManySubscribers};

/// Events that have a length.
const KINDS: [TraceKind; 4] = [TraceKind::Ready, TraceKind::Dedup, TraceKind::Base, TraceKind::Request];

/// Why no spans are exported.
#[derive(Debug, thiserror::Error)]
pub enum StartSpansError {
    /// The endpoint cannot be understood.
    #[error(transparent)]
    Exporter(#[from] StartExporterError),
    /// The trace has no place for one more subscriber.
    #[error("follow the trace for spans")]
    Subscribe(#[from] TooManySubscribers),
}

/// Exports spans to `endpoint` (such as `http://127.0.0.1:4317`) until `stop`. Call it inside the runtime.
pub(crate) fn export(
    endpoint: &str,
    hub: &Arc<Hub>,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<(), StartSpansError> {
    let exporter = Exporter::start("medes-controller", endpoint)?;
    let mut events = hub.subscribe(Filter { kinds: KINDS.to_vec(), ..Filter::default() })?;
    tasks.spawn(async move {
        loop {
            tokio::select! {
                item = events.next() => match item {
                    Item::Event(event) => told(&event).into_iter().for_each(|span| exporter.tell(span)),
                    Item::Dropped(count) => tracing::warn!(count, "events came faster than spans were made of them"),
                    Item::Begin => {}
                },
                () = stop.cancelled() => break,
            }
        }
        drop(events);
        exporter.shut().await;
    });
    Ok(())
}

/// The span of an event; `None` for one without a length.
fn told(event: &Event) -> Option<Span> {
    let sum = |steps: &[Phase]| steps.iter().map(|step| step.took).sum::<Duration>();
    let (name, took, steps, mut attributes) = match &event.what {
        What::Ready { start, took, phases } => (start.word().to_owned(), *took, phases, Vec::new()),
        What::Request { start, phases } => {
            let start = KeyValue::new("medes.start", start.word());
            ("request".to_owned(), sum(phases), phases, vec![start])
        }
        What::Base(base) if base.made => {
            let made = vec![count("medes.pages".into(), base.pages), count("medes.bytes".into(), base.bytes)];
            ("base".to_owned(), sum(&base.phases), &base.phases, made)
        }
        What::Dedup(dedup) => {
            let mut made: Vec<_> = [
                ("medes.bytes_in", dedup.bytes_in),
                ("medes.bytes_out", dedup.bytes_out),
                ("medes.pages.reused", dedup.pages.reused),
            ]
            .map(|(name, value)| count(name.into(), value))
            .into();
            let classes = dedup.pages.by_class().into_iter();
            made.extend(classes.map(|(class, pages)| count(format!("medes.pages.{class}"), pages)));
            ("dedup".to_owned(), sum(&dedup.phases), &dedup.phases, made)
        }
        _ => return None,
    };
    let about = &event.about;
    attributes.extend(about.node.as_ref().map(|node| KeyValue::new("medes.node", node.to_string())));
    attributes.extend(about.sandbox.map(|id| KeyValue::new("medes.sandbox", id.to_string())));
    attributes.extend(about.function.as_ref().map(|name| KeyValue::new("medes.function", name.to_string())));
    attributes.push(KeyValue::new("medes.event", event.id.to_string()));
    let end = SystemTime::UNIX_EPOCH + Duration::from_micros(event.unix_micros);
    let steps = steps.iter().map(|step| (step.name.clone(), step.took)).collect();
    Some(Span { name, end, took, attributes, steps })
}

fn count(name: String, value: u64) -> KeyValue {
    KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use medes_proto::{
        sandbox::StartKind,
        trace::{About, EventId},
    };

    use super::*;

    fn event(what: What) -> Event {
        let function = Some("html".parse().unwrap());
        let about = About { function, ..About::default() };
        Event { id: EventId::new(1 << 32 | 7).unwrap(), unix_micros: 5_000_000, about, what }
    }

    #[test]
    fn a_start_is_a_span_that_ends_when_it_was_told() {
        let phases =
            vec![Phase::new("open", Duration::from_millis(3)), Phase::new("criu", Duration::from_millis(9))];
        let took = Duration::from_millis(20);
        let ready = What::Ready { start: StartKind::Restore, took, phases: phases.clone() };
        let span = told(&event(ready)).unwrap();
        let steps = phases.iter().map(|phase| (phase.name.clone(), phase.took)).collect();
        assert_eq!((span.name.as_str(), span.took, span.steps), ("restore", took, steps));
        assert_eq!(span.end, SystemTime::UNIX_EPOCH + Duration::from_secs(5));
        let keys: Vec<_> = span.attributes.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(keys, ["medes.function", "medes.event"]);
        assert_eq!(told(&event(What::Asked { operation: "dedup".into() })), None);
    }
}
