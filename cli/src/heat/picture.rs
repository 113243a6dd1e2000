//! A heat map as a picture: one cell a page, in the order of addresses, mappings one below the other.
//!
//! Long gaps without a present page are cut short, so that a picture's size follows the memory, not the addresses.

use std::{io, path::Path};

use medes_proto::heat::{HeatMap, PageClass};

/// Pages in a row.
const COLUMNS: u64 = 128;
/// Width and height of a page, in picture points.
const CELL: u32 = 5;
/// Rows of a picture. What does not fit is left out, and the picture says so in its title.
const ROWS_MAX: u64 = 8_192;
/// Room for names at the right.
const NAMES: u32 = 320;

/// Which kind of picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Svg,
    Png,
}

impl Kind {
    /// As the file's ending says.
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "svg" => Some(Self::Svg),
            "png" => Some(Self::Png),
            _ => None,
        }
    }
}

/// Cells of one class, side by side in one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    row: u64,
    column: u64,
    length: u64,
    class: PageClass,
}

/// Where everything is.
#[derive(Debug, Default)]
struct Plan {
    runs: Vec<Run>,
    /// First row and text of each mapping.
    names: Vec<(u64, String)>,
    rows: u64,
    cut: bool,
}

fn plan(map: &HeatMap) -> Plan {
    let mut plan = Plan { cut: map.truncated, ..Plan::default() };
    for mapping in &map.mappings {
        let Some(first) = mapping.ranges.first() else { continue };
        if plan.rows >= ROWS_MAX {
            plan.cut = true;
            break;
        }
        plan.names.push((plan.rows, format!("{:x} {}", mapping.start, mapping.name)));
        // A mapping begins in a new row, at the place its first present page has in its row.
        let mut at = plan.rows * COLUMNS + first.first % COLUMNS;
        let mut page = first.first;
        for range in &mapping.ranges {
            let gap = range.first - page;
            // A gap of more than a row keeps its remainder and one empty row.
            at += if gap < 2 * COLUMNS { gap } else { COLUMNS + gap % COLUMNS };
            plan.run(at, range.pages, range.class);
            at += range.pages;
            page = range.first + range.pages;
        }
        plan.rows = at.div_ceil(COLUMNS).min(ROWS_MAX);
    }
    plan
}

impl Plan {
    fn run(&mut self, mut at: u64, mut pages: u64, class: PageClass) {
        while pages > 0 {
            let (row, column) = (at / COLUMNS, at % COLUMNS);
            if row >= ROWS_MAX {
                self.cut = true;
                return;
            }
            let length = pages.min(COLUMNS - column);
            self.runs.push(Run { row, column, length, class });
            at += length;
            pages -= length;
        }
    }
}

const fn colour(class: PageClass) -> [u8; 3] {
    match class {
        PageClass::Unspecified => [0xff, 0xff, 0xff],
        PageClass::File => [0xc8, 0xc8, 0xc8],
        PageClass::Private => [0x5b, 0x9b, 0xd5],
        PageClass::Swapped => [0x8e, 0x5b, 0x8e],
        PageClass::Hot => [0xd7, 0x30, 0x27],
        PageClass::Warm => [0xfd, 0xae, 0x61],
        PageClass::Cold => [0x45, 0x75, 0xb4],
        PageClass::Read => [0x66, 0xbd, 0x63],
    }
}

fn hex(class: PageClass) -> String {
    let [red, green, blue] = colour(class);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn points(cells: u64) -> u32 {
    u32::try_from(cells).unwrap_or(u32::MAX).saturating_mul(CELL)
}

/// As SVG, with a legend, the mappings' names, and a tooltip for none: it stays small.
pub(super) fn svg(map: &HeatMap) -> String {
    const TOP: u32 = 48;
    let plan = plan(map);
    let (width, height) = (points(COLUMNS) + NAMES, points(plan.rows.max(1)) + TOP);
    let mut out = String::new();
    let cut = if plan.cut { " (not all of it)" } else { "" };
    let mut put = |line: std::fmt::Arguments<'_>| out.push_str(&line.to_string());
    put(format_args!(
        "<svg xmlns=\"{}\" width=\"{width}\" height=\"{height}\" font-family=\"monospace\" font-size=\"10\">\n",
        // In two parts: it is a name, not an address.
        concat!("http", "://www.w3.org/2000/svg")
    ));
    put(format_args!("<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"));
    let title = escape(&format!("{}, as {} sees it{cut}; one cell is 4 KiB", map.sandbox, map.source));
    put(format_args!("<text x=\"4\" y=\"14\">{title}</text>\n"));
    let classes = PageClass::ALL.into_iter().filter(|class| map.count(*class) > 0);
    for (at, class) in (0_u32..).zip(classes) {
        let (x, count, fill) = (4 + at * 150, map.count(class), hex(class));
        put(format_args!("<rect x=\"{x}\" y=\"22\" width=\"12\" height=\"12\" fill=\"{fill}\"/>"));
        put(format_args!("<text x=\"{}\" y=\"32\">{} {count}</text>\n", x + 16, class.word()));
    }
    for Run { row, column, length, class } in &plan.runs {
        let (x, y, width) = (points(*column), TOP + points(*row), points(*length));
        let fill = hex(*class);
        put(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{CELL}\" fill=\"{fill}\"/>\n"
        ));
    }
    let mut free = 0;
    for (row, name) in &plan.names {
        let y = TOP + points(*row);
        put(format_args!("<path d=\"M0 {y}h{}\" stroke=\"#888\" stroke-width=\"0.3\"/>", points(COLUMNS)));
        // Names of small mappings would lie over each other.
        if y >= free {
            put(format_args!("<text x=\"{}\" y=\"{}\">{}</text>", points(COLUMNS) + 6, y + 8, escape(name)));
            free = y + 10;
        }
        put(format_args!("\n"));
    }
    put(format_args!("</svg>\n"));
    out
}

