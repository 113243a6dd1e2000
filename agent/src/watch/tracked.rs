//! The writes and touches of one sandbox, all its processes: armed, looked at window by window, and made into heat.
//!
//! A window is what was served between two looks. What was written in it is known of every request; what was only read is known
//! as far as it makes a fault: pages that were not there, and, where there are kernel programs, the faults of its first request. Processes are known by the numbers they have inside: these, and the
//! addresses, stay when a sandbox is put away and comes back, and so does its heat. Its tracking does not: each life
//! is armed anew.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use medes_dedup::page::PAGE_BYTES;
use medes_proto::heat::PageClass;
use nix::unistd::Pid;

use super::{
    Fault,
    heat::{Class, Heat, HeatSettings, PageOf, Seen, Summary},
    writes::{Way, Writes, WritesError},
};
use crate::{metrics, pager::Paged, reaper::Reaper, roads::blocking};

/// Processes of one sandbox that are tracked; those beyond are not, and their pages thereby cold.
const PROCESSES_MAX: usize = 64;
/// Faults of one request that are kept until the look.
const FAULTS_MAX: usize = 1 << 15;

/// What tracking takes, the same for all sandboxes of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracking {
    /// Waits for the helpers.
    pub reaper: Reaper,
    /// The agent's own program, which is also the helper.
    pub program: PathBuf,
    /// Where classes of pages begin.
    pub settings: HeatSettings,
    /// How writes are told apart.
    pub way: Way,
}

/// One sandbox.
#[derive(Debug)]
pub struct Tracked {
    tracking: Tracking,
    /// Requests since the last look.
    served: AtomicU64,
    /// Pages that one request has faulted on, by the numbers their processes have outside.
    touched: Mutex<Vec<(i32, u64)>>,
    state: tokio::sync::Mutex<State>,
    /// As of the last look, for those who must not wait for one.
    summary: Mutex<Summary>,
}

#[derive(Debug)]
struct State {
    /// By the numbers they have outside.
    processes: BTreeMap<i32, Process>,
    heat: Heat,
    /// Seen in this life.
    windows: u64,
}

#[derive(Debug)]
struct Process {
    /// Its number inside.
    inside: i32,
    /// None: it cannot be tracked, which was told.
    writes: Option<Arc<Writes>>,
}

/// What is known of a sandbox's pages at one moment.
#[derive(Debug)]
pub struct Known {
    heat: Heat,
    /// Numbers inside, by those outside.
    inside: BTreeMap<i32, i32>,
}

impl Known {
    /// How hot a private page is by its writes, and of those hardly written which are read. `pid`: as the node numbers the
    /// process; `page`: address / 4096.
    pub fn class(&self, pid: i32, page: u64) -> PageClass {
        let Some(&process) = self.inside.get(&pid) else { return PageClass::Cold };
        let page = PageOf { process, page };
        match (self.heat.written(page), self.heat.touched(page)) {
            (Class::Hot, _) => PageClass::Hot,
            (Class::Warm, _) => PageClass::Warm,
            (Class::Cold, Class::Hot | Class::Warm) => PageClass::Read,
            (Class::Cold, Class::Cold) => PageClass::Cold,
        }
    }
}

impl Tracked {
    /// A sandbox of which nothing is known yet. Nothing is armed before the first [`Tracked::look`].
    pub fn new(tracking: Tracking) -> Self {
        let heat = Heat::new(tracking.settings);
        let state = State { processes: BTreeMap::new(), heat, windows: 0 };
        let (served, summary) = (AtomicU64::new(0), Mutex::new(Summary::default()));
        let (state, touched) = (tokio::sync::Mutex::new(state), Mutex::default());
        Self { tracking, served, touched, state, summary }
    }

