//! What a program shows and goes by: its certificate, its key, and the authority, read from files and read again when
//! these change.
//!
//! `NAME.pem` is the certificate; `NAME-key.pem` and `ca.pem` lie in the same folder. `ca.pem` may hold several
//! authorities, so that a new one can be trusted before anything is signed by it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use medes_proto::ids::HolderName;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::{PrivateKeyDer, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::Service,
    certificate::{self, CertificateError},
    folder::{CA, key_file},
    identity::Identity,
    verify::{Callers, Expected, Servers},
};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// No file of these is longer.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Credentials that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file that cannot be read.
    #[error("read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A certificate that says nothing to us.
    #[error("understand {path}")]
    Certificate {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: CertificateError,
    },
    /// No key in the file.
    #[error("read the key in {path}")]
    Key {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// The key is of another certificate, or of a kind nobody knows.
    #[error("use {path} with its key")]
    Pair {
        /// The certificate's file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// The authority's certificates cannot be trusted by anybody.
    #[error("trust {path}")]
    Roots {
        /// Their file.
        path: PathBuf,
        /// Why not.
        source: rustls::server::VerifierBuilderError,
    },
    /// Our own authority would not know us: another one signed it, or it is not valid now.
    #[error("{path} is not signed by the authority beside it, or not valid now")]
    Unsigned {
        /// The certificate's file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// A program stays who it is.
    #[error("{path} is of {found}, not of {own}")]
    Other {
        /// The certificate's file.
        path: PathBuf,
        /// Whose it is.
        found: Box<Identity>,
        /// Who we are.
        own: Box<Identity>,
    },
}

/// What is shown and gone by in new connections, for now.
#[derive(Debug)]
struct Loaded {
    identity: Identity,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    chain: Arc<dyn ClientCertVerifier>,
}

/// Tells one version of the files from another.
type Stamps = [Option<(u64, i64, i64, u64)>; 3];

#[derive(Debug)]
struct State {
    loaded: Arc<Loaded>,
    /// Of the files that were read last, whatever came of it.
    seen: Stamps,
    /// Of files that made no sense; said when they have not changed until the next look.
    doubted: bool,
}

/// What a look at the files found.
#[derive(Debug)]
pub enum Look {
    /// Nothing new.
    Same,
    /// New ones, in use from now on.
    Renewed,
    /// Something that cannot be used, perhaps because it is still being written. The old ones stay in use.
    Doubted,
    /// It has not got better since the last look. Said once.
    Bad(LoadError),
}

/// The credentials of a program. Clones share them.
#[derive(Debug, Clone)]
pub struct Credentials {
    files: Arc<[PathBuf; 3]>,
    provider: Arc<CryptoProvider>,
    state: Arc<Mutex<State>>,
}

impl Credentials {
    /// Reads a certificate, the key that belongs to it and the authority beside it. `now`: when they must be valid.
    pub fn load(certificate: &Path, now: SystemTime) -> Result<Self, LoadError> {
        let folder = certificate.parent().unwrap_or(Path::new(""));
        let files = [certificate.to_owned(), key_file(certificate), folder.join(CA)];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let seen = stamps(&files);
        let loaded = Arc::new(read(&files, &provider, now)?);
        let state = Arc::new(Mutex::new(State { loaded, seen, doubted: false }));
        Ok(Self { files: Arc::new(files), provider, state })
    }

    /// Who shows them.
    pub fn identity(&self) -> Identity {
        self.loaded().identity.clone()
    }

    /// Looks whether the files have changed, and reads them again if so. Blocks on the disk.
    pub fn look(&self, now: SystemTime) -> Look {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = stamps(&self.files);
        let changed = seen != state.seen;
        if !changed && !state.doubted {
            return Look::Same;
        }
        let own = &state.loaded.identity;
        let read = read(&self.files, &self.provider, now).and_then(|loaded| match &loaded.identity {
            found if found == own => Ok(loaded),
            found => Err(LoadError::Other {
                path: self.files[0].clone(),
                found: Box::new(found.clone()),
                own: Box::new(own.clone()),
            }),
        });
        state.seen = seen;
        match read {
            Ok(loaded) => {
                (state.loaded, state.doubted) = (Arc::new(loaded), false);
                Look::Renewed
            }
            Err(_) if changed => {
                state.doubted = true;
                Look::Doubted
            }
            Err(error) => {
                state.doubted = false;
                Look::Bad(error)
            }
        }
    }

    /// Looks again and again until `stop`, and tells what it found.
    pub async fn keep_fresh(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
            let credentials = self.clone();
            let looked = tokio::task::spawn_blocking(move || credentials.look(SystemTime::now())).await;
            match looked {
                Ok(Look::Renewed) => {
                    tracing::info!(identity = %self.identity(), "new certificates are in use");
                }
                Ok(Look::Bad(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "the new certificates cannot be used; the old ones stay in use");
                }
                Ok(Look::Same | Look::Doubted) | Err(_) => {}
            }
        }
    }

    fn loaded(&self) -> Arc<Loaded> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).loaded.clone()
    }

    /// How a door is kept. Made anew for each connection, so it is always about the newest files.
    pub(crate) fn server(&self, service: Service) -> Result<Arc<ServerConfig>, rustls::Error> {
        let Loaded { identity, key, chain, .. } = &*self.loaded();
        let expected = Expected { cluster: identity.cluster.clone(), roles: service.callers(), name: None };
        let callers = Arc::new(Callers { chain: chain.clone(), expected });
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(callers)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        config.alpn_protocols = vec![service.protocol().to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// How a door is knocked at. `name`: whose it must be.
    pub(crate) fn client(
        &self,
        service: Service,
        name: Option<HolderName>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let Loaded { identity, key, roots, .. } = &*self.loaded();
        let expected = Expected { cluster: identity.cluster.clone(), roles: service.holders(), name };
        let servers = Servers { roots: roots.clone(), provider: self.provider.clone(), expected };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous() // The rule is another than the usual one, see `verify`.
            .with_custom_certificate_verifier(Arc::new(servers))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        config.alpn_protocols = vec![service.protocol().to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }
}

fn stamps(files: &[PathBuf; 3]) -> Stamps {
    files.each_ref().map(|file| {
        let found = fs::metadata(file).ok()?;
        Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>, LoadError> {
    let error = |source| LoadError::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(error)?;
    io::Read::read_to_end(&mut io::Read::take(file, FILE_BYTES_MAX), &mut bytes).map_err(error)?;
    Ok(bytes)
}

fn read(
    [certificate, key, authority]: &[PathBuf; 3],
    provider: &Arc<CryptoProvider>,
    now: SystemTime,
) -> Result<Loaded, LoadError> {
    let bad = |path: &Path, source| LoadError::Certificate { path: path.to_owned(), source };
    let chain = certificate::from_pem(&read_file(certificate)?).map_err(|error| bad(certificate, error))?;
    let own = chain.first().ok_or_else(|| bad(certificate, CertificateError::Empty))?.clone();
    let identity = certificate::identity(&own).map_err(|error| bad(certificate, error))?;
    let secret = PrivateKeyDer::from_pem_slice(&read_file(key)?)
        .map_err(|source| LoadError::Key { path: key.clone(), source })?;
    let pair = |source| LoadError::Pair { path: certificate.clone(), source };
    let certified = CertifiedKey::from_der(chain.clone(), secret, provider).map_err(pair)?;

    let mut roots = RootCertStore::empty();
    for root in certificate::from_pem(&read_file(authority)?).map_err(|error| bad(authority, error))? {
        certificate::cluster(&root).map_err(|error| bad(authority, error))?;
        roots.add(root).map_err(|source| LoadError::Pair { path: authority.clone(), source })?;
    }
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
    let verifier = verifier.map_err(|source| LoadError::Roots { path: authority.clone(), source })?;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    verifier
        .verify_client_cert(&own, chain.get(1..).unwrap_or_default(), UnixTime::since_unix_epoch(since))
        .map_err(|source| LoadError::Unsigned { path: certificate.clone(), source })?;
    Ok(Loaded { identity, key: Arc::new(certified), roots, chain: verifier })
}
