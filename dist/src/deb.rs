//! The package for Debian and its kin: an `ar` of two tarballs, what it says of itself and what it installs.

use std::io;

use ar::{Builder, Header};
use medes_deploy::{
    archive::{ArchiveError, Entry, What},
    elf::Glibc,
};

use crate::{
    package::SETTINGS,
    stamp::Stamp,
    tarball::{gzip, tar},
};

/// What dpkg runs, by its name there.
const SCRIPTS: [(&str, &str); 3] = [
    ("postinst", include_str!("../package/postinst")),
    ("postrm", include_str!("../package/postrm")),
    ("prerm", include_str!("../package/prerm")),
];
/// Nobody in particular: a domain of that name cannot be.
const MAINTAINER: &str = "Medes developers <medes@medes.invalid>";

/// A package cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// What is to be installed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The package itself.
    #[error("write the package")]
    Write(#[from] io::Error),
}

/// What it needs of the system.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The C library.
    pub glibc: Option<Glibc>,
    /// No CRIU goes along.
    pub criu: bool,
}

/// As dpkg wants a package's file to be called.
pub fn file_name(stamp: &Stamp) -> String {
    format!("medes_{}_{}.deb", stamp.version, stamp.architecture())
}

/// The whole file, of what `entries` install below `/`.
///
/// # Errors
/// When a file cannot be read.
pub fn package(entries: &[Entry], needs: Needs, stamp: &Stamp) -> Result<Vec<u8>, DebError> {
    let data = tar(entries, "./", stamp)?;
    let text = |name: &str, text: String| Entry { name: name.into(), what: What::Text(text.into_bytes()) };
    let mut about = vec![
        text("control", control(needs, data.len(), stamp)),
        text("conffiles", SETTINGS.iter().map(|name| format!("/{name}\n")).collect()),
    ];
    let script = |(name, text): &(&str, &str)| Entry {
        name: (*name).into(),
        what: What::Script(text.as_bytes().to_vec()),
    };
    about.extend(SCRIPTS.iter().map(script));
    let about = tar(&about, "./", stamp)?;
    let mut builder = Builder::new(Vec::new());
    let parts = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", gzip(&about)?),
        ("data.tar.gz", gzip(&data)?),
    ];
    for (name, bytes) in parts {
        let mut header = Header::new(name.into(), bytes.len() as u64);
        header.set_mode(0o100_644);
        header.set_mtime(stamp.moment);
        builder.append(&header, &*bytes)?;
    }
    Ok(builder.into_inner()?)
}

fn control(needs: Needs, data_bytes: usize, stamp: &Stamp) -> String {
    let glibc =
        needs.glibc.map_or_else(String::new, |glibc| format!("Depends: libc6 (>= {glibc}), libgcc-s1\n"));
    let criu = if needs.criu { "Recommends: criu (>= 4.2)\n" } else { "" };
    format!(
        "Package: medes\nVersion: {}\nArchitecture: {}\nMaintainer: {MAINTAINER}\nInstalled-Size: {}\n{glibc}{criu}\
         Section: admin\nPriority: optional\n\
         Description: memory deduplication for serverless sandboxes\n \
         Idle sandboxes give their memory back except for what nobody else has, and come back with every byte,\n \
         every thread and every open file. Controller, agent, command line, and what brings them to other hosts.\n",
        stamp.version,
        stamp.architecture(),
        data_bytes.div_ceil(1024),
    )
}
