//! Who is at the other end: signed by our authority, of our cluster, of a role that belongs there.
//!
//! The chain, the time and the uses of a key are checked by webpki; the name by [`certificate`](crate::certificate).
//! Host names are not looked at: nodes are who they are wherever they are.

use std::sync::Arc;

use medes_proto::ids::{ClusterName, HolderName};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::{
    certificate,
    identity::{Identity, Role},
};

/// Who may be at the other end.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) cluster: ClusterName,
    pub(crate) roles: &'static [Role],
    /// `None`: any of them.
    pub(crate) name: Option<HolderName>,
}

/// Somebody of ours, but not who belongs there.
#[derive(Debug, thiserror::Error)]
enum Unexpected {
    #[error("understand the peer's certificate")]
    Certificate(#[from] certificate::CertificateError),
    #[error("{0} is not of this cluster")]
    Cluster(Identity),
    #[error("{0} does not belong here")]
    Role(Identity),
    #[error("{found} is not {wanted}")]
    Name { found: Identity, wanted: HolderName },
}

impl Expected {
    fn check(&self, der: &[u8]) -> Result<(), Unexpected> {
        let found = certificate::identity(der)?;
        if found.cluster != self.cluster {
            return Err(Unexpected::Cluster(found));
        }
        if !self.roles.contains(&found.role) {
            return Err(Unexpected::Role(found));
        }
        match &self.name {
            Some(wanted) if *wanted != found.name => Err(Unexpected::Name { found, wanted: wanted.clone() }),
            _ => Ok(()),
        }
    }
}

fn refused(why: Unexpected) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

/// Of those who connect.
#[derive(Debug)]
pub(crate) struct Callers {
    pub(crate) chain: Arc<dyn ClientCertVerifier>,
    pub(crate) expected: Expected,
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        self.expected.check(end_entity).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Of those who are connected to.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) expected: Expected,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        self.expected.check(end_entity).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
