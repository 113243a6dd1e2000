//! The certificate authority of a cluster: one key that signs all certificates.

use std::time::{Duration, SystemTime};

use medes_proto::ids::ClusterName;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::{
    certificate::{self, CertificateError},
    identity::{Identity, Role, SCHEME},
};

/// Clocks differ by less than this.
pub const EARLY: Duration = Duration::from_secs(5 * 60);
/// How long an authority lives.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a certificate lives if nothing else is asked for.
pub const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// From when until when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Not before.
    pub from: SystemTime,
    /// Not after.
    pub until: SystemTime,
}

impl Validity {
    /// From now on, and a little before.
    pub fn starting(now: SystemTime, lifetime: Duration) -> Self {
        Self { from: now.checked_sub(EARLY).unwrap_or(now), until: now.checked_add(lifetime).unwrap_or(now) }
    }
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key. A secret.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// An authority that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Making a key or signing failed, or the key is not one.
    #[error("sign certificates")]
    Sign(#[from] rcgen::Error),
    /// Its certificate.
    #[error("understand the authority's certificate")]
    Certificate(#[from] CertificateError),
    /// The key is of another certificate.
    #[error("the authority's key does not fit its certificate")]
    Mismatch,
}

/// Signs certificates of one cluster.
pub struct Authority {
    cluster: ClusterName,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, with its own certificate and key. It lives [`AUTHORITY_LIFETIME`].
    pub fn create(cluster: &ClusterName, now: SystemTime) -> Result<Pair, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = params(
            format!("Medes authority of {cluster}"),
            format!("{SCHEME}{cluster}"),
            Validity::starting(now, AUTHORITY_LIFETIME),
        )?;
        // It signs holders, and no other authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// One that was made before.
    pub fn open(pair: &Pair) -> Result<Self, AuthorityError> {
        let all = certificate::from_pem(pair.certificate.as_bytes())?;
        let own = all.first().ok_or(CertificateError::Empty)?;
        let cluster = certificate::cluster(own)?;
        let key = KeyPair::from_pem(&pair.key)?;
        if certificate::public_key(own)? != key.public_key_raw() {
            return Err(AuthorityError::Mismatch);
        }
        Ok(Self { cluster, issuer: Issuer::from_ca_cert_der(own, key)? })
    }

    /// Whose authority it is.
    pub const fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// A new key and a certificate for it.
    pub fn issue(&self, holder: &Identity, validity: Validity) -> Result<Pair, AuthorityError> {
        let key = KeyPair::generate()?;
        let Identity { role, name, .. } = holder;
        let mut params = params(format!("{role} {name}"), holder.to_string(), validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages(*role);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// Everybody connects to somebody; to people nobody does.
fn usages(role: Role) -> Vec<ExtendedKeyUsagePurpose> {
    let mut usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if role.serves() {
        usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    usages
}

fn params(common_name: String, uri: String, validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.not_before = validity.from.into();
    params.not_after = validity.until.into();
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::{facts, from_pem, identity};

    fn authority(cluster: &str) -> (Pair, Authority) {
        let pair = Authority::create(&cluster.parse().unwrap(), SystemTime::UNIX_EPOCH + LIFETIME).unwrap();
        (pair.clone(), Authority::open(&pair).unwrap())
    }

    #[test]
    fn a_certificate_says_whose_it_is_and_how_long() {
        let (ca, authority) = authority("main");
        assert_eq!(authority.cluster().as_str(), "main");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for role in Role::ALL {
            let holder = Identity { cluster: "main".parse().unwrap(), role, name: "a-1".parse().unwrap() };
            let pair = authority.issue(&holder, Validity::starting(now, LIFETIME)).unwrap();
            let der = from_pem(pair.certificate.as_bytes()).unwrap().remove(0);
            assert_eq!(identity(&der).unwrap(), holder);
            let told = facts(&der).unwrap();
            assert_eq!((told.from, told.until), (now - EARLY, now + LIFETIME));
            assert!(matches!(certificate::cluster(&der), Err(CertificateError::NotAuthority)));
        }
        let der = from_pem(ca.certificate.as_bytes()).unwrap().remove(0);
        assert!(matches!(identity(&der), Err(CertificateError::Authority)));
        assert_eq!(certificate::cluster(&der).unwrap().as_str(), "main");
    }

    #[test]
    fn keys_differ_and_are_not_shown() {
        let (_, authority) = authority("main");
        let holder: Identity = "spiffe://main/agent/a".parse().unwrap();
        let validity = Validity::starting(SystemTime::UNIX_EPOCH, LIFETIME);
        let [one, two] = [(); 2].map(|()| authority.issue(&holder, validity).unwrap());
        assert_ne!(one.key, two.key);
        assert!(!format!("{one:?}").contains("PRIVATE"));
    }

    #[test]
    fn an_authority_is_opened_by_its_own_key_only() {
        let ((one, _), (two, authority)) = (authority("main"), authority("main"));
        let mixed = Pair { certificate: one.certificate.clone(), key: two.key };
        assert!(matches!(Authority::open(&mixed), Err(AuthorityError::Mismatch)));
        let holder: Identity = "spiffe://main/agent/a".parse().unwrap();
        let leaf = authority.issue(&holder, Validity::starting(SystemTime::UNIX_EPOCH, LIFETIME)).unwrap();
        assert!(matches!(
            Authority::open(&leaf),
            Err(AuthorityError::Certificate(CertificateError::NotAuthority))
        ));
        for text in ["", "nonsense"] {
            assert!(Authority::open(&Pair { certificate: text.into(), key: one.key.clone() }).is_err());
            assert!(
                Authority::open(&Pair { certificate: one.certificate.clone(), key: text.into() }).is_err()
            );
        }
    }

    /// What another program with our authority's key could sign.
    fn signed(names: Vec<SanType>) -> Result<Identity, CertificateError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        identity(certificate.der())
    }

    #[test]
    fn a_holder_has_exactly_one_name_and_it_is_a_uri() {
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let good = "spiffe://main/agent/a";
        assert_eq!(signed(vec![uri(good)]).unwrap().to_string(), good);
        assert!(matches!(signed(vec![]), Err(CertificateError::Names)));
        assert!(matches!(signed(vec![uri(good), uri(good)]), Err(CertificateError::Names)));
        let host = SanType::DnsName("spiffe".try_into().unwrap());
        assert!(matches!(signed(vec![host.clone()]), Err(CertificateError::Names)));
        assert!(matches!(signed(vec![uri(good), host]), Err(CertificateError::Names)));
        assert!(matches!(signed(vec![uri("spiffe://main/king/a")]), Err(CertificateError::Identity(_))));
    }

    #[test]
    fn bytes_that_are_no_certificate_are_an_error_and_nothing_worse() {
        let (ca, _) = authority("main");
        let der = from_pem(ca.certificate.as_bytes()).unwrap().remove(0);
        for cut in 0..der.len() {
            assert!(certificate::cluster(&der[..cut]).is_err(), "{cut}");
        }
        let longer = [&der[..], &[0]].concat();
        assert!(certificate::cluster(&longer).is_err());
    }
}
