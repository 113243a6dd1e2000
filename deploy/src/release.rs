//! What is copied to a host: programs, a private CRIU, and what is to run there. A version's name says what is in it,
//! so the same version is never copied or started twice.

use std::path::{Path, PathBuf};

use crate::{
    archive::{self, ArchiveError, Entry, What},
    elf::{self, Glibc},
    hosts::Cluster,
    probe::Init,
    service::Service,
    services, units,
};

/// The programs that a host gets.
pub const PROGRAMS: [&str; 4] = ["medes", "medes-agent", "medes-controller", "medes-supervise"];
/// Characters of a hash in a version's name.
const HASH_CHARS: usize = 10;

/// What every host gets.
#[derive(Clone, Debug)]
pub struct Release {
    entries: Vec<Entry>,
    hash: String,
    criu: bool,
    /// What the programs need.
    pub glibc: Option<Glibc>,
}

/// What one host gets.
#[derive(Clone, Debug)]
pub struct HostRelease {
    /// `0.1.0-RELEASE-HOST`: the programs', and the host's own files' hash.
    pub version: String,
    /// Everything, relative to the version's folder.
    pub entries: Vec<Entry>,
    /// The services, in the order in which they start.
    pub services: Vec<(&'static str, Service)>,
}

/// There is nothing to deploy.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A program cannot be read.
    #[error("read {}; build it first (`cargo xtask build --release`)", .path.display())]
    Program {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The private CRIU.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A service's description.
    #[error("describe a service")]
    Service(#[from] toml::ser::Error),
}

impl Release {
    /// The programs of a folder, and a CRIU of our own where one is given.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn gather(programs: &Path, criu: Option<&Path>) -> Result<Self, ReleaseError> {
        let mut entries = Vec::new();
        let mut glibc = None;
        for name in PROGRAMS {
            let from = programs.join(name);
            let needs = elf::needs(&from);
            glibc = glibc.max(needs.map_err(|source| ReleaseError::Program { path: from.clone(), source })?);
            entries.push(Entry { name: format!("bin/{name}"), what: What::File { from, program: true } });
        }
        if let Some(criu) = criu {
            entries.extend(archive::folder(criu, "criu")?);
        }
        Ok(Self { hash: hash(&entries)?, criu: criu.is_some(), entries, glibc })
    }

    /// What a host of the cluster gets.
    ///
    /// # Errors
    /// None that could be helped: descriptions are plain data.
    pub fn of_host(&self, cluster: &Cluster, host: &str, init: Init) -> Result<HostRelease, ReleaseError> {
        let services = services::of_host(cluster, host, self.criu, init);
        let mut own = Vec::new();
        let mut text = |name: String, text: String| {
            own.push(Entry { name, what: What::Text(text.into_bytes()) });
        };
        for (name, service) in &services {
            text(format!("service/{name}.toml"), toml::to_string(service)?);
        }
        if cluster.controller.host == host
            && let Some(config) = &cluster.controller.config
        {
            text("etc/controller.toml".into(), config.clone());
        }
        let version = format!("{}-{}-{}", env!("CARGO_PKG_VERSION"), self.hash, hash(&own)?);
        // Units name the folder that they lie in, so they come after the name and are not part of it.
        let folder = PathBuf::from(&cluster.prefix).join("versions").join(&version);
        let units = services
            .iter()
            .flat_map(|(name, service)| units::of_service(name, service, &cluster.prefix, &folder));
        let units: Vec<_> = units.collect();
        own.extend(units.into_iter().map(|unit| Entry {
            name: format!("systemd/{}", unit.name),
            what: What::Text(unit.text.into_bytes()),
        }));
        let entries = self.entries.iter().chain(&own).cloned().collect();
        Ok(HostRelease { version, entries, services })
    }
}

/// Over names, kinds and bytes.
fn hash(entries: &[Entry]) -> Result<String, ArchiveError> {
    let mut hasher = blake3::Hasher::new();
    archive::write(entries, &mut hasher)?;
    Ok(hasher.finalize().to_hex()[..HASH_CHARS].to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn cluster(cap: &str) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts.toml");
        let text = format!(
            "[controller]\nhost = '10.0.0.1'\n[[node]]\nname = 'a'\nhost = '10.0.0.1'\n\
             [[node]]\nname = 'b'\nhost = '10.0.0.2'\nmemory_cap = '{cap}'\n"
        );
        fs::write(&path, text).unwrap();
        Cluster::read(&path).unwrap()
    }

    fn programs(word: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        PROGRAMS.iter().for_each(|name| fs::write(folder.path().join(name), word).unwrap());
        folder
    }

    #[test]
    fn a_version_changes_with_what_is_in_it_and_with_nothing_else() {
        let (one, two) = (programs("one"), programs("two"));
        let version = |programs: &tempfile::TempDir, cap: &str, host: &str| {
            let release = Release::gather(programs.path(), None).unwrap();
            release.of_host(&cluster(cap), host, Init::Supervise).unwrap().version
        };
        assert_eq!(version(&one, "1GiB", "10.0.0.2"), version(&programs("one"), "1GiB", "10.0.0.2"));
        assert_ne!(version(&one, "1GiB", "10.0.0.2"), version(&two, "1GiB", "10.0.0.2"));
        assert_ne!(version(&one, "1GiB", "10.0.0.2"), version(&one, "2GiB", "10.0.0.2"));
        // A change of one node is none of another.
        assert_eq!(version(&one, "1GiB", "10.0.0.1"), version(&one, "2GiB", "10.0.0.1"));
    }

    #[test]
    fn a_host_gets_what_runs_on_it() {
        let programs = programs("x");
        let release = Release::gather(programs.path(), None).unwrap();
        let names = |host| -> Vec<String> {
            let release = release.of_host(&cluster("1GiB"), host, Init::Supervise).unwrap();
            release.entries.into_iter().map(|entry| entry.name).collect()
        };
        assert!(names("10.0.0.1").contains(&"service/controller.toml".to_owned()));
        assert!(names("10.0.0.1").contains(&"systemd/medes-controller-gateway.socket".to_owned()));
        assert!(!names("10.0.0.2").contains(&"service/controller.toml".to_owned()));
        assert!(names("10.0.0.2").contains(&"systemd/medes-agent.service".to_owned()));
        fs::remove_file(programs.path().join("medes")).unwrap();
        assert!(matches!(Release::gather(programs.path(), None), Err(ReleaseError::Program { .. })));
    }
}
