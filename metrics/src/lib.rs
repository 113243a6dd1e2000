//! What the programs of Medes tell other systems: metrics, with one list of names, units and meanings and the endpoint that
//! serves them, [`health`] at the same address, and [`spans`].
//!
//! Programs count with the `metrics` crate's macros wherever something happens. Without an endpoint nothing
//! listens, and a count costs next to nothing.
#![forbid(unsafe_code)]

pub mod health;
pub mod list;
pub mod spans;

use std::{io, net::SocketAddr, time::Duration};

use axum::{Router, routing::get};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use health::Health;
use list::{Kind, Of};

/// Upper bounds of the histograms' buckets, in seconds: a delta of pages to a slow cold start.
const BUCKETS: [f64; 14] =
    [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// How often values are moved into their buckets, so that none pile up when nobody asks.
const UPKEEP: Duration = Duration::from_secs(5);

/// An endpoint that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port.
    #[error("listen on {address} for metrics")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The buckets.
    #[error("set up metrics")]
    Recorder(#[from] BuildError),
    /// There is an endpoint in this process already.
    #[error("metrics are served already")]
    Twice,
}

/// Serves `GET /metrics`, `/healthz` and `/readyz` until `stop`; its tasks are in `tasks`. Returns where it listens.
///
/// From here on this process's counts are kept, so it comes before whatever is to be counted.
pub async fn serve(
    program: Of,
    (address, health): (SocketAddr, &Health),
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<SocketAddr, StartError> {
    let listen = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    let seconds = Matcher::Suffix("_seconds".into());
    let recorder = PrometheusBuilder::new().set_buckets_for_metric(seconds, &BUCKETS)?.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_set_before| StartError::Twice)?;
    describe(program);
    let rendered = handle.clone();
    let routes = Router::new().route("/metrics", get(async move || rendered.render())).merge(health.routes());
    let server = axum::serve(listener, routes).with_graceful_shutdown(stop.clone().cancelled_owned());
    tasks.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    tasks.spawn(async move {
        let mut tick = tokio::time::interval(UPKEEP);
        loop {
            tokio::select! {
                _ = tick.tick() => handle.run_upkeep(),
                () = stop.cancelled() => return,
            }
        }
    });
    Ok(bound)
}

fn describe(program: Of) {
    for metric in list::of(program) {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}
