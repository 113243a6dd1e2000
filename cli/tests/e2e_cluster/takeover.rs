//! What an agent leaves to the next one on its node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::cluster::{Cluster, QUIET, can_run};
use crate::program::until;

const WAITS: &[&str] = &["--takeover", "60"];

/// A sandbox with state, made small by a base, in dedup on node a; the base, what it says of itself and what its memory was.
fn put_away(cluster: &Cluster) -> (String, String, serde_json::Value, serde_json::Value) {
    cluster.apply("f");
    let base = cluster.start_on("a", "f");
    cluster.ask(&["base", &base]);
    let snapshot = cluster.row(&base).unwrap()["base_snapshot"].as_str().unwrap().to_owned();
    let sandbox = cluster.start_on("a", "f");
    cluster.post_to(&sandbox, "f/family").good();
    let look = cluster.post_to(&sandbox, "f/look").good();
    let memory = cluster.ask(&["dedup", "--digest", &sandbox])["memory_digest"].clone();
    (sandbox, snapshot, look, memory)
}

/// It is in dedup, with the base it had, and comes back as what it was.
fn comes_back(
    cluster: &Cluster,
    (sandbox, base): (&str, &str),
    look: &serde_json::Value,
    memory: &serde_json::Value,
) {
    let row = cluster.row(sandbox).unwrap();
    assert_eq!((&row["state"], &row["bases"]), (&json!("dedup"), &json!([base])), "{row}");
    let restored = cluster.ask(&["restore", "--digest", sandbox]);
    assert_eq!(restored["memory_digest"], *memory, "every byte of it");
    let after = cluster.post_to(sandbox, "f/look").good();
    for name in ["tcp", "unix", "pid"] {
        assert_eq!(after[name], look[name], "{name}");
    }
    for name in ["kept", "path", "unlinked"] {
        assert!(after[name].as_str().unwrap().starts_with(look[name].as_str().unwrap()), "{name}: {after}");
    }
}

/// Ends the agent of node a, and waits until the controller knows another one there.
fn replace(cluster: &mut Cluster, end: fn(&mut Cluster, &str)) {
    let node = cluster.node("a");
    let life = |cluster: &Cluster| {
        let rows = cluster.ask(&["nodes"]);
        let row = rows["nodes"].as_array()?.iter().find(|row| row["node"] == node.as_str())?.clone();
        (row["connected"] == true).then(|| row["incarnation"].clone())
    };
    let before = life(cluster);
    end(cluster, "a");
    cluster.start_agent("a", WAITS);
    until("another agent is known", || life(cluster).filter(|now| Some(now) != before.as_ref()));
}

#[test]
fn what_is_in_dedup_outlives_a_killed_agent_once() {
    if !can_run("what_is_in_dedup_outlives_a_killed_agent_once") {
        return;
    }
    let mut cluster = Cluster::start(QUIET, &[("a", WAITS)]);
    let (sandbox, base, look, memory) = put_away(&cluster);
    let warm = cluster.processes();
    assert_eq!(warm.len(), 1, "that of the base");
    replace(&mut cluster, Cluster::kill_agent);
    assert!(cluster.processes().is_empty(), "what had processes is gone");
    assert_eq!(cluster.ask(&["ps"]).as_array().unwrap().len(), 1);
    comes_back(&cluster, (&sandbox, &base), &look, &memory);
    // Put away again, it is made with the same base; and outlives this agent as well.
    let memory = cluster.ask(&["dedup", "--digest", &sandbox])["memory_digest"].clone();
    let look = json!({ "tcp": look["tcp"], "unix": look["unix"], "pid": look["pid"], "kept": "", "path": "", "unlinked": "" });
    replace(&mut cluster, Cluster::kill_agent);
    comes_back(&cluster, (&sandbox, &base), &look, &memory);
    // It is warm. Its image was used, so this time nothing comes back: two of one image would be two of one sandbox.
    replace(&mut cluster, Cluster::kill_agent);
    assert_eq!(cluster.state(&sandbox), "gone");
    let another = cluster.start_on("a", "f");
    let deduped = cluster.ask(&["dedup", &another]);
    assert_eq!(deduped["sandbox"]["bases"], json!([base]), "the base is still there: {deduped}");
}

/// A cluster whose sandboxes are parked at once, and two of them that are; what the second one says of itself.
fn parked(args: &[&str]) -> (Cluster, [String; 2], serde_json::Value) {
    let config = QUIET.replace("idle = '1h'", "idle = '500ms'\npark = true\nkeep_parked = '1h'");
    let cluster = Cluster::start(&config, &[("a", args)]);
    cluster.apply("f");
    let first = cluster.start_on("a", "f");
    cluster.until_base_of(&first);
    let second = cluster.start_on("a", "f");
    cluster.post_to(&second, "f/family").good();
    cluster.post_to(&second, "f/ballast?mib=8").good();
    let look = cluster.post_to(&second, "f/look").good();
    let sum = cluster.post_to(&second, "f/weigh").good();
    for sandbox in [&first, &second] {
        cluster.until_state(sandbox, "parked");
    }
    (cluster, [first, second], json!({ "look": look, "sum": sum }))
}

