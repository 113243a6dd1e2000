//! `medes up`: a controller and agents on this machine as one process tree.
//!
//! The road, top to bottom: find the programs, start the controller, wait until it listens, start the agents,
//! wait until all are attached, say where everything is, watch, and on a signal stop the agents before the
//! controller. A child that dies before all is ready ends it; later a dead agent is reported and the rest goes
//! on (its node's requests go elsewhere), a dead controller ends it.

mod error;
mod family;
mod logs;
mod orphans;
mod settings;
mod spawn;
mod state;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use medes_proto::units::{ByteSize, Span};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{ChildStdout, Command},
    time::Instant,
};

use crate::{
    client::{Address, Client},
    error::{CliError, Ended, sentence},
    output::{Output, plain},
    place::{self, Active},
};
pub(crate) use error::UpError;
use family::{Family, Signals};
use orphans::Orphans;
use state::StateDir;

const CONTROL_PORT: u16 = 7070;
const GATEWAY_PORT: u16 = 7080;
const PAGE_PORT: u16 = 7090;
/// Bytes of the one line a controller prints.
const LISTENING_BYTES_MAX: u64 = 16 << 10;
/// How often attached agents are counted while starting.
const COUNT_EVERY: Duration = Duration::from_millis(100);
/// How often the children's logs are looked at for their size.
const LOGS_EVERY: Duration = Duration::from_secs(10);
/// Beyond that the machine is not one node's worth.
const NODES_MAX: i64 = 64;

#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// How many agents
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=NODES_MAX))]
    nodes: u32,
    /// Where everything is kept [default: a fresh folder, removed at the end]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where the controller listens for agents and for medes [default: 127.0.0.1:7070, or a free port]
    #[arg(long, value_name = "HOST:PORT")]
    control: Option<Address>,
    /// Where the controller listens for HTTP requests [default: 127.0.0.1:7080, or a free port]
    #[arg(long, value_name = "HOST:PORT")]
    gateway: Option<Address>,
    /// Where the controller serves a page for people [default: 127.0.0.1:7090, or a free port]
    #[arg(long, value_name = "HOST:PORT")]
    page: Option<Address>,
    /// Memory each node may use, like 4GiB [default: the agent's]
    #[arg(long, value_name = "SIZE")]
    memory_cap: Option<ByteSize>,
    /// The criu program, or the folder of a private copy [default: the one the agent finds]
    #[arg(long, value_name = "PATH")]
    criu: Option<PathBuf>,
    /// How long a warm sandbox is idle before it may be deduplicated, like 60s
    #[arg(long, value_name = "TIME")]
    idle: Option<Span>,
    /// How long an idle warm sandbox is kept
    #[arg(long, value_name = "TIME")]
    keep_alive: Option<Span>,
    /// How long an idle deduplicated sandbox is kept
    #[arg(long, value_name = "TIME")]
    keep_dedup: Option<Span>,
    /// The controller's configuration file; the options above override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long starting may take
    #[arg(long, value_name = "TIME", default_value = "60s")]
    ready_within: Span,
    /// How long agents, and then the controller, may take to stop before they are killed
    #[arg(long, value_name = "TIME", default_value = "15s")]
    stop_within: Span,
}

/// The programs that `up` starts.
struct Programs {
    controller: PathBuf,
    agent: PathBuf,
}

impl Programs {
    /// Beside medes itself, or where MEDES_BIN_DIR says.
    fn find() -> Result<Self, UpError> {
        let dir = match std::env::var_os("MEDES_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => {
                let own = std::env::current_exe().map_err(|source| UpError::OwnPath { source })?;
                own.parent().unwrap_or(Path::new("/")).into()
            }
        };
        let find = |name| {
            let path = dir.join(name);
            if path.is_file() { Ok(path) } else { Err(UpError::NoProgram { path }) }
        };
        Ok(Self { controller: find("medes-controller")?, agent: find("medes-agent")? })
    }
}

/// The line a controller prints when it listens.
#[derive(Debug, Deserialize)]
struct Listening {
    control: String,
    gateway: String,
    page: Option<String>,
}

/// The line `medes up --json` prints when everything is ready.
#[derive(Serialize)]
struct ReadyView<'a> {
    control: &'a str,
    gateway: &'a str,
    page: Option<&'a str>,
    state_dir: &'a Path,
}

/// How the watch ended.
enum Watched {
    Asked,
    ControllerDied(UpError),
}

/// Index of the controller among the children: it is started first.
const CONTROLLER: usize = 0;

