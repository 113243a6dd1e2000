//! The parts of a bundle, each without secrets; what cannot be had, with the reason.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use medes_agent::doctor;
use serde::Serialize;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{SupportArgs, redact};
use crate::{
    client::{Address, Client},
    error::{CliError, sentence},
    explain, function, nodes, policy, ps,
};

/// Of the end of a log, or of a configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Of what a program says of itself.
const METRICS_BYTES_MAX: u64 = 16 << 20;
/// A program that takes longer to say it is one of those that could not be asked.
const METRICS_MAX: Duration = Duration::from_secs(5);
/// What a package has there.
const CONFIGS: [&str; 3] =
    ["/etc/medes/controller.toml", "/etc/medes/controller.env", "/etc/medes/agent.env"];

/// Parts, by their names in the bundle.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) parts: Vec<(String, Vec<u8>)>,
    pub(super) missing: Vec<Missing>,
}

/// What could not be had.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Missing {
    pub(super) name: String,
    pub(super) why: String,
}

impl Gathered {
    fn text(&mut self, name: impl Into<String>, text: &str) {
        self.parts.push((name.into(), redact::text(text).into_bytes()));
    }

    fn json(&mut self, name: impl Into<String>, value: &impl Serialize) {
        match serde_json::to_value(value) {
            Ok(mut value) => {
                redact::json(&mut value);
                self.parts.push((name.into(), format!("{value:#}\n").into_bytes()));
            }
            Err(error) => self.lacks(name, &error),
        }
    }

    fn lacks(&mut self, name: impl Into<String>, why: &dyn std::error::Error) {
        self.missing.push(Missing { name: name.into(), why: redact::text(&sentence(why)) });
    }
}

/// Everything, as far as it can be had.
pub(super) async fn all(
    args: &SupportArgs,
    connect: impl AsyncFnOnce() -> Result<Client, CliError>,
) -> Gathered {
    let mut gathered = Gathered::default();
    this_machine(&mut gathered).await;
    match connect().await {
        Ok(client) => cluster(&client, args.sandboxes, &mut gathered).await,
        Err(error) => gathered.lacks("cluster", &error),
    }
    for address in &args.metrics {
        for path in ["metrics", "readyz"] {
            let name = format!("{path}/{}.txt", address.to_string().replace(':', "_"));
            match tokio::time::timeout(METRICS_MAX, said(address, path)).await {
                Ok(Ok(said)) => gathered.text(name, &said),
                Ok(Err(error)) => gathered.lacks(name, &error),
                Err(elapsed) => gathered.lacks(name, &elapsed),
            }
        }
    }
    let packaged = || CONFIGS.iter().map(PathBuf::from).filter(|path| path.is_file()).collect();
    let configs = if args.configs.is_empty() { packaged() } else { args.configs.clone() };
    for (folder, files) in [("config", &configs), ("logs", &args.logs)] {
        for (at, file) in files.iter().enumerate() {
            // Two may have the same name in different folders.
            let own = file.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("{folder}/{at}-{own}");
            match end(file) {
                Ok(text) => gathered.text(name, &text),
                Err(error) => gathered.lacks(name, &error),
            }
        }
    }
    let index = json!({"missing": gathered.missing, "parts": gathered.parts.len()});
    gathered.json("index.json", &index);
    gathered
}

async fn this_machine(gathered: &mut Gathered) {
    let kernel = nix::sys::utsname::uname();
    let kernel = kernel.map(|it| it.release().to_string_lossy().into_owned()).unwrap_or_default();
    let system = end(Path::new("/etc/os-release")).unwrap_or_default();
    let name = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let about = json!({
        "medes": env!("CARGO_PKG_VERSION"),
        "kernel": kernel,
        "machine": std::env::consts::ARCH,
        "system": name.map(|name| name.trim_matches('"')),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
    });
    gathered.json("machine.json", &about);
    match Box::pin(doctor::examine_alone(&doctor::Inputs::default())).await {
        Ok(report) => gathered.json("doctor.json", &report.checks),
        Err(error) => gathered.lacks("doctor.json", &error),
    }
}

async fn cluster(client: &Client, sandboxes: usize, gathered: &mut Gathered) {
    match nodes::view(client).await {
        Ok(view) => gathered.json("nodes.json", &view),
        Err(error) => gathered.lacks("nodes.json", &error),
    }
    match function::views(client).await {
        Ok(mut views) => {
            views.iter_mut().for_each(function::FunctionView::forget_secrets);
            gathered.json("functions.json", &views);
        }
        Err(error) => gathered.lacks("functions.json", &error),
    }
    match policy::toml(client).await {
        Ok(toml) => gathered.text("policy.toml", &toml),
        Err(error) => gathered.lacks("policy.toml", &error),
    }
    let rows = match ps::rows(client).await {
        Ok(rows) => rows,
        Err(error) => return gathered.lacks("sandboxes.json", &error),
    };
    gathered.json("sandboxes.json", &ps::views(&rows));
    let mut latest: Vec<_> = rows.iter().map(|row| (row.report.state_age, row.report.id)).collect();
    latest.sort();
    for (_, sandbox) in latest.into_iter().take(sandboxes) {
        let name = format!("explain/{sandbox}.json");
        match explain::ask(client, sandbox).await {
            Ok(explained) => gathered.json(name, &explain::view(sandbox, &explained)),
            Err(error) => gathered.lacks(name, &error),
        }
    }
}

/// What a program says of itself at the address that it serves metrics at.
async fn said(address: &Address, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address.to_string()).await?;
    // An old version of the protocol, in which the end of an answer is the end of the connection.
    stream.write_all(format!("GET /{path} HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(METRICS_BYTES_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (_head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    Ok(body.to_owned())
}

/// The end of a file, from the beginning of a line on.
fn end(file: &Path) -> io::Result<String> {
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    let skipped = length.saturating_sub(FILE_BYTES_MAX);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(match text.split_once('\n') {
        Some((_part_of_a_line, rest)) if skipped > 0 => format!("({skipped} bytes before)\n{rest}"),
        _ => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_file_its_end_goes_along() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        let line = "x".repeat(99) + "\n";
        std::fs::write(&file, line.repeat(20_000) + "the end\n").unwrap();
        let end = end(&file).unwrap();
        assert!(end.starts_with("(951"), "{}", &end[..40]);
        assert!(end.ends_with("\nthe end\n") && end.len() as u64 <= FILE_BYTES_MAX + 40);
        assert!(end.lines().skip(1).all(|line| line.len() == 99 || line == "the end"), "whole lines");
    }
}
