//! Draws the model. Everything fits 80 columns and 24 lines; more room shows more rows.

use medes_proto::{sandbox::SandboxState, trace::Event};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Clear, LineGauge, Paragraph, Row, Table, TableState, Tabs},
};

use super::model::{Model, Tab};
use crate::{human, output::plain, trace::line};

/// States in the order of a life, as the summary shows them, and the columns each has: 80 together.
const STATES: [(SandboxState, usize); 7] = [
    (SandboxState::Starting, 12),
    (SandboxState::Warm, 11),
    (SandboxState::Running, 11),
    (SandboxState::Deduping, 12),
    (SandboxState::Parked, 11),
    (SandboxState::Dedup, 11),
    (SandboxState::Restoring, 12),
];

const HELP: [&str; 9] = [
    "q        quit",
    "tab, < > next, previous table",
    "up, down choose a row; also page up, page down, home, end",
    "/        filter by name, node, state or kind; enter keeps it, esc clears it",
    "?        this help",
    "",
    "Rates are of the last 10 seconds. Memory is as the nodes' kernels count it.",
    "`medes explain SANDBOX` says why a sandbox is in its state,",
    "`medes trace` shows every event as a line.",
];

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let events = if model.tab == Tab::Events { 0 } else { (frame.area().height / 4).clamp(3, 12) };
    let [head, summary, tabs, table, live, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(5),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(events),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(heading(model), head);
    draw_summary(frame, model, summary);
    let names = Tabs::new(Tab::ALL.map(Tab::word))
        .select(Tab::ALL.iter().position(|tab| *tab == model.tab))
        .highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_widget(names, tabs);
    let shown = shown_table(model).header_style();
    let mut state = TableState::new().with_selected((model.count() > 0).then(|| model.row()));
    frame.render_stateful_widget(shown, table, &mut state);
    draw_live(frame, model, live);
    frame.render_widget(footer(model), foot);
    if model.help {
        draw_help(frame);
    }
}

fn dim() -> Style {
    Style::new().fg(Color::DarkGray)
}

fn heading(model: &Model) -> Line<'static> {
    let snapshot = &model.snapshot;
    let counts = [
        human::count(snapshot.nodes.len() as u64, "node", "nodes"),
        human::count(snapshot.functions.len() as u64, "function", "functions"),
        human::count(snapshot.sandboxes.len() as u64, "sandbox", "sandboxes"),
    ];
    Line::from(vec![
        Span::styled("medes top", Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("  {}  ", model.address)),
        Span::raw(counts.join(", ")),
    ])
}

fn draw_summary(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let snapshot = &model.snapshot;
    let [states, sizes, gauge, parts, starts] = Layout::vertical([Constraint::Length(1); 5]).areas(area);
    let cell = |state: SandboxState, text: String| format!("{} {text}", state.word());
    let line = |text: &dyn Fn(SandboxState) -> String| {
        STATES.map(|(state, width)| format!("{:<width$}", cell(state, text(state)))).concat()
    };
    let counted = line(&|state| snapshot.in_state(state).to_string());
    frame.render_widget(Line::raw(counted), states);
    let held = |state| human::bytes_or_dash(snapshot.bytes_in(state));
    let held = STATES.map(|(state, width)| format!("{:<width$}", held(state)));
    frame.render_widget(Line::styled(held.concat(), dim()), sizes);
    let sum = |part: fn(&medes_proto::fleet::NodeMemory) -> u64| {
        snapshot.nodes.iter().map(|node| part(&node.memory)).fold(0, u64::saturating_add)
    };
    let (used, cap) = (sum(|memory| memory.used_bytes), sum(|memory| memory.cap_bytes));
    #[expect(clippy::cast_precision_loss, reason = "a bar of some cells")]
    let ratio = if cap == 0 { 0.0 } else { (used as f64 / cap as f64).clamp(0.0, 1.0) };
    let of_cap = format!("memory {} of {}", human::bytes(used), human::bytes_or_dash(cap));
    let bar = LineGauge::default().ratio(ratio).label(of_cap).filled_style(Style::new().fg(Color::Green));
    frame.render_widget(bar, gauge);
    let held = format!(
        "of that: bases {}, dedup images {}, agents {}",
        human::bytes(sum(|memory| memory.base_bytes)),
        human::bytes(sum(|memory| memory.image_bytes)),
        human::bytes(sum(|memory| memory.agent_bytes)),
    );
    frame.render_widget(Line::styled(held, dim()), parts);
    let (all, rates) = (snapshot.starts(), model.rates());
    let served = format!(
        "requests {} ({:.1}/s), restores {} ({:.1}/s), clones {} ({:.1}/s), cold {} ({:.1}/s)",
        all.requests,
        rates.requests,
        all.restore,
        rates.restore,
        all.clone,
        rates.clone,
        all.cold,
        rates.cold
    );
    frame.render_widget(Line::raw(served), starts);
}

/// A table and what all tables have in common.
struct Shown<'a>(Table<'a>);

impl<'a> Shown<'a> {
    fn header_style(self) -> Table<'a> {
        self.0.column_spacing(1).row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
    }
}

