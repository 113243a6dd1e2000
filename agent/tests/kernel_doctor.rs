//! The doctor on a real machine: it looks at everything and agrees with what the kernel tests find.

use medes_agent::doctor::{Inputs, Report, Verdict, examine_alone};
use medes_agent::watch::{Options, Watch};
use tokio::sync::Mutex;

const NAMES: [&str; 14] = [
    "rights",
    "raise_limits",
    "kernel",
    "btf",
    "ebpf",
    "userfaultfd",
    "pagemap_scan",
    "aslr",
    "criu",
    "cgroup",
    "cgroup_limits",
    "cgroup_freezer",
    "run",
    "namespaces",
];

/// A process can have one reaper, and the tests of a file may share a process.
static REAPER: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn everything_is_looked_at_and_said_in_full() {
    let _one = REAPER.lock().await;
    let report = examine_alone(&Inputs::default()).await.unwrap();
    for name in NAMES {
        let checks: Vec<_> = report.checks.iter().filter(|check| check.name == name).collect();
        assert_eq!(checks.len(), 1, "{name}");
        let told = checks[0].follows.is_some() && checks[0].fix.is_some();
        assert!(checks[0].verdict == Verdict::Ok || told, "{name} says neither what follows nor what helps");
        assert!(!checks[0].found.is_empty(), "{name}");
    }
    let ebpf = report.checks.iter().find(|check| check.name == "ebpf").unwrap();
    assert_eq!(ebpf.verdict == Verdict::Ok, Watch::start(Options::default()).1.is_none());

    let json = serde_json::to_string_pretty(&report).unwrap();
    println!("{json}");
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}

#[tokio::test]
async fn a_criu_that_is_not_there_is_missing() {
    let _one = REAPER.lock().await;
    let inputs = Inputs { criu: Some("no/such/criu".into()) };
    let report = examine_alone(&inputs).await.unwrap();
    let criu = report.checks.iter().find(|check| check.name == "criu").unwrap();
    assert_eq!(criu.verdict, Verdict::Missing, "{criu:?}");
    assert!(criu.found.contains("no/such/criu"), "{}", criu.found);
}
