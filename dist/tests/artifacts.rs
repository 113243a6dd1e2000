//! Artifacts of small stand-ins for the programs, opened again: by other libraries, and by the tools that they are for where those are.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use flate2::read::GzDecoder;
use medes_dist::{
    image::hex,
    package::SETTINGS,
    release::{self, Artifact, ReleaseError, SUMS},
    sources::Sources,
    stamp::Stamp,
};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAMS: [&str; 5] = ["medes", "medes-agent", "medes-controller", "medes-deploy", "medes-supervise"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Programs that do nothing, well, and a CRIU that is a script.
fn sources() -> (TempDir, Sources) {
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("programs");
    fs::create_dir(&programs).unwrap();
    for name in PROGRAMS {
        fs::copy("/bin/true", programs.join(name)).unwrap();
    }
    let criu = folder.path().join("criu");
    fs::create_dir_all(criu.join("usr/sbin")).unwrap();
    fs::write(criu.join("usr/sbin/criu"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(criu.join("usr/sbin/criu"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("criu", criu.join("usr/sbin/link")).unwrap();
    (folder, Sources { root: root().to_owned(), programs, features: String::new(), criu: Some(criu) })
}

fn stamp() -> Stamp {
    Stamp { version: "1.2.3".into(), moment: 1_700_000_000 }
}

fn made(sources: &Sources) -> Vec<Artifact> {
    release::make(sources, &stamp(), &|_| ()).unwrap()
}

/// Made once for all tests that only look.
static MADE: LazyLock<Vec<Artifact>> = LazyLock::new(|| made(&sources().1));

fn artifact(end: &str) -> &'static [u8] {
    &MADE.iter().find(|made| made.name.ends_with(end)).unwrap_or_else(|| panic!("no {end}")).bytes
}

fn unzipped(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut out).unwrap();
    out
}

/// What a tar says of one entry.
struct Packed {
    mode: u32,
    bytes: Vec<u8>,
    link: Option<PathBuf>,
}

/// By another library than the one that wrote it. Every folder comes before what is in it; all are root's and of one moment.
fn tar(bytes: &[u8]) -> BTreeMap<String, Packed> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        assert_eq!(header.mtime().unwrap(), stamp().moment);
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let inside = name.trim_end_matches('/');
        if let Some((parent, _)) = inside.rsplit_once('/') {
            assert!(found.contains_key(&format!("{parent}/")), "{parent} before {name}");
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let link = entry.link_name().unwrap().map(|link| link.into_owned());
        found.insert(name, Packed { mode: header.mode().unwrap(), bytes, link });
    }
    found
}

/// A tool that is not everywhere. `None`: it is not here, which is said.
fn tool(name: &str, args: &[&str]) -> Option<String> {
    let Ok(output) = Command::new(name).args(args).output() else {
        println!("SKIPPED what {name} says: it is not here");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name} {args:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Some(said)
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

#[test]
fn the_same_files_give_the_same_bytes() {
    let (_folder, sources) = sources();
    for (one, two) in MADE.iter().zip(made(&sources)) {
        assert!(one.bytes == two.bytes, "{} of two folders with the same in them", one.name);
    }
}

#[test]
fn the_tarball_has_what_is_needed_without_cargo() {
    let files = tar(&unzipped(artifact("-linux.tar.gz")));
    let top = stamp().name();
    let file = |name: &str| files.get(&format!("{top}/{name}")).unwrap_or_else(|| panic!("no {name}"));
    for name in PROGRAMS {
        assert_eq!(file(&format!("bin/{name}")).mode, 0o755);
        assert!(file(&format!("bin/{name}")).bytes == fs::read("/bin/true").unwrap(), "{name}");
    }
    assert_eq!(file("criu/usr/sbin/criu").mode, 0o755);
    assert_eq!(file("criu/usr/sbin/link").link, Some("criu".into()));
    for name in ["LICENSE", "README.md", "hosts.md", "runbook.md", "THREAT-MODEL.md", "observe/alerts.yaml"] {
        assert_eq!(file(name).mode, 0o644, "{name}");
        assert!(!file(name).bytes.is_empty(), "{name}");
    }
    assert_eq!(file("LICENSE").bytes, fs::read(root().join("LICENSE")).unwrap());
    assert!(file("systemd/medes-agent.service").bytes.starts_with(b"[Unit]\n"));
    assert!(files.keys().all(|name| name.starts_with(&top)), "one folder");
}

/// The three members of a package: format, control, data.
fn members(deb: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = ar::Archive::new(deb);
    let mut found = BTreeMap::new();
    while let Some(entry) = archive.next_entry() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.header().identifier().to_vec()).unwrap();
        assert_eq!((entry.header().mode(), entry.header().mtime()), (0o100_644, stamp().moment));
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        found.insert(name, bytes);
    }
    found
}

#[test]
fn the_debian_package_says_what_it_is_and_installs_what_it_says() {
    let deb = artifact(".deb");
    // dpkg wants them in this order, and the first one at the very beginning.
    assert_eq!(&deb[..8], b"!<arch>\n");
    assert!(deb[8..].starts_with(b"debian-binary"));
    let members = members(deb);
    assert_eq!(members["debian-binary"], b"2.0\n");
    let about = tar(&unzipped(&members["control.tar.gz"]));
    let control = String::from_utf8(about["./control"].bytes.clone()).unwrap();
    for line in ["Package: medes\n", "Version: 1.2.3\n", "Depends: libc6 (>= 2.", "Section: admin\n"] {
        assert!(control.contains(line), "{control}");
    }
    assert!(!control.contains("criu (>="), "one goes along: {control}");
    let data = tar(&unzipped(&members["data.tar.gz"]));
    let conffiles = String::from_utf8(about["./conffiles"].bytes.clone()).unwrap();
    assert_eq!(conffiles.lines().count(), SETTINGS.len());
    for name in conffiles.lines() {
        assert_eq!(data[&format!(".{name}")].mode, 0o644, "{name}");
    }
    for script in ["./postinst", "./prerm", "./postrm"] {
        assert_eq!(about[script].mode, 0o755);
    }
    for name in PROGRAMS {
        assert_eq!(data[&format!("./usr/bin/{name}")].mode, 0o755);
    }
    assert!(data.contains_key("./usr/lib/systemd/system/medes-controller-gateway.socket"));
    assert!(data.contains_key("./usr/lib/medes/criu/usr/sbin/criu"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("medes.deb");
    fs::write(&path, deb).unwrap();
    if let Some(said) = tool("dpkg-deb", &["--field", path.to_str().unwrap(), "Package", "Version"]) {
        assert_eq!(said, "Package: medes\nVersion: 1.2.3\n");
    }
}

/// dpkg itself installs, upgrades and purges it, in a root directory of its own.
#[test]
fn dpkg_installs_it_and_leaves_nothing_behind() {
    let host = tempfile::tempdir().unwrap();
    let path = host.path().join("medes.deb");
    fs::write(&path, artifact(".deb")).unwrap();
    let root = host.path().join("root");
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "etc"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    if !is_root() {
        return println!("SKIPPED dpkg_installs_it_and_leaves_nothing_behind: not root");
    }
    let root_flag = format!("--root={}", root.display());
    let log = format!("--log={}", host.path().join("log").display());
    let dpkg = |args: &[&str]| {
        let all = [&[&*root_flag, &*log, "--force-script-chrootless", "--force-depends"], args].concat();
        tool("dpkg", &all)
    };
    if dpkg(&["--install", path.to_str().unwrap()]).is_none() {
        return;
    }
    let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("usr/bin/medes-agent"), 0o755);
    for name in ["etc/medes/certs", "var/lib/medes/state/controller", "var/lib/medes/state/agent"] {
        assert_eq!(mode(name), 0o700, "{name}");
    }
    // What the administrator wrote stays through an upgrade and a removal.
    let settings = root.join(SETTINGS[0]);
    fs::write(&settings, "MEDES_NODE=mine\n").unwrap();
    dpkg(&["--install", path.to_str().unwrap()]).unwrap();
    dpkg(&["--remove", "medes"]).unwrap();
    assert!(!root.join("usr/bin/medes").exists());
    assert_eq!(fs::read_to_string(&settings).unwrap(), "MEDES_NODE=mine\n");
    dpkg(&["--purge", "medes"]).unwrap();
    for name in ["etc/medes", "usr/lib/medes", "var/lib/medes", "usr/share/medes"] {
        assert!(!root.join(name).exists(), "{name} is left");
    }
}

/// A blob by its descriptor, whose digest and size must be right.
fn blob<'a>(layout: &'a BTreeMap<String, Packed>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let bytes = &layout[&format!("blobs/sha256/{digest}")].bytes;
    assert_eq!(hex(bytes), digest);
    assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap());
    bytes
}

#[test]
fn the_image_has_what_its_programs_need_and_its_digests_are_right() {
    let layout = tar(artifact(".oci.tar"));
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    assert_eq!(json(&layout["oci-layout"].bytes)["imageLayoutVersion"], "1.0.0");
    let index = json(&layout["index.json"].bytes);
    let manifest = json(blob(&layout, &index["manifests"][0]));
    let config = json(blob(&layout, &manifest["config"]));
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "medes:1.2.3");
    let layers = manifest["layers"].as_array().unwrap();
    let unpacked = config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!((layers.len(), unpacked.len()), (3, 3));
    assert_eq!(
        layout.keys().filter(|name| name.starts_with("blobs/sha256/")).count(),
        3 + 2 + 1,
        "and the folder"
    );
    let root = tempfile::tempdir().unwrap();
    for (layer, id) in layers.iter().zip(unpacked) {
        let bytes = unzipped(blob(&layout, layer));
        assert_eq!(format!("sha256:{}", hex(&bytes)), id.as_str().unwrap());
        tar(&bytes);
        tar::Archive::new(&*bytes).unpack(root.path()).unwrap();
    }
    assert!(root.path().join("opt/medes/criu/usr/sbin/criu").is_file());
    for folder in ["dev/shm", "proc", "tmp", "run"] {
        assert!(root.path().join(folder).is_dir(), "{folder}: sandboxes mount something there");
    }
    if !is_root() {
        return println!("SKIPPED running its programs: not root");
    }
    // With nothing but what is in it.
    let program = Command::new("chroot").arg(root.path()).arg("/opt/medes/bin/medes").status().unwrap();
    assert!(program.success());
}

#[test]
fn checksums_are_those_of_the_files_and_nobodys_folder_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let made = &*MADE;
    let out = folder.path().join("out/dist");
    release::put(made, &out).unwrap();
    let sums = fs::read_to_string(out.join(SUMS)).unwrap();
    assert_eq!(sums.lines().count(), made.len());
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        assert_eq!(hex(&fs::read(out.join(name)).unwrap()), sum, "{name}");
    }
    // What an earlier version left goes.
    fs::write(out.join("medes-0.0.1.tar.gz"), "old").unwrap();
    release::put(made, &out).unwrap();
    assert_eq!(out.read_dir().unwrap().count(), made.len() + 1);
    fs::remove_file(out.join(SUMS)).unwrap();
    assert!(matches!(release::put(made, &out), Err(ReleaseError::NotOurs(_))));
    assert_eq!(out.read_dir().unwrap().count(), made.len());
}

#[test]
fn a_program_that_is_not_built_is_told() {
    let (_folder, sources) = sources();
    fs::remove_file(sources.programs.join("medes-agent")).unwrap();
    let error = release::make(&sources, &stamp(), &|_| ()).unwrap_err();
    assert!(error.to_string().contains("medes-agent"), "{error}");
}