fn table<'a, const N: usize>(headings: [&'a str; N], rows: Vec<[String; N]>, widths: [u16; N]) -> Shown<'a> {
    let rows = rows.into_iter().map(|cells| Row::new(cells.map(|cell| plain(&cell))));
    // The last column takes what is left.
    let widths = widths.map(|width| match width {
        0 => Constraint::Min(8),
        width => Constraint::Length(width),
    });
    let header = Row::new(headings).style(Style::new().add_modifier(Modifier::BOLD));
    Shown(Table::new(rows, widths).header(header))
}

fn shown_table(model: &Model) -> Shown<'_> {
    match model.tab {
        Tab::Sandboxes => sandboxes(model),
        Tab::Functions => functions(model),
        Tab::Nodes => nodes(model),
        Tab::Events => events(model),
    }
}

fn sandboxes(model: &Model) -> Shown<'_> {
    let rows = model.sandboxes().map(|line| {
        let report = &line.report;
        [
            report.id.to_string(),
            report.function.to_string(),
            line.node.clone(),
            report.state.word().into(),
            human::age(report.state_age),
            human::bytes_or_dash(report.private_bytes),
            human::bytes_or_dash(report.stored_bytes),
            report.requests.to_string(),
        ]
    });
    let headings = ["SANDBOX", "FUNCTION", "NODE", "STATE", "FOR", "PRIVATE", "STORED", "REQS"];
    table(headings, rows.collect(), [9, 12, 10, 9, 6, 9, 9, 0])
}

fn functions(model: &Model) -> Shown<'_> {
    let rows = model.functions().map(|row| {
        [
            row.name.clone(),
            row.tenant.clone(),
            row.warm.to_string(),
            row.dedup.to_string(),
            row.bases.to_string(),
            row.requests.to_string(),
            row.restores.to_string(),
            row.clones.to_string(),
            row.cold_starts.to_string(),
        ]
    });
    let headings = ["FUNCTION", "TENANT", "WARM", "DEDUP", "BASES", "REQUESTS", "RESTORES", "CLONES", "COLD"];
    table(headings, rows.collect(), [16, 12, 6, 6, 6, 10, 9, 7, 0])
}

fn nodes(model: &Model) -> Shown<'_> {
    let rows = model.nodes().map(|line| {
        let memory = line.memory;
        [
            line.name.clone(),
            human::bytes(memory.used_bytes),
            human::bytes_or_dash(memory.cap_bytes),
            human::bytes_or_dash(memory.base_bytes),
            human::bytes_or_dash(memory.image_bytes),
            format!("{}", line.sandboxes),
            format!("{}", line.bases),
            human::age(line.silent),
            line.lacks.clone(),
        ]
    });
    let headings = ["NODE", "USED", "CAP", "BASES", "IMAGES", "SANDB", "SNAPS", "SEEN", "LACKS"];
    table(headings, rows.collect(), [12, 9, 9, 9, 9, 5, 5, 5, 0])
}

fn events(model: &Model) -> Shown<'_> {
    let rows = model.events().map(|event| {
        let [time, about, kind, what] = event_cells(event);
        [time, about, kind, what]
    });
    table(["TIME", "ABOUT", "KIND", "WHAT"], rows.collect(), [12, 10, 8, 0])
}

fn event_cells(event: &Event) -> [String; 4] {
    let about = &event.about;
    let sandbox = about.sandbox.map(|id| id.to_string());
    let node = || about.node.as_ref().map(ToString::to_string);
    let what = plain(&line::what(&event.what));
    let about = sandbox.or_else(node).unwrap_or_default();
    [line::time(event.unix_micros), about, event.what.kind().word().into(), what]
}

fn draw_live(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    if area.height == 0 {
        return;
    }
    let dropped = match model.dropped {
        0 => String::new(),
        dropped => format!(" ({dropped} not shown: this screen was too slow)"),
    };
    let lines = model.events().take(usize::from(area.height)).map(|event| {
        let [time, about, kind, what] = event_cells(event);
        Line::from(vec![
            Span::styled(format!("{time} "), dim()),
            Span::raw(format!("{about:<10} ")),
            Span::styled(format!("{kind:<8} "), Style::new().fg(Color::Cyan)),
            Span::raw(what),
        ])
    });
    let title = format!("live{dropped}");
    let block = Block::new().borders(ratatui::widgets::Borders::TOP).title(title).border_style(dim());
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), area);
}

fn footer(model: &Model) -> Line<'static> {
    if model.typing {
        return Line::raw(format!("filter: {}_", model.filter));
    }
    let filter = match model.filter.is_empty() {
        true => String::new(),
        false => format!("   filter: {} (esc clears)", plain(&model.filter)),
    };
    Line::styled(format!("q quit  tab table  / filter  ? help{filter}"), dim())
}

fn draw_help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let (width, height) = (78.min(area.width), 11.min(area.height));
    let middle =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, middle);
    let lines = HELP.map(Line::raw).to_vec();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("help")), middle);
}

#[cfg(test)]
mod tests;
