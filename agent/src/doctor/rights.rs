//! Who we are: root, and the capabilities that a container may have taken away.

use caps::{CapSet, Capability, CapsHashSet};

use super::{Check, Verdict};

/// Without one of these no sandbox starts, or none is dumped.
const NEEDED: [Capability; 10] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_KILL,
    Capability::CAP_DAC_OVERRIDE,
    // Each has a time namespace of its own, whose clocks a restore sets.
    Capability::CAP_SYS_TIME,
];

pub(super) fn checks() -> Vec<Check> {
    let root = nix::unistd::geteuid().is_root();
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    vec![rights(root, &effective), raise_limits(&effective)]
}

fn rights(root: bool, effective: &CapsHashSet) -> Check {
    let lacking = lacking(&NEEDED, effective);
    let who = if root { "root" } else { "not root" };
    if root && lacking.is_empty() {
        return Check::ok("rights", "root with the capabilities that sandboxes need");
    }
    let found = if lacking.is_empty() { who.to_owned() } else { format!("{who}, without {lacking}") };
    Check::missing(
        "rights",
        found,
        "the agent cannot start, dump or restore sandboxes",
        "run the agent as root; in a container, give it these capabilities",
    )
}

fn raise_limits(effective: &CapsHashSet) -> Check {
    let name = "raise_limits";
    if effective.contains(&Capability::CAP_SYS_RESOURCE) {
        return Check::ok(name, "CAP_SYS_RESOURCE");
    }
    Check::lacking(
        Verdict::Degraded,
        name,
        "no CAP_SYS_RESOURCE",
        "limits above the hard ones cannot be given back to a restored sandbox",
        "give the agent CAP_SYS_RESOURCE",
    )
}

fn lacking(needed: &[Capability], effective: &CapsHashSet) -> String {
    let names = needed.iter().filter(|capability| !effective.contains(capability)).map(ToString::to_string);
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_without_a_capability_is_named_as_such() {
        let mut effective: CapsHashSet = caps::all();
        assert_eq!(rights(true, &effective).verdict, Verdict::Ok);
        assert_eq!(rights(false, &effective).verdict, Verdict::Missing);
        effective.remove(&Capability::CAP_SYS_PTRACE);
        let check = rights(true, &effective);
        assert_eq!(check.verdict, Verdict::Missing);
        assert!(check.found.contains("CAP_SYS_PTRACE"), "{}", check.found);
    }
}
