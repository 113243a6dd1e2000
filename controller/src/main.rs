//! `medes-controller`: reads its arguments, runs the controller until SIGINT or SIGTERM.

mod inherited;

use std::{
    fs::File,
    io::{IsTerminal, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use clap::Parser;
use medes_controller::{
    config::{DEFAULTS, Document},
    server::{Controller, Place, Sockets},
    tuner::Reloaded,
};
use medes_identity::{identity::Role, security::Security, web::WebCertificate};
use medes_metrics::{health::Health, list::Of};
use nix::sys::prctl;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The controller of a Medes cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Folder of the store. Made if it is not there.
    #[arg(long, value_name = "DIR", required_unless_present = "print_config")]
    state_dir: Option<PathBuf>,
    /// Where agents and tools connect (gRPC). Not used where a socket named `control` is inherited (LISTEN_FDS).
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    control: SocketAddr,
    /// Where callers connect (HTTP). Not used where a socket named `gateway` is inherited.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    gateway: SocketAddr,
    /// Serve a page for people who operate the cluster here, over HTTP; default: nowhere.
    #[arg(long, value_name = "ADDRESS")]
    page: Option<SocketAddr>,
    /// Configuration file; see --print-config.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Change one line of the configuration, for example --set policy.idle=5s.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Serve metrics (Prometheus) here, at /metrics; default: nowhere.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// Export spans (OpenTelemetry, OTLP over gRPC) to this collector, such as http://127.0.0.1:4317; default: nowhere.
    #[arg(long, value_name = "URL")]
    spans: Option<String>,
    /// Certificate of this controller; its key (NAME-key.pem) and the cluster's ca.pem lie in the same folder.
    #[arg(long, env = "MEDES_IDENTITY", value_name = "NAME.pem")]
    identity: Option<PathBuf>,
    /// Serve callers and people over HTTPS with this certificate, of an authority that they know; default: plain HTTP. Read again when it changes.
    #[arg(long, value_name = "NAME.pem")]
    https: Option<PathBuf>,
    /// Its key; default: NAME-key.pem, beside it.
    #[arg(long, value_name = "FILE", requires = "https")]
    https_key: Option<PathBuf>,
    /// Serve others than this machine without certificates: whoever reaches the port may do everything.
    #[arg(long, conflicts_with = "identity")]
    plaintext: bool,
    /// Print the default configuration and end.
    #[arg(long)]
    print_config: bool,
    /// Write the line with the addresses to this file descriptor, not to standard output, and close it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..))]
    ready_fd: Option<u32>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.print_config {
        print!("{DEFAULTS}");
        return ExitCode::SUCCESS;
    }
    // It has tenants' keys and bodies of requests in memory: no core dump may have them, wherever the host sends those.
    if let Err(error) = prctl::set_dumpable(false) {
        eprintln!("medes-controller: keep memory out of core dumps: {error}");
        return ExitCode::FAILURE;
    }
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("MEDES_LOG").unwrap_or_else(|_unset| "info".into());
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    let started = inherited::take().context("take the sockets that were inherited");
    match started.and_then(|sockets| run(arguments, sockets)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("medes-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What callers and people are shown, if they are shown anything.
fn web(file: Option<&Path>, key: Option<&Path>) -> anyhow::Result<Option<WebCertificate>> {
    let load = |file| WebCertificate::load(file, key, SystemTime::now());
    file.map(load).transpose().context("load the certificate for callers")
}

/// For the metrics' last readers, after everything else has ended.
const METRICS_STOP_MAX: Duration = Duration::from_secs(1);

#[tokio::main]
async fn run(arguments: Arguments, sockets: Sockets) -> anyhow::Result<bool> {
    let config = read(arguments.config.as_deref(), &arguments.set)?.check()?;
    let state_dir = arguments.state_dir.context("--state-dir is missing")?;
    // Before the ports are open: who is told that we listen may stop us at once.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let (tasks, close) = (TaskTracker::new(), CancellationToken::new());
    let health = Health::default();
    let metrics = match arguments.metrics {
        Some(address) => {
            Some(medes_metrics::serve(Of::Controller, (address, &health), &tasks, close.clone()).await?)
        }
        None => None,
    };
    let (control, gateway, page, spans) =
        (arguments.control, arguments.gateway, arguments.page, arguments.spans);
    let here: Vec<_> = sockets.addresses(control, gateway).into_iter().chain(page).collect();
    let security =
        Security::choose(arguments.identity.as_deref(), arguments.plaintext, &here, SystemTime::now())?;
    security.must_be(Role::Controller, None)?;
    let web = web(arguments.https.as_deref(), arguments.https_key.as_deref())?;
    let place = Place { state_dir, control, gateway, page, spans, security, web };
    let controller = Controller::start_at(place, config, sockets).await?;
    health.answered_by(controller.lacks());
    let line = serde_json::json!({
        "control": controller.control.to_string(),
        "gateway": controller.gateway.to_string(),
        "page": controller.page.map(|address| address.to_string()),
        "metrics": metrics.map(|address| address.to_string()),
    });
    say_ready(arguments.ready_fd, &format!("{line}\n"))?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => break tracing::info!("stopping on SIGINT"),
            _ = terminate.recv() => break tracing::info!("stopping on SIGTERM"),
            _ = hang_up.recv() => reload(&controller, arguments.config.as_deref(), &arguments.set).await,
        }
    }
    let clean = controller.stop().await;
    close.cancel();
    tasks.close();
    // Somebody may be reading them, and may read for ever.
    let ended = tokio::time::timeout(METRICS_STOP_MAX, tasks.wait()).await.is_ok();
    let clean = clean && ended;
    if !clean {
        tracing::warn!("some requests or streams were cut off");
    }
    Ok(clean)
}

/// The configuration as it is written now.
fn read(file: Option<&Path>, changes: &[String]) -> anyhow::Result<Document> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?,
        None => String::new(),
    };
    Ok(Document::read(&text)?.with(changes)?)
}

