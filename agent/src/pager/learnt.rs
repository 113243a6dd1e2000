//! What the processes of a sandbox will touch, kept for those who begin where it did: the next clone, or its own next life.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::bring::number_inside;
use super::park::Paged;
use super::space::{Space, State};
use super::working_set::WorkingSet;

/// Working sets by the numbers that the processes have in the sandbox.
#[derive(Debug, Clone, Default)]
pub struct Learnt(BTreeMap<u32, WorkingSet>);

impl Learnt {
    /// That of one process, which is then nobody else's.
    pub(super) fn take(&mut self, inside: u32) -> WorkingSet {
        self.0.remove(&inside).unwrap_or_default()
    }
}

/// What those who begin at one place have touched. Each hands on what it knows when it ends; the last one that lives is asked. Cheap to
/// clone. Keeps nothing of anybody's memory.
#[derive(Debug, Clone, Default)]
pub struct School(Arc<Mutex<Lessons>>);

#[derive(Debug, Default)]
struct Lessons {
    learnt: Learnt,
    last: Vec<(u32, Weak<Space>)>,
}

impl School {
    /// What is known by now.
    pub fn learnt(&self) -> Learnt {
        let last = std::mem::take(&mut self.lock().last);
        for (inside, space) in last {
            if let Some(space) = space.upgrade() {
                let known = known(&space.lock());
                self.hand_on(inside, known);
            }
        }
        self.lock().learnt.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lessons> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_on(&self, inside: u32, known: WorkingSet) {
        if known.is_learnt() {
            self.lock().learnt.0.insert(inside, known);
        }
    }
}

/// A process that hands on what it knows.
#[derive(Debug)]
pub(super) struct Pupil {
    pub(super) inside: u32,
    pub(super) school: School,
}

impl Pupil {
    /// It has ended.
    pub(super) fn leave(self, state: &State) {
        self.school.hand_on(self.inside, known(state));
    }
}

fn known(state: &State) -> WorkingSet {
    let mut set = state.working_set.clone();
    set.come_to_know(state.missed.clone());
    set
}

impl Paged {
    /// What is known by now, for its own next life.
    pub fn learnt(&self) -> Learnt {
        let of_space = |space: &Arc<Space>| Some((number_inside(space.pid?).ok()?, known(&space.lock())));
        Learnt(self.spaces.iter().filter_map(of_space).collect())
    }

    /// From now on it hands on what it knows.
    pub fn goes_to(&self, school: &School) {
        let mut last = Vec::new();
        for space in &self.spaces {
            let Some(inside) = space.pid.and_then(|pid| number_inside(pid).ok()) else { continue };
            space.lock().pupil = Some(Pupil { inside, school: school.clone() });
            last.push((inside, Arc::downgrade(space)));
        }
        school.lock().last = last;
    }
}