#[test]
fn what_is_parked_outlives_a_killed_agent_where_it_is() {
    if !can_run("what_is_parked_outlives_a_killed_agent_where_it_is") {
        return;
    }
    let (mut cluster, [first, second], was) = parked(WAITS);
    let processes = members(&cluster);
    assert_eq!(processes.len(), 4, "one, and a family of three");
    let row = |cluster: &Cluster| cluster.row(&second).unwrap();
    let before = row(&cluster);
    for round in 0..3 {
        let end = [Cluster::kill_agent, Cluster::stop_agent][round % 2];
        replace(&mut cluster, end);
        assert_eq!(members(&cluster), processes, "nobody has touched them");
        let now = row(&cluster);
        for field in ["state", "bases", "requests", "stored_bytes", "starts_from_dedup"] {
            assert_eq!(now[field], before[field], "{field}: {before} {now}");
        }
    }
    let back = cluster.post_to(&second, "f/weigh");
    assert_eq!((back.start(), &back.good()), ("unpark", &was["sum"]));
    let look = cluster.post_to(&second, "f/look").good();
    for name in ["tcp", "unix", "pid"] {
        assert_eq!(look[name], was["look"][name], "{name}");
    }
    let said = cluster.ask(&["logs", &second]);
    cluster.post_to(&second, "f/sleep?seconds=0").good();
    until("what it prints is heard", || (cluster.ask(&["logs", &second]) != said).then_some(()));
    // It is like any other: parked again, and put away by CRIU, from the mounts that the first agent made.
    cluster.until_state(&second, "parked");
    cluster.ask(&["dedup", &second]);
    replace(&mut cluster, Cluster::kill_agent);
    assert_eq!(cluster.state(&second), "dedup");
    assert_eq!(cluster.state(&first), "parked");
    let back = cluster.post_to(&second, "f/weigh");
    assert_eq!((back.start(), &back.good()), ("restore", &was["sum"]));
    assert_eq!(cluster.post_to(&first, "f/count").start(), "unpark");
    // Both run: whatever is left of them anywhere, they end with their agent.
    replace(&mut cluster, Cluster::kill_agent);
    assert_eq!(cluster.ask(&["ps"]).as_array().unwrap().len(), 0);
    assert!(cluster.processes().is_empty(), "{:?}", cluster.processes());
}

