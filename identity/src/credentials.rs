//! What a program shows and goes by: its certificate, its key, and the authority, read from files and read again when
//! these change.
//!
//! `NAME.pem` is the certificate; `NAME-key.pem` and `ca.pem` lie in the same folder. `ca.pem` may hold several
//! authorities, so that a new one can be trusted before anything is signed by it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use medes_proto::ids::HolderName;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::Service,
    certificate::{self, CertificateError},
    folder::{CA, key_file},
    fresh::{self, Fresh, read_file},
    identity::Identity,
    verify::{Callers, Expected, Servers},
};

pub use crate::fresh::Look;

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
    /// Nobody would go by it now.
    #[error("{path} is not valid now")]
    Outdated {
        /// The certificate's file.
        path: PathBuf,
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

/// The credentials of a program. Clones share them.
#[derive(Debug, Clone)]
pub struct Credentials {
    fresh: Arc<Fresh<Loaded, 3>>,
    provider: Arc<CryptoProvider>,
}

impl Credentials {
    /// Reads a certificate, the key that belongs to it and the authority beside it. `now`: when they must be valid.
    pub fn load(certificate: &Path, now: SystemTime) -> Result<Self, LoadError> {
        let folder = certificate.parent().unwrap_or(Path::new(""));
        let files = [certificate.to_owned(), key_file(certificate), folder.join(CA)];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let fresh = Fresh::load(files, |files| read(files, &provider, now))?;
        Ok(Self { fresh: Arc::new(fresh), provider })
    }

    /// Who shows them.
    pub fn identity(&self) -> Identity {
        self.loaded().identity.clone()
    }

    /// Looks whether the files have changed, and reads them again if so. Blocks on the disk.
    pub fn look(&self, now: SystemTime) -> Look {
        self.fresh.look(|files, before| match read(files, &self.provider, now)? {
            found if found.identity == before.identity => Ok(found),
            found => Err(LoadError::Other {
                path: files[0].clone(),
                found: Box::new(found.identity),
                own: Box::new(before.identity.clone()),
            }),
        })
    }

    /// Looks again and again until `stop`, and tells what it found.
    pub async fn keep_fresh(self, stop: CancellationToken) {
        let whose = self.identity().to_string();
        fresh::keep(move || self.look(SystemTime::now()), whose, stop).await;
    }

    fn loaded(&self) -> Arc<Loaded> {
        self.fresh.get()
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

/// A certificate, those behind it, and the key that belongs to it.
pub(crate) fn certified(
    certificate: &Path,
    key: &Path,
    chain: Vec<CertificateDer<'static>>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, LoadError> {
    let secret = PrivateKeyDer::from_pem_slice(&read_file(key)?)
        .map_err(|source| LoadError::Key { path: key.to_owned(), source })?;
    CertifiedKey::from_der(chain, secret, provider)
        .map_err(|source| LoadError::Pair { path: certificate.to_owned(), source })
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
    let certified = certified(certificate, key, chain.clone(), provider)?;

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
