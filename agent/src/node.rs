//! The thin shell around the driver: waits, asks the driver, carries out its actions.
//!
//! One loop owns the driver and the sandboxes themselves ([`Body`]). Long work takes a sandbox out of the loop's
//! hands, runs as a task, and comes back as an input. Nothing here decides anything.

mod books;
mod door;
mod ends;
mod filling;
mod finished;
mod keys;
mod leaving;
mod measure;
mod on_roads;
mod tracking;
mod watching;
mod work;

pub use self::{door::NodeHandle, keys::Dropped};

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use medes_metrics::spans::Exporter;
use medes_proto::{
    fleet::{AgentMessage, ControllerMessage, Hello, Inventory, Welcome},
    ids::{NodeId, SandboxId},
};
use tokio::{sync::mpsc, task::JoinHandle, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    door::Asked,
    measure::Measured,
    tracking::Pace,
    watching::Watching,
    work::{PutAway, Worked},
};
use crate::{
    base,
    driver::{Action, Driver, Event, Launched, Ticket},
    heap,
    link::FromLink,
    metrics,
    pager::{Paged, Pager},
    park::ParkOrder,
    roads::{Roads, Stored, Warm},
    sandbox::{Host, Housing},
    watch::{Watch, tracked::Tracking},
};

/// A sandbox, as the loop holds it while no work is under way.
#[derive(Debug)]
enum Body {
    /// With processes; the token ends the watch for their end.
    Warm(Box<Warm>, CancellationToken),
    /// With processes, frozen, and without memory; watched as well.
    Parked(Box<Warm>, CancellationToken),
    /// Without.
    Stored(Box<Stored>),
    /// What a failure left: only good for removal.
    Ruin(Box<Housing>),
}

/// Anything that wakes the loop.
#[derive(Debug)]
pub(crate) enum Input {
    /// A request, or a look at a log.
    Asked(Asked),
    /// Work has ended.
    Worked(Box<Worked>),
}

/// What the node is and can do; fixed while it runs.
#[derive(Debug)]
pub struct Identity {
    /// Its name.
    pub node: NodeId,
    /// Fresh each time the agent starts.
    pub incarnation: u64,
    /// Where its Node service listens.
    pub address: String,
    /// Memory it may use.
    pub cap_bytes: u64,
    /// What it cannot do, and why.
    pub lacks: Vec<String>,
    /// Threads for the work on one sandbox's pages.
    pub threads: NonZeroUsize,
}

/// What the loop works with.
#[derive(Debug)]
pub struct Tools {
    /// Where sandboxes live.
    pub host: Arc<Host>,
    /// The way to dedup and back; `None` on a node without CRIU.
    pub roads: Option<Arc<Roads>>,
    /// What parks sandboxes; `None` where the kernel cannot.
    pub pager: Option<Pager>,
    /// Bases, for the accounts.
    pub bases: Arc<crate::bases::Bases>,
    /// All tasks of the node.
    pub tasks: TaskTracker,
    /// Where spans go, if anywhere.
    pub spans: Option<Arc<Exporter>>,
    /// What tests ask for.
    pub faults: Arc<crate::faults::Faults>,
}

/// The loop's state.
#[derive(Debug)]
pub struct Node {
    identity: Identity,
    tools: Arc<Tools>,
    driver: Driver,
    bodies: BTreeMap<SandboxId, Body>,
    /// Requests that wait for the driver's word.
    doors: BTreeMap<Ticket, Asked>,
    next_ticket: u64,
    measured: Measured,
    watching: Watching,
    pace: Pace,
    /// Parks under way, and how to call them off.
    parking: BTreeMap<SandboxId, CancellationToken>,
    fill_percent: Option<u32>,
    /// The open stream's queue.
    outgoing: Option<mpsc::Sender<AgentMessage>>,
    /// The controller has said on it that it knows this node.
    welcomed: bool,
    inbox: mpsc::Sender<Input>,
    heartbeat: Duration,
    /// Tells a controller of the bases that are here; begun anew by each welcome.
    registering: Option<JoinHandle<()>>,
}

/// Inputs that may wait for the loop. Work and requests wait for room; nothing is thrown away.
const INBOX_MAX: usize = 1_024;
const SANDBOXES_MAX: usize = medes_proto::limits::SANDBOXES_MAX;
const TICK: Duration = Duration::from_millis(250);
/// An index of a base that no sandbox needed for so long, and up to twice as long, is not kept.
const SWEEP: Duration = Duration::from_secs(5);
/// Until the controller says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long sandboxes may take to go when the node does.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

