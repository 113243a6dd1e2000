//! What a function may rely on.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use medes_agent::reaper::ExitStatus;
use medes_agent::sandbox::{LaunchSpec, Request, RequestError};

use crate::node::{LIMIT, function, house, launch, on_node, refused, result, run, try_run, until};
use crate::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_function_starts_and_answers", a_function_starts_and_answers),
    ("private_folders_are_writable_and_outlive_the_processes", private_folders_outlive),
    ("threads_children_and_devices_work", threads_children_and_devices_work),
    ("environment_folder_and_user_are_as_asked", environment_folder_and_user),
    ("what_is_shown_in_a_closed_folder_is_reached_and_nothing_else_in_it", what_is_shown_in_a_closed_folder),
    ("the_same_on_a_mount_of_its_own", closed_folder_on_a_mount),
    ("what_belongs_to_root_alone_is_out_of_reach", what_belongs_to_root_alone_is_out_of_reach),
    ("a_root_directory_of_its_own", a_root_directory_of_its_own),
    ("one_request_at_a_time_unless_more_are_allowed", one_request_at_a_time),
    ("a_frozen_sandbox_waits_and_goes_on", a_frozen_sandbox_waits_and_goes_on),
    ("usage_counts_memory_and_private_files", usage_counts),
    ("many_sandboxes_start_at_once", many_sandboxes_start_at_once),
];

fn a_function_starts_and_answers() {
    on_node(async |host| {
        let (housing, tree) = launch(&host, "s1", &function()).await;
        assert_eq!(result(&housing, "result = 6 * 7").await, "42");
        let mut request = run("result = headers['x-test'], headers['connection']");
        request.headers.insert("x-test", "value".parse().unwrap());
        let response = housing.request(request).await.unwrap();
        assert_eq!(&response.body[..], b"('value', 'close')");
        assert!(response.micros > 0);
        assert_eq!(housing.log().tail(10).to_string(), "function starts []");
        let ended = tree.kill().await.unwrap();
        assert_eq!((ended.status, ended.out_of_memory), (ExitStatus::Signal(9), false));
        let gone = try_run(&housing, "result = 1").await;
        assert!(matches!(gone, Err(RequestError::Connect { port: 8080, .. })), "{gone:?}");
        housing.remove().await.unwrap();
    });
}

fn private_folders_outlive() {
    on_node(async |host| {
        let (housing, tree) = launch(&host, "s1", &function()).await;
        let (other, _other_tree) = launch(&host, "s2", &function()).await;
        for dir in ["/tmp", "/var/tmp", "/run", "/dev/shm"] {
            assert_eq!(result(&housing, &format!("result = open('{dir}/x', 'w').write('hello')")).await, "5");
            refused(&other, &format!("open('{dir}/x')"), "FileNotFoundError").await;
        }
        tree.kill().await.unwrap();
        // Seen from outside while no process is there, and again by the next one.
        assert_eq!(std::fs::read(housing.private_dir().join("tmp/x")).unwrap(), b"hello");
        let tree = housing.launch().await.unwrap();
        assert_eq!(result(&housing, "result = open('/dev/shm/x').read()").await, "hello");
        assert!(tree.is_running());
        housing.remove().await.unwrap();
        assert!(!tree.is_running());
    });
}

fn threads_children_and_devices_work() {
    on_node(async |host| {
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        let threads = "import threading\nr = []\nts = [threading.Thread(target=r.append, args=(i,)) for i in range(8)]\n\
                       [t.start() for t in ts]\n[t.join() for t in ts]\nresult = sorted(r)";
        assert_eq!(result(&housing, threads).await, "[0, 1, 2, 3, 4, 5, 6, 7]");
        let child = "import subprocess\nresult = subprocess.run(['/bin/sh', '-c', 'echo $$ | cat'], capture_output=True).stdout.strip().isdigit()";
        assert_eq!(result(&housing, child).await, "True");
        let pool = "import multiprocessing.shared_memory as m\ns = m.SharedMemory(create=True, size=4096)\ns.buf[0] = 7\nresult = s.buf[0]\ns.close(); s.unlink()";
        assert_eq!(result(&housing, pool).await, "7");
        let devices = "open('/dev/null', 'w').write('x')\nresult = open('/dev/zero', 'rb').read(2), len(open('/dev/urandom', 'rb').read(5)), open('/dev/stdin').read()";
        assert_eq!(result(&housing, devices).await, "(b'\\x00\\x00', 5, '')");
        housing.remove().await.unwrap();
    });
}

