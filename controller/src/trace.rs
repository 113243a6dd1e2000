//! Events on their way from the driver to whoever listens: live subscribers, and histories for `explain`.
//!
//! Publishing never waits: a subscriber that is too slow loses events, and is told how many.

mod history;
mod mailbox;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use medes_proto::{
    ids::SandboxId,
    trace::{Event, Explanation, Filter, Item, TraceKind},
};
use tokio::sync::Notify;

use history::History;
use mailbox::{Letter, Mailbox};

/// Subscribers at a time.
const SUBSCRIBERS_MAX: usize = 64;
/// Events that may wait for one subscriber.
const WAITING_MAX: usize = 1_024;

/// Takes every event in, gives each subscriber what its filter wants.
#[derive(Debug, Default)]
pub(crate) struct Hub(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    subscribers: BTreeMap<u64, Arc<Subscriber>>,
    counter: u64,
    history: History,
}

#[derive(Debug)]
struct Subscriber {
    filter: Filter,
    mailbox: Mutex<Mailbox<Arc<Event>>>,
    /// Something was put into the mailbox.
    posted: Notify,
}

/// As many subscribers as there may be are there already.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the controller has {SUBSCRIBERS_MAX} trace subscribers already")]
pub struct TooManySubscribers;

impl Hub {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an event to all who want it and keeps it.
    pub(crate) fn publish(&self, event: Event) {
        let event = Arc::new(event);
        let mut inner = self.lock();
        // One event per request would leave no room in the history for decisions.
        if event.what.kind() != TraceKind::Request {
            inner.history.keep(&event);
        }
        for subscriber in inner.subscribers.values() {
            subscriber.post(&event);
        }
    }

    /// Whether anybody would receive events of a kind. Spares making them.
    pub(crate) fn is_wanted(&self, kind: TraceKind) -> bool {
        let wants = |filter: &Filter| filter.kinds.is_empty() || filter.kinds.contains(&kind);
        self.lock().subscribers.values().any(|subscriber| wants(&subscriber.filter))
    }

    /// Everything published from here on that the filter wants.
    pub(crate) fn subscribe(self: &Arc<Self>, filter: Filter) -> Result<Subscription, TooManySubscribers> {
        let mut inner = self.lock();
        if inner.subscribers.len() >= SUBSCRIBERS_MAX {
            return Err(TooManySubscribers);
        }
        inner.counter += 1;
        let number = inner.counter;
        let subscriber = Arc::new(Subscriber {
            filter,
            mailbox: Mutex::new(Mailbox::new(WAITING_MAX)),
            posted: Notify::new(),
        });
        inner.subscribers.insert(number, Arc::clone(&subscriber));
        Ok(Subscription { hub: Arc::clone(self), number, subscriber })
    }

    /// The last events that are newer than this one, at most so many; the oldest first.
    pub(crate) fn recent(&self, after: u64, most: usize) -> Vec<Event> {
        self.lock().history.recent(after, most)
    }

    /// What is remembered about a sandbox; `now` is left to the caller. `None`: nothing.
    pub(crate) fn explain(&self, id: SandboxId) -> Option<Explanation> {
        self.lock().history.explain(id)
    }
}

impl Subscriber {
    fn post(&self, event: &Arc<Event>) {
        if self.filter.wants(&event.about, event.what.kind()) {
            self.mailbox.lock().unwrap_or_else(PoisonError::into_inner).post(Arc::clone(event));
            self.posted.notify_one();
        }
    }
}

/// One subscriber's end. Dropping it ends the subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    number: u64,
    subscriber: Arc<Subscriber>,
}

impl Subscription {
    /// The next event, or how many were thrown away before the next. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Item {
        loop {
            let taken = self.subscriber.mailbox.lock().unwrap_or_else(PoisonError::into_inner).take();
            match taken {
                Some(Letter::One(event)) => return Item::Event(Box::new(Event::clone(&event))),
                Some(Letter::Lost(count)) => return Item::Dropped(count),
                // A post between the look and the wait has left its permit.
                None => self.subscriber.posted.notified().await,
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.lock().subscribers.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use medes_proto::trace::{About, EventId, What};

    use super::*;

    fn event(number: u64, sandbox: u32) -> Event {
        let about = About { sandbox: SandboxId::of(1, sandbox), ..About::default() };
        let what = What::Asked { operation: "dedup".into() };
        Event { id: EventId::new(number).unwrap(), unix_micros: 0, about, what }
    }

    async fn numbers(subscription: &mut Subscription, count: usize) -> Vec<Result<u64, u64>> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(match subscription.next().await {
                Item::Event(event) => Ok(event.id.get()),
                Item::Dropped(count) => Err(count),
                Item::Begin => panic!("only the stream begins"),
            });
        }
        all
    }

    #[tokio::test]
    async fn filters_are_applied_at_the_source() {
        let hub = Arc::new(Hub::default());
        let mut one = hub.subscribe(Filter { sandbox: SandboxId::of(1, 1), ..Filter::default() }).unwrap();
        let mut all = hub.subscribe(Filter::default()).unwrap();
        assert!(hub.is_wanted(TraceKind::Request));
        for number in 1..=4 {
            hub.publish(event(number, u32::try_from(number).unwrap() % 2));
        }
        assert_eq!(numbers(&mut one, 2).await, [Ok(1), Ok(3)]);
        assert_eq!(numbers(&mut all, 4).await, [Ok(1), Ok(2), Ok(3), Ok(4)]);
        drop((one, all));
        assert!(!hub.is_wanted(TraceKind::Request));
    }

    #[tokio::test]
    async fn a_slow_subscriber_loses_events_with_a_count_and_blocks_nobody() {
        let hub = Arc::new(Hub::default());
        let mut slow = hub.subscribe(Filter::default()).unwrap();
        let most = u64::try_from(WAITING_MAX).unwrap();
        for number in 1..=most + 7 {
            hub.publish(event(number, 1));
        }
        let first = numbers(&mut slow, WAITING_MAX + 1).await;
        assert_eq!((first[0], first[WAITING_MAX - 1], first[WAITING_MAX]), (Ok(1), Ok(most), Err(7)));
        hub.publish(event(9_999, 1));
        assert_eq!(numbers(&mut slow, 1).await, [Ok(9_999)]);
    }

    #[test]
    fn there_are_only_so_many_subscribers() {
        let hub = Arc::new(Hub::default());
        let mut all: Vec<_> =
            (0..SUBSCRIBERS_MAX).map(|_| hub.subscribe(Filter::default()).unwrap()).collect();
        assert_eq!(hub.subscribe(Filter::default()).unwrap_err(), TooManySubscribers);
        all.pop();
        assert!(hub.subscribe(Filter::default()).is_ok());
    }
}
