//! What kind of machine this is, as far as installing is concerned.

use std::fs;

use crate::command::on_path;

/// The system under us.
pub(super) struct Machine {
    /// `ID` of os-release: debian, ubuntu, fedora...
    pub(super) system: String,
    pub(super) root: bool,
    /// `apt-get` and `dpkg` are there.
    pub(super) apt: bool,
}

impl Machine {
    pub(super) fn look() -> Self {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        Self {
            system: value(&release, "ID").unwrap_or("unknown").to_owned(),
            root: nix::unistd::geteuid().is_root(),
            apt: on_path("apt-get").is_some() && on_path("dpkg-deb").is_some(),
        }
    }

    /// Why system packages cannot be installed here.
    pub(super) fn cannot_install(&self) -> Option<String> {
        match (self.apt, self.root) {
            (false, _) => Some(format!("this system ({}) has no apt", self.system)),
            (true, false) => Some("installing system packages needs root".to_owned()),
            (true, true) => None,
        }
    }
}

fn value<'a>(release: &'a str, key: &str) -> Option<&'a str> {
    let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn only_the_whole_key_counts() {
        let release = "VERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(value(release, "ID"), Some("debian"));
        assert_eq!(value(release, "VERSION_ID"), Some("12"));
        assert_eq!(value(release, "HOME"), None);
    }
}