fn environment_folder_and_user() {
    on_node(async |host| {
        let spec = LaunchSpec {
            env: vec![("COLOUR".into(), "blue".into())],
            dir: PathBuf::from("/usr/lib"),
            uid: 0x7000_0001,
            gid: 0x7000_0002,
            ..function()
        };
        let (housing, _tree) = launch(&host, "s1", &spec).await;
        let env = "import os\nresult = sorted(k for k in os.environ if k != 'LC_CTYPE'), os.environ['COLOUR'], os.environ['PORT']";
        assert_eq!(
            result(&housing, env).await,
            "(['COLOUR', 'HOME', 'LANG', 'PATH', 'PORT'], 'blue', '8080')"
        );
        assert_eq!(result(&housing, "import os\nresult = os.getcwd()").await, "/usr/lib");
        let who = "import os\nresult = os.getresuid(), os.getresgid(), os.getgroups()";
        let (user, group) = (0x7000_0001, 0x7000_0002);
        let expected = format!("(({user}, {user}, {user}), ({group}, {group}, {group}), [])");
        assert_eq!(result(&housing, who).await, expected);
        assert_eq!(
            result(&housing, "result = open('/tmp/x', 'w').write('x'), open('/run/x', 'w').write('x')").await,
            "(1, 1)"
        );
        refused(&housing, "open('/etc/shadow')", "PermissionError").await;
        // Its output is its own, by name as well.
        assert_eq!(result(&housing, "result = open('/dev/stdout', 'w').write('by name\\n')").await, "8");
        assert!(housing.log().tail(10).to_string().contains("by name"));
        housing.remove().await.unwrap();
    });
}

fn open_to_all(folder: &Path) {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn what_is_shown_in_a_closed_folder() {
    closed_folder_in(Path::new("/opt"));
}

/// As where homes have a partition of their own.
fn closed_folder_on_a_mount() {
    let mount_point = tempfile::tempdir_in("/opt").unwrap();
    open_to_all(mount_point.path());
    medes_agent::sandbox::enter_private_mounts().unwrap();
    let (path, bind) = (mount_point.path(), nix::mount::MsFlags::MS_BIND);
    nix::mount::mount(Some(path), path, None::<&str>, bind, None::<&str>).unwrap();
    closed_folder_in(path);
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn closed_folder_in(folder: &Path) {
    on_node(async |host| {
        // A checkout in the home of a user who lets nobody in: `tempdir` makes such folders.
        let home = tempfile::tempdir_in(folder).unwrap();
        let function_dir = home.path().join("function");
        std::fs::create_dir(&function_dir).unwrap();
        open_to_all(&function_dir);
        std::fs::copy(crate::node::function_dir().join("function.py"), function_dir.join("f.py")).unwrap();
        std::fs::write(home.path().join("secret"), "of the host").unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut spec = function();
        spec.command[1] = function_dir.join("f.py").display().to_string();
        spec.mounts.push(function_dir.clone());
        let (housing, _tree) = launch(&host, "s1", &spec).await;
        let listing = format!("import os\nresult = os.listdir({:?})", home.path());
        assert_eq!(result(&housing, &listing).await, "['function']");
        refused(&housing, &format!("open({:?}, 'w')", home.path().join("x")), "Read-only file system").await;
        let write = format!("open({:?}, 'w')", function_dir.join("x"));
        refused(&housing, &write, "Read-only file system").await;
        housing.remove().await.unwrap();
        std::fs::set_permissions(&function_dir, std::fs::Permissions::from_mode(0o750)).unwrap();
        let id = medes_agent::sandbox::SandboxId::new("s2").unwrap();
        let closed = medes_agent::sandbox::Housing::create(&host, &id, &spec).await.unwrap_err();
        assert!(closed.to_string().contains("may not read"), "{closed}");
    });
}

fn what_belongs_to_root_alone_is_out_of_reach() {
    on_node(async |host| {
        let folder = tempfile::tempdir_in("/opt").unwrap();
        open_to_all(folder.path());
        let (key, open) = (folder.path().join("key.pem"), folder.path().join("open"));
        std::fs::write(&key, "a node's key").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&open, "for all").unwrap();
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        assert_eq!(result(&housing, &format!("result = open({open:?}).read()")).await, "for all");
        refused(&housing, &format!("open({key:?})"), "PermissionError").await;
        refused(&housing, &format!("import os\nos.chmod({key:?}, 0o644)"), "Error").await;
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o7777, 0o600);
        housing.remove().await.unwrap();
    });
}

