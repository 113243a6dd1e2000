//! A root directory with the programs and what they need of a system, as an OCI image: one layer for the system's part, one for CRIU, one
//! for Medes, so that an upgrade brings the last alone. Written as a tar of an image layout, which container tools load as it is.

use std::io;

use medes_deploy::archive::{ArchiveError, Entry, What};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    libraries::{self, LibraryError},
    sources::Sources,
    stamp::Stamp,
    tarball::{gzip, tar},
};

/// Where Medes lies in it.
const PREFIX: &str = "opt/medes";
/// Who the controller runs as; agents are root.
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\nmedes:x:65532:65532:medes:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nmedes:x:65532:\n";
/// Names are asked of the file first, then of the network.
const NSSWITCH: &str = "hosts: files dns\n";
/// Folders that sandboxes mount something of their own on, or the kernel's file systems.
const FOLDERS: [&str; 6] = ["dev/shm/", "proc/", "run/", "sys/", "tmp/", "var/tmp/"];
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// What the programs need.
    #[error("find what the programs need")]
    Libraries(#[from] LibraryError),
    /// What is in it.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Compression.
    #[error("write a layer")]
    Write(#[from] io::Error),
}

/// A blob of the layout.
struct Blob {
    bytes: Vec<u8>,
    hex: String,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let hex = hex(&bytes);
        Self { bytes, hex }
    }

    fn of_json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", self.hex), "size": self.bytes.len()})
    }
}

/// SHA-256, as it is written.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The root directory, layer by layer.
///
/// # Errors
/// When something that the programs need is not here.
pub fn layers(sources: &Sources) -> Result<Vec<(&'static str, Vec<Entry>)>, ImageError> {
    let programs = sources.programs("");
    let paths: Vec<_> = programs.iter().map(|entry| sources.programs.join(&entry.name)).collect();
    let mut system = libraries::of_programs(paths.iter().map(|path| &**path))?;
    for (name, text) in [("etc/passwd", PASSWD), ("etc/group", GROUP), ("etc/nsswitch.conf", NSSWITCH)] {
        system.push(Entry { name: name.into(), what: What::Text(text.into()) });
    }
    system.extend(FOLDERS.map(|name| Entry { name: name.into(), what: What::Folder }));
    let mut medes = sources.programs(&format!("{PREFIX}/bin/"));
    medes.extend(sources.documents(&format!("{PREFIX}/")));
    let mut layers = vec![("the system's libraries", system)];
    let criu = sources.criu(&format!("{PREFIX}/criu"))?;
    if !criu.is_empty() {
        layers.push(("CRIU", criu));
    }
    layers.push(("Medes", medes));
    Ok(layers)
}

/// The image's layout as one tar.
///
/// # Errors
/// When a file cannot be read.
pub fn archive(sources: &Sources, stamp: &Stamp) -> Result<Vec<u8>, ImageError> {
    let (mut blobs, mut layers, mut unpacked, mut history) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (what, entries) in self::layers(sources)? {
        let bytes = tar(&entries, "", stamp)?;
        unpacked.push(format!("sha256:{}", hex(&bytes)));
        let blob = Blob::new(gzip(&bytes)?);
        layers.push(blob.descriptor(LAYER));
        blobs.push(blob);
        history.push(json!({"created": stamp.rfc3339(), "created_by": what}));
    }
    let labels = json!({
        "org.opencontainers.image.title": "medes",
        "org.opencontainers.image.version": stamp.version,
        "org.opencontainers.image.licenses": "Apache-2.0",
    });
    let config = Blob::of_json(&json!({
        "created": stamp.rfc3339(),
        "architecture": stamp.architecture(),
        "os": "linux",
        "config": {"Env": [format!("PATH=/{PREFIX}/bin")], "Cmd": ["medes", "--help"], "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": unpacked},
        "history": history,
    }));
    let manifest = Blob::of_json(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG),
        "layers": layers,
    }));
    let mut image = manifest.descriptor(MANIFEST);
    // The first is what containerd goes by, the second what other tools do.
    image["annotations"] = json!({
        "io.containerd.image.name": format!("medes:{}", stamp.version),
        "org.opencontainers.image.ref.name": stamp.version,
    });
    image["platform"] = json!({"architecture": stamp.architecture(), "os": "linux"});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [image]});
    blobs.extend([config, manifest]);
    let text = |name: &str, bytes: Vec<u8>| Entry { name: name.into(), what: What::Text(bytes) };
    let mut layout = vec![
        text("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().into()),
        text("index.json", index.to_string().into()),
    ];
    layout.extend(blobs.into_iter().map(|blob| text(&format!("blobs/sha256/{}", blob.hex), blob.bytes)));
    Ok(tar(&layout, "", stamp)?)
}