impl Node {
    /// A node without sandboxes, and the way to ask it.
    pub fn new(
        identity: Identity,
        tools: Arc<Tools>,
        (watch, tracking): (Watch, Option<Tracking>),
    ) -> (Self, NodeHandle, NodeInbox) {
        let (inbox, inputs) = mpsc::channel(INBOX_MAX);
        let handle = NodeHandle::new(inbox.clone(), tools.tasks.clone());
        let measured = Measured::new(identity.cap_bytes);
        let node = Self {
            identity,
            tools,
            driver: Driver::new(SANDBOXES_MAX),
            bodies: BTreeMap::new(),
            doors: BTreeMap::new(),
            next_ticket: 0,
            measured,
            watching: Watching::new(watch, tracking.is_some()),
            pace: Pace::new(tracking),
            parking: BTreeMap::new(),
            fill_percent: None,
            outgoing: None,
            welcomed: false,
            inbox,
            heartbeat: HEARTBEAT,
            registering: None,
        };
        (node, handle, NodeInbox(inputs))
    }

    /// Runs until `stop`, then ends every sandbox.
    pub async fn run(
        mut self,
        inbox: NodeInbox,
        mut link: mpsc::Receiver<FromLink>,
        stop: CancellationToken,
    ) {
        let NodeInbox(mut inputs) = inbox;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut look = tokio::time::interval(self.watching.pace());
        look.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut sweep = tokio::time::interval(SWEEP);
        let mut last_heartbeat = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(input) = inputs.recv() => self.input(input),
                Some(said) = link.recv() => self.link_said(said).await,
                _ = sweep.tick() => self.tools.bases.indexes.sweep(),
                _ = look.tick() => self.look(),
                _ = tick.tick() => {
                    self.apply(Event::Tick);
                    if last_heartbeat.elapsed() + TICK / 2 >= self.heartbeat {
                        last_heartbeat = Instant::now();
                        let inventory = self.inventory().await;
                        self.fill_one();
                        self.send(AgentMessage::Heartbeat(inventory));
                    }
                }
            }
        }
        inputs.close();
        if let Some(registering) = self.registering.take() {
            registering.abort();
        }
        let closed = tokio::time::timeout(CLOSE_DEADLINE, self.close(inputs)).await;
        if closed.is_err() {
            tracing::warn!(deadline = ?CLOSE_DEADLINE, "sandboxes still there; the keeper ends them");
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Asked(asked) => self.asked(asked),
            Input::Worked(worked) => {
                let leaves = worked.leaves();
                self.worked(*worked);
                self.leave(leaves);
            }
        }
    }

    async fn link_said(&mut self, said: FromLink) {
        match said {
            FromLink::Opening { hello, outgoing } => {
                self.outgoing = Some(outgoing);
                let inventory = self.inventory().await;
                let said = hello.send(Hello {
                    node: self.identity.node.clone(),
                    incarnation: self.identity.incarnation,
                    version: env!("CARGO_PKG_VERSION").into(),
                    address: self.identity.address.clone(),
                    inventory,
                    lacks: self.identity.lacks.clone(),
                });
                if said.is_err() {
                    tracing::debug!("the link went away before our hello");
                }
            }
            FromLink::Said(ControllerMessage::Welcome(welcome)) => self.welcome(welcome),
            FromLink::Said(ControllerMessage::IdlePeriod(idle)) => self.apply(Event::IdlePeriod(idle)),
            FromLink::Said(ControllerMessage::TenantKeys(keys)) => self.learn_keys(keys),
            FromLink::Said(ControllerMessage::ForgetKeys(tenants)) => self.forget_keys(tenants),
            FromLink::Said(ControllerMessage::Command { id, command }) => {
                tracing::debug!(?id, ?command, "told");
                match self.lacks_key(&command) {
                    Some(why) => self.send(AgentMessage::Done { command: id, result: Box::new(Err(why)) }),
                    None => self.apply(Event::Command { id, command }),
                }
            }
            FromLink::Lost => {
                self.outgoing = None;
                if std::mem::take(&mut self.welcomed) {
                    tracing::warn!("lost the controller; sandboxes stay as they are");
                }
            }
        }
    }

    fn welcome(&mut self, welcome: Welcome) {
        let Welcome { incarnation, heartbeat, idle, keys, domain_key: _, engine, purge } = welcome;
        tracing::info!(incarnation, ?heartbeat, ?idle, ?engine, "welcomed by the controller");
        (self.heartbeat, self.welcomed) = (heartbeat, true);
        self.learn_only(keys);
        if let Some(roads) = &self.tools.roads {
            roads.set_engine(engine, self.identity.threads);
            let registering = self.tools.tasks.spawn(base::register_again(roads.clone()));
            if let Some(earlier) = self.registering.replace(registering) {
                earlier.abort();
            }
        }
        self.apply(Event::SmallAfter(engine.shrinks_after()));
        self.apply(Event::IdlePeriod(idle));
        self.apply(Event::Unwanted(purge));
    }

    async fn inventory(&mut self) -> Inventory {
        let kept = self.tools.roads.as_ref().map_or(0, |roads| roads.earlier.used());
        self.measured.refresh(&self.tools, &self.bodies, self.driver.image_bytes() + kept).await;
        let inventory = Inventory {
            memory: self.measured.node(),
            sandboxes: self.driver.sandboxes(Instant::now(), |id| self.measures(id)),
            snapshots: self.driver.snapshots(),
            keys: self.tools.roads.as_ref().map(|roads| roads.keys.held()).unwrap_or_default(),
        };
        metrics::inventory(&inventory);
        inventory
    }

    /// Tells the driver, then does what it says.
    fn apply(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.driver.apply(Instant::now(), event, &mut actions);
        self.take_back(&actions);
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Launch { sandbox, spec, clone_of } => self.launch(sandbox, spec, clone_of),
            Action::Dedup { sandbox, order } => self.dedup(sandbox, order),
            Action::Park { sandbox, base, resident_percent } => {
                self.park(sandbox, ParkOrder { base, resident_percent });
            }
            Action::CancelPark { sandbox } => {
                // A dedup or a base is not called off.
                self.parking.get(&sandbox).into_iter().for_each(CancellationToken::cancel);
            }
            Action::Trim { sandbox, pages_max } => self.trim(sandbox, pages_max),
            Action::Shrink { sandbox } => self.shrink(sandbox),
            Action::MakeBase { sandbox, snapshot, init } => self.make_base(sandbox, snapshot, init),
            Action::Restore { sandbox, digest_memory } => self.restore(sandbox, digest_memory),
            Action::Remove { sandbox } => {
                self.watching.end(sandbox);
                self.pace.end(sandbox);
                let remains = self.bodies.remove(&sandbox).and_then(Body::into_remains);
                self.work(work::remove_as_told(self.tools.clone(), sandbox, remains));
            }
            Action::Take { sandbox, spec, from } => self.take(sandbox, spec, from),
            Action::Replicate { place } => self.work(work::replicate(self.tools.clone(), place)),
            Action::DropSnapshot { snapshot } => self.tools.bases.remove(snapshot),
            Action::Admit { ticket } => self.admit(ticket),
            Action::Refuse { ticket, why } => {
                if let Some(asked) = self.doors.remove(&ticket) {
                    asked.refuse(why);
                }
            }
            Action::Reply { command, result } => {
                let result = result.map(|success| self.with_memory(*success));
                if let Err(failure) = &result {
                    tracing::info!(?command, kind = ?failure.kind, %failure, "command failed");
                }
                self.send(AgentMessage::Done { command, result: Box::new(result) });
            }
            Action::ReportIdle { sandbox, idle } => self.send(AgentMessage::Idle { sandbox, idle }),
            Action::ReportGone { sandbox, why } => {
                tracing::warn!(%sandbox, kind = ?why.kind, %why, "sandbox ended by itself");
                self.send(AgentMessage::Gone { sandbox, why });
            }
        }
    }

    fn send(&mut self, message: AgentMessage) {
        let Some(outgoing) = &self.outgoing else { return };
        if outgoing.try_send(message).is_err() {
            // A queue this full means a stuck stream; the next Hello tells everything anew.
            tracing::warn!("the stream to the controller is stuck; giving it up");
            self.outgoing = None;
        }
    }

    /// Runs work as a task; its result comes back as an input.
    fn work(&self, work: impl Future<Output = Worked> + Send + 'static) {
        let inbox = self.inbox.clone();
        self.tools.tasks.spawn(async move {
            let worked = Input::Worked(Box::new(work.await));
            // The node is closing and takes nothing back any more: what the work brings is removed here.
            if let Err(mpsc::error::SendError(Input::Worked(worked))) = inbox.send(worked).await
                && let Some((sandbox, remains)) = worked.into_remains()
            {
                work::remove(sandbox, Some(remains)).await;
            }
        });
    }

    /// Takes a warm sandbox for work; its end is now the work's business.
    fn take_warm(&mut self, sandbox: SandboxId) -> Option<Box<Warm>> {
        match self.bodies.remove(&sandbox)? {
            Body::Warm(warm, watch) | Body::Parked(warm, watch) => {
                watch.cancel();
                self.watching.end(sandbox);
                self.pace.end(sandbox);
                Some(warm)
            }
            other => {
                self.bodies.insert(sandbox, other);
                None
            }
        }
    }

    /// Takes a warm sandbox back, or in for the first time, and watches for its end.
    fn keep_warm(&mut self, sandbox: SandboxId, mut warm: Box<Warm>) {
        self.watching.begin(sandbox, warm.housing.cgroup());
        let heat = (&mut warm.past.tracked, warm.paged.clone());
        self.pace.begin(sandbox, warm.housing.cgroup(), heat);
        let watch = self.watch(sandbox, &warm);
        self.bodies.insert(sandbox, Body::Warm(warm, watch));
    }

    /// Puts what came back where it belongs, then tells the driver.
    fn worked(&mut self, worked: Worked) {
        if let Some(finished) = worked.finished() {
            finished.count();
            self.tools.spans.iter().for_each(|spans| spans.tell(finished.span(&self.identity.node)));
        }
        if worked.was_large() {
            self.tools.tasks.spawn_blocking(heap::trim);
        }
        let event = match worked {
            Worked::Launched { sandbox, result: Ok((warm, phases)), .. } => {
                let stored_bytes = warm.paged.as_ref().map_or(0, Paged::stored_bytes);
                let bases = warm.paged.as_ref().map(Paged::bases).unwrap_or_default();
                self.keep_warm(sandbox, warm);
                Event::Launched { sandbox, result: Ok(Launched { phases, stored_bytes, bases }) }
            }
            Worked::Launched { sandbox, result: Err((ruin, failure)), .. } => {
                self.keep_ruin(sandbox, ruin);
                Event::Launched { sandbox, result: Err(failure) }
            }
            Worked::Deduped { sandbox, result: Ok((put_away, deduped)) } => {
                self.parking.remove(&sandbox);
                let body = match put_away {
                    PutAway::Stored(stored) => Body::Stored(stored),
                    PutAway::Parked(warm) => {
                        let watch = self.watch(sandbox, &warm);
                        Body::Parked(warm, watch)
                    }
                };
                self.bodies.insert(sandbox, body);
                Event::Deduped { sandbox, result: Ok(deduped) }
            }
            Worked::Deduped { sandbox, result: Err((warm, failure)) } => {
                self.parking.remove(&sandbox);
                let lost = self.keep_survivor(sandbox, warm);
                Event::Deduped { sandbox, result: Err(crate::driver::DedupFailed { failure, lost }) }
            }
            Worked::Trimmed { sandbox, warm, result } => self.trimmed(sandbox, warm, result),
            Worked::BaseMade { sandbox, warm, result } => {
                let lost = self.keep_survivor(sandbox, warm);
                let result = result.map_err(|failure| crate::driver::DedupFailed { failure, lost });
                Event::BaseMade { sandbox, result }
            }
            Worked::Restored { sandbox, result: Ok((warm, restored)) } => {
                self.keep_warm(sandbox, warm);
                Event::Restored { sandbox, result: Ok(restored) }
            }
            Worked::Restored { sandbox, result: Err((ruin, failure)) } => {
                self.keep_ruin(sandbox, Some(ruin));
                Event::Restored { sandbox, result: Err(failure) }
            }
            Worked::Taken { sandbox, result } => self.taken(sandbox, result),
            Worked::Replicated { snapshot, result } => Event::Replicated { snapshot, result },
            Worked::Shrunk { sandbox, of, result } => self.shrunk(sandbox, &of, result),
            Worked::ShrunkParked { sandbox, result } => self.shrunk_parked(sandbox, result),
            Worked::Removed { sandbox } => {
                self.measured.forget(sandbox);
                Event::Removed { sandbox }
            }
            Worked::Exited { sandbox, why } => Event::Exited { sandbox, why },
            Worked::Answered { sandbox, answered, overdue } => {
                self.left(sandbox);
                if let Some(why) = overdue {
                    // What it still does cannot be told from the next request's work.
                    self.apply(Event::Exited { sandbox, why });
                }
                Event::RequestEnded { sandbox, answered }
            }
        };
        self.apply(event);
    }
}

impl Body {
    fn into_remains(self) -> Option<Box<Housing>> {
        Some(match self {
            Self::Warm(warm, watch) | Self::Parked(warm, watch) => {
                watch.cancel();
                Box::new(warm.housing)
            }
            Self::Stored(stored) => Box::new(stored.housing),
            Self::Ruin(housing) => housing,
        })
    }
}

/// The receiving end of a node's inputs; [`Node::run`] takes it.
#[derive(Debug)]
pub struct NodeInbox(mpsc::Receiver<Input>);
