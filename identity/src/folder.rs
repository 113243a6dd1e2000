//! A folder of an authority and what it has issued: `ca.pem`, `ca-key.pem`, and `NAME.pem`, `NAME-key.pem` for each
//! holder.
//!
//! The folder is for whoever runs the cluster. A host gets `ca.pem` and its own two files, never `ca-key.pem`.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use medes_proto::ids::{ClusterName, HolderName};

use crate::{
    authority::{Authority, AuthorityError, Pair, Validity},
    certificate::{self, CertificateError, Facts},
    identity::{Identity, Role},
};

/// The authority's certificate, for everybody.
pub const CA: &str = "ca.pem";
const CA_NAME: &str = "ca";

/// Where the key of a certificate lies: beside it.
pub fn key_file(certificate: &Path) -> PathBuf {
    let stem = certificate.file_stem().unwrap_or_default().to_string_lossy();
    certificate.with_file_name(format!("{stem}-key.pem"))
}

/// Why a folder did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder, or a file in it.
    #[error("{doing} {path}")]
    File {
        /// Read or write.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It would take something else's place.
    #[error("{0} is there already")]
    Exists(PathBuf),
    /// A file of this name would be taken for another one.
    #[error("{0} cannot be the name of a holder here")]
    Reserved(HolderName),
    /// The authority.
    #[error("use the authority in {path}")]
    Authority {
        /// Its certificate.
        path: PathBuf,
        /// Why not.
        source: AuthorityError,
    },
    /// A certificate.
    #[error("understand {path}")]
    Certificate {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: CertificateError,
    },
    /// A holder of another cluster.
    #[error("{found} is not of cluster {cluster}")]
    Foreign {
        /// Who.
        found: Box<Identity>,
        /// Whose folder it is.
        cluster: ClusterName,
    },
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

/// Somebody's certificate in the folder.
#[derive(Debug)]
pub struct Entry {
    /// Its file.
    pub path: PathBuf,
    /// Whose; `None` for the authority's own.
    pub identity: Option<Identity>,
    /// What else it says.
    pub facts: Facts,
}

impl Folder {
    /// A folder at this path, which need not be there yet.
    pub const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.pem"))
    }

    /// Makes an authority, and the folder if it must.
    pub fn init(&self, cluster: &ClusterName, now: SystemTime) -> Result<Entry, FolderError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = self.file(CA_NAME);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.map_err(|source| FolderError::File { doing: "make", path: self.0.clone(), source })?;
        let pair = Authority::create(cluster, now)
            .map_err(|source| FolderError::Authority { path: path.clone(), source })?;
        self.write(&path, &pair, Overwrite::No)?;
        entry(path)
    }

    fn authority(&self) -> Result<Authority, FolderError> {
        let path = self.file(CA_NAME);
        let pair = Pair { certificate: read(&path)?, key: read(&key_file(&path))? };
        Authority::open(&pair).map_err(|source| FolderError::Authority { path, source })
    }

    /// A key and a certificate for a new holder.
    pub fn issue(
        &self,
        role: Role,
        name: &HolderName,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Entry, FolderError> {
        if name.as_str() == CA_NAME || name.as_str().ends_with("-key") {
            return Err(FolderError::Reserved(name.clone()));
        }
        let authority = self.authority()?;
        let holder = Identity { cluster: authority.cluster().clone(), role, name: name.clone() };
        self.sign(&authority, &holder, lifetime, now, Overwrite::No)
    }

    /// A new key and certificate for a holder that has one.
    pub fn rotate(
        &self,
        name: &HolderName,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Entry, FolderError> {
        let authority = self.authority()?;
        let path = self.file(name.as_str());
        let bad = |source| FolderError::Certificate { path: path.clone(), source };
        let old = certificate::from_pem(read(&path)?.as_bytes()).map_err(bad)?;
        let holder = certificate::identity(old.first().ok_or(bad(CertificateError::Empty))?).map_err(bad)?;
        if holder.cluster != *authority.cluster() {
            let (found, cluster) = (Box::new(holder), authority.cluster().clone());
            return Err(FolderError::Foreign { found, cluster });
        }
        self.sign(&authority, &holder, lifetime, now, Overwrite::Yes)
    }

    fn sign(
        &self,
        authority: &Authority,
        holder: &Identity,
        lifetime: Duration,
        now: SystemTime,
        overwrite: Overwrite,
    ) -> Result<Entry, FolderError> {
        let path = self.file(holder.name.as_str());
        let issued = authority.issue(holder, Validity::starting(now, lifetime));
        let issued = issued.map_err(|source| FolderError::Authority { path: self.file(CA_NAME), source })?;
        self.write(&path, &issued, overwrite)?;
        entry(path)
    }

    /// Each file is there as a whole or not at all. Who reads between the two sees a key that does not fit, and looks
    /// again.
    fn write(&self, path: &Path, pair: &Pair, overwrite: Overwrite) -> Result<(), FolderError> {
        let key = key_file(path);
        if let Overwrite::No = overwrite
            && let Some(there) = [path, &key].into_iter().find(|path| path.exists())
        {
            return Err(FolderError::Exists(there.into()));
        }
        for (path, text, mode) in [(&*key, &pair.key, 0o600), (path, &pair.certificate, 0o644)] {
            let error = |source| FolderError::File { doing: "write", path: path.into(), source };
            self.replace(path, text, mode, overwrite).map_err(error)?;
        }
        Ok(())
    }

    fn replace(&self, path: &Path, text: &str, mode: u32, overwrite: Overwrite) -> io::Result<()> {
        // Temporary files are for their owner alone from the first moment.
        let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
        file.write_all(text.as_bytes())?;
        file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        match overwrite {
            Overwrite::Yes => file.persist(path)?,
            Overwrite::No => file.persist_noclobber(path)?,
        };
        fs::File::open(&self.0)?.sync_all()
    }

    /// Everything in it, by name; the authority first.
    pub fn entries(&self) -> Result<Vec<Entry>, FolderError> {
        let error = |source| FolderError::File { doing: "read", path: self.0.clone(), source };
        let mut paths = Vec::new();
        for found in fs::read_dir(&self.0).map_err(error)? {
            let path = found.map_err(error)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".pem") && !name.ends_with("-key.pem") && name != CA {
                paths.push(path);
            }
        }
        paths.sort();
        let own = self.file(CA_NAME);
        let own = own.exists().then_some(own);
        own.into_iter().chain(paths).map(entry).collect()
    }

    /// One holder's, or the authority's ("ca").
    pub fn entry(&self, name: &HolderName) -> Result<Entry, FolderError> {
        entry(self.file(name.as_str()))
    }
}