#[test]
fn whenever_an_agent_ends_no_sandbox_comes_back_twice_or_as_another() {
    if !can_run("whenever_an_agent_ends_no_sandbox_comes_back_twice_or_as_another") {
        return;
    }
    let seed = std::env::var("MEDES_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut dice = Dice(seed);
    let config = QUIET.replace("idle = '1h'", "idle = '300ms'\npark = true\nkeep_parked = '1h'");
    let mut cluster = Cluster::start(&config, &[("a", WAITS)]);
    cluster.apply("f");
    let mut known = BTreeMap::new();
    let (mut survived, mut ended) = (0, 0);
    for round in 0..ROUNDS {
        while known.len() < 3 {
            let sandbox = cluster.start_on("a", "f");
            cluster.post_to(&sandbox, "f/ballast?mib=2").good();
            let weighed = cluster.post_to(&sandbox, "f/weigh");
            assert_eq!(weighed.sandbox(), sandbox, "it has just been used");
            known.insert(sandbox, Heard { count: 0, sum: weighed.good() });
        }
        for sandbox in known.keys().cloned().collect::<Vec<_>>() {
            match dice.below(4) {
                0 => {}
                // It may be on its way to be parked just now.
                1 => drop(cluster.medes(&["dedup", &sandbox])),
                _ => look_after(&cluster, &mut known, &sandbox),
            }
        }
        std::thread::sleep(Duration::from_millis(dice.below(1500)));
        replace(&mut cluster, [Cluster::kill_agent, Cluster::stop_agent][round % 2]);
        let before = known.len();
        known.retain(|sandbox, _| {
            let state = cluster.state(sandbox);
            assert!(["dedup", "parked", "gone"].contains(&&*state), "{sandbox} is {state}");
            state != "gone"
        });
        survived += known.len();
        ended += before - known.len();
        for sandbox in known.keys().cloned().collect::<Vec<_>>() {
            if dice.below(2) == 0 {
                look_after(&cluster, &mut known, &sandbox);
            }
        }
    }
    println!("seed {seed}: {survived} outlived their agent, {ended} ended with it");
    assert!(survived > 0, "none of them rested at the right time");
}

#[test]
fn an_agent_killed_while_it_takes_over_leaves_nobody_who_is_served_by_none() {
    if !can_run("an_agent_killed_while_it_takes_over_leaves_nobody_who_is_served_by_none") {
        return;
    }
    let (mut cluster, sandboxes, _) = parked(WAITS);
    let processes = members(&cluster);
    assert_eq!(processes.len(), 4, "one, and a family of three");
    let file = cluster.dir().join("fault");
    std::fs::write(&file, "take-over wait").unwrap();
    cluster.kill_agent("a");
    cluster.start_agent("a", &[WAITS, &["--fault-file", file.to_str().unwrap()]].concat());
    until("it has everything", || file.with_added_extension("reached").exists().then_some(()));
    assert_eq!(members(&cluster), processes, "they still wait");
    cluster.kill_agent("a");
    // The keeper of the first agent still holds what they miss, and sees to it that nobody ever reads zeros.
    until("they have ended", || processes.iter().find(runs).is_none().then_some(()));
    cluster.start_agent("a", WAITS);
    until("a third agent is known", || {
        let rows = cluster.ask(&["nodes"]);
        (rows["nodes"].as_array()?.iter().any(|row| row["connected"] == true)).then_some(())
    });
    assert!(sandboxes.iter().all(|sandbox| cluster.state(sandbox) == "gone"));
    let another = cluster.start_on("a", "f");
    assert_eq!(cluster.post_to(&another, "f/count").good()["count"], 1);
}

/// Whether a process has memory. Who is waited for by nobody may still be in the list of processes, without any.
fn runs(pid: &&String) -> bool {
    std::fs::read(format!("/proc/{pid}/maps")).is_ok_and(|maps| !maps.is_empty())
}

/// What a sandbox was last heard to count, and what its memory is.
struct Heard {
    count: u64,
    sum: serde_json::Value,
}

/// Whoever answers, which is another one if this one is being put away just now, goes on where it was.
fn look_after(cluster: &Cluster, known: &mut BTreeMap<String, Heard>, sandbox: &str) {
    let counted = cluster.post_to(sandbox, "f/count");
    if let Some(heard) = known.get_mut(counted.sandbox()) {
        heard.count += 1;
        assert_eq!(counted.good()["count"], heard.count, "{counted:?}");
    }
    let weighed = cluster.post_to(sandbox, "f/weigh");
    if let Some(heard) = known.get(weighed.sandbox()) {
        assert_eq!(weighed.good(), heard.sum, "{weighed:?}");
    }
}

/// Agents that end in a test of random times.
const ROUNDS: usize = 8;

/// Random numbers (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn parked_sandboxes_that_nobody_comes_for_end() {
    if !can_run("parked_sandboxes_that_nobody_comes_for_end") {
        return;
    }
    let (mut cluster, sandboxes, _) = parked(&["--takeover", "3"]);
    let processes = members(&cluster);
    assert_eq!(processes.len(), 4, "one, and a family of three");
    cluster.kill_agent("a");
    until("nothing of it is left", || cluster.left_by("a").is_empty().then_some(()));
    assert_eq!(processes.iter().find(runs), None);
    cluster.start_agent("a", &[]);
    cluster.all_attached();
    assert!(sandboxes.iter().all(|sandbox| cluster.state(sandbox) == "gone"));
}

#[test]
fn an_agent_that_is_told_to_stop_leaves_the_same() {
    if !can_run("an_agent_that_is_told_to_stop_leaves_the_same") {
        return;
    }
    let mut cluster = Cluster::start(QUIET, &[("a", WAITS), ("b", &[])]);
    let (sandbox, base, look, memory) = put_away(&cluster);
    // Another node's sandbox needs the base too.
    let away = cluster.start_on("b", "f");
    assert_eq!(cluster.post_to(&away, "f/count").good()["count"], 1);
    let deduped = cluster.ask(&["dedup", &away]);
    assert_eq!(deduped["sandbox"]["bases"], json!([base]), "{deduped}");
    replace(&mut cluster, Cluster::stop_agent);
    comes_back(&cluster, (&sandbox, &base), &look, &memory);
    let back = cluster.post_to(&away, "f/count");
    assert_eq!((back.start(), &back.good()["count"]), ("restore", &json!(2)));
}

