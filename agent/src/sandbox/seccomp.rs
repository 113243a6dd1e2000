//! System calls a function has no business with.
//!
//! A deny list: functions are ordinary programs with ordinary runtimes, and without any capability most of the
//! dangerous calls fail anyway. What is listed is what works without a capability, what enlarges the kernel's attack
//! surface most, and what would make a sandbox impossible to dump. Denied calls answer EPERM, so that programs
//! that probe for a feature carry on without it.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Calls denied for one reason.
struct Denied {
    #[allow(dead_code, reason = "it is here to be read next to the calls, and by the test")]
    reason: &'static str,
    calls: &'static [c_long],
}

const DENIED: &[Denied] = &[
    Denied {
        reason: "the file system view is the sandbox's wall",
        calls: &[
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_mount_setattr,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_open_by_handle_at,
        ],
    },
    Denied {
        reason: "namespaces: a user namespace would hand out capabilities again",
        calls: &[libc::SYS_unshare, libc::SYS_setns],
    },
    Denied {
        reason: "code in the kernel, or another kernel",
        calls: &[
            libc::SYS_bpf,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_kexec_load,
            libc::SYS_kexec_file_load,
            libc::SYS_reboot,
        ],
    },
    Denied {
        reason: "stops the kernel at a chosen point, a classic exploit aid; the agent's own pager does not pass this filter",
        calls: &[libc::SYS_userfaultfd],
    },
    Denied {
        reason: "the machine's performance counters show other sandboxes",
        calls: &[libc::SYS_perf_event_open, libc::SYS_lookup_dcookie],
    },
    Denied {
        reason: "keyrings are not namespaced and cannot be dumped",
        calls: &[libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key],
    },
    Denied {
        reason: "reaching into other processes: CRIU and the pager hold that place",
        calls: &[
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_process_madvise,
            libc::SYS_kcmp,
            libc::SYS_move_pages,
            libc::SYS_migrate_pages,
        ],
    },
    Denied {
        reason: "large attack surface, and rings cannot be dumped; runtimes fall back",
        calls: &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register],
    },
    Denied { reason: "pages nobody can read cannot be dumped", calls: &[libc::SYS_memfd_secret] },
    Denied {
        reason: "settings and logs of the whole machine",
        calls: &[
            libc::SYS_acct,
            libc::SYS_adjtimex,
            libc::SYS_clock_adjtime,
            libc::SYS_clock_settime,
            libc::SYS_settimeofday,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_syslog,
            libc::SYS_fanotify_init,
            libc::SYS_vhangup,
        ],
    },
    #[cfg(target_arch = "x86_64")]
    Denied {
        reason: "hardware access and segments, of no use to a function",
        calls: &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt],
    },
];

/// Address families a function may open: the rest is either the hypervisor's (vsock is in no network namespace)
/// or rarely audited kernel code.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Second numbering of the same calls on x86-64 kernels with the x32 ABI. A filter that forgets it can be walked around.
const X32_BIT: c_long = 0x4000_0000;

/// The programs to load, in this order.
pub(crate) fn programs() -> Result<Vec<BpfProgram>, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for &call in DENIED.iter().flat_map(|denied| denied.calls) {
        denied.insert(call, Vec::new());
    }
    denied.insert(libc::SYS_clone, vec![clone_with_new_user()?]);
    denied.insert(libc::SYS_socket, vec![other_families()?]);
    // The arguments of clone3 lie in memory, where a filter cannot look. ENOSYS makes every libc use clone instead.
    let unknown: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let compile = |rules: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int| {
        let rules = with_x32(rules, arch);
        let action = SeccompAction::Errno(errno.unsigned_abs());
        BpfProgram::try_from(SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?)
    };
    Ok(vec![compile(denied, libc::EPERM)?, compile(unknown, libc::ENOSYS)?])
}

fn with_x32(mut rules: BTreeMap<i64, Vec<SeccompRule>>, arch: TargetArch) -> BTreeMap<i64, Vec<SeccompRule>> {
    if arch == TargetArch::x86_64 {
        let second: Vec<_> = rules.iter().map(|(call, rules)| (call | X32_BIT, rules.clone())).collect();
        rules.extend(second);
    }
    rules
}

fn clone_with_new_user() -> Result<SeccompRule, BackendError> {
    let flag = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
    let has_flag = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?;
    SeccompRule::new(vec![has_flag])
}

fn other_families() -> Result<SeccompRule, BackendError> {
    let differs = |family: libc::c_int| {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, u64::from(family.unsigned_abs()))
    };
    SeccompRule::new(FAMILIES.into_iter().map(differs).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_stay_short() {
        let programs = programs().expect("filters");
        assert_eq!(programs.len(), 2);
        // The kernel's own limit is 4096 instructions; each one costs time on every call.
        assert!(programs.iter().all(|program| program.len() < 1000));
    }

    #[test]
    fn no_call_is_listed_twice_and_each_has_a_reason() {
        let mut calls: Vec<_> = DENIED.iter().flat_map(|denied| denied.calls).collect();
        let count = calls.len();
        calls.sort_unstable();
        calls.dedup();
        assert_eq!(calls.len(), count);
        assert!(DENIED.iter().all(|denied| !denied.reason.is_empty()));
    }
}
