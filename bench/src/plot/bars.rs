//! Bars of parts that stand on each other, one for each thing that is compared.

use serde::{Deserialize, Serialize};

use super::{BOTTOM, HEIGHT, LEFT, RIGHT, TICKS, TOP, WIDTH, escaped, figure, nice_step, short, style};

/// Some bars. All have the same parts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bars {
    /// What they show.
    pub(crate) title: String,
    /// What stands beside.
    pub(crate) y: String,
    /// What each part is, from the bottom.
    pub(crate) parts: Vec<String>,
    pub(crate) bars: Vec<Bar>,
}

/// One bar. A part that is no number is left out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) heights: Vec<f64>,
}

/// How much of its place a bar takes.
const FILLED: f64 = 0.7;
/// Names below are turned, so that long ones find room.
const NAMES: f64 = 70.0;

fn there(height: f64) -> f64 {
    if height.is_finite() { height.max(0.0) } else { 0.0 }
}

impl Bars {
    /// As SVG. Without a bar there is only the frame.
    pub(crate) fn svg(&self) -> String {
        let total = |bar: &Bar| bar.heights.iter().copied().map(there).sum::<f64>();
        let top = self.bars.iter().map(total).fold(0.0, f64::max);
        let step = nice_step(top.max(f64::MIN_POSITIVE) / TICKS);
        let top = (top / step).ceil().max(1.0) * step;
        let tall = HEIGHT - TOP - BOTTOM;
        let at = |value: f64| TOP + tall - value / top * tall;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\"><title>{}</title>\n",
            HEIGHT + NAMES,
            escaped(&self.title)
        );
        let mut value = 0.0;
        while value <= top * 1.0001 {
            let (y, left, right) = (at(value), LEFT - 6.0, WIDTH - RIGHT);
            svg.push_str(&format!("<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>"));
            let text = short(value);
            svg.push_str(&format!(
                "<text x=\"{left}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                y + 4.0
            ));
            value += step;
        }
        let beside = TOP + tall / 2.0;
        svg.push_str(&format!(
            "<text transform=\"translate(14 {beside}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escaped(&self.y)
        ));
        let place = (WIDTH - LEFT - RIGHT) / self.bars.len().max(1) as f64;
        for (number, bar) in self.bars.iter().enumerate() {
            let left = LEFT + place * (number as f64 + (1.0 - FILLED) / 2.0);
            svg.push_str(&stack(bar, left, place * FILLED, at));
            let (x, y) = (left + place * FILLED / 2.0, HEIGHT - BOTTOM + 12.0);
            svg.push_str(&format!(
                "<text transform=\"translate({x:.1} {y}) rotate(-35)\" text-anchor=\"end\">{}</text>",
                escaped(&bar.name)
            ));
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// With title and legend.
    pub(crate) fn figure(&self) -> String {
        figure(&self.title, &self.svg(), self.parts.iter().map(String::as_str))
    }
}

fn stack(bar: &Bar, left: f64, wide: f64, at: impl Fn(f64) -> f64) -> String {
    let (mut svg, mut below) = (String::new(), 0.0);
    for (part, height) in bar.heights.iter().copied().map(there).enumerate() {
        let (low, high) = (at(below), at(below + height));
        let (colour, _) = style(part);
        svg.push_str(&format!(
            "<rect x=\"{left:.1}\" y=\"{high:.1}\" width=\"{wide:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            low - high
        ));
        below += height;
    }
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_on_each_other() {
        let bar = Bar { name: "a<b".into(), heights: vec![25.0, f64::NAN, 75.0] };
        let parts = ["x", "y", "z"].map(String::from).to_vec();
        let svg = Bars { title: "t".into(), y: "ms".into(), parts, bars: vec![bar] }.svg();
        let tall = HEIGHT - TOP - BOTTOM;
        let first = format!("y=\"{:.1}\" width", TOP + tall * 0.75);
        let last = format!("y=\"{TOP:.1}\" width");
        assert!(svg.contains(&first) && svg.contains(&last), "{svg}");
        assert!(svg.contains(&format!("height=\"{:.1}\"", tall * 0.75)) && svg.contains("a&lt;b"), "{svg}");
    }
}
