//! Callers who wait or go away, and people who ask for operations and change the policy.

use super::*;
use crate::policy::{PolicyKind, PolicySettings};

impl World {
    pub(super) fn end_some_request(&mut self) {
        let sent: Vec<_> = self
            .callers
            .iter()
            .filter_map(|(&id, caller)| match caller {
                Caller::Sent(sandbox) => Some((id, *sandbox)),
                _ => None,
            })
            .collect();
        let Some((request, sandbox)) = self.dice.pick(&sent) else { return };
        self.close_request(request, Some(Caller::Sent(sandbox)));
        let there = self.agents.iter().any(|agent| agent.sandboxes.contains_key(&sandbox));
        let end = match self.dice.below(20) {
            _ if !there => RequestEnd::Failed(crash(FailureKind::NotFound)),
            0 => {
                self.agents.iter_mut().for_each(|agent| drop(agent.sandboxes.remove(&sandbox)));
                RequestEnd::Failed(crash(FailureKind::Crashed))
            }
            1 => RequestEnd::NotSent,
            2 => RequestEnd::Lost,
            3 => RequestEnd::Failed(crash(FailureKind::Busy)),
            4 => RequestEnd::Failed(crash(FailureKind::Deadline)),
            _ => RequestEnd::Answered { took: Duration::from_millis(3) },
        };
        let next = match end {
            RequestEnd::Answered { .. } => Caller::Answered,
            _ => Caller::Waits,
        };
        self.callers.insert(request, next);
        self.tell(Event::Ended { request, end });
    }

    pub(super) fn request(&mut self, number: u64) {
        let request = RequestId(number);
        self.callers.insert(request, Caller::Waits);
        let function = ["f", "g", "f", "g", "f", "nobody"][self.dice.below(6)].parse().unwrap();
        let some: Vec<_> = self.agents.iter().flat_map(|agent| agent.sandboxes.keys().copied()).collect();
        let prefer = if self.dice.one_in(4) { self.dice.pick(&some) } else { None };
        let deadline = Duration::from_millis(500 + self.dice.next() % 20_000);
        self.tell(Event::Requested { request, function, prefer, deadline });
    }

    pub(super) fn withdraw(&mut self) {
        let waits: Vec<_> =
            self.callers.iter().filter(|(_, c)| **c == Caller::Waits).map(|(&id, _)| id).collect();
        if let Some(request) = self.dice.pick(&waits).filter(|id| !self.withdrawn.contains(id)) {
            self.withdrawn.insert(request);
            self.tell(Event::Abandoned { request });
        }
    }

    pub(super) fn operate(&mut self) {
        self.bench.tickets += 1;
        let ticket = Ticket(self.bench.tickets);
        self.tickets.insert(ticket, false);
        let some: Vec<_> = self.agents.iter().flat_map(|agent| agent.sandboxes.keys().copied()).collect();
        let digest_memory = false;
        let operation = match (self.dice.below(5), self.dice.pick(&some)) {
            (1, Some(sandbox)) => Operation::Dedup { sandbox, digest_memory },
            (2, Some(sandbox)) => Operation::Restore { sandbox, digest_memory },
            (3, Some(sandbox)) => Operation::MakeBase(sandbox),
            (4, Some(sandbox)) => Operation::Purge(sandbox),
            _ => Operation::Start { function: "f".parse().unwrap(), node: None, cold: false },
        };
        self.tell(Event::Asked { ticket, operation });
    }

    pub(super) fn ask_for_a_move(&mut self) {
        let all = self.agents.iter().flat_map(|agent| &agent.sandboxes);
        let stored = all.filter(|(_, held)| held.state == SandboxState::Dedup);
        let stored: Vec<_> = stored.map(|(&id, _)| id).collect();
        let Some(sandbox) = self.dice.pick(&stored) else { return };
        self.bench.tickets += 1;
        let ticket = Ticket(self.bench.tickets);
        self.tickets.insert(ticket, false);
        self.tell(Event::Asked { ticket, operation: Operation::Move { sandbox, to: None } });
    }

    /// Any policy, at any time.
    pub(super) fn tune(&mut self) {
        let any = PolicyKind::ALL[self.dice.below(PolicyKind::ALL.len())];
        let kind = if self.dice.one_in(2) { PolicyKind::Fixed } else { any };
        let periods = FixedSettings {
            idle: Duration::from_secs(2),
            keep_alive: Duration::from_secs(20),
            keep_dedup: Duration::from_secs(30),
            dedups_per_base: 2,
            dedup: !self.dice.one_in(4),
        };
        let keeping = Keeping {
            idle: Duration::from_secs(1 + self.dice.below(3) as u64),
            park: self.dice.one_in(2),
            ..self.bench.driver.settings.keeping
        };
        let policy = PolicySettings { kind, periods, ..PolicySettings::default() };
        self.tell(Event::Tuned(Box::new(Tuning { policy, keeping })));
    }
}
