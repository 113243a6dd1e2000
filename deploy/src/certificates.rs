//! The certificates of a cluster's programs: made where they are missing, by `medes cert`, and brought to the hosts.
//!
//! They are no part of a version: they are renewed on their own, and a version that is gone back to keeps working with them. A host
//! gets the authority's certificate and what belongs to the programs on it, never the authority's key.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use serde::Deserialize;

use crate::{
    archive::{Entry, What},
    hosts::Cluster,
};

/// Holders that every cluster has.
pub const CONTROLLER: &str = "controller";
/// By this one a deployment asks the controller. It lies on the controller's host.
pub const OPERATOR: &str = "operator";
/// What callers and people are shown, if anything; of another authority.
pub(crate) const HTTPS: &str = "https";
/// Files of these names are no node's.
pub(crate) const OTHERS: [&str; 4] = ["ca", CONTROLLER, OPERATOR, HTTPS];
const AUTHORITY: &str = "ca.pem";
/// A certificate that is good for no longer than this is told of.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// There are no certificates to bring to the hosts.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// The program that makes them.
    #[error("run {}", .program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What it printed is not what it should be.
    #[error("understand what `medes cert show` says of {}", .folder.display())]
    Answer {
        /// About which folder.
        folder: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// It said no.
    #[error("the certificate of {holder}: {said}")]
    Refused {
        /// Whose.
        holder: String,
        /// Its words.
        said: String,
    },
}

/// Where a holder's certificate lies on a host.
pub fn on_host(prefix: &str, holder: &str) -> String {
    format!("{prefix}/certs/{holder}.pem")
}

/// Who has a certificate, and in which role.
fn holders(cluster: &Cluster) -> Vec<(&'static str, &str)> {
    let agents = cluster.nodes.iter().map(|node| ("agent", &*node.name));
    [(CONTROLLER, CONTROLLER), (OPERATOR, OPERATOR)].into_iter().chain(agents).collect()
}

/// Those that are not there yet: the authority, then whose certificates.
pub fn missing<'a>(cluster: &'a Cluster, folder: &Path) -> Vec<&'a str> {
    let authority = (!folder.join(AUTHORITY).is_file()).then_some("the authority");
    let holders = holders(cluster).into_iter().map(|(_, name)| name);
    authority
        .into_iter()
        .chain(holders.filter(|name| !folder.join(format!("{name}.pem")).is_file()))
        .collect()
}

/// Makes what is missing in `folder`.
///
/// # Errors
/// `medes` cannot be run, or does not make one.
pub fn make(cluster: &Cluster, folder: &Path, programs: &Path) -> Result<(), CertificatesError> {
    if !folder.join(AUTHORITY).is_file() {
        cert(programs, folder, "the authority", &["init"])?;
    }
    for (role, name) in holders(cluster) {
        if !folder.join(format!("{name}.pem")).is_file() {
            cert(programs, folder, name, &["issue", role, name])?;
        }
    }
    Ok(())
}

/// The files of certificates that end within a month, or have ended.
///
/// # Errors
/// `medes` cannot be run, or does not understand them.
pub fn ending(folder: &Path, programs: &Path, now: SystemTime) -> Result<Vec<String>, CertificatesError> {
    let printed = cert(programs, folder, "anybody", &["show", "--json"])?;
    let shown: Vec<Shown> = serde_json::from_str(&printed)
        .map_err(|source| CertificatesError::Answer { folder: folder.into(), source })?;
    let soon = now + SOON;
    let ends = |one: &Shown| SystemTime::UNIX_EPOCH + Duration::from_secs(one.not_after) < soon;
    Ok(shown.into_iter().filter(ends).map(|one| one.file).collect())
}

/// A certificate as `medes cert show` prints it.
#[derive(Deserialize)]
struct Shown {
    file: String,
    /// Seconds since 1970.
    not_after: u64,
}

fn cert(programs: &Path, folder: &Path, holder: &str, verb: &[&str]) -> Result<String, CertificatesError> {
    let program = programs.join("medes");
    let made = Command::new(&program).arg("cert").arg("--dir").arg(folder).args(verb).output();
    let made = made.map_err(|source| CertificatesError::Run { program, source })?;
    if made.status.success() {
        return Ok(String::from_utf8_lossy(&made.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
    Err(CertificatesError::Refused { holder: holder.into(), said })
}

/// The files of one host.
pub fn of_host(cluster: &Cluster, folder: &Path, host: &str) -> Vec<Entry> {
    let on_controller = [CONTROLLER, OPERATOR].into_iter().filter(|_| cluster.controller.host == host);
    let agent = cluster.node_on(host).map(|node| &*node.name);
    let holders = on_controller.chain(agent);
    let files = holders.flat_map(|name| [format!("{name}.pem"), format!("{name}-key.pem")]);
    let ours = std::iter::once(AUTHORITY.to_owned()).chain(files).map(|name| (folder.join(&name), name));
    let https = cluster.controller.https.iter().filter(|_| cluster.controller.host == host);
    let https = https.flat_map(|file| {
        let key = format!("{}-key.pem", file.file_stem().unwrap_or_default().to_string_lossy());
        [(file.clone(), format!("{HTTPS}.pem")), (file.with_file_name(key), format!("{HTTPS}-key.pem"))]
    });
    ours.chain(https).map(|(from, name)| Entry { what: What::File { from, program: false }, name }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts.toml");
        let text = "[controller]\nhost = '10.0.0.1'\n[[node]]\nname = 'a'\nhost = '10.0.0.1'\n\
                    [[node]]\nname = 'b'\nhost = '10.0.0.2'\n";
        std::fs::write(&path, text).unwrap();
        Cluster::read(&path).unwrap()
    }

    #[test]
    fn a_host_gets_its_own_keys_and_no_others() {
        let cluster = cluster();
        let names = |host| -> Vec<String> {
            of_host(&cluster, Path::new("certs"), host).into_iter().map(|entry| entry.name).collect()
        };
        assert_eq!(names("10.0.0.2"), ["ca.pem", "b.pem", "b-key.pem"]);
        let first = [
            "ca.pem",
            "controller.pem",
            "controller-key.pem",
            "operator.pem",
            "operator-key.pem",
            "a.pem",
            "a-key.pem",
        ];
        assert_eq!(names("10.0.0.1"), first);
        let mut cluster = cluster;
        cluster.controller.https = Some("web/site.pem".into());
        let https: Vec<_> =
            of_host(&cluster, Path::new("certs"), "10.0.0.1").into_iter().skip(first.len()).collect();
        let file = |from: &str| What::File { from: from.into(), program: false };
        let name = |name: &str| name.to_owned();
        assert_eq!(
            https,
            [
                Entry { name: name("https.pem"), what: file("web/site.pem") },
                Entry { name: name("https-key.pem"), what: file("web/site-key.pem") },
            ]
        );
        assert_eq!(of_host(&cluster, Path::new("certs"), "10.0.0.2").len(), 3);
    }

    #[test]
    fn what_is_missing_is_told_and_a_program_that_is_not_there_too() {
        let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
        assert_eq!(missing(&cluster, folder.path()), ["the authority", "controller", "operator", "a", "b"]);
        std::fs::write(folder.path().join("ca.pem"), "").unwrap();
        std::fs::write(folder.path().join("a.pem"), "").unwrap();
        assert_eq!(missing(&cluster, folder.path()), ["controller", "operator", "b"]);
        let error = make(&cluster, folder.path(), folder.path()).unwrap_err();
        assert!(matches!(error, CertificatesError::Run { .. }), "{error:?}");
    }
}
