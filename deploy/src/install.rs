//! A version's way onto a host and off it. Every step is one that can be repeated, and none that is interrupted
//! leaves a half of something where a whole is expected.
//!
//! ```text
//! PREFIX/.medes              says that a deployment made this folder
//! PREFIX/incoming/VERSION    being copied; never started
//! PREFIX/versions/VERSION    whole
//! PREFIX/current, previous   links; what runs, and what ran before it
//! PREFIX/state, run          of the services, whatever their version
//! PREFIX/certs               by what they know each other, whatever their version
//! ```

use std::time::Duration;

use crate::{
    archive::Entry,
    remote::{Remote, RemoteError, quoted},
};

const QUICK: Duration = Duration::from_secs(30);
const COPY_WITHIN: Duration = Duration::from_secs(900);

/// Copies a version to where nothing is started from. Returns the bytes that went over.
///
/// # Errors
/// When the host cannot be reached or has no room.
pub fn copy(remote: &Remote, prefix: &str, version: &str, entries: &[Entry]) -> Result<u64, RemoteError> {
    let (prefix, version) = (quoted(prefix), quoted(version));
    make_room(remote, &prefix)?;
    remote.run("clear an unfinished copy", &format!("rm -rf {prefix}/incoming/{version}"), QUICK)?;
    remote.send(entries, &incoming(&prefix, &version), COPY_WITHIN)
}

/// Makes the folder that everything lies in, and says that it is ours.
///
/// # Errors
/// When the host cannot be reached.
pub fn make_room(remote: &Remote, prefix: &str) -> Result<(), RemoteError> {
    let prefix = quoted(prefix);
    let script = format!(
        "umask 022\nmkdir -p {prefix}\n: > {prefix}/.medes\nmkdir -p {prefix}/incoming {prefix}/versions"
    );
    remote.run("make room", &script, QUICK).map(drop)
}

/// Where a version lies until it is settled.
pub fn incoming(prefix: &str, version: &str) -> String {
    format!("{prefix}/incoming/{version}")
}

/// Where a version lies.
pub fn folder(prefix: &str, version: &str) -> String {
    format!("{prefix}/versions/{version}")
}

/// Puts a copied version where versions are.
///
/// # Errors
/// When the host cannot be reached.
pub fn settle(remote: &Remote, prefix: &str, version: &str) -> Result<(), RemoteError> {
    let (from, to) = (quoted(&incoming(prefix, version)), quoted(&folder(prefix, version)));
    // On disk before it has its name: after a power cut it is there as a whole or not at all.
    let script = format!("sync -f {from} 2>/dev/null || sync\nrm -rf {to}\nmv {from} {to}");
    remote.run("put the version in its place", &script, QUICK).map(drop)
}

/// Takes away what was copied and not settled, and a folder that holds nothing else.
///
/// # Errors
/// When the host cannot be reached.
pub fn discard(remote: &Remote, prefix: &str) -> Result<(), RemoteError> {
    let prefix = quoted(prefix);
    let script = format!(
        "rm -rf {prefix}/incoming\n[ -d {prefix} ] || exit 0\nrmdir {prefix}/versions 2>/dev/null || true\n\
         if [ ! -e {prefix}/versions ] && [ -f {prefix}/.medes ]; then rm -rf {prefix}; fi"
    );
    remote.run("take away what was copied", &script, QUICK).map(drop)
}

/// Puts certificates and keys where the programs of this host look for them. Those that run take them up by themselves.
///
/// # Errors
/// When the host cannot be reached.
pub fn certificates(remote: &Remote, prefix: &str, entries: &[Entry]) -> Result<(), RemoteError> {
    make_room(remote, prefix)?;
    let prefix = quoted(prefix);
    let fresh = format!("{prefix}/certs.new");
    let script = format!("rm -rf {fresh}\nmkdir -m 700 {fresh}");
    remote.run("make room for certificates", &script, QUICK)?;
    remote.send(entries, &fresh, QUICK)?;
    // File after file is replaced; a program uses a key only with the certificate that it belongs to.
    let script = format!(
        "chmod 600 {fresh}/*\nmkdir -p -m 700 {prefix}/certs\nmv -f {fresh}/* {prefix}/certs/\nrmdir {fresh}"
    );
    remote.run("put certificates in their place", &script, QUICK).map(drop)
}

/// Makes a version the current one; the one that was current before is the previous one.
///
/// # Errors
/// When the host cannot be reached or does not have it.
pub fn make_current(remote: &Remote, prefix: &str, version: &str) -> Result<(), RemoteError> {
    let (prefix, version) = (quoted(prefix), quoted(version));
    // A link is replaced by a rename: whoever looks sees the old one or the new one.
    let script = format!(
        "cd {prefix}\n[ -d versions/{version} ]\nOLD=$(readlink current || true)\n\
         [ \"$OLD\" = versions/{version} ] && exit 0\n\
         if [ -n \"$OLD\" ]; then ln -sfn \"$OLD\" previous.new; mv -T previous.new previous; fi\n\
         ln -sfn versions/{version} current.new\nmv -T current.new current"
    );
    remote.run("make the version current", &script, QUICK).map(drop)
}

/// Takes a version back that was made current: `current` and `previous` are what they were.
///
/// # Errors
/// When the host cannot be reached.
pub fn restore_links(
    remote: &Remote,
    prefix: &str,
    current: Option<&str>,
    previous: Option<&str>,
) -> Result<(), RemoteError> {
    let mut script = format!("cd {}\n", quoted(prefix));
    for (link, version) in [("current", current), ("previous", previous)] {
        script += &match version {
            Some(version) => {
                format!(
                    "ln -sfn {} {link}.new\nmv -T {link}.new {link}\n",
                    quoted(&format!("versions/{version}"))
                )
            }
            None => format!("rm -f {link}\n"),
        };
    }
    remote.run("put the links back", &script, QUICK).map(drop)
}

/// Removes versions that are neither current nor previous, and whatever was left half copied.
///
/// # Errors
/// When the host cannot be reached.
pub fn prune(remote: &Remote, prefix: &str) -> Result<(), RemoteError> {
    let script = format!(
        "cd {}\nrm -rf incoming\nfor V in versions/*; do\n  [ -d \"$V\" ] || continue\n\
         \x20 [ \"$V\" = \"$(readlink current || true)\" ] && continue\n\
         \x20 [ \"$V\" = \"$(readlink previous || true)\" ] && continue\n  rm -rf \"$V\"\ndone",
        quoted(prefix)
    );
    remote.run("remove old versions", &script, QUICK).map(drop)
}

/// Removes everything. Services must have ended. A folder that no deployment made is left alone.
///
/// # Errors
/// When the host cannot be reached.
pub fn remove(remote: &Remote, prefix: &str, keep_state: bool) -> Result<(), RemoteError> {
    let prefix = quoted(prefix);
    let what = if keep_state {
        format!("cd {prefix}\nrm -rf current previous versions incoming run lock certs certs.new")
    } else {
        format!("rm -rf {prefix}")
    };
    let script = format!("[ -f {prefix}/.medes ] || exit 0\n{what}");
    remote.run("remove it", &script, QUICK).map(drop)
}
