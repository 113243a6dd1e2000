//! Whether base pages are read by RDMA here. How, is in `verbs`; in builds without the feature `rdma`, `none` says so.
//!
//! What is read by RDMA is readable for whoever listens on the way, and whoever can send there could put other bytes in
//! its place (they would be found out when a page is made of them). The page service has that weakness too where there
//! are no certificates. Where there are, RDMA is left alone unless `--rdma plaintext` says that its network is trusted.

#[cfg(not(feature = "rdma"))]
mod none;
#[cfg(feature = "rdma")]
mod verbs;

use medes_identity::security::Security;

#[cfg(not(feature = "rdma"))]
pub use self::none::{available, dial, listen};
#[cfg(feature = "rdma")]
pub use self::verbs::{available, dial, listen};
use super::onesided::Cause;

/// When base pages are read by RDMA, by this node and from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Use {
    /// Where there is a device and pages are not encrypted anyway
    Auto,
    /// Where there is a device, also with certificates: what is read by RDMA is not encrypted
    Plaintext,
    /// Never
    Off,
}

/// Why base pages come over TCP only.
#[derive(Debug, thiserror::Error)]
pub enum NoRdma {
    /// A person wants it so.
    #[error("RDMA is switched off")]
    Off,
    /// It would not be encrypted.
    #[error("this node has a certificate, and what is read by RDMA is not encrypted (see --rdma plaintext)")]
    Encrypted,
    /// The feature is missing.
    #[error("this agent was built without RDMA")]
    NotBuilt,
    /// There is none, or it does not work.
    #[error("no RDMA on this host")]
    Device(#[source] Cause),
}

impl Use {
    /// Whether RDMA is to be used by a node that speaks with others like this, and can be.
    pub fn check(self, security: &Security) -> Result<(), NoRdma> {
        match (self, security) {
            (Self::Off, _) => Err(NoRdma::Off),
            (Self::Auto, Security::Mutual(_)) => Err(NoRdma::Encrypted),
            (Self::Auto, Security::Plaintext) | (Self::Plaintext, _) => available(),
        }
    }
}
