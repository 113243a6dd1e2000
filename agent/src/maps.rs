//! Lines of `/proc/PID/maps`: what a process has mapped.

use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::ops::Range;

use medes_dedup::mapping::{Backing, FileName, Mapping, Mappings, MappingsError};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Area<'m> {
    /// First address.
    pub(crate) start: u64,
    /// First address behind it.
    pub(crate) end: u64,
    rights: [u8; 4],
    /// Where in its file it begins.
    offset: u64,
    inode: u64,
    name: &'m str,
}

impl<'m> Area<'m> {
    /// Reads a line. `None`: a line of another shape.
    pub(crate) fn parse(line: &'m str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (hex(start)?, hex(end)?);
        let rights = words.next()?.as_bytes().try_into().ok()?;
        let offset = hex(words.next()?)?;
        let inode = words.nth(1)?.parse().ok()?;
        let name = words.next().unwrap_or_default().trim_start();
        (start < end).then_some(Self { start, end, rights, offset, inode, name })
    }

    /// Its addresses.
    pub(crate) const fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    fn is_private(&self) -> bool {
        self.rights[3] == b'p'
    }

    /// Pages that the kernel maps for itself.
    fn is_of_the_kernel(&self) -> bool {
        self.name.starts_with("[v") || self.name.starts_with("[uprobes")
    }

    /// Private and writable: what a program can change without anybody else seeing it.
    pub(crate) fn is_tracked(&self) -> bool {
        self.rights[1] == b'w' && self.is_private() && !self.is_of_the_kernel()
    }

    /// Private memory without a file, whatever its rights.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.is_private() && self.inode == 0 && !self.is_of_the_kernel()
    }

    /// Private memory of a file, not to be executed.
    pub(crate) fn is_of_a_file(&self) -> bool {
        self.is_private() && self.inode != 0 && self.rights[2] != b'x' && !self.is_of_the_kernel()
    }

    /// What may be done with it, as `mmap` takes it.
    pub(crate) fn protection(&self) -> libc::c_int {
        let rights = [(b'r', libc::PROT_READ), (b'w', libc::PROT_WRITE), (b'x', libc::PROT_EXEC)];
        rights
            .iter()
            .filter(|(letter, _)| self.rights.contains(letter))
            .fold(0, |all, (_, right)| all | right)
    }

    /// A part of it as a part of its file.
    pub(crate) fn file_part(&self, range: Range<u64>) -> FilePart {
        let offset = self.offset.wrapping_add(range.start.wrapping_sub(self.start));
        FilePart { range, offset, inode: self.inode, name: self.name.into() }
    }

    /// Whether this is the vdso.
    pub(crate) fn is_vdso(&self) -> bool {
        self.name == "[vdso]"
    }

    /// The path of the file behind it.
    pub(crate) fn path(&self) -> Option<&'m str> {
        (self.inode != 0).then_some(self.name)
    }

    /// As the engine compares mappings; `None` for what is not memory of the process.
    fn mapping(&self) -> Option<Mapping> {
        let backing = match self.name {
            "[vsyscall]" => return None,
            "[heap]" => Backing::Heap,
            "[stack]" => Backing::Stack,
            name if self.inode != 0 => {
                Backing::File { name: FileName::of(name.as_bytes()), offset: self.offset }
            }
            name if self.is_of_the_kernel() => {
                Backing::File { name: FileName::of(name.as_bytes()), offset: 0 }
            }
            _ => Backing::Anonymous,
        };
        Some(Mapping { start: self.start, end: self.end, backing })
    }
}

/// Memory without a file that stands where a part of one was mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FilePart {
    /// Where.
    pub(crate) range: Range<u64>,
    offset: u64,
    inode: u64,
    name: Box<str>,
}

/// Takes in one more part; others that it covers are gone. They are in order.
pub(crate) fn add_part(parts: &mut Vec<FilePart>, new: FilePart) {
    let first = parts.partition_point(|part| part.range.end <= new.range.start);
    let behind = parts.partition_point(|part| part.range.start < new.range.end);
    parts.splice(first..behind, [new]);
}

