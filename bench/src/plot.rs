//! Lines on a page: SVG inside one HTML file that needs nothing from elsewhere, in the colours of the reader's choice.

pub(crate) mod bars;

use serde::{Deserialize, Serialize};

/// Some lines over one axis.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plot {
    /// What it shows.
    pub(crate) title: String,
    /// What stands below.
    pub(crate) x: String,
    /// What stands beside.
    pub(crate) y: String,
    /// Lines.
    pub(crate) lines: Vec<Line>,
}

/// One line: its name and its points, from left to right. What is no number is left out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
const TICKS: f64 = 5.0;

/// Colours that can be told apart without seeing all of them (Okabe and Ito), and dashes for the rest.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00", "#777777"];

impl Plot {
    /// As SVG. Without a point there is only the frame.
    pub(crate) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points).filter(is_there);
        let (mut low, mut high) = range(points().map(|point| point.0));
        let (_, top) = range(points().map(|point| point.1).chain([0.0]));
        if low == high {
            (low, high) = (low - 0.5, high + 0.5);
        }
        let step = nice_step(top.max(f64::MIN_POSITIVE) / TICKS);
        let top = (top / step).ceil().max(1.0) * step;
        let at = |(x, y): (f64, f64)| {
            let right = LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT);
            (right, HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM))
        };
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\"><title>{}</title>\n",
            escaped(&self.title)
        );
        let mut value = 0.0;
        while value <= top * 1.0001 {
            let (_, y) = at((low, value));
            let right = WIDTH - RIGHT;
            svg.push_str(&format!("<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>"));
            svg.push_str(&format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                short(value)
            ));
            value += step;
        }
        let step = nice_step((high - low) / TICKS);
        let mut value = (low / step).ceil() * step;
        while value <= high * 1.0001 {
            let (x, _) = at((value, 0.0));
            let y = HEIGHT - BOTTOM + 16.0;
            svg.push_str(&format!(
                "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>",
                short(value)
            ));
            value += step;
        }
        let (middle, below) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 8.0);
        svg.push_str(&format!(
            "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{}</text>",
            escaped(&self.x)
        ));
        let beside = (HEIGHT - BOTTOM + TOP) / 2.0;
        svg.push_str(&format!(
            "<text transform=\"translate(14 {beside}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escaped(&self.y)
        ));
        for (number, line) in self.lines.iter().enumerate() {
            let mut path = String::new();
            for point in line.points.iter().filter(is_there) {
                let (x, y) = at(*point);
                path.push_str(&format!("{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' }));
            }
            let (colour, dash) = style(number);
            svg.push_str(&format!(
                "<path class=\"line\" stroke=\"{colour}\" stroke-dasharray=\"{dash}\" d=\"{path}\"><title>{}</title></path>",
                escaped(&line.name)
            ));
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// With title and legend.
    pub(crate) fn figure(&self) -> String {
        figure(&self.title, &self.svg(), self.lines.iter().map(|line| line.name.as_str()))
    }
}

/// A drawing with its title, and what its colours mean.
fn figure<'n>(title: &str, svg: &str, names: impl Iterator<Item = &'n str>) -> String {
    let mut legend = String::new();
    for (number, name) in names.enumerate() {
        let (colour, dash) = style(number);
        legend.push_str(&format!(
            "<span><svg class=\"key\" viewBox=\"0 0 24 8\"><path class=\"line\" stroke=\"{colour}\" stroke-dasharray=\"{dash}\" d=\"M0 4H24\"/></svg>{}</span> ",
            escaped(name)
        ));
    }
    format!(
        "<figure>\n<figcaption>{}</figcaption>\n{svg}<div class=\"legend\">{legend}</div>\n</figure>\n",
        escaped(title)
    )
}

/// A whole page: a heading, a paragraph, plots, and a table as text.
pub(crate) fn page(title: &str, about: &str, plots: &[Plot], table: &str) -> String {
    let figures: String = plots.iter().map(Plot::figure).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n<p>{about}</p>\n{figures}<pre>{table}</pre>\n\
         </body></html>\n",
        title = escaped(title),
        about = escaped(about),
        table = escaped(table),
    )
}

/// What every page looks like, light or dark.
pub(crate) const STYLE: &str = ":root{color-scheme:light dark}body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
figure{margin:2em 0}figcaption{font-weight:bold}svg{width:100%;height:auto}text{font-size:12px;fill:currentColor}\
.grid{stroke:currentColor;opacity:.2}.line{fill:none;stroke-width:2}.legend span{margin-right:1em;white-space:nowrap}\
.key{width:24px;height:8px;margin-right:.3em}pre{overflow:auto;font-size:13px}";

fn style(number: usize) -> (&'static str, &'static str) {
    (COLOURS[number % COLOURS.len()], if number < COLOURS.len() { "none" } else { "6 3" })
}

fn is_there(point: &&(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values
        .fold(None, |range: Option<(f64, f64)>, value| match range {
            None => Some((value, value)),
            Some((low, high)) => Some((low.min(value), high.max(value))),
        })
        .unwrap_or((0.0, 1.0))
}

/// 1, 2 or 5 times a power of ten, about `wanted`.
fn nice_step(wanted: f64) -> f64 {
    let power = 10f64.powf(wanted.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|part| part * power).find(|step| *step >= wanted).unwrap_or(wanted)
}

fn short(value: f64) -> String {
    let text = if value.abs() >= 10.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Text as HTML has it.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: &[(f64, f64)]) -> Plot {
        let line = Line { name: "a<b".into(), points: points.to_vec() };
        Plot { title: "t".into(), x: "x".into(), y: "y & z".into(), lines: vec![line] }
    }

    #[test]
    fn points_lie_where_their_values_say() {
        let svg = plot(&[(0.0, 0.0), (10.0, 50.0), (5.0, f64::NAN), (20.0, 100.0)]).svg();
        // From corner to corner, through the middle.
        let (left, right, middle) = (LEFT, WIDTH - RIGHT, (LEFT + WIDTH - RIGHT) / 2.0);
        let (low, high, half) = (HEIGHT - BOTTOM, TOP, (HEIGHT - BOTTOM + TOP) / 2.0);
        let path = format!("d=\"M{left:.1} {low:.1}L{middle:.1} {half:.1}L{right:.1} {high:.1}\"");
        assert!(svg.contains(&path), "{svg}");
    }

    #[test]
    fn text_cannot_break_out() {
        let svg = plot(&[(1.0, 1.0)]).svg();
        assert!(svg.contains("a&lt;b") && svg.contains("y &amp; z") && !svg.contains("a<b"), "{svg}");
        let page = page("<t>", "a", &[plot(&[])], "1 < 2");
        assert!(page.contains("<title>&lt;t&gt;</title>") && page.contains("1 &lt; 2"), "{page}");
    }

    #[test]
    fn steps_are_round() {
        assert_eq!([0.3, 1.0, 1.1, 30.0, 7e6].map(nice_step), [0.5, 1.0, 2.0, 50.0, 1e7]);
        assert_eq!([0.5, 2.0, 1500.0, 0.25].map(short), ["0.5", "2", "1500", "0.25"]);
    }
}
