//! Whom memory is held for: sandboxes of two tenants in every state on two nodes, and what is said of them against the kernel's own files.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    cluster::{Cluster, QUIET, can_run, left_by},
    program::until,
};

/// What the kernel counts of a node's control group, and what of that memory files and tmpfs are. Without page cache.
fn counted(node: &str) -> (u64, u64) {
    let groups = left_by(node);
    let files = |name: &str| groups.iter().find_map(|dir| fs::read_to_string(Path::new(dir).join(name)).ok());
    let stat = files("memory.stat").expect("the node's group has a memory controller");
    let value = |key: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.map(|value| value.parse::<u64>().unwrap())
    };
    let shared = value("total_shmem").or(value("shmem")).unwrap();
    let anon = value("total_rss").or(value("anon")).unwrap();
    let kernel = value("kernel").or_else(|| files("memory.kmem.usage_in_bytes")?.trim().parse().ok());
    (anon + shared + kernel.unwrap(), shared)
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name}: {value}"))
}

/// Within 2 %.
fn is_near(one: u64, other: u64) -> bool {
    one.abs_diff(other) * 50 <= one.max(other)
}

/// Four sandboxes of tenant acme on node a: the base's, one that is parked, one in dedup, one that is warm. Of tenant other one that is
/// parked on node a, one in dedup on node b, and one warm there.
fn populate(cluster: &Cluster) {
    for (name, tenant) in [("f", "acme"), ("g", "other")] {
        let lines = format!("memory = '256MiB'\ntenant = '{tenant}'");
        cluster.ask(&["function", "apply", &cluster.function_file(name, &[], &lines)]);
        let first = cluster.start_on("a", name);
        cluster.until_base_of(&first);
        let parked = cluster.start_on("a", name);
        cluster.post_to(&parked, &format!("{name}/ballast?mib=8")).good();
        cluster.until_state(&parked, "parked");
    }
    cluster.ask(&["policy", "set", "idle=1h"]);
    let warm = |node: &str, name: &str| {
        let warm = cluster.start_on(node, name);
        cluster.post_to(&warm, &format!("{name}/ballast?mib=48")).good();
    };
    warm("a", "f");
    warm("b", "g");
    for (node, name) in [("a", "f"), ("b", "g")] {
        let dedup = cluster.start_on(node, name);
        cluster.ask(&["dedup", &dedup]);
    }
}

#[test]
fn what_is_held_for_tenants_is_what_the_kernel_counts() {
    if !can_run("what_is_held_for_tenants_is_what_the_kernel_counts") {
        return;
    }
    let config = QUIET.replace("idle = '1h'", "idle = '500ms'\npark = true\nkeep_parked = '1h'");
    let cluster = Cluster::start(&config, &[("a", &[]), ("b", &[])]);
    populate(&cluster);
    // What is under way a moment after an operation (a folder that goes, counts that are not summed up yet) is not waited for in vain.
    let mut last = String::new();
    let (told, kernel) = until("the sums are the kernel's, within 2 %", || {
        let told = cluster.ask(&["accounting", "--by", "function"]);
        let kernel = ["a", "b"].map(|name| counted(&cluster.node(name)));
        let nodes = told["nodes"].as_array()?;
        let near = nodes.iter().zip(&kernel).all(|(node, (counted, _))| {
            let named = number(node, "held_bytes") + number(node, "agent_bytes");
            is_near(number(node, "counted_bytes"), *counted) && is_near(named, *counted)
        });
        if !near {
            last = format!("{told:#} {kernel:?}");
            println!("{last}");
        }
        near.then_some((told, kernel))
    });
    println!("{told:#} {kernel:?}");
    let (rows, nodes) = (told["rows"].as_array().unwrap(), told["nodes"].as_array().unwrap());
    let sum = |values: &[Value], name: &str| values.iter().map(|value| number(value, name)).sum::<u64>();
    // Not a byte is lost on the way.
    assert_eq!(sum(rows, "unique_bytes") + sum(rows, "shared_bytes"), sum(nodes, "held_bytes"));
    for node in nodes {
        let nobody = node["nobody_bytes"].as_i64().unwrap();
        let parts = number(node, "held_bytes") + number(node, "agent_bytes");
        assert_eq!(number(node, "counted_bytes"), parts.checked_add_signed(nobody).unwrap(), "{node}");
    }
    // Memory files and tmpfs, the part that is attributed by us: within 2 % by themselves. Tables of the agent are not among them.
    let [f, g] = &rows[..] else { panic!("two functions: {told}") };
    let files = |row: &Value| {
        ["file_bytes", "stored_bytes", "base_bytes", "shared_bytes"]
            .map(|name| number(row, name))
            .iter()
            .sum::<u64>()
    };
    let shared: u64 = kernel.iter().map(|(_, shared)| shared).sum();
    assert!(files(f) + files(g) >= shared - shared / 50, "{told} {shared}");
    // Two of acme's refer to its base, and two of the other tenant's to theirs, of which there is a copy on node b.
    for row in [f, g] {
        assert!(number(row, "shared_bytes") > 0 && number(row, "stored_bytes") > 0, "{row}");
        assert_eq!((number(row, "parked"), number(row, "dedup")), (number(f, "parked"), 1), "{row}");
        // Anonymous memory by control groups and by page tables: two counts of the kernel.
        assert!(is_near(number(row, "process_bytes"), number(row, "mapped_anon_bytes")), "{row}");
    }
    assert_eq!((&f["tenant"], &g["tenant"]), (&"acme".into(), &"other".into()));
    assert!(number(f, "process_bytes") > 48 << 20 && number(g, "process_bytes") > 48 << 20, "{told}");
}
