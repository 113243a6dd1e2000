//! The page service between agents that know each other by certificates.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use medes_agent::bases::{
    ReadPagesError,
    frame::{Exposed, Refusal},
    local::{Expose, Snapshot},
    serve::PageServer,
    tcp::{ConnectionError, TcpPages},
};
use medes_dedup::page::SnapshotId;
use medes_identity::{authority::LIFETIME, folder::Folder, identity::Role, security::Security};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::{PATIENCE, any_port, assert_right, bases, place, read, reader_of};

fn folder(path: &Path) -> Folder {
    let folder = Folder::new(path.to_owned());
    folder.init(&"main".parse().expect("works"), SystemTime::now()).expect("works");
    folder
}

fn issue(path: &Path, folder: &Folder, role: Role, name: &str) -> Security {
    folder.issue(role, &name.parse().expect("works"), LIFETIME, SystemTime::now()).expect("works");
    let file = path.join(format!("{name}.pem"));
    Security::choose(Some(&file), false, &[], SystemTime::now()).expect("works")
}

/// Tells whether it was asked.
#[derive(Debug, Default)]
struct Door(AtomicBool);

impl Expose for Door {
    fn expose(&self, _: u64, _: &Snapshot) -> Result<Exposed, Refusal> {
        self.0.store(true, Ordering::SeqCst);
        Ok(Exposed { address: 4096, bytes: 4096, key: 1 })
    }

    fn revoke(&self, _: SnapshotId) {}
}

async fn holder(security: Security) -> PageServer {
    with_door(security).await.0
}

async fn with_door(security: Security) -> (PageServer, Arc<Door>) {
    let (bases, tasks) = (bases(&[(1, 3_000)]), TaskTracker::new());
    let door = Arc::new(Door::default());
    bases.expose_by(door.clone());
    let place = (any_port(), security);
    let server = PageServer::start_secured(bases, place, &tasks, CancellationToken::new()).await;
    (server.expect("works"), door)
}

fn reader(holder: &PageServer, security: Security) -> TcpPages {
    reader_from(holder, security, "node-1")
}

/// One who expects the holder to be this node.
fn reader_from(holder: &PageServer, security: Security, node: &str) -> TcpPages {
    let place: (SocketAddr, _) = (holder.address(), holder.access().token);
    let node = node.parse().expect("a name");
    TcpPages::new(place, PATIENCE, Arc::default(), TaskTracker::new()).secured(security, &node)
}

#[tokio::test]
async fn agents_read_each_others_pages() {
    let dir = tempfile::tempdir().expect("works");
    let certs = folder(dir.path());
    let holder = holder(issue(dir.path(), &certs, Role::Agent, "node-1")).await;
    let reader = reader(&holder, issue(dir.path(), &certs, Role::Agent, "node-2"));
    // Scattered pages, and long runs that would go out of the memory file on a plain connection.
    let scattered: Vec<_> = (0..3_000).step_by(7).map(|page| place(1, page)).collect();
    let all: Vec<_> = (0..3_000).map(|page| place(1, page)).collect();
    for wanted in [scattered, all] {
        assert_right(&wanted, &read(&reader, &wanted).await.expect("works"));
    }
}

#[tokio::test]
async fn an_agent_at_the_address_of_another_one_is_not_believed() {
    let dir = tempfile::tempdir().expect("works");
    let certs = folder(dir.path());
    let holder = holder(issue(dir.path(), &certs, Role::Agent, "node-1")).await;
    let security = issue(dir.path(), &certs, Role::Agent, "node-2");
    let error =
        read(&reader_from(&holder, security, "node-3"), &[place(1, 1)]).await.expect_err("another node");
    assert!(matches!(error, ReadPagesError::Handshake { .. }), "{error:?}");
    assert_eq!(holder.pages_sent(), 0);
}

#[tokio::test]
async fn whoever_is_no_agent_of_this_cluster_reads_nothing() {
    let [dir, other] = [(); 2].map(|()| tempfile::tempdir().expect("works"));
    let (certs, others) = (folder(dir.path()), folder(other.path()));
    let (holder, door) = with_door(issue(dir.path(), &certs, Role::Agent, "node-1")).await;
    let operator = issue(dir.path(), &certs, Role::Operator, "anna");
    let controller = issue(dir.path(), &certs, Role::Controller, "controller");
    let stranger = issue(other.path(), &others, Role::Agent, "node-2");
    for security in [operator, controller, stranger] {
        let reader = reader(&holder, security);
        assert!(reader.expose(place(1, 1).snapshot, 1).await.is_err(), "nothing by RDMA either");
        let error = read(&reader, &[place(1, 1)]).await.expect_err("no agent of ours");
        // The holder's verdict comes when the reader believes to be through.
        let refused = match &error {
            ReadPagesError::Handshake { .. } | ReadPagesError::Connect { .. } => true,
            ReadPagesError::Connection { source, .. } => matches!(**source, ConnectionError::Io(_)),
            _ => false,
        };
        assert!(refused, "{error:?}");
    }
    // The right token, and no certificate.
    assert!(read(&reader_of(&holder), &[place(1, 1)]).await.is_err());
    assert!(reader_of(&holder).expose(place(1, 1).snapshot, 1).await.is_err());
    assert_eq!((holder.pages_sent(), door.0.load(Ordering::SeqCst)), (0, false));
    let agent = issue(dir.path(), &certs, Role::Agent, "node-2");
    let reader = reader(&holder, agent);
    assert!(read(&reader, &[place(1, 1)]).await.is_ok());
    assert!(reader.expose(place(1, 1).snapshot, 1).await.is_ok() && door.0.load(Ordering::SeqCst));
}
