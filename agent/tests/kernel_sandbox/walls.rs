//! What a function cannot do.

use std::os::unix::net::UnixListener;

use medes_agent::sandbox::{LaunchError, LaunchSpec, RequestError};

use crate::node::{function, house, launch, on_node, python, refused, result, try_run};
use crate::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("every_namespace_is_its_own", every_namespace_is_its_own),
    ("the_host_cannot_be_written", the_host_cannot_be_written),
    ("no_capability_and_no_way_to_get_one", no_capability),
    ("denied_system_calls_answer_eperm", denied_system_calls),
    ("the_memory_limit_holds_and_is_told", the_memory_limit_holds),
    ("a_fork_bomb_is_bounded_and_dies", a_fork_bomb_is_bounded),
    ("the_private_tmpfs_is_bounded", the_private_tmpfs_is_bounded),
    ("the_log_is_bounded", the_log_is_bounded),
];

fn every_namespace_is_its_own() {
    on_node(async |host| {
        let (one, tree) = launch(&host, "s1", &function()).await;
        let (two, _tree) = launch(&host, "s2", &function()).await;
        for kind in ["pid", "mnt", "ipc", "uts", "net"] {
            let code = format!("import os\nresult = os.readlink('/proc/self/ns/{kind}')");
            let (first, second) = (result(&one, &code).await, result(&two, &code).await);
            let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
            assert!(first != second && first != ours && second != ours, "{kind}: {first} {second} {ours}");
        }
        let inside = "import os, socket\nresult = os.getpid(), os.getsid(0), socket.gethostname()";
        assert_eq!(result(&one, inside).await, "(1, 1, 'probe')");
        let seen = "import os\nresult = sum(name.isdigit() for name in os.listdir('/proc'))";
        assert_eq!(result(&one, seen).await, "1");
        let interfaces = "result = [line.split(':')[0].strip() for line in open('/proc/net/dev')][2:]";
        assert_eq!(result(&one, interfaces).await, "['lo']");
        assert_eq!(tree.pids().unwrap(), [tree.pid()]);
        one.remove().await.unwrap();
        two.remove().await.unwrap();
    });
}

fn the_host_cannot_be_written() {
    // A daemon's socket below /run of the host: a read-only mount alone would let a function connect to it.
    on_node(async |host| {
        let socket = format!("/run/medes-test-{}.sock", std::process::id());
        let _listener = UnixListener::bind(&socket).unwrap();
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        for path in ["/x", "/etc/x", "/usr/x", "/dev/x", "/dev/shm/../x"] {
            refused(&housing, &format!("open('{path}', 'w')"), "Read-only file system").await;
        }
        for path in ["/proc/sys/kernel/domainname", "/proc/sysrq-trigger"] {
            // Not every kernel has the second one.
            if std::path::Path::new(path).exists() {
                refused(&housing, &format!("open('{path}', 'w')"), "Read-only file system").await;
            }
        }
        let shown = crate::node::function_dir().join("x");
        refused(&housing, &format!("open('{}', 'w')", shown.display()), "Read-only file system").await;
        let connect = format!("import socket\nsocket.socket(socket.AF_UNIX).connect('{socket}')");
        refused(&housing, &connect, "FileNotFoundError").await;
        let listing =
            "import os\nresult = os.listdir('/sys'), os.listdir('/run'), os.path.exists('/dev/kmsg')";
        assert_eq!(result(&housing, listing).await, "([], [], False)");
        housing.remove().await.unwrap();
    });
}

fn no_capability() {
    on_node(async |host| {
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        let status = "result = sorted({line.split()[1] for line in open('/proc/self/status') if line.startswith('Cap')}), \
                      [line.split()[1] for line in open('/proc/self/status') if line.startswith(('NoNewPrivs', 'Seccomp:', 'Seccomp_filters'))]";
        assert_eq!(result(&housing, status).await, "(['0000000000000000'], ['1', '2', '2'])");
        // Also after executing something, user 0 though it is.
        let again = "import subprocess\nresult = subprocess.run(['/bin/grep', 'CapEff', '/proc/self/status'], capture_output=True).stdout.split()";
        assert_eq!(result(&housing, again).await, "[b'CapEff:', b'0000000000000000']");
        refused(&housing, "import os\nos.chown('/tmp', 1, 1)", "PermissionError").await;
        refused(&housing, "import os\nos.mknod('/tmp/disk', 0o60600, os.makedev(254, 0))", "PermissionError")
            .await;
        let open_fds = "import os\nresult = [os.readlink(f'/proc/self/fd/{fd}').split(':')[0] for fd in (0, 1, 2)], len(os.listdir('/proc/self/fd'))";
        // Three streams, the listening socket, the connection, the listing itself.
        assert_eq!(result(&housing, open_fds).await, "(['/dev/null', 'pipe', 'pipe'], 6)");
        housing.remove().await.unwrap();
    });
}

