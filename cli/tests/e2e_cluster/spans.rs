//! Spans of an agent, as a collector gets them.

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use tokio::{net::TcpListener, sync::mpsc};

use crate::{
    cluster::{Cluster, QUIET, can_run},
    program::PATIENCE,
};

/// A collector that hands on what it is sent.
struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).await.unwrap();
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Whether it is an operation of this name, and not a step of one.
fn is_whole(span: &Span, name: &str) -> bool {
    span.name == name && span.parent_span_id.iter().all(|byte| *byte == 0)
}

#[test]
fn what_an_agent_does_reaches_a_collector_with_its_steps() {
    if !can_run("what_an_agent_does_reaches_a_collector_with_its_steps") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (sender, mut sent) = mpsc::channel(64);
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    let streams = tokio_stream::wrappers::TcpListenerStream::new(listener);
    runtime.spawn(service.serve_with_incoming(streams));

    let cluster = Cluster::start(QUIET, &[("a", &["--spans", &endpoint])]);
    cluster.apply("f");
    let sandbox = cluster.start_on("a", "f");
    cluster.ask(&["dedup", &sandbox]);
    let mut spans: Vec<Span> = Vec::new();
    // Steps may come before what they are steps of, and one of a launch has its name.
    while !["launch", "dedup"].iter().all(|name| spans.iter().any(|span| is_whole(span, name))) {
        let next = runtime.block_on(async { tokio::time::timeout(PATIENCE, sent.recv()).await });
        for resource in next.unwrap().unwrap().resource_spans {
            let keys: Vec<_> =
                resource.resource.unwrap().attributes.into_iter().map(|one| (one.key, one.value)).collect();
            assert_eq!(keys.len(), 1, "the program's name, and nothing of the machine");
            assert!(format!("{keys:?}").contains("medes-agent"), "{keys:?}");
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let launch = spans.iter().find(|span| is_whole(span, "launch")).unwrap();
    assert!(format!("{:?}", launch.attributes).contains(&sandbox), "{launch:?}");
    let steps = spans.iter().filter(|span| span.parent_span_id == launch.span_id);
    assert_eq!(steps.map(|step| &step.name[..]).collect::<Vec<_>>(), ["house", "launch"]);
}