    /// A request has faulted on pages. Faults beyond a bound are forgotten.
    pub fn note_faults(&self, faults: impl IntoIterator<Item = Fault>) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        let room = FAULTS_MAX.saturating_sub(touched.len());
        let page = |fault: Fault| (fault.process.cast_signed(), fault.address / PAGE_BYTES as u64);
        touched.extend(faults.into_iter().take(room).map(page));
    }

    /// A request has gone in.
    pub fn note_request(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there is something to look at: a request since the last look.
    pub fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed) > 0
    }

    /// What the last look came to.
    pub fn summary(&self) -> Summary {
        *self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a window, if something was served in it, and arms everything for the next one: processes that are tracked,
    /// and those of `pids` that are not yet. The pages of the latter are known from the next window on. `paged`: what serves missing pages
    /// of the sandbox, which then tells of them.
    ///
    /// Not cancel-safe: dropped half way, the pages of this window may not be known.
    pub async fn look(&self, pids: &[Pid], paged: Option<&Paged>) {
        let mut state = self.state.lock().await;
        state.processes.retain(|pid, _| pids.contains(&Pid::from_raw(*pid)));
        self.window(&mut state).await;
        for &pid in pids {
            if state.processes.len() < PROCESSES_MAX && !state.processes.contains_key(&pid.as_raw()) {
                let Some(inside) = inside(pid) else { continue };
                let writes = self.arm(pid, paged).await;
                state.processes.insert(pid.as_raw(), Process { inside, writes });
            }
        }
        self.sum_up(&state);
    }

    /// Ends the last window of this life, and the tracking. Whoever wants to stop the processes for a dump comes here
    /// first: it waits for a look under way. Returns whether any window was seen in this life.
    pub async fn end(&self) -> bool {
        let mut state = self.state.lock().await;
        self.window(&mut state).await;
        state.processes.clear();
        self.sum_up(&state);
        std::mem::take(&mut state.windows) > 0
    }

    /// A window that somebody else has seen: what was written in it.
    pub async fn learn(&self, written: impl IntoIterator<Item = PageOf>) {
        let mut state = self.state.lock().await;
        state.heat.record(written.into_iter().map(Seen::Written));
        self.sum_up(&state);
    }

    /// Hot pages by the numbers their processes have inside, in order.
    pub async fn hot(&self) -> Vec<PageOf> {
        self.state.lock().await.heat.hot().collect()
    }

    /// What is known; `None` before enough windows were seen.
    pub async fn known(&self) -> Option<Known> {
        let state = self.state.lock().await;
        let inside = state.processes.iter().map(|(&pid, process)| (pid, process.inside)).collect();
        state.heat.is_known().then(|| Known { heat: state.heat.clone(), inside })
    }

    /// Takes what was written, and counts it if it was written while something was served.
    async fn window(&self, state: &mut State) {
        let served = self.served.swap(0, Ordering::Relaxed) > 0;
        let touched = std::mem::take(&mut *self.touched.lock().unwrap_or_else(PoisonError::into_inner));
        let inside =
            |(pid, page): (i32, u64)| Some(PageOf { process: state.processes.get(&pid)?.inside, page });
        let mut seen: Vec<Seen> = touched.into_iter().filter_map(inside).map(Seen::Touched).collect();
        let (mut looked, mut pages) = (false, 0);
        for (pid, process) in &mut state.processes {
            let Some(writes) = process.writes.clone() else { continue };
            match blocking(move || writes.take()).await {
                Ok(written) => {
                    looked = true;
                    let of = |page| PageOf { process: process.inside, page };
                    pages += written.pages();
                    seen.extend(written.numbers().map(|page| Seen::Written(of(page))));
                    seen.extend(written.appeared().map(|page| Seen::Touched(of(page))));
                }
                Err(error) => {
                    tell(*pid, &error);
                    process.writes = None;
                }
            }
        }
        // What sandboxes write by themselves is not what their requests will write.
        if served && looked {
            state.windows += 1;
            state.heat.record(seen);
            metrics::window(pages, state.heat.summary().touched);
        }
    }

    async fn arm(&self, pid: Pid, paged: Option<&Paged>) -> Option<Arc<Writes>> {
        // A child that was forked while pages were missing is served as well, but nobody knows by whom.
        let window = match paged {
            Some(paged) => Some(paged.window(pid)?),
            None => None,
        };
        let armed = async {
            let Tracking { reaper, program, way, .. } = &self.tracking;
            let writes = Arc::new(match (window, way) {
                (Some(window), _) => Writes::begin_by_pager(pid, window)?,
                (None, Way::Protection) => Writes::begin(reaper, program, pid).await?,
                (None, Way::SoftDirty) => Writes::begin_by_bits(pid)?,
            });
            let first = writes.clone();
            // All that is there, written at some time or other.
            blocking(move || first.take()).await?;
            Ok(writes)
        };
        let armed = armed.await.map_err(|error| tell(pid.as_raw(), &error)).ok();
        metrics::armed(armed.is_some());
        armed
    }

    fn sum_up(&self, state: &State) {
        *self.summary.lock().unwrap_or_else(PoisonError::into_inner) = state.heat.summary();
    }
}

fn tell(pid: i32, error: &WritesError) {
    match error {
        WritesError::Gone => tracing::debug!(pid, "a process ended while its writes were tracked"),
        error => {
            tracing::info!(
                pid,
                error = error as &dyn std::error::Error,
                "writes of a process are not tracked"
            );
        }
    }
}

/// The number a process has in its innermost namespace.
fn inside(pid: Pid) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_number_inside() {
        assert_eq!(inside(Pid::this()), Some(Pid::this().as_raw()));
        assert_eq!(inside(Pid::from_raw(i32::MAX)), None);
    }
}
