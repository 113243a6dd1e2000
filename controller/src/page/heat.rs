//! A heat map as a page can draw it: few cells, each as warm as its warmest page. Pure.

use medes_proto::heat::{HeatMap, Mapping, PageClass};
use serde::Serialize;

/// Cells for all mappings together, but for one more that each may have.
const CELLS: u64 = 4_096;
/// Mappings that are drawn; the largest. Programs have thousands of small ones.
const MAPPINGS_MAX: usize = 128;

/// A sandbox's memory in cells.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Picture {
    source: String,
    /// Pages by class.
    pages: Vec<(&'static str, u64)>,
    pages_per_cell: u64,
    mappings: Vec<Strip>,
    /// Mappings that are not drawn.
    left_out: usize,
}

/// One mapping.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Strip {
    name: String,
    pid: i32,
    start: String,
    pages: u64,
    /// A digit for each cell: 0 for no page that is present, else one more than the place of its class in `pages`.
    cells: String,
}

impl From<&HeatMap> for Picture {
    fn from(map: &HeatMap) -> Self {
        let mut largest: Vec<&Mapping> = map.mappings.iter().collect();
        largest.sort_by_key(|mapping| std::cmp::Reverse(mapping.pages));
        let left_out = largest.len().saturating_sub(MAPPINGS_MAX);
        largest.truncate(MAPPINGS_MAX);
        largest.sort_by_key(|mapping| (mapping.pid, mapping.start));
        let pages = largest.iter().map(|mapping| mapping.pages).fold(0, u64::saturating_add);
        let pages_per_cell = pages.div_ceil(CELLS).max(1);
        Self {
            source: map.source.clone(),
            pages: PageClass::ALL.map(|class| (class.word(), map.count(class))).into(),
            pages_per_cell,
            mappings: largest.into_iter().map(|mapping| strip(mapping, pages_per_cell)).collect(),
            left_out: left_out + usize::from(map.truncated),
        }
    }
}

fn strip(mapping: &Mapping, pages_per_cell: u64) -> Strip {
    let cells = usize::try_from(mapping.pages.div_ceil(pages_per_cell)).unwrap_or(0);
    let mut warmth = vec![0_u8; cells];
    for range in &mapping.ranges {
        let class = PageClass::ALL.iter().position(|class| *class == range.class);
        let digit = class.and_then(|place| u8::try_from(place + 1).ok()).unwrap_or(0);
        let last = range.first.saturating_add(range.pages).saturating_sub(1) / pages_per_cell;
        let first = range.first / pages_per_cell;
        let touched = usize::try_from(first).ok().zip(usize::try_from(last).ok());
        let cells = touched.and_then(|(first, last)| warmth.get_mut(first..=last));
        cells.into_iter().flatten().for_each(|cell| *cell = digit.max(*cell));
    }
    Strip {
        name: mapping.name.clone(),
        pid: mapping.pid,
        start: format!("{:#x}", mapping.start),
        pages: mapping.pages,
        cells: warmth.into_iter().map(|digit| char::from(b'0' + digit)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use medes_proto::{heat::Range, ids::SandboxId};

    use super::*;

    fn map(mappings: Vec<Mapping>) -> HeatMap {
        let sandbox = SandboxId::of(1, 1).unwrap();
        HeatMap { sandbox, source: "watch".into(), mappings, truncated: false }
    }

    fn mapping(start: u64, pages: u64, ranges: &[(u64, u64, PageClass)]) -> Mapping {
        let range = |&(first, pages, class): &(u64, u64, PageClass)| Range { first, pages, class };
        Mapping { pid: 7, start, pages, name: "[heap]".into(), ranges: ranges.iter().map(range).collect() }
    }

    #[test]
    fn a_small_one_has_a_cell_for_each_page() {
        let ranges = [(0, 2, PageClass::File), (3, 1, PageClass::Hot), (4, 2, PageClass::Private)];
        let picture = Picture::from(&map(vec![mapping(0x1000, 7, &ranges)]));
        assert_eq!((picture.pages_per_cell, &*picture.mappings[0].cells), (1, "1107440"));
        assert_eq!((picture.pages[0], picture.pages[6]), (("file", 2), ("hot", 1)));
    }

    #[test]
    fn a_cell_is_as_warm_as_its_warmest_page() {
        let pages = 4 * CELLS;
        let ranges = [(0, 3, PageClass::Cold), (3, 1, PageClass::Warm), (8, pages - 8, PageClass::File)];
        let picture = Picture::from(&map(vec![mapping(0x1000, pages, &ranges)]));
        let strip = &picture.mappings[0];
        assert_eq!((picture.pages_per_cell, strip.cells.len()), (4, CELLS as usize));
        assert_eq!(&strip.cells[..4], "6011");
    }

    #[test]
    fn however_many_mappings_there_are_the_largest_are_drawn_in_order() {
        let many = (0..1_000).map(|at| mapping(at << 20, at % 500 + 1, &[])).collect();
        let picture = Picture::from(&map(many));
        assert_eq!((picture.mappings.len(), picture.left_out), (MAPPINGS_MAX, 1_000 - MAPPINGS_MAX));
        assert!(picture.mappings.iter().all(|strip| strip.pages > 400));
        let cells: usize = picture.mappings.iter().map(|strip| strip.cells.len()).sum();
        assert!(cells <= CELLS as usize + MAPPINGS_MAX, "{cells}");
        assert!(Picture::from(&map(Vec::new())).mappings.is_empty());
    }
}
