//! `medes cert init|issue|rotate|show`: the certificates of a cluster, in a folder. Needs no controller.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use medes_identity::{
    authority::{AUTHORITY_LIFETIME, LIFETIME},
    folder::{Entry, Folder, FolderError},
    identity::Role,
};
use medes_proto::{
    ids::{ClusterName, HolderName},
    units::Span,
};
use serde::Serialize;

use crate::{
    error::CliError,
    human,
    output::{Output, Sheet},
};

#[derive(Debug, clap::Args)]
pub(crate) struct CertArgs {
    /// The folder: ca.pem, ca-key.pem, and NAME.pem and NAME-key.pem for each holder
    #[arg(long, global = true, env = "MEDES_CERTS", value_name = "DIR", default_value = "medes-certs")]
    dir: PathBuf,

    #[command(subcommand)]
    verb: CertVerb,
}

#[derive(Debug, clap::Subcommand)]
enum CertVerb {
    /// Make the authority of a new cluster; it lives ten years
    ///
    /// Whoever has ca-key.pem can be anybody: keep the folder where people run the cluster from. A host gets ca.pem
    /// and the two files of its own holder.
    Init {
        /// The cluster's name, which all its certificates carry
        #[arg(long, default_value = "medes")]
        cluster: ClusterName,
    },
    /// Make a key and a certificate for somebody
    Issue {
        /// What it is there for: controller, agent, operator or invoker
        role: Role,
        /// Which one it is; of an agent, its node
        name: HolderName,
        /// How long it is good
        #[arg(long, value_name = "TIME", default_value_t = Span(LIFETIME))]
        lifetime: Span,
    },
    /// Make a new key and certificate for somebody who has one, in place of the old
    ///
    /// A program that runs with them uses the new ones within seconds, for new connections, without a restart.
    Rotate {
        /// Whose
        name: HolderName,
        /// How long it is good
        #[arg(long, value_name = "TIME", default_value_t = Span(LIFETIME))]
        lifetime: Span,
    },
    /// Say whose the certificates are, and for how long
    Show {
        /// Whose, or `ca` [default: all]
        name: Option<HolderName>,
    },
}

/// A certificate, as programs read it. Times are seconds since 1970.
#[derive(Serialize)]
struct CertView {
    file: String,
    /// `authority` of the cluster's own.
    role: String,
    identity: Option<String>,
    serial: String,
    not_before: u64,
    not_after: u64,
    expired: bool,
}

pub(crate) fn run(args: CertArgs, output: &Output) -> Result<(), CliError> {
    let now = SystemTime::now();
    let folder = Folder::new(args.dir);
    let lifetime = |span: Span| span.0.min(AUTHORITY_LIFETIME);
    match args.verb {
        CertVerb::Init { cluster } => one(folder.init(&cluster, now), "made", now, output),
        CertVerb::Issue { role, name, lifetime: span } => {
            one(folder.issue(role, &name, lifetime(span), now), "issued", now, output)
        }
        CertVerb::Rotate { name, lifetime: span } => {
            one(folder.rotate(&name, lifetime(span), now), "rotated", now, output)
        }
        CertVerb::Show { name } => {
            let entries = match name {
                Some(name) => folder.entry(&name).map(|entry| vec![entry]),
                None => folder.entries(),
            };
            show(&entries?, now, output)
        }
    }
}

fn one(
    made: Result<Entry, FolderError>,
    done: &str,
    now: SystemTime,
    output: &Output,
) -> Result<(), CliError> {
    let made = made?;
    let view = CertView::new(&made, now);
    output.answer(&view, || {
        let who = view.identity.as_deref().unwrap_or("authority");
        format!("{who} {done}: {}, {}\n", view.file, left(made.facts.until, now))
    })
}

fn show(entries: &[Entry], now: SystemTime, output: &Output) -> Result<(), CliError> {
    let views: Vec<_> = entries.iter().map(|entry| CertView::new(entry, now)).collect();
    output.answer(&views, || {
        let mut sheet = Sheet::new(&["FILE", "ROLE", "IDENTITY", "GOOD"]);
        for (view, entry) in views.iter().zip(entries) {
            let identity = view.identity.clone().unwrap_or_default();
            let good = left(entry.facts.until, now);
            sheet.row(vec![view.file.clone(), view.role.clone(), identity, good]);
        }
        sheet.text("no certificates")
    })
}

fn left(until: SystemTime, now: SystemTime) -> String {
    match until.duration_since(now) {
        Ok(left) => format!("for {}", human::age(left)),
        Err(over) => format!("no more for {}", human::age(over.duration())),
    }
}

impl CertView {
    fn new(entry: &Entry, now: SystemTime) -> Self {
        let Entry { path, identity, facts } = entry;
        let seconds = |moment: SystemTime| {
            moment.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| Duration::as_secs(&since))
        };
        Self {
            file: path.display().to_string(),
            role: identity.as_ref().map_or("authority".into(), |identity| identity.role.to_string()),
            identity: identity.as_ref().map(ToString::to_string),
            serial: facts.serial.clone(),
            not_before: seconds(facts.from),
            not_after: seconds(facts.until),
            expired: facts.until < now,
        }
    }
}
