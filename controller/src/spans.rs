//! Spans (OpenTelemetry, OTLP over gRPC) from the same events as the trace: one for each start, dedup, base and
//! request, with a child for each of its steps. Off unless an endpoint is given.
//!
//! The exporter's queue is bounded, and what does not fit is dropped there; nothing ever waits for a collector.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use medes_proto::{
    sandbox::Phase,
    trace::{Event, Filter, Item, TraceKind, What},
};
use opentelemetry::{
    Context, KeyValue,
    trace::{Span as _, SpanBuilder, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::trace::{Hub, TooManySubscribers};

/// How long the collector may take for one batch.
const EXPORT_MAX: Duration = Duration::from_secs(5);
/// How long the last batch may take when the controller ends.
const SHUT_MAX: Duration = Duration::from_secs(1);
/// Events that have a length.
const KINDS: [TraceKind; 4] = [TraceKind::Ready, TraceKind::Dedup, TraceKind::Base, TraceKind::Request];

/// Why no spans are exported.
#[derive(Debug, thiserror::Error)]
pub enum StartSpansError {
    /// The endpoint cannot be understood.
    #[error("export spans")]
    Exporter(#[from] ExporterBuildError),
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
    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_MAX).build()?;
    // Only this name: nothing is found out about the machine.
    let name = KeyValue::new("service.name", "medes-controller");
    let resource = Resource::builder_empty().with_attribute(name).build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let tracer = provider.tracer("medes");
    let mut events = hub.subscribe(Filter { kinds: KINDS.to_vec(), ..Filter::default() })?;
    tasks.spawn(async move {
        loop {
            tokio::select! {
                item = events.next() => match item {
                    Item::Event(event) => tell(&tracer, &event),
                    Item::Dropped(count) => tracing::warn!(count, "events came faster than spans were made of them"),
                    Item::Begin => {}
                },
                () = stop.cancelled() => break,
            }
        }
        drop(events);
        // Waits for the last batch, in a thread of its own.
        let shut = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(SHUT_MAX)).await;
        if let Ok(Err(error)) = shut {
            tracing::info!(%error, "the last spans were not exported");
        }
    });
    Ok(())
}

/// What a span says.
#[derive(Debug, PartialEq)]
struct Told {
    name: String,
    end: SystemTime,
    took: Duration,
    attributes: Vec<KeyValue>,
    steps: Vec<Phase>,
}

/// The span of an event; `None` for one without a length.
fn told(event: &Event) -> Option<Told> {
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
    Some(Told { name, end, took, attributes, steps: steps.clone() })
}

fn count(name: String, value: u64) -> KeyValue {
    KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
}

/// Makes the span of an event and those of its steps.
fn tell(tracer: &SdkTracer, event: &Event) {
    let Some(Told { name, end, took, attributes, steps }) = told(event) else { return };
    let start = end.checked_sub(took).unwrap_or(end);
    let builder = SpanBuilder::from_name(name).with_start_time(start).with_attributes(attributes);
    let mut span = tracer.build_with_context(builder, &Context::new());
    let inside = Context::new().with_remote_span_context(span.span_context().clone());
    let mut from = start;
    for step in steps {
        let builder = SpanBuilder::from_name(step.name).with_start_time(from);
        from += step.took;
        tracer.build_with_context(builder, &inside).end_with_timestamp(from);
    }
    span.end_with_timestamp(end);
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
        assert_eq!((span.name.as_str(), span.took, span.steps), ("restore", took, phases));
        assert_eq!(span.end, SystemTime::UNIX_EPOCH + Duration::from_secs(5));
        let keys: Vec<_> = span.attributes.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(keys, ["medes.function", "medes.event"]);
        assert_eq!(told(&event(What::Asked { operation: "dedup".into() })), None);
    }
}
