//! A function's file as what its sandbox is started from.

use medes_proto::{
    function::FunctionSpec,
    ids::{NodeId, SandboxId, TenantName},
};

use crate::sandbox::LaunchSpec;

/// What the runtime is told to start for this function, in this sandbox of this node.
pub fn launch_spec(spec: &FunctionSpec, sandbox: SandboxId, node: &NodeId) -> LaunchSpec {
    let mut launch = LaunchSpec::new(spec.name.as_str(), spec.command.clone(), spec.port);
    launch.env = spec.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let ours = [
        ("MEDES_FUNCTION", spec.name.to_string()),
        ("MEDES_NODE", node.to_string()),
        ("MEDES_SANDBOX", sandbox.to_string()),
        // A clone has those of the sandbox it was made from; its own number is in /run/medes/generation.
        ("MEDES_GENERATION", sandbox.get().to_string()),
    ];
    launch.env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    launch.ready_path.clone_from(&spec.ready_path);
    launch.ready_timeout = spec.ready_timeout;
    launch.memory_bytes_max = spec.memory_bytes;
    // /tmp counts against the memory limit; half of it is as far as a function should get with files.
    launch.tmp_bytes_max = spec.memory_bytes / 2;
    launch.pids_max = spec.pids_max;
    launch.root.clone_from(&spec.root);
    launch.dir.clone_from(&spec.dir);
    launch.mounts = spec.mounts.clone();
    // A checkout may lie where the sandbox has folders of its own (/tmp). A folder that is not there is told by the
    // first step inside, which knows its own root.
    if spec.root.is_none() && spec.dir.is_dir() && spec.dir.parent().is_some() {
        launch.mounts.push(spec.dir.clone());
    }
    launch.requests_max = spec.requests_max;
    (launch.uid, launch.gid) = (user(&spec.tenant), user(&spec.tenant));
    launch
}

/// First user of sandboxes. Above what distributions, directory services and systemd give to anybody (users of containers end at
/// 0x6fff_ffff: "Users, Groups, UIDs and GIDs on systemd systems"), and still positive for programs that take a user for an `int`.
const FIRST_USER: u32 = 0x7000_0000;
/// Of the bits that follow: two of a thousand tenants meet once in thirty clusters.
const USER_BITS: u32 = 24;

/// The user and group of all sandboxes of a tenant, on every node: a sandbox that moves takes it along. What the kernel counts by
/// user (watches, pipes, locked memory) is the tenant's own then.
fn user(tenant: &TenantName) -> u32 {
    let hash =
        blake3::derive_key("medes 2026-11-28 user of a tenant's sandboxes", tenant.as_str().as_bytes());
    let [a, b, c, d, ..] = hash;
    FIRST_USER + (u32::from_le_bytes([a, b, c, d]) & ((1 << USER_BITS) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_have_users_of_their_own() {
        let name = |number: u32| format!("tenant-{number}").parse::<TenantName>().expect("a good name");
        let users: std::collections::BTreeSet<u32> = (0..1_000).map(|number| user(&name(number))).collect();
        // By chance alone 0.03 of them would meet.
        assert!(users.len() >= 998, "{}", users.len());
        assert!(users.iter().all(|user| (0x7000_0000..=0x70ff_ffff).contains(user)));
        assert_eq!(user(&name(1)), user(&name(1)), "it is the same on every node");
    }
}
