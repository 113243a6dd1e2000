//! What is linked into the programs, and what goes along from the machine that built them: a software bill of materials, as CycloneDX has it.
//! Made from what cargo itself knows; it asks a network only for what was never built here.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, io,
    path::Path,
    process::Command,
};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    image::hex,
    licences,
    sources::{self, SourceError},
    stamp::Stamp,
};

/// The packages whose programs are handed out.
const ROOTS: [&str; 4] = ["medes-agent", "medes-cli", "medes-controller", "medes-deploy"];

/// What is linked cannot be told, or may not be.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    /// cargo.
    #[error("start cargo")]
    Start(#[source] io::Error),
    /// It does not know.
    #[error("cargo metadata: {0}")]
    Cargo(String),
    /// What it says.
    #[error("understand cargo metadata")]
    Metadata(#[from] serde_json::Error),
    /// Cargo.lock.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Cargo.lock.
    #[error("understand Cargo.lock")]
    Lock(#[from] Box<toml::de::Error>),
    /// Others than may be.
    #[error("may not be linked: {0}")]
    Licences(String),
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

/// A package as cargo knows it.
#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    /// None: ours.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// None: an ordinary one. Others are for builds and tests.
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The whole document, of a checkout whose programs were built with `features`. `files` (name, SHA-256) come from the machine that built it.
///
/// # Errors
/// When cargo cannot tell, or a licence is none that may be linked.
pub fn document(
    (root, features): (&Path, &str),
    files: &[(String, String)],
    stamp: &Stamp,
) -> Result<Value, SbomError> {
    let metadata = metadata(root, features)?;
    let lock: Lock = toml::from_str(&sources::text(&root.join("Cargo.lock"))?).map_err(Box::new)?;
    let checksums = lock.package.into_iter().map(|it| ((it.name, it.version), it.checksum)).collect();
    written(&metadata, &checksums, files, stamp)
}

fn metadata(root: &Path, features: &str) -> Result<Metadata, SbomError> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &target])
        .args(["--features", features])
        .current_dir(root)
        .output()
        .map_err(SbomError::Start)?;
    if !output.status.success() {
        return Err(SbomError::Cargo(String::from_utf8_lossy(&output.stderr).trim().into()));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Everything that the programs are linked from, by cargo's own name for it, with what that needs in turn.
fn linked(metadata: &Metadata) -> BTreeMap<&str, (&Package, BTreeSet<&str>)> {
    let packages: BTreeMap<&str, &Package> = metadata.packages.iter().map(|it| (&*it.id, it)).collect();
    let nodes: BTreeMap<&str, &Node> = metadata.resolve.nodes.iter().map(|it| (&*it.id, it)).collect();
    let ours = |package: &&Package| package.source.is_none() && ROOTS.contains(&&*package.name);
    let mut open: Vec<&str> = metadata.packages.iter().filter(ours).map(|it| &*it.id).collect();
    let mut found = BTreeMap::new();
    while let Some(id) = open.pop() {
        let (Some(package), Some(node)) = (packages.get(id), nodes.get(id)) else { continue };
        let ordinary = |it: &&Dependency| it.dep_kinds.iter().any(|kind| kind.kind.is_none());
        let needs: BTreeSet<&str> = node.deps.iter().filter(ordinary).map(|it| &*it.pkg).collect();
        if found.insert(id, (*package, needs.clone())).is_none() {
            open.extend(needs.into_iter().filter(|id| !found.contains_key(id)));
        }
    }
    found
}

fn written(
    metadata: &Metadata,
    checksums: &BTreeMap<(String, String), Option<String>>,
    files: &[(String, String)],
    stamp: &Stamp,
) -> Result<Value, SbomError> {
    let linked = linked(metadata);
    let licence = |package: &Package| package.license.clone().unwrap_or_default();
    let refused = linked.values().filter(|(package, _)| !licences::allows(&licence(package)));
    let refused: Vec<_> = refused
        .map(|(package, _)| format!("{} {} ({:?})", package.name, package.version, licence(package)))
        .collect();
    if !refused.is_empty() {
        return Err(SbomError::Licences(refused.join(", ")));
    }
    let name = |package: &Package| match package.source {
        Some(_) => format!("pkg:cargo/{}@{}", package.name, package.version),
        None => format!("{}@{}", package.name, package.version),
    };
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for (package, needs) in linked.values() {
        let mut component = json!({
            "type": "library",
            "bom-ref": name(package),
            "name": package.name,
            "version": package.version,
            "licenses": [{"expression": licence(package).replace('/', " OR ")}],
        });
        if package.source.is_some() {
            component["purl"] = name(package).into();
        }
        if let Some(Some(hash)) = checksums.get(&(package.name.clone(), package.version.clone())) {
            component["hashes"] = json!([{"alg": "SHA-256", "content": hash}]);
        }
        components.push(component);
        let needs = needs.iter().filter_map(|id| linked.get(id)).map(|(package, _)| name(package));
        dependencies.push(json!({"ref": name(package), "dependsOn": needs.collect::<BTreeSet<_>>()}));
    }
    let file = |(name, hash): &(String, String)| {
        json!({"type": "file", "bom-ref": format!("file:{name}"), "name": name,
               "hashes": [{"alg": "SHA-256", "content": hash}]})
    };
    components.extend(files.iter().map(file));
    components.sort_by_cached_key(|component| component["bom-ref"].to_string());
    dependencies.sort_by_cached_key(|dependency| dependency["ref"].to_string());
    let serial = serial(&hex(json!([components, dependencies]).to_string().as_bytes()));
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": serial,
        "version": 1,
        "metadata": {
            "timestamp": stamp.rfc3339(),
            "component": {
                "type": "application",
                "bom-ref": format!("medes@{}", stamp.version),
                "name": "medes",
                "version": stamp.version,
                "licenses": [{"expression": "Apache-2.0"}],
            },
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

/// A name for this content and no other, in the form of a UUID of version 8 (one's own making).
fn serial(hash: &str) -> String {
    format!(
        "urn:uuid:{}-{}-8{}-a{}-{}",
        &hash[..8],
        &hash[8..12],
        &hash[13..16],
        &hash[17..20],
        &hash[20..32]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    /// The list of what is here, and with it that every licence in it may be linked.
    #[test]
    fn everything_that_is_linked_is_told_with_its_licence_and_hash() {
        let stamp = Stamp { version: "1".into(), moment: 0 };
        let files = [("lib/libc.so.6".to_owned(), "00".to_owned())];
        let document = document((root(), ""), &files, &stamp).unwrap();
        let components = document["components"].as_array().unwrap();
        let names: BTreeSet<_> = components.iter().map(|it| it["bom-ref"].as_str().unwrap()).collect();
        assert_eq!(names.len(), components.len(), "each once");
        for linked in ["tokio", "rustls", "redb", "zstd"] {
            let mut ours = components.iter().filter(|it| it["name"] == linked);
            let component = ours.next().unwrap_or_else(|| panic!("{linked} is linked"));
            assert_eq!(component["hashes"][0]["content"].as_str().unwrap().len(), 64, "{component}");
            assert!(component["purl"].as_str().unwrap().starts_with("pkg:cargo/"), "{component}");
        }
        for not_linked in ["criterion", "k8s-openapi", "medes-xtask", "protox"] {
            assert!(components.iter().all(|it| it["name"] != not_linked), "{not_linked}");
        }
        assert!(names.contains("file:lib/libc.so.6"));
        for dependency in document["dependencies"].as_array().unwrap() {
            let needs = dependency["dependsOn"].as_array().unwrap().iter().chain([&dependency["ref"]]);
            needs.for_each(|name| assert!(names.contains(name.as_str().unwrap()), "{name} is listed"));
        }
        let serial = document["serialNumber"].as_str().unwrap();
        assert_eq!(serial.len(), "urn:uuid:".len() + 36, "{serial}");
        assert_eq!(document, super::document((root(), ""), &files, &stamp).unwrap());
    }

    #[test]
    fn what_may_not_be_linked_is_refused() {
        let text = r#"{"packages": [
            {"id": "a", "name": "medes-cli", "version": "1", "license": "Apache-2.0", "source": null},
            {"id": "b", "name": "b", "version": "2", "license": "GPL-3.0", "source": "registry"},
            {"id": "c", "name": "c", "version": "3", "license": null, "source": "registry"}
        ], "resolve": {"nodes": [
            {"id": "a", "deps": [{"pkg": "b", "dep_kinds": [{"kind": KIND}]}, {"pkg": "c", "dep_kinds": [{"kind": "dev"}]}]},
            {"id": "b", "deps": []}, {"id": "c", "deps": []}
        ]}}"#;
        let stamp = Stamp { version: "1".into(), moment: 0 };
        let written = |kind: &str| {
            let metadata = serde_json::from_str(&text.replace("KIND", kind)).unwrap();
            written(&metadata, &BTreeMap::new(), &[], &stamp)
        };
        let error = written("null").unwrap_err().to_string();
        assert_eq!(error, r#"may not be linked: b 2 ("GPL-3.0")"#);
        // What only builds or tests is nobody's who gets the programs.
        assert_eq!(written("\"build\"").unwrap()["components"].as_array().unwrap().len(), 1);
    }
}
