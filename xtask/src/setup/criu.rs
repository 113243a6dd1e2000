//! CRIU: the system's where it works, else a private copy of a newer one beside the system.
//!
//! Debian 12's CRIU does not run on current kernels, and Debian 13's cannot dump a TCP socket on
//! Linux 6.16 and later (`SO_PASSCRED` is refused there; CRIU 4.2 knows). So the copy is that of the
//! release after it, with all libraries it needs, fetched with an apt state of its own: the system's
//! lists, packages and settings stay as they are. It is started through its own loader.

use std::fs;
use std::path::{Path, PathBuf};

use super::machine::Machine;
use super::step::Step;
use super::{Name, Part};
use crate::command::{Call, on_path};
use crate::repo::Repo;

/// The Debian release the private copy comes from.
const SUITE: &str = "forky";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub(super) fn look(repo: &Repo, machine: &Machine) -> Part {
    let mut part = Part {
        name: Name::Criu,
        found: Err("no criu that works on this kernel".into()),
        packages: Vec::new(),
        steps: Vec::new(),
        without: "sandboxes stay warm: they can be neither dumped nor restored",
        by_hand: "Install CRIU 4.2 or newer so that `criu check` passes as root, or name one in MEDES_CRIU",
    };
    if let Some(version) =
        on_path("criu").and_then(|criu| working(machine, &Call::new(criu.to_string_lossy())))
    {
        part.found = Ok(format!("the system's, {version}"));
        return part;
    }
    let copy = repo.installed("criu");
    if let Some(version) = start_copy(&copy).and_then(|criu| working(machine, &criu)) {
        part.found = Ok(format!("private copy, {version}"));
        return part;
    }
    if machine.apt && machine.system == "debian" {
        match archive() {
            Some(archive) => part.steps = fetch(repo, &copy, &archive),
            None => part.found = Err("no Debian archive among apt's sources to take criu from".into()),
        }
    }
    part
}

/// Its version, if it can dump and restore here. `criu check` wants root; without root the version
/// must do.
fn working(machine: &Machine, criu: &Call) -> Option<String> {
    let text = criu.clone().arg("--version").output()?;
    let version = text.lines().find_map(|line| line.strip_prefix("Version: "))?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if two_numbers(version) < needed(two_numbers(&kernel)) {
        return None;
    }
    (!machine.root || criu.clone().arg("check").succeeds()).then(|| version.to_owned())
}

/// The oldest CRIU that dumps TCP sockets on this kernel. `criu check` does not try that.
fn needed(kernel: Option<(u32, u32)>) -> Option<(u32, u32)> {
    if kernel >= Some((6, 16)) { Some((4, 2)) } else { Some((4, 0)) }
}

/// The first two numbers of a version.
fn two_numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A copy is started by the loader that came with it, so that no library of the system is used.
fn start_copy(copy: &Path) -> Option<Call> {
    let libraries = libraries(copy)?;
    let loader = first(&libraries, |name| name.starts_with("ld-linux") && name.contains(".so"))?;
    let criu = copy.join("usr/sbin/criu");
    criu.is_file()
        .then(|| Call::new(loader.to_string_lossy()).arg("--library-path").path(&libraries).path(&criu))
}

fn libraries(copy: &Path) -> Option<PathBuf> {
    first(&copy.join("usr/lib"), |name| name.ends_with("-linux-gnu"))
}

fn first(folder: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let mut entries = folder.read_dir().ok()?.flatten();
    entries.find(|entry| wanted(&entry.file_name().to_string_lossy())).map(|entry| entry.path())
}

/// Where this machine gets Debian's packages from, as apt itself says.
fn archive() -> Option<String> {
    let lines = Call::new("apt-get")
        .args(["indextargets", "--format", "$(COMPONENT) $(RELEASE) $(REPO_URI)", "Created-By: Packages"])
        .output()?;
    main_archive(&lines).map(str::to_owned)
}