fn denied_system_calls() {
    on_node(async |host| {
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        let call = |number: i64, arguments: &str| {
            format!(
                "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\nr = c.syscall({number}, {arguments})\n\
                 result = r, os.strerror(ctypes.get_errno()) if r < 0 else ''"
            )
        };
        let denied = [
            (libc::SYS_mount, "0, 0, 0, 0, 0"),
            (libc::SYS_unshare, "0x10000000"),
            (libc::SYS_clone, "0x10000011, 0, 0, 0, 0"),
            (libc::SYS_bpf, "0, 0, 0"),
            (libc::SYS_userfaultfd, "1"),
            (libc::SYS_keyctl, "0, -3, 1"),
            (libc::SYS_ptrace, "0, 0, 0, 0"),
            (libc::SYS_io_uring_setup, "1, 0"),
            (libc::SYS_socket, "40, 1, 0"),
        ];
        for (number, arguments) in denied {
            assert_eq!(
                result(&housing, &call(number, arguments)).await,
                "(-1, 'Operation not permitted')",
                "{number}"
            );
        }
        let clone3 = call(libc::SYS_clone3, "0, 0");
        assert_eq!(result(&housing, &clone3).await, "(-1, 'Function not implemented')");
        if cfg!(target_arch = "x86_64") {
            // Without the rule for x32 the kernel itself would answer, with ENOSYS where x32 is off.
            let x32 = call(libc::SYS_userfaultfd | 0x4000_0000, "1");
            assert_eq!(result(&housing, &x32).await, "(-1, 'Operation not permitted')");
        }
        let socket = call(libc::SYS_socket, "1, 1, 0");
        assert!(!result(&housing, &socket).await.starts_with("(-1"));
        housing.remove().await.unwrap();
    });
}

fn the_memory_limit_holds() {
    on_node(async |host| {
        if !host.cgroup().limits_memory() {
            println!("SKIPPED the_memory_limit_holds_and_is_told: no memory controller");
            return;
        }
        let spec = LaunchSpec { memory_bytes_max: 48 << 20, ..function() };
        let (housing, tree) = launch(&host, "s1", &spec).await;
        let broken = try_run(&housing, "x = bytearray(b'x') * (200 << 20)").await;
        assert!(matches!(broken, Err(RequestError::Closed { .. })), "{broken:?}");
        let ended = tree.ended().await;
        assert!(ended.out_of_memory, "{ended:?}");
        housing.remove().await.unwrap();
        // The same at the start.
        let eager = python("print('here we go')\nx = bytearray(b'x') * (200 << 20)");
        let housing = house(&host, "s2", &LaunchSpec { memory_bytes_max: 32 << 20, ..eager }).await;
        match housing.launch().await {
            Err(LaunchError::OutOfMemory { bytes_max, log }) => {
                assert_eq!((bytes_max, log.to_string().as_str()), (32 << 20, "here we go"));
            }
            other => panic!("{other:?}"),
        }
        housing.remove().await.unwrap();
    });
}

fn a_fork_bomb_is_bounded() {
    on_node(async |host| {
        if !host.cgroup().limits_pids() {
            println!("SKIPPED a_fork_bomb_is_bounded_and_dies: no pids controller");
            return;
        }
        let (housing, tree) = launch(&host, "s1", &LaunchSpec { pids_max: 20, ..function() }).await;
        let bomb = "import os, time\ndef bomb():\n  while True:\n    try:\n      if os.fork() == 0: continue\n    except OSError: pass\n\
                    if os.fork() == 0:\n  bomb()\nresult = 'lit'";
        assert_eq!(result(&housing, bomb).await, "lit");
        crate::node::until("the bomb fills its group", || housing.usage().pids == 20);
        assert!(tree.pids().unwrap().len() <= 20);
        tree.kill().await.unwrap();
        assert!(tree.pids().unwrap().is_empty());
        housing.remove().await.unwrap();
    });
}

fn the_private_tmpfs_is_bounded() {
    on_node(async |host| {
        let (housing, _tree) =
            launch(&host, "s1", &LaunchSpec { tmp_bytes_max: 4 << 20, ..function() }).await;
        refused(&housing, "open('/tmp/x', 'wb').write(b'x' * (5 << 20))", "No space left").await;
        refused(&housing, "for i in range(100000): open(f'/dev/shm/{i}', 'w')", "No space left").await;
        housing.remove().await.unwrap();
    });
}

fn the_log_is_bounded() {
    use medes_agent::sandbox::log::{BYTES_MAX, LINES_MAX};
    on_node(async |host| {
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        let chatter = "for i in range(100000): print(i, 'x' * 50)\nprint('the end', flush=True)";
        result(&housing, chatter).await;
        let tail = housing.log().tail(usize::MAX);
        assert!(tail.lines.len() <= LINES_MAX);
        assert!(tail.lines.iter().map(|line| line.text.len()).sum::<usize>() <= BYTES_MAX);
        assert_eq!(tail.lines.last().unwrap().text, "the end");
        // Every line was counted: the first one, and 100,001 more.
        assert_eq!(tail.dropped + tail.lines.len() as u64, 100_002);
        housing.remove().await.unwrap();
    });
}