fn a_root_directory_of_its_own() {
    on_node(async |host| {
        let root = tempfile::tempdir_in("/run").unwrap();
        open_to_all(root.path());
        for dir in ["usr", "proc", "dev", "tmp"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        for link in ["bin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{link}"), root.path().join(link)).unwrap();
        }
        // The function must be reachable inside, too: below /tmp there is always room for a mount point.
        let program = tempfile::tempdir_in("/tmp").unwrap();
        open_to_all(program.path());
        std::fs::copy(crate::node::function_dir().join("function.py"), program.path().join("f.py")).unwrap();
        let mut spec = function();
        spec.command[1] = program.path().join("f.py").display().to_string();
        spec.mounts = vec![PathBuf::from("/usr"), program.path().to_owned()];
        spec.root = Some(root.path().to_owned());
        let (housing, _tree) = launch(&host, "s1", &spec).await;
        let listing = "import os\nresult = sorted(os.listdir('/'))";
        assert_eq!(result(&housing, listing).await, "['bin', 'dev', 'lib', 'lib64', 'proc', 'tmp', 'usr']");
        refused(&housing, "open('/usr/x', 'w')", "Read-only file system").await;
        refused(&housing, "open('/x', 'w')", "Read-only file system").await;
        housing.remove().await.unwrap();
        std::fs::remove_dir(root.path().join("proc")).unwrap();
        let id = medes_agent::sandbox::SandboxId::new("s2").unwrap();
        let lacking = medes_agent::sandbox::Housing::create(&host, &id, &spec).await.unwrap_err();
        assert!(lacking.to_string().contains("has no folder /proc"), "{lacking}");
    });
}

fn one_request_at_a_time() {
    on_node(async |host| {
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        // The first one is inside for as long as it takes the second to be refused.
        let wait = "import os\nwhile not os.path.exists('/tmp/go'): pass\nresult = 'went'";
        let first = housing.request(run(wait));
        let second = async {
            while !matches!(
                housing.request(Request::get("/", LIMIT, 10)).await,
                Err(RequestError::Busy { requests_max: 1 })
            ) {
                tokio::task::yield_now().await;
            }
            std::fs::write(housing.private_dir().join("tmp/go"), "").unwrap();
        };
        let (first, ()) = tokio::join!(first, second);
        assert_eq!(&first.unwrap().body[..], b"went");
        assert_eq!(result(&housing, "result = 'free again'").await, "free again");
        housing.remove().await.unwrap();
    });
}

fn a_frozen_sandbox_waits_and_goes_on() {
    on_node(async |host| {
        let (housing, tree) = launch(&host, "s1", &function()).await;
        housing.cgroup().freeze().await.unwrap();
        let request = Request { deadline: Duration::from_millis(200), ..run("result = 1") };
        let frozen = housing.request(request).await;
        assert!(matches!(frozen, Err(RequestError::Deadline { .. })), "{frozen:?}");
        housing.cgroup().thaw().unwrap();
        assert_eq!(result(&housing, "result = 'thawed'").await, "thawed");
        // A frozen sandbox can be killed.
        housing.cgroup().freeze().await.unwrap();
        tree.kill().await.unwrap();
        housing.remove().await.unwrap();
    });
}

fn usage_counts() {
    on_node(async |host| {
        if !host.cgroup().limits_memory() {
            println!("SKIPPED usage_counts_memory_and_private_files: no memory controller");
            return;
        }
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        let before = housing.usage();
        assert!(before.anon_bytes > 1 << 20 && before.pids == 1, "{before:?}");
        result(&housing, "global keep\nkeep = bytearray(b'x') * (32 << 20)\nimport sys; sys.keep = keep")
            .await;
        result(&housing, "open('/tmp/x', 'wb').write(b'x' * (16 << 20))").await;
        let after = housing.usage();
        assert!(after.anon_bytes >= before.anon_bytes + (31 << 20), "{before:?} {after:?}");
        assert!(after.shmem_bytes >= before.shmem_bytes + (15 << 20), "{before:?} {after:?}");
        // The kernel adds groups up at its own pace: for a moment the count of one may be ahead of that of the group around it.
        until("the node's count has it as well", || host.usage().held_bytes() >= after.held_bytes());
        housing.remove().await.unwrap();
    });
}

fn many_sandboxes_start_at_once() {
    on_node(async |host| {
        let host = &host;
        let spec = &function();
        let starts = (0..12).map(|number| async move {
            let housing = house(host, &format!("s{number}"), spec).await;
            housing.launch().await.unwrap();
            assert_eq!(result(&housing, &format!("result = {number}")).await, number.to_string());
            housing.remove().await.unwrap();
        });
        futures::future::join_all(starts).await;
    });
}