/// The first that holds a whole release: updates and security are named with a dash or a slash.
fn main_archive(lines: &str) -> Option<&str> {
    lines.lines().find_map(|line| {
        let (release, archive) = line.strip_prefix("main ")?.split_once(' ')?;
        (!release.contains(['-', '/'])).then_some(archive)
    })
}

fn fetch(repo: &Repo, copy: &Path, archive: &str) -> Vec<Step> {
    let state = repo.installed("setup").join("apt");
    let settings = state.join("apt.conf");
    let (archives, fresh) = (state.join("archives"), repo.installed("criu.new"));
    let apt =
        || Call::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").arg("-q").arg("-c").path(&settings);
    let folders = ["lists/partial", "archives/partial", "parts", "log"];
    let signed = if Path::new(KEYRING).is_file() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    vec![
        Step::remove("clear the private apt state", state.clone()),
        Step::remove("clear an unfinished copy", fresh.clone()),
        Step::folders("make a private apt state", folders.iter().map(|name| state.join(name)).collect()),
        Step::write(
            format!("name Debian {SUITE} as its source"),
            state.join("sources.list"),
            format!("deb {signed}{archive} {SUITE} main\n"),
        ),
        // No package counts as installed: then everything that criu needs is fetched.
        Step::write("say that nothing is installed", state.join("status"), String::new()),
        Step::write("write its settings", settings.clone(), private_settings(&state)),
        Step::run(format!("fetch the list of packages of {SUITE}"), apt().arg("update")),
        Step::run(
            "fetch criu and the libraries it needs",
            apt().args(["install", "--download-only", "-y", "--no-install-recommends", "criu"]),
        ),
        Step::unpack("unpack them", archives, fresh.clone()),
        Step::replace("put the copy in its place", fresh, copy.to_owned()),
        Step::remove("remove the private apt state", state),
    ]
}

fn private_settings(state: &Path) -> String {
    let own = [
        ("Dir::Etc::SourceList", "sources.list"),
        ("Dir::Etc::SourceParts", "parts"),
        ("Dir::Etc::PreferencesParts", "parts"),
        ("Dir::State", ""),
        ("Dir::State::Lists", "lists"),
        ("Dir::State::status", "status"),
        ("Dir::Cache", ""),
        ("Dir::Cache::Archives", "archives"),
        ("Dir::Log", "log"),
    ];
    let paths = own.iter().map(|(name, inside)| format!("{name} \"{}\";\n", state.join(inside).display()));
    // Nothing runs after an update (desktop machines tell a daemon); the folder is ours, so apt's
    // unprivileged downloader need not own it; translated descriptions are not wanted.
    let rest = "Dir::Etc::Preferences \"/dev/null\";\n#clear APT::Update::Post-Invoke;\n\
                #clear APT::Update::Post-Invoke-Success;\nAPT::Sandbox::User \"root\";\n\
                Acquire::Languages \"none\";\n";
    paths.chain([rest.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::{main_archive, needed, two_numbers};

    #[test]
    fn new_kernels_need_a_new_criu() {
        let fits = |criu, kernel| two_numbers(criu) >= needed(two_numbers(kernel));
        assert!(fits("4.1.1", "6.12.0-9-amd64"));
        assert!(!fits("3.17.1", "6.1.0"));
        assert!(!fits("4.1.1", "6.18.44"));
        assert!(fits("4.2", "6.18.44"));
        assert!(!fits("unknown", "6.1.0"));
    }

    #[test]
    fn the_archive_is_neither_updates_nor_security() {
        let lines = "main bookworm-security mirror/security/\nmain stable/updates mirror/old/\n\
                     contrib bookworm mirror/contrib/\nmain bookworm mirror/debian/\n";
        assert_eq!(main_archive(lines), Some("mirror/debian/"));
        assert_eq!(main_archive("main bookworm-updates mirror/debian/"), None);
    }
}
