//! What a certificate says, read by a parser of X.509.
//!
//! Reading proves nothing: who signed it is for [`verify`](crate::verify) to see.

use std::time::{Duration, SystemTime};

use medes_proto::ids::{ClusterName, NameError};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{extensions::GeneralName, prelude::*};

use crate::identity::{Identity, IdentityError, SCHEME};

/// A certificate that nobody here can go by.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not PEM.
    #[error("not a PEM file of certificates")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// Nothing in it.
    #[error("there is no certificate in it")]
    Empty,
    /// Not X.509.
    #[error("read X.509")]
    X509(#[source] Box<X509Error>),
    /// A holder has one name. None, several, or names of other kinds: whose is it?
    #[error("it does not have exactly one URI as its name")]
    Names,
    /// The name says nothing to us.
    #[error("understand its name")]
    Identity(#[from] IdentityError),
    /// The name of an authority's cluster.
    #[error("understand its cluster")]
    Cluster(#[from] NameError),
    /// It may sign others.
    #[error("it is an authority's, not a holder's")]
    Authority,
    /// It may not sign others.
    #[error("it is not an authority's")]
    NotAuthority,
}

/// What there is to tell about a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// In hexadecimal, with colons.
    pub serial: String,
    /// Not valid before.
    pub from: SystemTime,
    /// Not valid after.
    pub until: SystemTime,
}

/// All certificates of a PEM file, in order; at least one.
pub fn from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let all = all.map_err(CertificateError::Pem)?;
    if all.is_empty() { Err(CertificateError::Empty) } else { Ok(all) }
}

/// Whose it is. An authority's is nobody's.
pub fn identity(der: &[u8]) -> Result<Identity, CertificateError> {
    let certificate = parse(der)?;
    if certificate.is_ca() {
        return Err(CertificateError::Authority);
    }
    Ok(only_uri(&certificate)?.parse()?)
}

/// Which cluster an authority speaks for.
pub fn cluster(der: &[u8]) -> Result<ClusterName, CertificateError> {
    let certificate = parse(der)?;
    if !certificate.is_ca() {
        return Err(CertificateError::NotAuthority);
    }
    let uri = only_uri(&certificate)?;
    let cluster = uri.strip_prefix(SCHEME).ok_or_else(|| IdentityError::Form(uri.to_owned()))?;
    Ok(cluster.parse()?)
}

/// What else it says.
pub fn facts(der: &[u8]) -> Result<Facts, CertificateError> {
    let certificate = parse(der)?;
    let moment = |time: ASN1Time| {
        let seconds = Duration::from_secs(time.timestamp().unsigned_abs());
        let after = time.timestamp() >= 0;
        let moment = SystemTime::UNIX_EPOCH;
        if after { moment.checked_add(seconds) } else { moment.checked_sub(seconds) }.unwrap_or(moment)
    };
    let X509Certificate { tbs_certificate, .. } = &certificate;
    let validity = tbs_certificate.validity();
    Ok(Facts {
        serial: tbs_certificate.raw_serial_as_string(),
        from: moment(validity.not_before),
        until: moment(validity.not_after),
    })
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    let broken = |error| CertificateError::X509(Box::new(error));
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(broken(X509Error::InvalidCertificate)),
        Err(x509_parser::nom::Err::Error(error) | x509_parser::nom::Err::Failure(error)) => {
            Err(broken(error))
        }
        Err(x509_parser::nom::Err::Incomplete(_)) => Err(broken(X509Error::InvalidCertificate)),
    }
}

fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, CertificateError> {
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|error| CertificateError::X509(Box::new(error)))?;
    match names.map(|names| names.value.general_names.as_slice()) {
        Some([GeneralName::URI(uri)]) => Ok(uri),
        _ => Err(CertificateError::Names),
    }
}

/// Its public key, as bits.
pub(crate) fn public_key(der: &[u8]) -> Result<Vec<u8>, CertificateError> {
    Ok(parse(der)?.public_key().subject_public_key.data.to_vec())
}
