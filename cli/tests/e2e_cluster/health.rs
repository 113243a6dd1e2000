//! What an agent says of itself to whoever keeps it running.

use std::fs;

use crate::{
    cluster::{Cluster, QUIET, can_run},
    http,
    program::until,
};

#[test]
fn an_agent_is_ready_while_its_controller_knows_it_and_lives_without() {
    if !can_run("an_agent_is_ready_while_its_controller_knows_it_and_lives_without") {
        return;
    }
    let mut cluster = Cluster::start(QUIET, &[("a", &["--metrics", "127.0.0.1:0"])]);
    let log = fs::read_to_string(cluster.dir().join("a.log")).unwrap();
    let said = log.lines().find(|line| line.contains("metrics are served")).unwrap();
    let address = said.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let ask = |path: &str| {
        let reply = http::request(&address, "GET", path, &[], b"").unwrap();
        (reply.status, reply.body)
    };
    until("it is ready", || (ask("/readyz") == (200, "ready\n".into())).then_some(()));
    cluster.kill_controller();
    until("it is not ready", || {
        (ask("/readyz") == (503, "controller: not connected\n".into())).then_some(())
    });
    assert_eq!(ask("/healthz"), (200, "alive\n".into()));
    cluster.start_controller();
    until("it is ready again", || (ask("/readyz").0 == 200).then_some(()));
}