/// The lines with these parts as what they were mapped from. What the kernel has joined with them is told apart again.
pub(crate) fn with_parts(maps: &str, parts: &[FilePart]) -> String {
    let mut lines = String::with_capacity(maps.len());
    for line in maps.lines() {
        let plain = Area::parse(line).filter(|area| area.is_anonymous() && area.name.is_empty());
        match plain {
            Some(area) => write_apart(&area, parts, &mut lines),
            None => write_line(&mut lines, format_args!("{line}")),
        }
    }
    lines
}

/// One mapping as lines of parts and lines of what is between them.
fn write_apart(area: &Area<'_>, parts: &[FilePart], lines: &mut String) {
    let rights = str::from_utf8(&area.rights).unwrap_or("----");
    let mut from = area.start;
    let first = parts.partition_point(|part| part.range.end <= area.start);
    for FilePart { range, offset, inode, name } in
        parts[first..].iter().take_while(|part| part.range.start < area.end)
    {
        let (start, end) = (range.start.max(area.start), range.end.min(area.end));
        if from < start {
            write_line(lines, format_args!("{from:x}-{start:x} {rights} 00000000 00:00 0"));
        }
        let offset = offset + (start - range.start);
        write_line(lines, format_args!("{start:x}-{end:x} {rights} {offset:x} 00:00 {inode} {name}"));
        from = end;
    }
    if from < area.end {
        write_line(lines, format_args!("{from:x}-{:x} {rights} 00000000 00:00 0", area.end));
    }
}

fn write_line(lines: &mut String, line: fmt::Arguments<'_>) {
    // Text is written without failing.
    let _written = writeln!(lines, "{line}");
}

/// The text that the lines are of.
pub(crate) fn read(pid: Pid) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/maps"))
}

/// Whether devices or rings hold pages of it where they are.
pub(crate) fn has_pinned(pid: Pid) -> io::Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let pinned = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
    Ok(pinned.is_some_and(|rest| rest.trim() != "0 kB"))
}

/// Mappings that the program has locked in memory. Asking is cheap where there are none.
pub(crate) fn locked(pid: Pid) -> io::Result<Vec<Range<u64>>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let none =
        status.lines().any(|line| line.strip_prefix("VmLck:").is_some_and(|rest| rest.trim() == "0 kB"));
    if none { Ok(Vec::new()) } else { Ok(flagged(&fs::read_to_string(format!("/proc/{pid}/smaps"))?, "lo")) }
}

/// Mappings that the kernel may empty at any time (`MAP_DROPPABLE`).
pub(crate) fn droppable(pid: Pid) -> io::Result<Vec<Range<u64>>> {
    Ok(flagged(&fs::read_to_string(format!("/proc/{pid}/smaps"))?, "dp"))
}

/// Mappings with this word among their flags.
fn flagged(smaps: &str, word: &str) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(area) = Area::parse(line) {
            current = Some(area.range());
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && flags.split(' ').any(|flag| flag == word)
        {
            found.extend(current.clone());
        }
    }
    found
}

/// All mappings, in order.
pub(crate) fn areas(maps: &str) -> impl Iterator<Item = Area<'_>> {
    maps.lines().filter_map(Area::parse)
}

/// All mappings, as the engine compares them.
pub(crate) fn mappings(maps: &str) -> Result<Mappings, MappingsError> {
    Mappings::new(areas(maps).filter_map(|area| area.mapping()))
}

