//! Decides and prepares the mounts of one sandbox.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use crate::sandbox::spec::LaunchSpec;

use super::mount_tmpfs;
use super::mountinfo::{self, MountLine};

/// Writable folders: where inside, its folder in the sandbox's tmpfs, mode, and whether a root must have it.
const PRIVATE: [(&str, &str, u32, bool); 4] = [
    ("/dev/shm", "shm", 0o1777, true),
    ("/tmp", "tmp", 0o1777, true),
    ("/var/tmp", "var-tmp", 0o1777, false),
    // Also hides the unix sockets of the host's daemons, which a read-only mount would not.
    ("/run", "run", 0o755, false),
];
/// Host paths that cannot be shown: they mean something else inside.
const RESERVED: [&str; 8] = ["/", "/proc", "/sys", "/dev", "/dev/shm", "/tmp", "/var/tmp", "/run"];
/// File systems that hold programs and data. Mounts of these on the host are part of its root directory.
const ROOT_KINDS: [&str; 12] =
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "nfs", "nfs4", "9p", "virtiofs"];
/// Most host mounts taken along with the host's root.
const SUBMOUNTS_MAX: usize = 32;
/// Parts of /proc that a user 0 could otherwise write without any capability.
pub(crate) const PROC_READ_ONLY: [&str; 5] = ["sys", "sysrq-trigger", "irq", "bus", "fs"];

/// Why the file systems of a sandbox could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A system call refused.
    #[error("{doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A root directory has no folder for something that must be mounted.
    #[error("the root directory {root} has no folder {inside} (a real one, no link)")]
    RootLacks {
        /// The root directory.
        root: PathBuf,
        /// The missing folder, as seen inside.
        inside: PathBuf,
    },
    /// A folder that should stay visible is one the sandbox has of its own.
    #[error("{path} cannot be shown in a sandbox: it has its own")]
    Reserved {
        /// The folder.
        path: PathBuf,
    },
    /// The root directory, or a folder that should stay visible, is not for the sandbox's user.
    #[error("user {uid} of the sandbox may not read {path}; `chmod o+rx` it")]
    Closed {
        /// The folder.
        path: PathBuf,
        /// The user.
        uid: u32,
    },
    /// A folder that should stay visible is on a mount that the sandbox does not have.
    #[error("{path} is on {mount_point}, which sandboxes do not see; list {mount_point} itself")]
    NotReachable {
        /// The folder.
        path: PathBuf,
        /// The mount it is on.
        mount_point: PathBuf,
    },
}

impl MountError {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}

/// A mount that CRIU must not save but find: `mnt[inside]:key` at dump, `mnt[key]:outside` at restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalMount {
    /// Name in CRIU's images. Depends on `inside` only, so it fits on every node.
    pub key: String,
    /// Mount point inside the sandbox.
    pub inside: PathBuf,
    /// What is mounted there, in the agent's mount namespace.
    pub outside: PathBuf,
}

/// One mount the stage has to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bind {
    pub(crate) inside: PathBuf,
    pub(crate) outside: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) devices: bool,
}

/// The prepared file systems of one sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Layout {
    root: PathBuf,
    tmpfs: PathBuf,
    shown: PathBuf,
    /// Host folders mounted read-only below `shown`.
    shown_points: Vec<PathBuf>,
    /// Folders of the host that the sandbox's user may not enter though something in them is shown: here it has one of its own.
    #[serde(default)]
    covered: Vec<Own>,
    binds: Vec<Bind>,
}

/// A folder inside which is not the host's, and where it is.
#[derive(Debug, Serialize, Deserialize)]
struct Own {
    inside: PathBuf,
    folder: PathBuf,
}

/// Folders below a sandbox's own that are mount points, or hold nothing but mount points.
pub(crate) const ROOT: &str = "root";
pub(crate) const TMPFS: &str = "tmpfs";
pub(crate) const SHOWN: &str = "shown";

