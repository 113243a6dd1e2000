//! Cells are carried out one after the other on a cluster that goes from one to the next; several clusters side by side, since most of
//! the time is waiting.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

use anyhow::{Context, Result};

use crate::{
    cell::Cell,
    cluster::{Cluster, Kind},
    judge::Lives,
    leftovers,
    places::Places,
    report::Outcome,
    run, strike,
};

/// Outcomes that may wait to be printed.
const WAITING_MAX: usize = 16;

/// Carries out all cells, and tells each outcome. In the order of the cells.
pub(crate) fn run(
    places: &Places,
    cells: &[Cell],
    lanes: u8,
    mut tell: impl FnMut(&Outcome),
) -> Result<Vec<Outcome>> {
    let mut queues: BTreeMap<Kind, Vec<(usize, Cell)>> = BTreeMap::new();
    // Taken from the end.
    for (number, cell) in cells.iter().enumerate().rev() {
        queues.entry(cell.kind).or_default().push((number, *cell));
    }
    let queues = Mutex::new(queues);
    let (sender, outcomes) = mpsc::sync_channel(WAITING_MAX);
    let mut all = thread::scope(|scope| {
        for lane in 0..lanes.max(1) {
            let (sender, queues) = (sender.clone(), &queues);
            scope.spawn(move || {
                while let Some((kind, first)) = next(queues, None) {
                    stay(places, lane, (kind, first), queues, &sender);
                }
            });
        }
        drop(sender);
        let mut all = Vec::new();
        for (number, outcome) in outcomes {
            tell(&outcome);
            all.push((number, outcome));
        }
        all
    });
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, outcome)| outcome).collect())
}

type Queues = Mutex<BTreeMap<Kind, Vec<(usize, Cell)>>>;

/// The next cell, of this kind if one is given.
fn next(queues: &Queues, kind: Option<Kind>) -> Option<(Kind, (usize, Cell))> {
    let mut queues = queues.lock().unwrap_or_else(PoisonError::into_inner);
    let longest = queues.iter().max_by_key(|(_, queue)| queue.len()).map(|(kind, _)| *kind);
    let kind = kind.or(longest)?;
    queues.get_mut(&kind)?.pop().map(|cell| (kind, cell))
}

/// Carries out cells on one cluster until there are none of its kind, or it is broken.
fn stay(
    places: &Places,
    lane: u8,
    (kind, first): (Kind, (usize, Cell)),
    queues: &Queues,
    sender: &mpsc::SyncSender<(usize, Outcome)>,
) {
    let mut cluster = match ready(places, kind, lane) {
        Ok(cluster) => cluster,
        Err(error) => {
            let outcome = Outcome::not(&first.1, vec![format!("no cluster: {error:#}")], None);
            // Nobody listens any more: then nobody needs to know.
            sender.send((first.0, outcome)).ok();
            return;
        }
    };
    let (mut lives, mut cell) = (Lives::default(), Some(first));
    while let Some((number, one)) = cell {
        let outcome = match strike::lack(one.fault) {
            Some(why) => Outcome::not(&one, Vec::new(), Some(why.into())),
            None => run::run(&mut cluster, &one, number, &mut lives)
                .unwrap_or_else(|error| Outcome::not(&one, vec![format!("{error:#}")], None)),
        };
        let good = outcome.is_good();
        if !good {
            let folder = places.out.join("logs").join(format!("cell-{number}"));
            if let Err(error) = cluster.keep_logs(&folder) {
                eprintln!("{error:#}");
            }
        }
        sender.send((number, outcome)).ok();
        if !good {
            // It does not count for the cells after it.
            break;
        }
        cell = next(queues, Some(kind)).map(|(_, cell)| cell);
    }
    let mark = cluster.desk.mark.clone();
    drop(cluster);
    let left = leftovers::of(&mark);
    if !left.is_empty() {
        sender.send((usize::MAX, Outcome::of_the_end(left))).ok();
    }
}

fn ready(places: &Places, kind: Kind, lane: u8) -> Result<Cluster> {
    let cluster = Cluster::start(places, kind, lane)?;
    cluster.apply(run::CROWD, "auto", "256MiB").context("make the crowd's function known")?;
    Ok(cluster)
}

/// Where failed cells leave their logs is empty to begin with.
pub(crate) fn forget_logs(out: &Path) {
    // Not there is as good.
    std::fs::remove_dir_all(out.join("logs")).ok();
}
