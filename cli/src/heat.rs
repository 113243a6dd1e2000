//! `medes heat`: a sandbox's address space as a heat map, in the terminal or as an SVG or PNG picture.

mod picture;

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
};

use medes_proto::{
    heat::{HeatMap, Mapping, PageClass},
    ids::SandboxId,
    wire,
};
use serde::Serialize;

use crate::{
    client::{Client, QUICK},
    error::CliError,
    human,
    output::{Output, plain},
};

/// Cells of a mapping's bar.
const BAR: usize = 48;
/// Mappings that are shown one by one; the largest.
const SHOWN_MAX: usize = 40;
const PAGE_BYTES: u64 = 4096;

#[derive(Debug, clap::Args)]
pub(crate) struct HeatArgs {
    /// The sandbox, as `medes ps` names it; it must have its memory
    sandbox: SandboxId,
    /// Draw it into this file, as its ending says: .svg or .png
    #[arg(long, value_name = "FILE", value_parser = picture_path)]
    out: Option<PathBuf>,
}

fn picture_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match picture::Kind::of(&path) {
        Some(_) => Ok(path),
        None => Err("it ends neither in .svg nor in .png".into()),
    }
}

#[derive(Serialize)]
struct HeatView {
    sandbox: String,
    source: String,
    truncated: bool,
    pages: Vec<ClassView>,
    mappings: Vec<MappingView>,
}

#[derive(Serialize)]
struct ClassView {
    class: &'static str,
    pages: u64,
}

#[derive(Serialize)]
struct MappingView {
    pid: i32,
    start: String,
    pages: u64,
    name: String,
    ranges: Vec<RangeView>,
}

#[derive(Serialize)]
struct RangeView {
    first_page: u64,
    pages: u64,
    class: &'static str,
}

impl From<&HeatMap> for HeatView {
    fn from(map: &HeatMap) -> Self {
        let range = |range: &medes_proto::heat::Range| RangeView {
            first_page: range.first,
            pages: range.pages,
            class: range.class.word(),
        };
        let mapping = |mapping: &Mapping| MappingView {
            pid: mapping.pid,
            start: format!("{:#x}", mapping.start),
            pages: mapping.pages,
            name: mapping.name.clone(),
            ranges: mapping.ranges.iter().map(range).collect(),
        };
        let class = |class: PageClass| ClassView { class: class.word(), pages: map.count(class) };
        Self {
            sandbox: map.sandbox.to_string(),
            source: map.source.clone(),
            truncated: map.truncated,
            pages: PageClass::ALL.map(class).into(),
            mappings: map.mappings.iter().map(mapping).collect(),
        }
    }
}

pub(crate) async fn run(args: &HeatArgs, client: &Client, output: &Output) -> Result<(), CliError> {
    let doing = format!("heat of {}", args.sandbox);
    let request = wire::HeatRequest { sandbox: args.sandbox.get() };
    let reply = client.call(&doing, QUICK, async |mut control| control.heat(request).await).await?;
    let map = HeatMap::try_from(reply).map_err(|source| CliError::Reply { doing, source })?;
    if let Some(path) = &args.out {
        draw(&map, path)?;
    }
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    output.answer(&HeatView::from(&map), || text(&map, args.out.as_deref(), colours))
}

fn draw(map: &HeatMap, path: &Path) -> Result<(), CliError> {
    let bytes = match picture::Kind::of(path) {
        Some(picture::Kind::Png) => picture::png(map),
        Some(picture::Kind::Svg) | None => Ok(picture::svg(map).into_bytes()),
    };
    let written = bytes.and_then(|bytes| std::fs::write(path, bytes));
    written.map_err(|source| CliError::WriteFile { path: path.into(), source })
}

/// The letter of a class, and its colour among the terminal's 256.
const fn look(class: PageClass) -> (char, u8) {
    match class {
        PageClass::Unspecified => (' ', 0),
        PageClass::File => ('.', 242),
        PageClass::Private => ('o', 75),
        PageClass::Swapped => ('~', 97),
        PageClass::Hot => ('#', 196),
        PageClass::Warm => ('+', 214),
        PageClass::Cold => ('-', 33),
        PageClass::Read => ('r', 78),
    }
}

