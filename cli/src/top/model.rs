//! What `medes top` shows and what its keys do. No terminal, no clock, no socket: time is an argument.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use medes_proto::{
    WireError,
    fleet::NodeMemory,
    sandbox::{SandboxReport, SandboxState},
    trace::{Event, Item, TraceKind},
    wire,
};

/// Events kept to be shown.
const EVENTS_MAX: usize = 500;
/// Rates are taken over this long.
const RATE_OVER: Duration = Duration::from_secs(10);
/// Letters of a filter.
const FILTER_MAX: usize = 64;

/// What the controller's tables said at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    pub(super) nodes: Vec<NodeLine>,
    pub(super) functions: Vec<wire::FunctionRow>,
    pub(super) sandboxes: Vec<SandboxLine>,
}

#[derive(Debug, Clone)]
pub(super) struct NodeLine {
    pub(super) name: String,
    pub(super) memory: NodeMemory,
    pub(super) silent: Duration,
    pub(super) sandboxes: u32,
    pub(super) bases: usize,
    pub(super) lacks: String,
}

#[derive(Debug, Clone)]
pub(super) struct SandboxLine {
    pub(super) report: SandboxReport,
    pub(super) node: String,
}

impl Snapshot {
    pub(super) fn new(
        nodes: wire::ListNodesReply,
        functions: wire::ListFunctionsReply,
        sandboxes: wire::ListSandboxesReply,
    ) -> Result<Self, WireError> {
        let node = |row: wire::NodeRow| NodeLine {
            name: row.node,
            memory: row.memory.unwrap_or_default().into(),
            silent: Duration::from_millis(row.silent_ms),
            sandboxes: row.sandboxes,
            bases: row.snapshots.len(),
            lacks: row.lacks.join("; "),
        };
        let sandbox = |wire::SandboxRow { report, node }| {
            Ok(SandboxLine { report: report.unwrap_or_default().try_into()?, node })
        };
        let mut snapshot = Self {
            nodes: nodes.nodes.into_iter().map(node).collect(),
            functions: functions.functions,
            sandboxes: sandboxes.sandboxes.into_iter().map(sandbox).collect::<Result<_, WireError>>()?,
        };
        snapshot.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        snapshot.functions.sort_by(|a, b| a.name.cmp(&b.name));
        snapshot
            .sandboxes
            .sort_by(|a, b| (&a.report.function, a.report.id).cmp(&(&b.report.function, b.report.id)));
        Ok(snapshot)
    }

    /// Sandboxes in a state.
    pub(super) fn in_state(&self, state: SandboxState) -> usize {
        self.sandboxes.iter().filter(|line| line.report.state == state).count()
    }

    /// Bytes of sandboxes in a state.
    pub(super) fn bytes_in(&self, state: SandboxState) -> u64 {
        let of_state = self.sandboxes.iter().filter(|line| line.report.state == state);
        of_state.map(|line| line.report.private_bytes.max(line.report.stored_bytes)).sum()
    }

    pub(super) fn starts(&self) -> Starts {
        let mut starts = Starts::default();
        for function in &self.functions {
            starts.requests += function.requests;
            starts.restore += function.restores;
            starts.clone += function.clones;
            starts.cold += function.cold_starts;
        }
        starts
    }
}

/// Requests and starts since the controller's start. Some starts are asked for by people, not by requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Starts {
    pub(super) requests: u64,
    pub(super) restore: u64,
    pub(super) clone: u64,
    pub(super) cold: u64,
}

/// Per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) requests: f64,
    pub(super) restore: f64,
    pub(super) clone: f64,
    pub(super) cold: f64,
}

/// The tables, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tab {
    Sandboxes,
    Functions,
    Nodes,
    Events,
}

impl Tab {
    pub(super) const ALL: [Self; 4] = [Self::Sandboxes, Self::Functions, Self::Nodes, Self::Events];

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Sandboxes => "Sandboxes",
            Self::Functions => "Functions",
            Self::Nodes => "Nodes",
            Self::Events => "Events",
        }
    }

    fn next(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|tab| *tab == self).unwrap_or(0);
        Self::ALL[(at + by) % Self::ALL.len()]
    }
}

/// Something to show, or a key.
#[derive(Debug)]
pub(super) enum Message {
    Looked(Snapshot),
    Item(Item),
    Key(KeyEvent),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    Quit,
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) address: String,
    pub(super) snapshot: Snapshot,
    pub(super) events: VecDeque<Box<Event>>,
    /// Events that the controller threw away because we were slow.
    pub(super) dropped: u64,
    pub(super) tab: Tab,
    pub(super) filter: String,
    /// Keys go into the filter.
    pub(super) typing: bool,
    pub(super) help: bool,
    /// The chosen row of each table.
    rows: BTreeMap<Tab, usize>,
    samples: VecDeque<(Duration, Starts)>,
}

impl Model {
    pub(super) fn new(address: String) -> Self {
        Self {
            address,
            snapshot: Snapshot::default(),
            events: VecDeque::new(),
            dropped: 0,
            tab: Tab::Sandboxes,
            filter: String::new(),
            typing: false,
            help: false,
            rows: BTreeMap::new(),
            samples: VecDeque::new(),
        }
    }

