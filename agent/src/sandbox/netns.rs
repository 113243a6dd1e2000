//! Network namespaces: making one with only a loopback, and opening sockets inside it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, oneshot};

use super::sys;

/// Sockets that may be waiting to be opened.
const DOOR_QUEUE_MAX: usize = 256;

/// Makes a network namespace whose only interface is a loopback that is up. Nothing can leave it.
///
/// Blocking (some milliseconds): a thread of its own changes namespace and ends.
pub fn create() -> io::Result<OwnedFd> {
    in_own_thread("medes-netns", || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        sys::loopback_up()?;
        Ok(OwnedFd::from(File::open("/proc/thread-self/ns/net")?))
    })
}

/// Runs `work` where changing namespaces can do no harm.
fn in_own_thread<T: Send>(name: &str, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_panic| Err(io::Error::other("the namespace thread panicked")))
    })
}

struct Knock {
    namespace: Arc<OwnedFd>,
    answer: oneshot::Sender<io::Result<OwnedFd>>,
}

/// The one thread that travels between network namespaces, to make sockets for the rest of the agent.
///
/// A socket belongs to the namespace it was made in, so connecting it can be left to the runtime.
#[derive(Debug, Clone)]
pub struct Door {
    knocks: mpsc::Sender<Knock>,
}

impl Door {
    /// Starts the thread. It ends when the last `Door` is dropped.
    pub fn open() -> io::Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")?;
        let (knocks, mut queue) = mpsc::channel::<Knock>(DOOR_QUEUE_MAX);
        std::thread::Builder::new().name("medes-door".to_owned()).spawn(move || {
            while let Some(Knock { namespace, answer }) = queue.blocking_recv() {
                let made = socket_in(&namespace);
                // Back home, so that the thread does not keep a purged sandbox's namespace alive.
                // If that fails, the next knock moves it anyway.
                let _still_away = setns(&home, CloneFlags::CLONE_NEWNET);
                drop(namespace);
                // The asker may have given up; then the socket just closes.
                let _gave_up = answer.send(made);
            }
        })?;
        Ok(Self { knocks })
    }

    /// Connects to a port on the loopback of the namespace. Cancel-safe.
    pub async fn connect(&self, namespace: &Arc<OwnedFd>, port: u16) -> io::Result<tokio::net::TcpStream> {
        let closed = || io::Error::other("the namespace thread has ended");
        let (answer, made) = oneshot::channel();
        let knock = Knock { namespace: Arc::clone(namespace), answer };
        self.knocks.send(knock).await.map_err(|_closed| closed())?;
        let socket = made.await.map_err(|_closed| closed())??;
        let socket = TcpSocket::from_std_stream(TcpStream::from(socket));
        socket.set_nodelay(true)?;
        socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
    }
}

fn socket_in(namespace: &OwnedFd) -> io::Result<OwnedFd> {
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Inet, SockType::Stream, flags, None)?)
}