/// Path of the file mapped at the lowest address, which is the program.
pub(crate) fn program(maps: &str) -> Option<&[u8]> {
    areas(maps).find_map(|area| area.path()).map(str::as_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
5581a000-5581c000 r--p 00000000 fe:00 1 /usr/bin/x
5581c000-5581e000 rw-p 00002000 fe:00 1 /usr/bin/x
5581e000-5581f000 rw-p 00000000 00:00 0                    [heap]
7f000000-7f001000 rw-p 00000000 00:00 0
7f001000-7f002000 rw-s 00000000 00:01 9 /dev/shm/y z
7f002000-7f003000 ---p 00000000 00:00 0
7ffc0000-7ffc1000 rw-p 00000000 00:00 0                    [stack]
7ffc2000-7ffc3000 r--p 00000000 00:00 0                    [vvar]
7ffc3000-7ffc4000 r-xp 00000000 00:00 0                    [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]
";

    fn starts(chosen: impl Fn(&Area<'_>) -> bool) -> Vec<u64> {
        areas(MAPS).filter(|area| chosen(area)).map(|area| area.start).collect()
    }

    #[test]
    fn private_writable_memory_is_tracked_and_nothing_else() {
        assert_eq!(starts(|area| area.is_tracked()), [0x5581_c000, 0x5581_e000, 0x7f00_0000, 0x7ffc_0000]);
    }

    #[test]
    fn memory_without_a_file_is_told_from_the_rest() {
        assert_eq!(starts(|area| area.is_anonymous()), [0x5581_e000, 0x7f00_0000, 0x7f00_2000, 0x7ffc_0000]);
    }

    #[test]
    fn the_engine_sees_files_heap_and_stack() {
        let mappings = mappings(MAPS).unwrap();
        let backing = |at: u64| mappings.find(at).map(|mapping| mapping.backing);
        let file = |name: &[u8], offset| Some(Backing::File { name: FileName::of(name), offset });
        assert_eq!(backing(0x5581_c000), file(b"/usr/bin/x", 0x2000));
        assert_eq!(backing(0x7f00_1000), file(b"/dev/shm/y z", 0));
        assert_eq!(backing(0x7ffc_3000), file(b"[vdso]", 0));
        assert_eq!(backing(0x5581_e000), Some(Backing::Heap));
        assert_eq!(backing(0x7ffc_0000), Some(Backing::Stack));
        assert_eq!(mappings.as_slice().len(), 9, "not vsyscall");
        assert_eq!(program(MAPS), Some(&b"/usr/bin/x"[..]));
    }

    #[test]
    fn mappings_are_found_by_their_flags() {
        let smaps = "\
1000-3000 rw-p 00000000 00:00 0 \nSize:  8 kB\nVmFlags: rd wr mr mw me lo ac sd \n\
3000-4000 rw-p 00000000 00:00 0 [heap]\nSize:  4 kB\nVmFlags: rd wr mr mw me ac dp \n\
5000-6000 rw-p 00000000 00:00 0 \nVmFlags: lo\n";
        assert_eq!(flagged(smaps, "lo"), [0x1000..0x3000, 0x5000..0x6000]);
        assert_eq!(flagged(smaps, "dp"), [Range { start: 0x3000, end: 0x4000 }]);
    }

    #[test]
    fn what_stands_for_a_part_of_a_file_is_told_as_that_part() {
        let file = areas(MAPS).find(Area::is_of_a_file).unwrap();
        let mut parts = Vec::new();
        add_part(&mut parts, file.file_part(0x5581_b000..0x5581_c000));
        add_part(&mut parts, file.file_part(0x5581_a000..0x5581_b000));
        let later = areas(MAPS).filter(Area::is_of_a_file).nth(1).unwrap();
        assert_eq!(later.protection(), libc::PROT_READ | libc::PROT_WRITE);
        add_part(&mut parts, later.file_part(0x5581_c000..0x5581_d000));
        let stands = "\
5581a000-5581b000 r--p 00000000 00:00 0
5581b000-5581e000 rw-p 00000000 00:00 0
5581e000-5581f000 rw-p 00000000 00:00 0 [heap]
";
        let told = "\
5581a000-5581b000 r--p 0 00:00 1 /usr/bin/x
5581b000-5581c000 rw-p 1000 00:00 1 /usr/bin/x
5581c000-5581d000 rw-p 2000 00:00 1 /usr/bin/x
5581d000-5581e000 rw-p 00000000 00:00 0
5581e000-5581f000 rw-p 00000000 00:00 0 [heap]
";
        assert_eq!(with_parts(stands, &parts), told, "one line is of two parts, one of a part and more");
        add_part(&mut parts, file.file_part(0x5581_a000..0x5581_d000));
        assert_eq!(parts, [file.file_part(0x5581_a000..0x5581_d000)], "the older ones are gone");
    }

    #[test]
    fn nonsense_is_no_mapping() {
        for bad in ["", "zz-1 rw-p", "2-1 rw-p 0 0:0 0", "1-2 rw 0 0:0 0", "1-2 rw-p 0 0:0 x"] {
            assert_eq!(Area::parse(bad), None, "{bad}");
        }
    }
}
