//! Control groups: which hierarchies are mounted, and what they can limit.

use std::fs;
use std::path::Path;

use super::{Check, Verdict};

const CONTROLLERS: [&str; 2] = ["memory", "pids"];

/// What the mounts say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Layout {
    /// The v2 hierarchy: where, and the controllers it has.
    unified: Option<(String, Vec<String>)>,
    /// Controllers that have a v1 hierarchy.
    v1: Vec<String>,
}

pub(super) fn checks() -> Vec<Check> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let controllers =
        |top: &str| fs::read_to_string(Path::new(top).join("cgroup.controllers")).unwrap_or_default();
    let layout = read(&mounts, controllers);
    vec![hierarchy(&layout), limits(&layout), freezer(&layout)]
}

fn read(mounts: &str, controllers: impl Fn(&str) -> String) -> Layout {
    let mut layout = Layout::default();
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, place, kind, options, ..] = words.as_slice() else { continue };
        match *kind {
            "cgroup2" => {
                let controllers = controllers(place).split_whitespace().map(str::to_owned).collect();
                layout.unified = Some(((*place).to_owned(), controllers));
            }
            "cgroup" => layout.v1.extend(options.split(',').map(str::to_owned)),
            _ => {}
        }
    }
    layout
}

fn hierarchy(layout: &Layout) -> Check {
    let name = "cgroup";
    match (&layout.unified, layout.v1.is_empty()) {
        (Some((place, _)), true) => Check::ok(name, format!("v2 at {place}")),
        (Some((place, _)), false) => Check::ok(name, format!("hybrid: v1 controllers, v2 at {place}")),
        (None, false) => Check::degraded(
            name,
            "v1 only",
            "eBPF cannot tell sandboxes apart: they are watched through procfs",
            "mount a cgroup2 hierarchy, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
        (None, true) => Check::missing(
            name,
            "none is mounted",
            "sandboxes cannot be limited or stopped as a whole",
            "mount a cgroup2 hierarchy for the agent",
        ),
    }
}

fn limits(layout: &Layout) -> Check {
    let name = "cgroup_limits";
    let unified = layout.unified.as_ref().map(|(_, controllers)| controllers.as_slice()).unwrap_or_default();
    let has = |controller: &str| unified.iter().chain(&layout.v1).any(|there| there == controller);
    let lacking: Vec<&str> = CONTROLLERS.into_iter().filter(|controller| !has(controller)).collect();
    if lacking.is_empty() {
        return Check::ok(name, CONTROLLERS.join(", "));
    }
    let memory = lacking.contains(&"memory");
    Check::lacking(
        if memory { Verdict::Missing } else { Verdict::Degraded },
        name,
        format!("no controller for {}", lacking.join(", ")),
        if memory {
            "memory limits of functions cannot be kept"
        } else {
            "a sandbox may start any number of processes"
        },
        "enable these controllers for the agent's group",
    )
}

fn freezer(layout: &Layout) -> Check {
    let name = "cgroup_freezer";
    match (&layout.unified, layout.v1.iter().any(|controller| controller == "freezer")) {
        (Some(_), _) => Check::ok(name, "v2"),
        (None, true) => Check::ok(name, "v1"),
        (None, false) => Check::missing(
            name,
            "none",
            "a sandbox cannot be stopped all at once, so none is dumped",
            "mount a cgroup2 hierarchy for the agent",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
        cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";

    #[test]
    fn all_three_layouts_are_known() {
        let hybrid = read(HYBRID, |_| String::new());
        assert!(hierarchy(&hybrid).found.starts_with("hybrid"));
        assert_eq!(limits(&hybrid).verdict, Verdict::Ok);
        assert_eq!(freezer(&hybrid).found, "v2");

        let pure = read("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", |_| "cpu memory pids\n".into());
        assert_eq!(hierarchy(&pure).found, "v2 at /sys/fs/cgroup");
        assert_eq!(limits(&pure).verdict, Verdict::Ok);

        let old = read("cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n", |_| String::new());
        assert_eq!(hierarchy(&old).verdict, Verdict::Degraded);
        assert_eq!(limits(&old).found, "no controller for pids");
        assert_eq!(freezer(&old).verdict, Verdict::Missing);
    }

    #[test]
    fn without_any_hierarchy_nothing_can_be_limited() {
        let none = read("proc /proc proc rw 0 0\nnonsense\n", |_| String::new());
        assert_eq!(none, Layout::default());
        assert_eq!(hierarchy(&none).verdict, Verdict::Missing);
        assert_eq!(limits(&none).verdict, Verdict::Missing);
    }
}