impl Layout {
    /// Mounts root and private tmpfs below `dir`, and decides the rest. Undone by [`Layout::unmount`], also when
    /// this fails half way.
    pub(crate) fn prepare(dir: &Path, dev: &Path, spec: &LaunchSpec) -> Result<Self, MountError> {
        let mut layout = Self {
            root: dir.join(ROOT),
            tmpfs: dir.join(TMPFS),
            shown: dir.join(SHOWN),
            shown_points: Vec::new(),
            covered: Vec::new(),
            binds: Vec::new(),
        };
        let prepared = layout.fill(dev, spec);
        if let Err(error) = prepared {
            layout.unmount();
            return Err(error);
        }
        Ok(layout)
    }

    fn fill(&mut self, dev: &Path, spec: &LaunchSpec) -> Result<(), MountError> {
        for path in [&self.root, &self.tmpfs, &self.shown] {
            fs::create_dir(path).map_err(MountError::io("create folder", path))?;
        }
        let source = spec.root.as_deref().unwrap_or(Path::new("/"));
        let found = fs::metadata(source).map_err(MountError::io("look at", source))?;
        if !may(&found, spec, READ | ENTER) {
            return Err(MountError::Closed { path: source.to_owned(), uid: spec.uid });
        }
        bind_read_only(source, &self.root)?;
        mount_tmpfs(&self.tmpfs, spec.tmp_bytes_max, 0o755, MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
        for (inside, name, mode, _) in PRIVATE {
            let path = self.tmpfs.join(name);
            fs::create_dir(&path).map_err(MountError::io("create folder", &path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(MountError::io("set mode of", &path))?;
            if inside == "/run" || inside == "/tmp" {
                std::os::unix::fs::chown(&path, Some(spec.uid), Some(spec.gid))
                    .map_err(MountError::io("give to the function", &path))?;
            }
        }
        self.binds.push(Bind {
            inside: "/dev".into(),
            outside: dev.to_owned(),
            read_only: true,
            devices: true,
        });
        self.require_folder("/proc")?;
        self.require_folder("/dev")?;
        for (inside, name, _, required) in PRIVATE {
            if inside.starts_with("/dev/") || self.has_folder(inside) {
                self.push(inside, self.tmpfs.join(name), false);
            } else if required {
                self.require_folder(inside)?;
            }
        }
        let mounts = mountinfo::read().map_err(MountError::io("read mounts of", "/proc/self"))?;
        let shown = spec
            .mounts
            .iter()
            .map(|path| fs::canonicalize(path).map_err(MountError::io("find folder", path)))
            .collect::<Result<Vec<_>, _>>()?;
        if spec.root.is_none() {
            let closed: BTreeSet<PathBuf> = shown
                .iter()
                .filter_map(|real| closed_above(real, spec).transpose())
                .collect::<Result<_, _>>()?;
            for point in host_submounts(&mounts) {
                if !closed.iter().any(|folder| point.starts_with(folder)) {
                    self.push_shown(&point)?;
                }
            }
            for folder in closed {
                // One on a mount that sandboxes do not see has no place here; what is shown in it is refused for that.
                if self.sees(&holder_of(&mounts, &folder)) {
                    self.cover(folder)?;
                }
            }
        }
        for real in shown {
            self.show(&real, spec, &mounts)?;
        }
        Ok(())
    }

    /// Whoever may not enter a folder does not come through to what is shown in it. So there it has an empty folder of its own.
    fn cover(&mut self, inside: PathBuf) -> Result<(), MountError> {
        let folder = self.tmpfs.join(format!("covered-{}", self.covered.len()));
        make_open_folder(&folder)?;
        self.push(&inside, folder.clone(), true);
        self.covered.push(Own { inside, folder });
        Ok(())
    }

    /// Whether the mount at this place of the host is one that the sandbox has.
    fn sees(&self, holder: &Path) -> bool {
        holder == Path::new("/") || self.binds.iter().any(|bind| bind.inside == holder)
    }

    /// Where this is, if it is in a folder that the sandbox has of its own.
    fn in_own(&self, real: &Path) -> Option<(PathBuf, PathBuf)> {
        let private = PRIVATE.iter().map(|(inside, name, ..)| (Path::new(inside), self.tmpfs.join(name)));
        let covered = self.covered.iter().map(|own| (own.inside.as_path(), own.folder.clone()));
        private
            .chain(covered)
            .find_map(|(inside, folder)| Some((folder, real.strip_prefix(inside).ok()?.to_owned())))
    }

    fn push(&mut self, inside: impl Into<PathBuf>, outside: PathBuf, read_only: bool) {
        self.binds.push(Bind { inside: inside.into(), outside, read_only, devices: false });
    }

    /// Shows a host folder through a read-only mount of our own. CRIU binds what is outside as it is, so with the
    /// host's folder itself a restored sandbox could write where the first one could not.
    fn push_shown(&mut self, real: &Path) -> Result<(), MountError> {
        let point = self.shown.join(self.shown_points.len().to_string());
        fs::create_dir(&point).map_err(MountError::io("create folder", &point))?;
        self.shown_points.push(point.clone());
        bind_read_only(real, &point)?;
        self.push(real, point, true);
        Ok(())
    }

    /// Keeps one host folder visible, unless it is so anyway.
    fn show(&mut self, real: &Path, spec: &LaunchSpec, mounts: &[MountLine]) -> Result<(), MountError> {
        if RESERVED.iter().any(|reserved| real == Path::new(reserved)) || real.starts_with("/proc") {
            return Err(MountError::Reserved { path: real.to_owned() });
        }
        let found = fs::metadata(real).map_err(MountError::io("look at", real))?;
        if !may(&found, spec, READ | ENTER) {
            return Err(MountError::Closed { path: real.to_owned(), uid: spec.uid });
        }
        if let Some((own, relative)) = self.in_own(real) {
            let mut point = own;
            for part in relative.iter() {
                point.push(part);
                make_open_folder(&point)?;
            }
        } else if spec.root.is_none() {
            let holder = holder_of(mounts, real);
            if self.sees(&holder) {
                return Ok(());
            }
            if holder != real || !self.has_folder(real) {
                return Err(MountError::NotReachable { path: real.to_owned(), mount_point: holder });
            }
        } else {
            self.require_folder(real)?;
        }
        if self.binds.iter().all(|bind| bind.inside != real) {
            self.push_shown(real)?;
        }
        Ok(())
    }

    /// Whether the root has this folder, with no link on the way (CRIU names mounts by their real place).
    fn has_folder(&self, inside: impl AsRef<Path>) -> bool {
        let relative = inside.as_ref().strip_prefix("/").unwrap_or(inside.as_ref());
        let path = self.root.join(relative);
        path.is_dir()
            && fs::canonicalize(&path)
                .is_ok_and(|real| fs::canonicalize(&self.root).is_ok_and(|root| real == root.join(relative)))
    }

    fn require_folder(&self, inside: impl AsRef<Path>) -> Result<(), MountError> {
        let inside = inside.as_ref();
        if self.has_folder(inside) {
            return Ok(());
        }
        Err(MountError::RootLacks { root: self.root.clone(), inside: inside.to_owned() })
    }

    /// The sandbox's root, a mount point in the agent's namespace.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of the tmpfs behind the private folders.
    pub(crate) fn tmpfs(&self) -> &Path {
        &self.tmpfs
    }

    /// What the stage has to mount, parents before children.
    pub(crate) fn binds(&self) -> &[Bind] {
        &self.binds
    }

    /// The same for CRIU.
    pub(crate) fn external(&self) -> Vec<ExternalMount> {
        let external = |bind: &Bind| ExternalMount {
            key: key_of(&bind.inside),
            inside: bind.inside.clone(),
            outside: bind.outside.clone(),
        };
        self.binds.iter().map(external).collect()
    }

    /// Takes the mounts away. What a dying process still uses goes with it.
    pub(crate) fn unmount(&self) {
        for path in self.shown_points.iter().rev().chain([&self.tmpfs, &self.root]) {
            // Not mounted (half-way failure) is what we want anyway; the folder's removal reports anything else.
            let _not_mounted = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

/// Bits of a mode, for one class of users.
const READ: u32 = 0o4;
const ENTER: u32 = 0o1;

/// Whether the mode of a file or folder allows it to the sandbox's user. Access lists say nothing of users that no host has.
fn may(found: &fs::Metadata, spec: &LaunchSpec, what: u32) -> bool {
    let class = if found.uid() == spec.uid {
        6
    } else if found.gid() == spec.gid {
        3
    } else {
        0
    };
    (found.mode() >> class) & what == what
}

/// The topmost folder above this one that the sandbox's user may not enter, if it does not have its own one there anyway.
fn closed_above(real: &Path, spec: &LaunchSpec) -> Result<Option<PathBuf>, MountError> {
    if PRIVATE.iter().any(|(inside, ..)| real.starts_with(inside)) {
        return Ok(None);
    }
    let mut topmost = None;
    for folder in real.ancestors().skip(1) {
        let found = fs::metadata(folder).map_err(MountError::io("look at", folder))?;
        if !may(&found, spec, ENTER) {
            topmost = Some(folder.to_owned());
        }
    }
    Ok(topmost)
}

/// Where the mount lies that holds this path of the host.
fn holder_of(mounts: &[MountLine], path: &Path) -> PathBuf {
    mountinfo::containing(mounts, path).map_or_else(|| PathBuf::from("/"), |mount| mount.mount_point.clone())
}

/// A folder that everybody may enter, whatever the umask; it may be there.
fn make_open_folder(path: &Path) -> Result<(), MountError> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .map_err(MountError::io("set mode of", path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(MountError::io("create folder", path)(error)),
    }
}

/// Mounts `source` read-only at `target`, without what is mounted below it.
pub(crate) fn bind_read_only(source: &Path, target: &Path) -> Result<(), MountError> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|error| MountError::io("bind", source)(error.into()))?;
    let flags =
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(None::<&Path>, target, None::<&str>, flags, None::<&str>)
        .map_err(|error| MountError::io("make read-only", target)(error.into()))
}

/// Host mounts that belong to its root directory, parents before children.
fn host_submounts(mounts: &[MountLine]) -> Vec<PathBuf> {
    let hidden = |path: &Path| {
        RESERVED.iter().any(|it| *it != "/" && path.starts_with(it))
            || path.starts_with("/boot")
            || path == Path::new("/")
    };
    let mut points: Vec<PathBuf> = mounts
        .iter()
        .filter(|mount| ROOT_KINDS.contains(&mount.kind.as_str()) && !hidden(&mount.mount_point))
        .filter(|mount| mount.mount_point.is_dir())
        // Covered by something else, or reachable only through a mount that sandboxes do not get.
        .filter(|mount| mountinfo::containing(mounts, &mount.mount_point) == Some(mount))
        .filter(|mount| {
            let above = mount.mount_point.parent().and_then(|parent| mountinfo::containing(mounts, parent));
            above.is_none_or(|above| ROOT_KINDS.contains(&above.kind.as_str()))
        })
        .map(|mount| mount.mount_point.clone())
        .collect();
    points.sort();
    points.dedup();
    points.truncate(SUBMOUNTS_MAX);
    points
}

/// A name without the characters that mean something to CRIU.
fn key_of(inside: &Path) -> String {
    use std::fmt::Write;
    let mut key = String::new();
    for &byte in inside.as_os_str().as_bytes().strip_prefix(b"/").unwrap_or_default() {
        match byte {
            b'/' => key.push('.'),
            byte if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' => {
                key.push(char::from(byte));
            }
            // Writing to a String cannot fail.
            byte => write!(key, "%{byte:02x}").unwrap_or_default(),
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_different_folders_differ() {
        assert_eq!(key_of(Path::new("/dev/shm")), "dev.shm");
        assert_ne!(key_of(Path::new("/a/b")), key_of(Path::new("/a.b")));
        assert_eq!(key_of(Path::new("/a]:b c")), "a%5d%3ab%20c");
    }

    #[test]
    fn only_real_file_systems_come_along_with_the_host_root() {
        let mount = |point: &str, kind: &str| MountLine {
            root: "/".into(),
            mount_point: point.into(),
            kind: kind.to_owned(),
            super_options: String::new(),
        };
        let mounts = [
            mount("/", "ext4"),
            mount("/usr", "ext4"),
            mount("/proc", "proc"),
            mount("/tmp", "xfs"),
            mount("/tmp/deep", "xfs"),
            mount("/sys", "sysfs"),
            mount("/etc", "xfs"),
            mount("/etc", "tmpfs"),
        ];
        assert_eq!(host_submounts(&mounts), [PathBuf::from("/usr")]);
    }
}
