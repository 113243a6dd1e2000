//! What the lab needs: an emulator, and the tools that make its image.

use super::{Name, Part};
use crate::command::on_path;
use crate::lab;

/// Programs, and Debian's package of each.
const TOOLS: [(&str, &str); 6] = [
    (lab::EMULATOR, "qemu-system-x86"),
    ("mmdebstrap", "mmdebstrap"),
    ("tar2sqfs", "squashfs-tools-ng"),
    ("cpio", "cpio"),
    ("zstd", "zstd"),
    ("xz", "xz-utils"),
];

pub(super) fn look() -> Part {
    let missing: Vec<_> = TOOLS.iter().filter(|(program, _)| on_path(program).is_none()).collect();
    let names: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    Part {
        name: Name::Lab,
        packages: missing.iter().map(|(_, package)| *package).collect(),
        found: if names.is_empty() {
            Ok("QEMU and what makes its image".to_owned())
        } else {
            Err(format!("not on the path: {}", names.join(", ")))
        },
        steps: Vec::new(),
        without: "the lab is skipped: nothing is tested over RDMA",
        by_hand: "Install qemu-system-x86 mmdebstrap squashfs-tools-ng cpio zstd xz-utils",
    }
}
