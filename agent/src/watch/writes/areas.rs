//! Which mappings of a process are its own and can be written: a line of `/proc/PID/maps` each.

use std::ops::Range;

/// The addresses of a line.
pub(super) fn range(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (address(start)?, address(end)?);
    (start < end).then_some(start..end)
}

/// Private and writable: what a program can change without anybody else seeing it. Not the kernel's own pages in it.
pub(super) fn tracked(maps: &str) -> impl Iterator<Item = Range<u64>> {
    maps.lines().filter_map(|line| {
        let rights = line.split(' ').nth(1)?.as_bytes();
        let ours = rights.get(1) == Some(&b'w') && rights.get(3) == Some(&b'p');
        let of_the_kernel = line.ends_with(']') && line.contains("[v");
        if ours && !of_the_kernel { range(line) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
5581a000-5581c000 r--p 00000000 fe:00 1 /usr/bin/x
5581c000-5581e000 rw-p 00002000 fe:00 1 /usr/bin/x
7f000000-7f001000 rw-p 00000000 00:00 0
7f001000-7f002000 rw-s 00000000 00:01 9 /dev/shm/y
7f002000-7f003000 ---p 00000000 00:00 0
7ffc0000-7ffc1000 rw-p 00000000 00:00 0 [stack]
7ffc2000-7ffc3000 rw-p 00000000 00:00 0 [vvar]
";

    #[test]
    fn private_writable_memory_is_tracked_and_nothing_else() {
        let found: Vec<_> = tracked(MAPS).collect();
        assert_eq!(found, [0x5581c000..0x5581e000, 0x7f000000..0x7f001000, 0x7ffc0000..0x7ffc1000]);
    }

    #[test]
    fn nonsense_is_no_range() {
        assert_eq!((range(""), range("zz-1 rw-p"), range("2-1 rw-p")), (None, None, None));
    }
}