fn text(map: &HeatMap, out: Option<&Path>, colours: bool) -> String {
    let mut text = format!("{}, as {} sees it\n", map.sandbox, plain(&map.source));
    let present = PageClass::ALL.into_iter().filter(|class| map.count(*class) > 0);
    let legend: Vec<_> = present
        .map(|class| {
            let bytes = human::bytes(map.count(class).saturating_mul(PAGE_BYTES));
            format!("{} {} {bytes}", cell(Some(class), colours), class.word())
        })
        .collect();
    text += &format!("{}\n", legend.join("   "));
    if let Some(path) = out {
        return text + &format!("drawn into {}\n", path.display());
    }
    let own = |mapping: &Mapping| mapping.ranges.iter().map(|range| range.pages).sum::<u64>();
    let mut largest: Vec<&Mapping> = map.mappings.iter().collect();
    largest.sort_by_key(|mapping| std::cmp::Reverse(own(mapping)));
    let rest: u64 = largest.iter().skip(SHOWN_MAX).map(|mapping| own(mapping)).sum();
    let left = largest.len().saturating_sub(SHOWN_MAX);
    largest.truncate(SHOWN_MAX);
    largest.sort_by_key(|mapping| (mapping.pid, mapping.start));
    for mapping in largest {
        let size = human::bytes(mapping.pages.saturating_mul(PAGE_BYTES));
        let bar: String = cells(mapping, BAR).into_iter().map(|class| cell(class, colours)).collect();
        text += &format!("{:>12x} {size:>9} |{bar}| {}\n", mapping.start, short(&mapping.name));
    }
    if left > 0 {
        let bytes = human::bytes(rest.saturating_mul(PAGE_BYTES));
        text += &format!("and {} with {bytes}\n", human::count(left as u64, "mapping", "mappings"));
    }
    if map.truncated {
        text += "there is more than fits into one map\n";
    }
    text
}

fn cell(class: Option<PageClass>, colours: bool) -> String {
    let (letter, colour) = look(class.unwrap_or(PageClass::Unspecified));
    match (class, colours) {
        (Some(_), true) => format!("\u{1b}[38;5;{colour}m{letter}\u{1b}[0m"),
        _ => letter.into(),
    }
}

/// The end of a path says more than its beginning.
fn short(name: &str) -> String {
    let name = plain(name);
    let letters = name.chars().count();
    if letters <= 24 { name } else { format!("..{}", name.chars().skip(letters - 22).collect::<String>()) }
}

/// A mapping in so many cells: each shows the hottest class among its pages.
fn cells(mapping: &Mapping, count: usize) -> Vec<Option<PageClass>> {
    let rank = |class: PageClass| PageClass::ALL.iter().position(|other| *other == class);
    let mut cells = vec![None; count];
    let most = count.saturating_sub(1);
    let at = |page: u64| {
        let place = u128::from(page) * count as u128 / u128::from(mapping.pages.max(1));
        usize::try_from(place).unwrap_or(most).min(most)
    };
    for range in &mapping.ranges {
        let last = range.first + range.pages.saturating_sub(1);
        for cell in &mut cells[at(range.first)..=at(last)] {
            if cell.and_then(rank) < rank(range.class) {
                *cell = Some(range.class);
            }
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use medes_proto::heat::Range;

    use super::*;

    pub(super) fn map() -> HeatMap {
        let range = |first, pages, class| Range { first, pages, class };
        let mapping =
            |start, pages, name: &str, ranges| Mapping { pid: 7, start, pages, name: name.into(), ranges };
        let heap = vec![
            range(0, 1, PageClass::Private),
            range(1, 50, PageClass::Cold),
            range(99, 1, PageClass::Hot),
        ];
        let library = vec![range(0, 30, PageClass::File)];
        let mappings = vec![
            mapping(0x1000, 100, "[heap]", heap),
            mapping(0x7f00_0000_0000, 1 << 30, "/usr/lib/x86_64-linux-gnu/libsomething.so.1", library),
        ];
        let sandbox = SandboxId::of(1, 2).unwrap();
        HeatMap { sandbox, source: "procfs".into(), mappings, truncated: false }
    }

    #[test]
    fn a_cell_shows_the_hottest_of_its_pages() {
        let bar = |width| {
            let cells = cells(&map().mappings[0], width).into_iter().map(|class| cell(class, false));
            cells.collect::<String>()
        };
        assert_eq!(bar(10), "o-----   #");
        assert_eq!(bar(1), "#");
        assert_eq!(bar(100).len(), 100);
        // A mapping of terabytes with one present page is no work and no overflow.
        let huge = Mapping { pages: u64::MAX, ranges: vec![], ..map().mappings[1].clone() };
        assert_eq!(cells(&huge, 4), [None; 4]);
    }

    #[test]
    fn the_map_is_text_with_a_legend_and_a_line_for_each_mapping() {
        let text = text(&map(), None, false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "sb-1-2, as procfs sees it");
        assert_eq!(lines[1], ". file 120 KiB   - cold 200 KiB   o private 4.0 KiB   # hot 4.0 KiB");
        assert!(lines[2].starts_with("        1000   400 KiB |o---"), "{text}");
        assert!(lines[3].ends_with("| ..-gnu/libsomething.so.1"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{text}");
    }
}