pub(crate) async fn run(args: UpArgs, output: &Output) -> Result<Ended, CliError> {
    let programs = Programs::find()?;
    // Before the first child, so that no signal finds nobody listening.
    let mut signals = Signals::listen()?;
    let mut family = Family::new(Orphans::adopt());
    let state = StateDir::make(args.state_dir.as_deref())?;
    let outcome = live(&args, &programs, &state, &mut family, &mut signals, output).await;
    let clean = family.stop_all(args.stop_within.0, &mut signals).await;
    let ended = if clean { outcome } else { outcome.map(|_well| Ended::Badly) };
    if let Some(kept) = state.end(matches!(ended, Ok(Ended::Well))) {
        eprintln!("medes: state and logs are kept in {}", kept.display());
    }
    ended
}

/// From the first child to the reason to stop. Children are left to the caller, on every way out.
async fn live(
    args: &UpArgs,
    programs: &Programs,
    state: &StateDir,
    family: &mut Family,
    signals: &mut Signals,
    output: &Output,
) -> Result<Ended, CliError> {
    let deadline = Instant::now() + args.ready_within.0;
    let Some(listening) = start_controller(args, programs, state, family, signals, deadline).await? else {
        return Ok(Ended::Well);
    };
    for node in 0..args.nodes {
        start_agent(args, &programs.agent, &listening.control, state, family, node)?;
    }
    let Some(lacks) = all_attached(args, &listening, family, signals, deadline).await? else {
        return Ok(Ended::Well);
    };
    let page = listening.page;
    let active = Active {
        control: listening.control,
        gateway: listening.gateway,
        state_dir: state.path().into(),
        pid: std::process::id().cast_signed(),
    };
    let announced = place::runtime_dir().and_then(|dir| place::announce(&dir, &active).map(|()| dir));
    let dir = announced.map_err(|source| UpError::Announce { source })?;
    let said = say_ready((&active, page.as_deref()), state, args.nodes, &lacks, output);
    let watched = match said {
        Ok(()) => Ok(watch(family, signals).await),
        Err(error) => Err(error),
    };
    if let Err(error) = place::withdraw(&dir, &active) {
        eprintln!("medes: cannot remove the announcement in {}: {error}", dir.display());
    }
    match watched? {
        Watched::Asked if family.any_died() => Ok(Ended::Badly),
        Watched::Asked => Ok(Ended::Well),
        Watched::ControllerDied(error) => Err(error.into()),
    }
}

/// The address asked for, else the usual port, else (another `medes up` may have that) a free one.
///
/// Somebody may take the port before the controller does; then the controller says so and ends.
fn listen_at(asked: Option<&Address>, usual: u16) -> String {
    let port = if TcpListener::bind((Ipv4Addr::LOCALHOST, usual)).is_ok() { usual } else { 0 };
    asked.map_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string(), ToString::to_string)
}

/// `None` when asked to stop before it listens.
async fn start_controller(
    args: &UpArgs,
    programs: &Programs,
    state: &StateDir,
    family: &mut Family,
    signals: &mut Signals,
    deadline: Instant,
) -> Result<Option<Listening>, UpError> {
    let config = settings::write(args, state)?;
    let mut command = Command::new(&programs.controller);
    command.arg("--state-dir").arg(state.folder("controller")?);
    command.arg("--control").arg(listen_at(args.control.as_ref(), CONTROL_PORT));
    command.arg("--gateway").arg(listen_at(args.gateway.as_ref(), GATEWAY_PORT));
    // Who asks for another port than the usual one may not be alone on this machine.
    let usual = if args.gateway.is_none() { PAGE_PORT } else { 0 };
    command.arg("--page").arg(listen_at(args.page.as_ref(), usual));
    command.arg("--config").arg(config);
    let stdout = family.start_talking("controller", command, &state.log("controller"))?;
    let first_line = first_line(stdout, family.log(CONTROLLER).into());
    let listening = tokio::select! {
        biased;
        () = signals.next() => return Ok(None),
        (line, rest) = first_line => {
            family.copy_rest(rest);
            line
        }
        died = family.next_exit() => return Err(family.died(died)),
        () = tokio::time::sleep_until(deadline) => {
            return Err(family.not_ready(args.ready_within.0, "the controller does not listen", CONTROLLER));
        }
    };
    match listening {
        Some(listening) => Ok(Some(listening)),
        // It closed its output or printed something else. If it is about to end, that says more.
        None => match tokio::time::timeout(Duration::from_secs(2), family.next_exit()).await {
            Ok(died) => Err(family.died(died)),
            Err(_still_there) => Err(family.first_line(CONTROLLER)),
        },
    }
}