#[derive(Clone, Copy)]
enum Overwrite {
    Yes,
    No,
}

fn read(path: &Path) -> Result<String, FolderError> {
    fs::read_to_string(path).map_err(|source| FolderError::File { doing: "read", path: path.into(), source })
}

fn entry(path: PathBuf) -> Result<Entry, FolderError> {
    let text = read(&path)?;
    let look = || {
        let all = certificate::from_pem(text.as_bytes())?;
        let der = all.first().ok_or(CertificateError::Empty)?;
        let identity = match certificate::identity(der) {
            Ok(identity) => Some(identity),
            Err(CertificateError::Authority) => None,
            Err(error) => return Err(error),
        };
        Ok((identity, certificate::facts(der)?))
    };
    match look() {
        Ok((identity, facts)) => Ok(Entry { path, identity, facts }),
        Err(source) => Err(FolderError::Certificate { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{AUTHORITY_LIFETIME, LIFETIME};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("pki"));
        folder.init(&"main".parse().unwrap(), NOW).unwrap();
        (dir, folder)
    }

    #[test]
    fn a_folder_knows_its_authority_and_its_holders() {
        let (_dir, folder) = folder();
        let name = "node-1".parse().unwrap();
        let issued = folder.issue(Role::Agent, &name, LIFETIME, NOW).unwrap();
        assert_eq!(issued.identity.unwrap().to_string(), "spiffe://main/agent/node-1");
        let all = folder.entries().unwrap();
        let told: Vec<_> = all.iter().map(|entry| (entry.identity.is_some(), entry.facts.until)).collect();
        assert_eq!(told, [(false, NOW + AUTHORITY_LIFETIME), (true, NOW + LIFETIME)]);
    }

    #[test]
    fn keys_are_for_their_owner_alone() {
        let (_dir, folder) = folder();
        folder.issue(Role::Agent, &"a".parse().unwrap(), LIFETIME, NOW).unwrap();
        let mode = |name: &str| fs::metadata(folder.0.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(["ca-key.pem", "a-key.pem"].map(mode), [0o600; 2]);
        assert_eq!(["ca.pem", "a.pem"].map(mode), [0o644; 2]);
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 4, "nothing else is left there");
    }

    #[test]
    fn nothing_takes_the_place_of_something_else() {
        let (_dir, folder) = folder();
        assert!(matches!(folder.init(&"main".parse().unwrap(), NOW), Err(FolderError::Exists(_))));
        let name = "a".parse().unwrap();
        folder.issue(Role::Agent, &name, LIFETIME, NOW).unwrap();
        let again = folder.issue(Role::Operator, &name, LIFETIME, NOW);
        assert!(matches!(again, Err(FolderError::Exists(_))));
        for name in ["ca", "ca-key", "a-key"] {
            let refused = folder.issue(Role::Agent, &name.parse().unwrap(), LIFETIME, NOW);
            assert!(matches!(refused, Err(FolderError::Reserved(_))), "{name}");
        }
    }

    #[test]
    fn a_rotated_holder_is_the_same_with_another_key() {
        let (_dir, folder) = folder();
        let name = "a".parse().unwrap();
        let first = folder.issue(Role::Operator, &name, LIFETIME, NOW).unwrap();
        let key = || fs::read_to_string(folder.0.join("a-key.pem")).unwrap();
        let old = key();
        let second = folder.rotate(&name, LIFETIME, NOW + LIFETIME).unwrap();
        assert_eq!((first.identity, first.facts.until + LIFETIME), (second.identity, second.facts.until));
        assert_ne!(first.facts.serial, second.facts.serial);
        assert_ne!(old, key());
        assert!(matches!(folder.rotate(&"b".parse().unwrap(), LIFETIME, NOW), Err(FolderError::File { .. })));
    }
}
