//! HTTPS for those whom the cluster's authority does not know: callers of the gateway, and people at the page.
//!
//! They go by an authority of their own, so the certificate comes from there; who they are, their tokens tell. TLS 1.3 only.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::{
    certificate,
    credentials::{LoadError, certified},
    folder::key_file,
    fresh::{self, Fresh, Look},
    security::{HANDSHAKE_MAX, HandshakeError},
};

/// What browsers and libraries call HTTP/1.1, all that is spoken here.
const PROTOCOL: &[u8] = b"http/1.1";

/// A certificate that is shown to whoever comes. Clones share it.
#[derive(Debug, Clone)]
pub struct WebCertificate {
    fresh: Arc<Fresh<CertifiedKey, 2>>,
    provider: Arc<CryptoProvider>,
    file: PathBuf,
}

impl WebCertificate {
    /// Reads a certificate (and those that lead to its authority, behind it in the file) and its key: in `key`, or in NAME-key.pem
    /// beside NAME.pem. `now`: when it must be valid.
    ///
    /// # Errors
    /// When either cannot be read, they do not belong together, or the certificate is not valid.
    pub fn load(file: &Path, key: Option<&Path>, now: SystemTime) -> Result<Self, LoadError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let files = [file.to_owned(), key.map_or_else(|| key_file(file), Path::to_owned)];
        let fresh = Fresh::load(files, |files| read(files, &provider, now))?;
        Ok(Self { fresh: Arc::new(fresh), provider, file: file.to_owned() })
    }

    /// Looks whether the files have changed, and reads them again if so. Blocks on the disk.
    pub fn look(&self, now: SystemTime) -> Look {
        self.fresh.look(|files, _before| read(files, &self.provider, now))
    }

    /// Looks again and again until `stop`.
    pub async fn keep_fresh(self, stop: CancellationToken) {
        let whose = self.file.display().to_string();
        fresh::keep(move || self.look(SystemTime::now()), whose, stop).await;
    }

    /// Shakes hands with one who comes. Who wants something else than HTTP/1.1 is refused, who says nothing is let in.
    ///
    /// # Errors
    /// When the other end does not speak TLS, or is slow.
    pub async fn accept(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, HandshakeError> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.fresh.get())));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // Each has a configuration of its own, so nothing could be resumed.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let accepted = timeout(HANDSHAKE_MAX, TlsAcceptor::from(Arc::new(config)).accept(stream));
        Ok(accepted.await.map_err(|_elapsed| HandshakeError::Slow)??)
    }
}

fn read(
    [file, key]: &[PathBuf; 2],
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<CertifiedKey, LoadError> {
    let bad = |source| LoadError::Certificate { path: file.clone(), source };
    let chain = certificate::from_pem(&fresh::read_file(file)?).map_err(bad)?;
    let own = chain.first().ok_or_else(|| bad(certificate::CertificateError::Empty))?;
    let facts = certificate::facts(own).map_err(bad)?;
    if now < facts.from || now > facts.until {
        return Err(LoadError::Outdated { path: file.clone() });
    }
    certified(file, key, chain, provider)
}
