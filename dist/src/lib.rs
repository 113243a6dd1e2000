//! Medes as files that are handed out: what somebody needs who has neither this checkout nor cargo.
//!
//! Nothing here runs a container tool, a package tool or a network: files go in, files come out, and the same files give the same bytes.
//!
//! | file | idea |
//! |---|---|
//! | `stamp` | which version, as of when, for which kind of machine |
//! | `sources` | what the checkout and the build have for it |
//! | `tarball` | files as `.tar.gz` |
//! | `package` | where files lie on a machine that has Medes as a package; its units |
//! | `deb` | that as a Debian package |
//! | `libraries` | what a program needs of the system it was linked on |
//! | `image` | a root directory with the programs and that, as an OCI image |
//! | `chart` | the Helm chart, and what it says with its own values |
//! | `licences` | what may be linked into the programs |
//! | `sbom` | what is linked into them, as CycloneDX |
//! | `release` | all of it in one folder, with checksums |
#![forbid(unsafe_code)]

pub mod chart;
pub mod deb;
pub mod image;
pub mod libraries;
pub mod licences;
pub mod package;
pub mod release;
pub mod sbom;
pub mod sources;
pub mod stamp;
pub mod tarball;
