//! A function's file as what its sandbox is started from.

use medes_proto::{
    function::FunctionSpec,
    ids::{NodeId, SandboxId},
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
    launch
}
