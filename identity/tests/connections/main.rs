//! Who gets in at a door, over loopback.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use medes_identity::{
    access::Service,
    authority::LIFETIME,
    credentials::{Credentials, LoadError, Look},
    folder::Folder,
    identity::Role,
    security::{Connection, HandshakeError, Peer, Security, SecurityError, connect},
};
use medes_proto::ids::HolderName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A cluster's folder.
struct Pki {
    dir: tempfile::TempDir,
    folder: Folder,
}

impl Pki {
    fn new(cluster: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().to_owned());
        // As old as the oldest certificate of these tests.
        folder.init(&cluster.parse().unwrap(), SystemTime::now() - YEAR).unwrap();
        Self { dir, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.pem"))
    }

    fn issue(&self, role: Role, name: &str) -> Credentials {
        self.folder.issue(role, &name.parse().unwrap(), LIFETIME, SystemTime::now()).unwrap();
        Credentials::load(&self.file(name), SystemTime::now()).unwrap()
    }
}

fn node(name: &str) -> Option<HolderName> {
    Some(name.parse().unwrap())
}

/// One connection: what each end came to.
async fn meet(
    server: &Credentials,
    client: &Credentials,
    service: Service,
    name: Option<HolderName>,
) -> (Result<Connection, HandshakeError>, Result<(), String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let security = Security::Mutual(server.clone());
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut accepted = security.accept(stream, service).await;
        if let Ok(connection) = &mut accepted {
            connection.write_all(b"!").await.unwrap();
        }
        accepted
    };
    let ask = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream =
            connect(client, stream, service, name).await.map_err(|error| format!("{error:?}"))?;
        // In TLS 1.3 the server's verdict comes after the client believes to be done.
        let read = stream.read_exact(&mut [0]).await;
        read.map(drop).map_err(|error| format!("{error:?}"))
    };
    tokio::join!(serve, ask)
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let pki = Pki::new("main");
    let controller = pki.issue(Role::Controller, "controller");
    let agent = pki.issue(Role::Agent, "node-1");
    let other = pki.issue(Role::Agent, "node-2");
    let operator = pki.issue(Role::Operator, "anna");
    for (server, client, service, name) in [
        (&controller, &agent, Service::Control, None),
        (&controller, &operator, Service::Control, None),
        (&agent, &controller, Service::Node, node("node-1")),
        (&agent, &other, Service::Node, None),
        (&agent, &other, Service::Pages, node("node-1")),
    ] {
        let (accepted, connected) = meet(server, client, service, name).await;
        let peer = accepted.unwrap().peer().clone();
        assert!(matches!(&peer, Peer::Known(who) if **who == client.identity()), "{peer:?}");
        assert_eq!(connected, Ok(()));
    }
}

#[tokio::test]
async fn who_does_not_belong_there_is_refused() {
    let pki = Pki::new("main");
    let controller = pki.issue(Role::Controller, "controller");
    let agent = pki.issue(Role::Agent, "node-1");
    let operator = pki.issue(Role::Operator, "anna");
    let invoker = pki.issue(Role::Invoker, "shop");
    for (server, client, service) in [
        (&agent, &operator, Service::Pages),
        (&agent, &invoker, Service::Pages),
        (&agent, &controller, Service::Pages),
        (&agent, &operator, Service::Node),
        (&controller, &controller, Service::Control),
    ] {
        let (accepted, connected) = meet(server, client, service, None).await;
        let said = format!("{:?}", accepted.unwrap_err());
        assert!(said.contains("Role("), "{said}");
        assert!(connected.is_err(), "{service:?}");
    }
}

