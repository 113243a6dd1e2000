//! `PyTorch`, as Debian packages it: one of the example functions uses it.

use super::{Name, Part, apt};
use crate::command::Call;

const FIND: &str = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)";

pub(super) fn look() -> Part {
    let there = Call::new("/usr/bin/python3").args(["-c", FIND]).succeeds();
    let found =
        if there { Ok("the system's".to_owned()) } else { Err("no torch for /usr/bin/python3".to_owned()) };
    Part {
        name: Name::Torch,
        packages: if there { Vec::new() } else { apt::missing(&["python3-torch"]) },
        found,
        steps: Vec::new(),
        without: "the function model-serve is skipped",
        by_hand: "Install PyTorch for /usr/bin/python3, or go without (--without-torch)",
    }
}
