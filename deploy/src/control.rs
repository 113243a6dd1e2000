//! Starting and ending services on a host, by what keeps services running there.

use std::time::Duration;

use crate::{
    probe::Init,
    remote::{Remote, RemoteError, quoted},
    service::Service,
    services::AGENT,
    units,
};

/// For what does not wait for a service.
const QUICK: Duration = Duration::from_secs(30);
/// On top of what a service may take to end.
const SLACK: Duration = Duration::from_secs(15);

/// Starts a service in the version that is current, or replaces what runs by it. Does not wait until it is healthy.
///
/// # Errors
/// When the host cannot be reached or what keeps services there says no.
pub fn start(
    remote: &Remote,
    init: Init,
    prefix: &str,
    name: &str,
    service: &Service,
) -> Result<(), RemoteError> {
    let script = match init {
        Init::Systemd => systemd_start(prefix, name, service),
        Init::Supervise => supervise_start(prefix, name),
    };
    remote.run(&format!("start the {name}"), &script, within(service)).map(drop)
}

/// Ends a service, and sees to it that nothing starts it again.
///
/// # Errors
/// When the host cannot be reached, or the service does not end.
pub fn stop(remote: &Remote, init: Init, prefix: &str, name: &str) -> Result<(), RemoteError> {
    let script = match init {
        Init::Systemd => systemd_stop(name),
        Init::Supervise => supervise_stop(prefix, name),
    };
    remote.run(&format!("end the {name}"), &script, Duration::from_secs(120))?;
    if name == AGENT && init == Init::Supervise {
        remote.run("end what waits for a next agent", &keepers_stop(prefix), Duration::from_secs(60))?;
    }
    Ok(())
}

/// The last lines that a service wrote. Empty when they cannot be had.
pub fn log_tail(remote: &Remote, init: Init, prefix: &str, name: &str) -> String {
    let script = match init {
        Init::Systemd => format!("journalctl -q -n 8 --no-pager -o cat -u {}.service", units::name(name)),
        Init::Supervise => format!("tail -n 8 {}/run/{name}.log", quoted(prefix)),
    };
    remote.run("read a log", &script, QUICK).unwrap_or_default()
}

fn within(service: &Service) -> Duration {
    Duration::from_secs(service.stop_within_s.into()) + SLACK
}

/// Units of the current version take the place of those that are there. Sockets come first and stay open.
fn systemd_start(prefix: &str, name: &str, service: &Service) -> String {
    let (prefix, unit) = (quoted(prefix), units::name(name));
    let sockets: Vec<String> =
        service.sockets.iter().map(|socket| format!("{unit}-{}.socket", socket.name)).collect();
    let start_sockets = match sockets.is_empty() {
        true => String::new(),
        false => format!("systemctl start {}\n", sockets.join(" ")),
    };
    format!(
        "mkdir -p {prefix}/state/{name}\n\
         for U in {prefix}/current/systemd/{unit}*; do install -m 644 \"$U\" /etc/systemd/system/; done\n\
         systemctl daemon-reload\nsystemctl enable -q {unit}.service {}\n{start_sockets}\
         systemctl restart {unit}.service",
        sockets.join(" ")
    )
}

/// With the agent's slice goes what waits for a next agent.
fn systemd_stop(name: &str) -> String {
    let unit = units::name(name);
    let slice = if name == AGENT { "systemctl stop medes.slice\n" } else { "" };
    format!(
        "for U in /etc/systemd/system/{unit}-*.socket /etc/systemd/system/{unit}.service; do\n\
         \x20 [ -f \"$U\" ] || continue\n  systemctl disable -q --now \"${{U##*/}}\" || true\ndone\n{slice}\
         rm -f /etc/systemd/system/{unit}.service /etc/systemd/system/{unit}-*.socket\nsystemctl daemon-reload"
    )
}

/// One that runs is told to become the current version; else one is started, in a session of its own.
fn supervise_start(prefix: &str, name: &str) -> String {
    let prefix = quoted(prefix);
    format!(
        "mkdir -p {prefix}/run {prefix}/state/{name}\nP={prefix}/run/{name}.pid\n\
         S=$(cat $P 2>/dev/null || true)\n\
         if [ -n \"$S\" ] && grep -q medes-supervise /proc/$S/cmdline 2>/dev/null; then kill -HUP $S; exit 0; fi\n\
         cd /\nsetsid {prefix}/current/bin/medes-supervise run --service {prefix}/current/service/{name}.toml \
         --name {name} --run {prefix}/run </dev/null >>{prefix}/run/{name}.log 2>&1 &\nS=$!\n\
         N=0\nwhile [ \"$(cat $P 2>/dev/null || true)\" != $S ]; do\n\
         \x20 kill -0 $S 2>/dev/null || {{ tail -n 3 {prefix}/run/{name}.log >&2; exit 1; }}\n\
         \x20 N=$((N + 1))\n  [ $N -lt 100 ] || exit 1\n  sleep 0.1\ndone"
    )
}

fn supervise_stop(prefix: &str, name: &str) -> String {
    let prefix = quoted(prefix);
    format!(
        "S=$(cat {prefix}/run/{name}.pid 2>/dev/null || true)\n[ -n \"$S\" ] || exit 0\n\
         grep -q medes-supervise /proc/$S/cmdline 2>/dev/null || exit 0\n\
         kill -TERM $S\nwhile kill -0 $S 2>/dev/null; do sleep 0.1; done\nrm -f {prefix}/run/{name}.pid"
    )
}

/// An agent that is told to end for good leaves nothing, but one that was killed may have left what rests on its node.
fn keepers_stop(prefix: &str) -> String {
    let prefix = quoted(prefix);
    format!(
        "P=$(readlink -f {prefix} || true)\nN=$(readlink /proc/self/ns/net)\n\
         for C in /proc/[0-9]*/cmdline; do\n\
         \x20 L=$( (tr '\\0' ' ' <$C) 2>/dev/null || true)\n\
         \x20 case $L in \"$P\"/versions/*/bin/medes-agent\\ keeper*) ;; *) continue ;; esac\n\
         \x20 K=${{C%/cmdline}}\n  [ \"$(readlink $K/ns/net || true)\" = \"$N\" ] || continue\n\
         \x20 kill -TERM ${{K#/proc/}} 2>/dev/null || true\n\
         \x20 W=0\n  while [ -d $K ] && [ $W -lt 100 ]; do W=$((W + 1)); sleep 0.1; done\ndone"
    )
}