/// The first line of a controller's output, and the reader for what follows.
async fn first_line(stdout: ChildStdout, log: PathBuf) -> (Option<Listening>, family::Rest) {
    let mut reader = BufReader::new(stdout);
    let mut line = String::new();
    let read = (&mut reader).take(LISTENING_BYTES_MAX).read_line(&mut line).await;
    let listening = read.ok().and_then(|_length| serde_json::from_str(&line).ok());
    (listening, family::Rest { reader, log })
}

fn start_agent(
    args: &UpArgs,
    program: &Path,
    control: &str,
    state: &StateDir,
    family: &mut Family,
    node: u32,
) -> Result<(), UpError> {
    let name = node_name(node);
    let mut command = Command::new(program);
    command.args(["--node", &name, "--controller", control, "--listen", "127.0.0.1:0"]);
    command.arg("--state-dir").arg(state.folder(&name)?);
    if let Some(cap) = args.memory_cap {
        command.arg("--memory-cap").arg(cap.to_string());
    }
    if let Some(criu) = &args.criu {
        command.arg("--criu").arg(criu);
    }
    family.start(&name, command, &state.log(&name))
}

fn node_name(node: u32) -> String {
    format!("node-{node}")
}

/// Waits until every agent is attached; what they lack, or `None` when asked to stop before that.
async fn all_attached(
    args: &UpArgs,
    listening: &Listening,
    family: &mut Family,
    signals: &mut Signals,
    deadline: Instant,
) -> Result<Option<Vec<String>>, CliError> {
    let bad_address = || family.first_line(CONTROLLER);
    let address: Address = listening.control.parse().map_err(|_text| bad_address())?;
    let client = Client::connect(Some(address), None).await?;
    let mut tick = tokio::time::interval(COUNT_EVERY);
    loop {
        tokio::select! {
            biased;
            () = signals.next() => return Ok(None),
            died = family.next_exit() => return Err(family.died(died).into()),
            _now = tick.tick() => {}
        }
        let nodes = client.list_nodes().await?.nodes;
        let attached = |node: &u32| nodes.iter().any(|row| row.node == node_name(*node));
        let Some(missing) = (0..args.nodes).find(|node| !attached(node)) else {
            let mut lacks: Vec<_> = nodes.into_iter().flat_map(|row| row.lacks).collect();
            lacks.sort();
            lacks.dedup();
            return Ok(Some(lacks));
        };
        if Instant::now() >= deadline {
            let what = format!("{} is not attached", node_name(missing));
            let agent = CONTROLLER + 1 + missing as usize;
            return Err(family.not_ready(args.ready_within.0, &what, agent).into());
        }
    }
}

fn say_ready(
    (active, page): (&Active, Option<&str>),
    state: &StateDir,
    nodes: u32,
    lacks: &[String],
    output: &Output,
) -> Result<(), CliError> {
    let view =
        ReadyView { control: &active.control, gateway: &active.gateway, page, state_dir: state.path() };
    output.answer(&view, || {
        let last = if nodes > 1 { format!(" to {}", node_name(nodes - 1)) } else { String::new() };
        let mut text = format!(
            "control  {}\ngateway  http://{}\n{}nodes    {}{last}\nstate    {}\nlogs     {}\n",
            active.control,
            active.gateway,
            page.map(|page| format!("page     http://{page}\n")).unwrap_or_default(),
            node_name(0),
            state.path().display(),
            state.log("*").display(),
        );
        for lack in lacks {
            text += &format!("lacking  {}\n", plain(lack));
        }
        text + "\nTry `medes function apply FILE`, `medes invoke FUNCTION`, `medes ps`. Ctrl-C ends it all.\n"
    })
}

/// Until somebody asks to stop or the controller dies.
async fn watch(family: &mut Family, signals: &mut Signals) -> Watched {
    let mut logs_due = tokio::time::interval(LOGS_EVERY);
    loop {
        tokio::select! {
            biased;
            () = signals.next() => return Watched::Asked,
            died = family.next_exit() => {
                let error = family.died(died);
                if died == CONTROLLER {
                    return Watched::ControllerDied(error);
                }
                eprint!("{}", CliError::Up(error).for_people());
                eprintln!("medes: the other nodes go on");
                family.sweep().await;
            }
            _now = logs_due.tick() => {
                for log in family.logs() {
                    if let Err(error) = logs::bound(log) {
                        eprintln!("medes: cannot shorten {}: {}", log.display(), sentence(&error));
                    }
                }
            }
        }
    }
}