    /// Takes one message in. `at` is the time since the beginning.
    pub(super) fn update(&mut self, at: Duration, message: Message) -> Flow {
        match message {
            Message::Looked(snapshot) => {
                self.sample(at, snapshot.starts());
                self.snapshot = snapshot;
            }
            Message::Item(Item::Event(event)) => {
                // Requests are rates here, and would push everything else out.
                if event.what.kind() != TraceKind::Request {
                    self.events.truncate(EVENTS_MAX - 1);
                    self.events.push_front(event);
                }
            }
            Message::Item(Item::Dropped(count)) => self.dropped = self.dropped.saturating_add(count),
            Message::Item(Item::Begin) => {}
            Message::Key(key) => return self.key(key),
        }
        Flow::Continue
    }

    fn sample(&mut self, at: Duration, starts: Starts) {
        // A controller that has started anew counts from zero: what was before says nothing.
        if self.samples.back().is_some_and(|(_, last)| last.requests > starts.requests) {
            self.samples.clear();
        }
        self.samples.push_back((at, starts));
        // One sample as old as the period stays, so that the rate covers all of it.
        while self.samples.get(1).is_some_and(|(second, _)| at.saturating_sub(*second) >= RATE_OVER) {
            self.samples.pop_front();
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
    pub(super) fn rates(&self) -> Rates {
        let (Some((from, old)), Some((to, new))) = (self.samples.front(), self.samples.back()) else {
            return Rates::default();
        };
        let seconds = to.saturating_sub(*from).as_secs_f64();
        if seconds <= 0.0 {
            return Rates::default();
        }
        let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        Rates {
            requests: rate(new.requests, old.requests),
            restore: rate(new.restore, old.restore),
            clone: rate(new.clone, old.clone),
            cold: rate(new.cold, old.cold),
        }
    }

    fn key(&mut self, key: KeyEvent) -> Flow {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && key.code == KeyCode::Char('c') {
            return Flow::Quit;
        }
        if self.typing {
            self.typed(key.code);
            return Flow::Continue;
        }
        if std::mem::take(&mut self.help) {
            // Any key closes the help; quitting is still quitting.
            return if key.code == KeyCode::Char('q') { Flow::Quit } else { Flow::Continue };
        }
        match key.code {
            KeyCode::Char('q') => return Flow::Quit,
            KeyCode::Char('?') => self.help = true,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Tab | KeyCode::Right => self.tab = self.tab.next(1),
            KeyCode::BackTab | KeyCode::Left => self.tab = self.tab.next(Tab::ALL.len() - 1),
            KeyCode::Up => self.step(|row| row.saturating_sub(1)),
            KeyCode::Down => self.step(|row| row.saturating_add(1)),
            KeyCode::PageUp => self.step(|row| row.saturating_sub(10)),
            KeyCode::PageDown => self.step(|row| row.saturating_add(10)),
            KeyCode::Home => self.step(|_| 0),
            KeyCode::End => self.step(|_| usize::MAX),
            _ => {}
        }
        Flow::Continue
    }

    fn typed(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(letter) if self.filter.len() < FILTER_MAX => self.filter.push(letter),
            _ => {}
        }
    }

    fn step(&mut self, to: impl FnOnce(usize) -> usize) {
        let row = to(self.row());
        let last = self.count().saturating_sub(1);
        self.rows.insert(self.tab, row.min(last));
    }

    /// The chosen row of the table that is shown. Rows may have gone since it was chosen.
    pub(super) fn row(&self) -> usize {
        let row = self.rows.get(&self.tab).copied().unwrap_or(0);
        row.min(self.count().saturating_sub(1))
    }

    /// Rows of the table that is shown.
    pub(super) fn count(&self) -> usize {
        match self.tab {
            Tab::Sandboxes => self.sandboxes().count(),
            Tab::Functions => self.functions().count(),
            Tab::Nodes => self.nodes().count(),
            Tab::Events => self.events().count(),
        }
    }

    fn wants(&self, words: &[&str]) -> bool {
        self.filter.is_empty() || words.iter().any(|word| word.contains(&self.filter))
    }

    /// Sandboxes that the filter lets through: by id, function, node or state.
    pub(super) fn sandboxes(&self) -> impl Iterator<Item = &SandboxLine> {
        self.snapshot.sandboxes.iter().filter(|line| {
            let report = &line.report;
            self.wants(&[&report.id.to_string(), report.function.as_str(), &line.node, report.state.word()])
        })
    }

    pub(super) fn functions(&self) -> impl Iterator<Item = &wire::FunctionRow> {
        self.snapshot.functions.iter().filter(|row| self.wants(&[&row.name, &row.tenant]))
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeLine> {
        self.snapshot.nodes.iter().filter(|line| self.wants(&[&line.name, &line.lacks]))
    }

    /// Newest first.
    pub(super) fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().map(|event| &**event).filter(|event| {
            let about = &event.about;
            let sandbox = about.sandbox.map(|id| id.to_string()).unwrap_or_default();
            let function = about.function.as_ref().map(|name| name.as_str()).unwrap_or_default();
            let node = about.node.as_ref().map(|name| name.as_str()).unwrap_or_default();
            self.wants(&[&sandbox, function, node, event.what.kind().word()])
        })
    }
}