#[tokio::test]
async fn nobody_passes_for_a_server() {
    let pki = Pki::new("main");
    let controller = pki.issue(Role::Controller, "controller");
    let agent = pki.issue(Role::Agent, "node-1");
    let operator = pki.issue(Role::Operator, "anna");
    // An agent where the controller should be, another node, and a person.
    for (server, client, service, name) in [
        (&agent, &operator, Service::Control, None),
        (&agent, &controller, Service::Node, node("node-2")),
        (&operator, &controller, Service::Node, None),
    ] {
        let (accepted, connected) = meet(server, client, service, name).await;
        assert!(accepted.is_err() && connected.is_err(), "{service:?}");
    }
}

#[tokio::test]
async fn another_authority_or_cluster_is_refused_by_both_ends() {
    let (ours, theirs) = (Pki::new("main"), Pki::new("main"));
    let controller = ours.issue(Role::Controller, "controller");
    let agent = theirs.issue(Role::Agent, "node-1");
    let (accepted, connected) = meet(&controller, &agent, Service::Control, None).await;
    assert!(accepted.is_err());
    assert!(connected.unwrap_err().contains("InvalidCertificate("));

    // The agent would take the controller for its own, and is still not let in.
    let both = [&ours, &theirs].map(|pki| std::fs::read_to_string(pki.file("ca")).unwrap()).concat();
    std::fs::write(theirs.file("ca"), both).unwrap();
    let agent = Credentials::load(&theirs.file("node-1"), SystemTime::now()).unwrap();
    let (accepted, connected) = meet(&controller, &agent, Service::Control, None).await;
    assert!(format!("{:?}", accepted.unwrap_err()).contains("InvalidCertificate("));
    assert!(connected.is_err());
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_though_its_authority_is_trusted() {
    let (ours, theirs) = (Pki::new("main"), Pki::new("test"));
    ours.issue(Role::Controller, "controller");
    theirs.issue(Role::Agent, "node-1");
    let both = [&ours, &theirs].map(|pki| std::fs::read_to_string(pki.file("ca")).unwrap()).concat();
    for pki in [&ours, &theirs] {
        std::fs::write(pki.file("ca"), &both).unwrap();
    }
    let controller = Credentials::load(&ours.file("controller"), SystemTime::now()).unwrap();
    let agent = Credentials::load(&theirs.file("node-1"), SystemTime::now()).unwrap();
    let (_, connected) = meet(&controller, &agent, Service::Control, None).await;
    assert!(connected.unwrap_err().contains("Cluster("));
}

#[tokio::test]
async fn a_certificate_that_is_over_is_refused() {
    let pki = Pki::new("main");
    let controller = pki.issue(Role::Controller, "controller");
    let then = SystemTime::now() - LIFETIME - Duration::from_secs(60);
    pki.folder.issue(Role::Agent, &"node-1".parse().unwrap(), LIFETIME, then).unwrap();
    let now = Credentials::load(&pki.file("node-1"), SystemTime::now());
    assert!(matches!(now, Err(LoadError::Unsigned { .. })));
    // As one would that was started in time and has run until now.
    let agent = Credentials::load(&pki.file("node-1"), then).unwrap();
    let (accepted, _) = meet(&controller, &agent, Service::Control, None).await;
    assert!(format!("{:?}", accepted.unwrap_err()).contains("Expired"));
    let (_, connected) = meet(&agent, &controller, Service::Node, None).await;
    assert!(connected.unwrap_err().contains("Expired"));
}

#[tokio::test]
async fn plain_speech_is_refused() {
    let pki = Pki::new("main");
    let security = Security::Mutual(pki.issue(Role::Controller, "controller"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        security.accept(stream, Service::Control).await.map(drop)
    };
    let ask = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.read_to_end(&mut Vec::new()).await
    };
    let (served, _) = tokio::join!(serve, ask);
    assert!(matches!(served, Err(HandshakeError::Io(_))));
}

#[test]
fn plaintext_is_for_loopback_unless_it_is_wanted() {
    let [loopback, all] = ["127.0.0.1:0", "0.0.0.0:0"].map(|text| text.parse().unwrap());
    let choose = |wanted, listens: &[_]| Security::choose(None, wanted, listens, SystemTime::now());
    assert!(matches!(choose(false, &[loopback]), Ok(Security::Plaintext)));
    assert!(matches!(choose(false, &[loopback, all]), Err(SecurityError::Open(open)) if open == all));
    assert!(matches!(choose(true, &[all]), Ok(Security::Plaintext)));
    let missing = Security::choose(Some("missing.pem".as_ref()), true, &[], SystemTime::now());
    assert!(matches!(missing, Err(SecurityError::Load(_))));
}

#[test]
fn credentials_must_fit_together() {
    let pki = Pki::new("main");
    for name in ["a", "b"] {
        pki.issue(Role::Agent, name);
    }
    std::fs::copy(pki.file("b-key"), pki.file("a-key")).unwrap();
    assert!(matches!(Credentials::load(&pki.file("a"), SystemTime::now()), Err(LoadError::Pair { .. })));
    std::fs::copy(Pki::new("main").file("ca"), pki.file("ca")).unwrap();
    let other = Credentials::load(&pki.file("b"), SystemTime::now());
    assert!(matches!(other, Err(LoadError::Unsigned { .. })));
    std::fs::copy(pki.file("b"), pki.file("ca")).unwrap();
    let none = Credentials::load(&pki.file("b"), SystemTime::now());
    assert!(matches!(none, Err(LoadError::Certificate { .. })));
}

#[test]
fn new_files_are_used_and_bad_ones_are_told_of_once() {
    let pki = Pki::new("main");
    let credentials = pki.issue(Role::Agent, "a");
    let now = SystemTime::now();
    assert!(matches!(credentials.look(now), Look::Same));
    pki.folder.rotate(&"a".parse().unwrap(), LIFETIME, now).unwrap();
    assert!(matches!(credentials.look(now), Look::Renewed));
    assert!(matches!(credentials.look(now), Look::Same));

    std::fs::write(pki.file("a"), "nonsense").unwrap();
    assert!(matches!(credentials.look(now), Look::Doubted));
    assert!(matches!(credentials.look(now), Look::Bad(LoadError::Certificate { .. })));
    assert!(matches!(credentials.look(now), Look::Same));
    // Somebody else's.
    pki.issue(Role::Agent, "b");
    for kind in ["", "-key"] {
        std::fs::copy(pki.file(&format!("b{kind}")), pki.file(&format!("a{kind}"))).unwrap();
    }
    assert!(matches!(credentials.look(now), Look::Doubted));
    assert!(matches!(credentials.look(now), Look::Bad(LoadError::Other { .. })));
    assert_eq!(credentials.identity().name.as_str(), "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_while_certificates_are_rotated() {
    let pki = Pki::new("main");
    let [controller, agent] =
        [(Role::Controller, "controller"), (Role::Agent, "node-1")].map(|(role, name)| pki.issue(role, name));
    let done = AtomicBool::new(false);
    let rotate = async {
        for _round in 0..20 {
            for (name, credentials) in [("controller", &controller), ("node-1", &agent)] {
                pki.folder.rotate(&name.parse().unwrap(), LIFETIME, SystemTime::now()).unwrap();
                assert!(matches!(credentials.look(SystemTime::now()), Look::Renewed));
            }
            tokio::task::yield_now().await;
        }
        done.store(true, Ordering::Release);
    };
    let talk = async {
        let mut count = 0;
        while !done.load(Ordering::Acquire) || count == 0 {
            for (server, client, service) in
                [(&controller, &agent, Service::Control), (&agent, &controller, Service::Node)]
            {
                let (accepted, connected) = meet(server, client, service, None).await;
                assert!(accepted.is_ok() && connected.is_ok(), "{accepted:?} {connected:?}");
                count += 1;
            }
        }
        count
    };
    let ((), count) = tokio::join!(rotate, talk);
    assert!(count >= 2);
}