#[test]
fn what_nobody_comes_for_goes() {
    if !can_run("what_nobody_comes_for_goes") {
        return;
    }
    let mut cluster = Cluster::start(QUIET, &[("a", &["--takeover", "3"])]);
    cluster.apply("f");
    let sandbox = cluster.start_on("a", "f");
    cluster.ask(&["dedup", &sandbox]);
    let node = cluster.node("a");
    assert!(!keepers(&node).is_empty(), "it waits");
    cluster.kill_agent("a");
    until("the keeper has ended", || keepers(&node).is_empty().then_some(()));
    assert!(cluster.left_by("a").is_empty(), "{:?}", cluster.left_by("a"));
    cluster.start_agent("a", &[]);
    cluster.all_attached();
    assert_eq!(cluster.state(&sandbox), "gone");
    assert!(keepers(&node).is_empty(), "this one leaves nothing");
}

#[test]
fn an_agent_that_cannot_start_loses_nothing_of_it() {
    if !can_run("an_agent_that_cannot_start_loses_nothing_of_it") {
        return;
    }
    let (mut cluster, [first, second], was) = parked(WAITS);
    cluster.ask(&["dedup", &first]);
    let processes = members(&cluster);
    cluster.kill_agent("a");
    for _ in 0..2 {
        // An address of nobody.
        cluster.start_agent("a", &["--metrics", "192.0.2.1:9"]);
        cluster.agent_fails("a");
    }
    assert_eq!(members(&cluster), processes);
    cluster.start_agent("a", WAITS);
    cluster.until_state(&first, "dedup");
    cluster.until_state(&second, "parked");
    let back = cluster.post_to(&second, "f/weigh");
    assert_eq!((back.start(), &back.good()), ("unpark", &was["sum"]));
}

#[test]
fn an_agent_that_is_told_to_end_for_good_leaves_nothing() {
    if !can_run("an_agent_that_is_told_to_end_for_good_leaves_nothing") {
        return;
    }
    let (mut cluster, sandboxes, _) = parked(WAITS);
    let (node, processes) = (cluster.node("a"), members(&cluster));
    assert!(!keepers(&node).is_empty());
    cluster.end_agent("a", Signal::SIGINT);
    until("the keeper has ended", || keepers(&node).is_empty().then_some(()));
    assert!(cluster.left_by("a").is_empty(), "{:?}", cluster.left_by("a"));
    assert_eq!(processes.iter().find(runs), None);
    cluster.start_agent("a", &[]);
    sandboxes.iter().for_each(|sandbox| cluster.until_state(sandbox, "gone"));
}

#[test]
fn a_keeper_that_waits_for_an_agent_can_be_told_that_none_will_come() {
    if !can_run("a_keeper_that_waits_for_an_agent_can_be_told_that_none_will_come") {
        return;
    }
    let (mut cluster, _, _) = parked(WAITS);
    let (node, processes, keeper) = (cluster.node("a"), members(&cluster), keeper(&cluster));
    // Told while its agent is well, it keeps what it has.
    kill(keeper, Signal::SIGTERM).unwrap();
    cluster.kill_agent("a");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!keepers(&node).is_empty() && processes.iter().all(|pid| runs(&pid)), "they wait");
    until("nothing of it is left", || {
        // It may still have been busy when it was told, or have ended.
        let _gone = kill(keeper, Signal::SIGTERM);
        (cluster.left_by("a").is_empty() && keepers(&node).is_empty()).then_some(())
    });
    assert_eq!(processes.iter().find(runs), None);
}

/// The process that watches over the agent of node a.
fn keeper(cluster: &Cluster) -> Pid {
    let groups = cluster.left_by("a").into_iter().filter(|path| path.starts_with('/'));
    let procs = groups.map(|group| std::fs::read_to_string(format!("{group}/keeper/cgroup.procs")));
    let pid = procs.flatten().find_map(|procs| procs.lines().next()?.parse().ok());
    Pid::from_raw(pid.unwrap())
}

/// Processes of all sandboxes of node a, as their control groups have it: the environment of one that is parked cannot be read.
fn members(cluster: &Cluster) -> Vec<String> {
    let groups = cluster.left_by("a").into_iter().filter(|path| path.starts_with('/'));
    let mut found = BTreeSet::new();
    for folder in groups.flat_map(|group| std::fs::read_dir(group).into_iter().flatten().flatten()) {
        if folder.file_name().to_string_lossy().starts_with("sandbox-") {
            let procs = std::fs::read_to_string(folder.path().join("cgroup.procs")).unwrap_or_default();
            found.extend(procs.lines().map(str::to_owned));
        }
    }
    found.into_iter().collect()
}

/// Sockets at which keepers of this node wait for its next agent.
fn keepers(node: &str) -> Vec<String> {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let name = format!("@medes-keeper-{node}");
    sockets.lines().filter(|line| line.ends_with(&name)).map(Into::into).collect()
}
