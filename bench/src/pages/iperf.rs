//! What a plain stream of bytes over TCP does on this machine, by iperf3: what the page service is held against.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::report::Row;

/// How often a client tries to find its server.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// A server that ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself after its one client.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One connection over loopback, and two as the page service has them.
pub(super) fn measure(each: Duration) -> Result<Vec<Row>> {
    let rows = [("iperf3, one connection", "1"), ("iperf3, two connections", "2")];
    rows.into_iter().map(|(name, connections)| Ok(Row::stream(name, stream(connections, each)?))).collect()
}

/// Bytes in a second that arrived.
fn stream(connections: &str, each: Duration) -> Result<f64> {
    let port = TcpListener::bind("127.0.0.1:0").context("find a port")?.local_addr()?.port().to_string();
    let server = Command::new("iperf3")
        .args(["--server", "--one-off", "--bind", "127.0.0.1", "--port", &port])
        .stdout(Stdio::null())
        .spawn()
        .context("start iperf3 (the package iperf3 has it)")?;
    let _server = Server(server);
    let seconds = each.as_secs().max(1).to_string();
    let client = || {
        let arguments = ["--client", "127.0.0.1", "--port", &port, "--json", "--time", &seconds];
        Command::new("iperf3").args(arguments).args(["--parallel", connections]).output()
    };
    let mut output = client().context("start iperf3")?;
    for _try in 0..TRIES {
        if output.status.success() {
            break;
        }
        std::thread::sleep(PAUSE);
        output = client().context("start iperf3")?;
    }
    ensure!(output.status.success(), "iperf3 ended with {}", output.status);
    let said: Value = serde_json::from_slice(&output.stdout).context("understand iperf3")?;
    let bits = said["end"]["sum_received"]["bits_per_second"].as_f64().context("no rate in its answer")?;
    Ok(bits / 8.0)
}