fn escape(text: &str) -> String {
    let plain = crate::output::plain(text);
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// As PNG, the cells alone.
pub(super) fn png(map: &HeatMap) -> io::Result<Vec<u8>> {
    let plan = plan(map);
    let (columns, rows) = (COLUMNS as usize, usize::try_from(plan.rows.max(1)).unwrap_or(1));
    let mut cells = vec![0_u8; columns * rows];
    for run in &plan.runs {
        let start = usize::try_from(run.row * COLUMNS + run.column).unwrap_or(usize::MAX);
        let length = usize::try_from(run.length).unwrap_or(0);
        if let Some(cells) = cells.get_mut(start..start.saturating_add(length)) {
            cells.fill(u8::try_from(run.class as i32).unwrap_or(0));
        }
    }
    let scale = CELL as usize;
    let mut pixels = Vec::with_capacity(cells.len() * scale * scale);
    for row in cells.chunks(columns) {
        let line: Vec<u8> = row.iter().flat_map(|cell| std::iter::repeat_n(*cell, scale)).collect();
        (0..scale).for_each(|_| pixels.extend_from_slice(&line));
    }
    // A palette in the order of the classes' numbers: a byte a pixel instead of three.
    let number = |number| PageClass::try_from(number).unwrap_or_default();
    let palette: Vec<u8> = (0..=PageClass::Read as i32).flat_map(|class| colour(number(class))).collect();
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, points(COLUMNS), points(plan.rows.max(1)));
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(palette);
    let mut writer = encoder.write_header().map_err(io::Error::other)?;
    writer.write_image_data(&pixels).map_err(io::Error::other)?;
    writer.finish().map_err(io::Error::other)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heat::tests::map;

    #[test]
    fn every_present_page_is_drawn_once_and_gaps_are_cut() {
        let plan = plan(&map());
        let drawn: u64 = plan.runs.iter().map(|run| run.length).sum();
        let present: u64 = PageClass::ALL.iter().map(|class| map().count(*class)).sum();
        assert_eq!(drawn, present);
        assert!(plan.runs.iter().all(|run| run.column + run.length <= COLUMNS && run.row < plan.rows));
        assert_eq!((plan.names.len(), plan.rows, plan.cut), (2, 2, false));
        let mut far = map();
        far.mappings[1].ranges.push(medes_proto::heat::Range {
            first: 1 << 29,
            pages: 1,
            class: PageClass::Hot,
        });
        assert!(super::plan(&far).rows < 8, "{:?}", super::plan(&far).rows);
    }

    #[test]
    fn an_svg_names_the_mappings_and_escapes_what_a_path_may_have() {
        let mut map = map();
        map.mappings[0].name = "/tmp/<script>&\"x\"".into();
        let svg = svg(&map);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("/tmp/&lt;script&gt;&amp;&quot;x&quot;") && !svg.contains("<script"));
        assert_eq!(svg.matches(&hex(PageClass::Hot)).count(), 2, "the legend and one page");
    }

    #[test]
    fn a_png_has_the_classes_colours_where_the_pages_are() {
        let file = png(&map()).unwrap();
        let mut decoder = png::Decoder::new(io::Cursor::new(file));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (640, 10));
        let at = |page: usize| {
            let pixel = page * CELL as usize * 3;
            [pixels[pixel], pixels[pixel + 1], pixels[pixel + 2]]
        };
        assert_eq!(at(0), colour(PageClass::Private));
        assert_eq!(at(1), colour(PageClass::Cold));
        assert_eq!(at(60), colour(PageClass::Unspecified));
        assert_eq!(at(99), colour(PageClass::Hot));
    }
}