/// What is wrong with it changes nothing, and is told.
async fn reload(controller: &Controller, file: Option<&Path>, changes: &[String]) {
    let reloaded = match read(file, changes) {
        Ok(document) => controller.reload(&document).await.map_err(anyhow::Error::new),
        Err(error) => Err(error),
    };
    match reloaded {
        Ok(Reloaded { changed, later }) => {
            tracing::info!(changed, "configuration read again");
            if !later.is_empty() {
                tracing::warn!(
                    sections = later.join(", "),
                    "what is new there counts when the controller is started again"
                );
            }
        }
        Err(error) => tracing::error!("configuration not taken over, the old one stays: {error:#}"),
    }
}

fn say_ready(descriptor: Option<u32>, line: &str) -> anyhow::Result<()> {
    match descriptor {
        // Opening it anew by number needs no unsafe code, and works for pipes and files.
        Some(number) => File::options()
            .write(true)
            .open(format!("/proc/self/fd/{number}"))
            .and_then(|mut pipe| pipe.write_all(line.as_bytes()))
            .with_context(|| format!("write to descriptor {number}")),
        None => {
            let mut out = std::io::stdout();
            out.write_all(line.as_bytes()).and_then(|()| out.flush()).context("write to standard output")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the manifest for Kubernetes says.
    #[test]
    fn a_controller_understands_what_its_manifest_says() {
        let manifest = include_str!("../../dist/chart/templates/controller.yaml");
        let lines = manifest.lines().filter_map(|line| line.trim().strip_prefix("- --"));
        let arguments: Vec<_> = lines.map(|line| format!("--{line}")).collect();
        assert!(arguments.len() > 4, "{arguments:?}");
        let told = Arguments::try_parse_from([vec!["medes-controller".to_owned()], arguments].concat());
        let told = told.unwrap();
        assert_eq!(told.config.unwrap(), Path::new("/etc/medes/controller.toml"));
        assert_eq!((told.control.port(), told.gateway.port()), (7070, 7080));
    }
}
