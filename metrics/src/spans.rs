//! Spans (OpenTelemetry, OTLP over gRPC): the way out of a program for whatever had a length, with a child for each of its steps.
//!
//! The exporter's queue is bounded, and what does not fit is dropped there; nothing ever waits for a collector.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context,
    trace::{Span as _, SpanBuilder, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};

pub use opentelemetry::KeyValue;

/// How long the collector may take for one batch.
const EXPORT_MAX: Duration = Duration::from_secs(5);
/// How long the last batch may take when the program ends.
const SHUT_MAX: Duration = Duration::from_secs(1);

/// An exporter that cannot start: its endpoint is not to be understood.
#[derive(Debug, thiserror::Error)]
#[error("export spans")]
pub struct StartExporterError(#[from] ExporterBuildError);

/// What a span says.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// What was done.
    pub name: String,
    /// When it ended.
    pub end: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What it was about.
    pub attributes: Vec<KeyValue>,
    /// Its steps, one after the other from its beginning on.
    pub steps: Vec<(String, Duration)>,
}

/// Hands spans to a collector.
pub struct Exporter {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl Exporter {
    /// Exports to `endpoint` (such as `http://127.0.0.1:4317`) under the name of a program. Call it inside the runtime.
    pub fn start(program: &'static str, endpoint: &str) -> Result<Self, StartExporterError> {
        let exporter =
            SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_MAX).build()?;
        // Only this name: nothing is found out about the machine.
        let name = KeyValue::new("service.name", program);
        let resource = Resource::builder_empty().with_attribute(name).build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let tracer = provider.tracer("medes");
        Ok(Self { provider, tracer })
    }

    /// Queues a span. Never waits.
    pub fn tell(&self, span: Span) {
        let Span { name, end, took, attributes, steps } = span;
        let start = end.checked_sub(took).unwrap_or(end);
        let builder = SpanBuilder::from_name(name).with_start_time(start).with_attributes(attributes);
        let mut span = self.tracer.build_with_context(builder, &Context::new());
        let inside = Context::new().with_remote_span_context(span.span_context().clone());
        let mut from = start;
        for (name, took) in steps {
            let builder = SpanBuilder::from_name(name).with_start_time(from);
            from += took;
            self.tracer.build_with_context(builder, &inside).end_with_timestamp(from);
        }
        span.end_with_timestamp(end);
    }

    /// Sends what is still queued, for a moment at most; what is told afterwards goes nowhere.
    pub async fn shut(&self) {
        // In a thread of its own: it blocks.
        let provider = self.provider.clone();
        let shut = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(SHUT_MAX)).await;
        if let Ok(Err(error)) = shut {
            tracing::info!(%error, "the last spans were not exported");
        }
    }
}
