//! Kubernetes manifests: each is read as an API server would read it, and what they say to each other is compared.
//!
//! The types are those that are generated from the API's own description. What is not known there, or lacks what is required, does not
//! come back the same.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeSet, path::Path, process::Command};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        core::v1::{ConfigMap, Container, Namespace, PersistentVolumeClaim, PodTemplateSpec, Service},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use medes_deploy::services::AGENT_CAPABILITIES;
use medes_dist::chart;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect()
}

fn manifests() -> Vec<Value> {
    documents(&chart::manifests(root()).unwrap())
}

/// The one of a kind.
fn only<T: DeserializeOwned + Serialize>(kind: &str) -> T {
    let all = manifests();
    let found: Vec<_> = all.iter().filter(|manifest| manifest["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    read(found[0]).unwrap()
}

/// Reads a manifest strictly.
fn read<T: DeserializeOwned + Serialize>(manifest: &Value) -> Result<T, String> {
    let read: T = serde_json::from_value(manifest.clone()).map_err(|error| error.to_string())?;
    let again = serde_json::to_value(&read).unwrap();
    if again == *manifest { Ok(read) } else { Err(format!("as read: {again}\nas written: {manifest}")) }
}

#[test]
fn every_manifest_is_one_that_the_api_knows() {
    let all = manifests();
    assert_eq!(all.len(), 6);
    for manifest in &all {
        let strict = match manifest["kind"].as_str().unwrap() {
            "ConfigMap" => read::<ConfigMap>(manifest).map(drop),
            "DaemonSet" => read::<DaemonSet>(manifest).map(drop),
            "Deployment" => read::<Deployment>(manifest).map(drop),
            "Namespace" => read::<Namespace>(manifest).map(drop),
            "PersistentVolumeClaim" => read::<PersistentVolumeClaim>(manifest).map(drop),
            "Service" => read::<Service>(manifest).map(drop),
            other => Err(format!("no {other} is expected")),
        };
        strict.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn what_the_api_does_not_know_is_seen() {
    let daemons = manifests().into_iter().find(|manifest| manifest["kind"] == "DaemonSet").unwrap();
    read::<DaemonSet>(&daemons).unwrap();
    let mut misspelt = daemons.clone();
    misspelt["spec"]["template"]["spec"]["hostPid"] = true.into();
    assert!(read::<DaemonSet>(&misspelt).is_err());
    let mut wrong = daemons.clone();
    wrong["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "7071".into();
    assert!(read::<DaemonSet>(&wrong).is_err());
    let mut lacking = daemons;
    lacking["spec"].as_object_mut().unwrap().remove("selector");
    assert!(read::<DaemonSet>(&lacking).is_err());
}

/// What the parts of a workload call each other by.
fn check_workload(selector: &LabelSelector, template: &PodTemplateSpec) -> Container {
    let labels = template.metadata.as_ref().unwrap().labels.as_ref().unwrap();
    for (key, value) in selector.match_labels.as_ref().unwrap() {
        assert_eq!(labels.get(key), Some(value), "its own pods");
    }
    let pod = template.spec.as_ref().unwrap();
    assert_eq!(pod.automount_service_account_token, Some(false), "nothing here speaks with the API");
    assert_eq!(pod.containers.len(), 1);
    let container = pod.containers[0].clone();
    let volumes: BTreeSet<_> = pod.volumes.as_ref().unwrap().iter().map(|volume| &*volume.name).collect();
    let mounts = container.volume_mounts.as_ref().unwrap();
    let mounted: BTreeSet<_> = mounts.iter().map(|mount| &*mount.name).collect();
    assert_eq!(volumes, mounted, "every volume is mounted, every mount has a volume");
    let ports = container.ports.as_ref().unwrap();
    let names: BTreeSet<_> = ports.iter().filter_map(|port| port.name.as_deref()).collect();
    for (probe, path) in [(&container.liveness_probe, "/healthz"), (&container.readiness_probe, "/readyz")] {
        let get = probe.as_ref().unwrap().http_get.as_ref().unwrap();
        assert_eq!(get.path.as_deref(), Some(path));
        assert!(matches!(&get.port, IntOrString::String(name) if names.contains(&**name)), "{get:?}");
    }
    container
}

/// `--NAME=VALUE`, of an argument.
fn argument<'c>(container: &'c Container, name: &str) -> &'c str {
    let start = format!("--{name}=");
    let mut all = container.args.as_ref().unwrap().iter();
    all.find_map(|arg| arg.strip_prefix(&start)).unwrap_or_else(|| panic!("no --{name}"))
}

fn port(container: &Container, name: &str) -> i32 {
    let ports = container.ports.as_ref().unwrap();
    ports.iter().find(|port| port.name.as_deref() == Some(name)).unwrap().container_port
}

#[test]
fn the_agent_has_the_rights_that_it_needs_and_no_others() {
    let spec = only::<DaemonSet>("DaemonSet").spec.unwrap();
    let container = check_workload(&spec.selector, &spec.template);
    let pod = spec.template.spec.unwrap();
    assert_eq!((pod.host_pid, pod.host_network), (Some(true), Some(true)));
    let rights = container.security_context.as_ref().unwrap();
    assert_eq!(rights.privileged, None);
    let capabilities = rights.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    let added: Vec<_> = capabilities.add.as_ref().unwrap().iter().map(|name| format!("CAP_{name}")).collect();
    assert_eq!(added, AGENT_CAPABILITIES);
    for (name, argument) in [("agent", "listen"), ("metrics", "metrics")] {
        let address = self::argument(&container, argument);
        assert_eq!(address, format!("$(ADDRESS):{}", port(&container, name)));
    }
    assert_eq!(argument(&container, "pages-port"), port(&container, "pages").to_string());
    // The path that a function's `root` names must mean the same inside and outside.
    let functions = pod.volumes.unwrap().into_iter().find(|volume| volume.name == "functions").unwrap();
    let mounts = container.volume_mounts.unwrap();
    let mount = mounts.iter().find(|mount| mount.name == "functions").unwrap();
    assert_eq!(functions.host_path.unwrap().path, mount.mount_path);
}

#[test]
fn the_controller_has_no_right_and_its_service_leads_to_it() {
    let spec = only::<Deployment>("Deployment").spec.unwrap();
    let container = check_workload(&spec.selector, &spec.template);
    assert_eq!(spec.replicas, Some(1), "the store has one owner");
    let rights = container.security_context.as_ref().unwrap();
    let capabilities = rights.capabilities.as_ref().unwrap();
    assert_eq!((capabilities.drop.as_deref(), &capabilities.add), (Some(&["ALL".to_owned()][..]), &None));
    assert_eq!(rights.read_only_root_filesystem, Some(true));
    let pod = spec.template.spec.as_ref().unwrap();
    assert_eq!(pod.security_context.as_ref().unwrap().run_as_non_root, Some(true));
    let service = only::<Service>("Service");
    let wanted = service.spec.unwrap();
    let labels = spec.template.metadata.unwrap().labels.unwrap();
    assert!(wanted.selector.unwrap().iter().all(|(key, value)| labels.get(key) == Some(value)));
    for way in wanted.ports.unwrap() {
        let Some(IntOrString::String(name)) = way.target_port else { panic!("{way:?}") };
        assert_eq!(argument(&container, &name), format!("0.0.0.0:{}", port(&container, &name)));
    }
    let agents = only::<DaemonSet>("DaemonSet").spec.unwrap();
    let agent = check_workload(&agents.selector, &agents.template);
    let name = service.metadata.name.unwrap();
    assert_eq!(argument(&agent, "controller"), format!("{name}.medes.svc:7070"));
}

#[test]
fn versions_are_this_one() {
    let text = |name: &str| std::fs::read_to_string(root().join("dist/chart").join(name)).unwrap();
    let read = |name: &str| serde_saphyr::from_str::<Value>(&text(name)).unwrap();
    let (chart, values) = (read("Chart.yaml"), read("values.yaml"));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((&chart["version"], &chart["appVersion"]), (&version.into(), &version.into()));
    assert_eq!(values["image"], format!("medes:{version}"));
}

/// Helm itself, where it is (`MEDES_HELM`, or on the path), says the same as this crate.
#[test]
fn helm_renders_the_same() {
    let helm = std::env::var_os("MEDES_HELM").unwrap_or_else(|| "helm".into());
    let chart = root().join("dist/chart");
    let Ok(output) = Command::new(helm).args(["template", "medes", "-n", "medes"]).arg(chart).output() else {
        return println!("SKIPPED helm_renders_the_same: no helm");
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let key = |manifest: &Value| format!("{} {}", manifest["kind"], manifest["metadata"]["name"]);
    let sorted = |mut all: Vec<Value>| {
        all.retain(|manifest| manifest["kind"] != "Namespace");
        all.sort_by_key(key);
        all
    };
    let theirs = sorted(documents(said.trim_start_matches("---\n")));
    assert_eq!(theirs, sorted(manifests()));
}
