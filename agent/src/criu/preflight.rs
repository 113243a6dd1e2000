//! Sees what CRIU would refuse, before anything is frozen: connections that are open.

use std::fs::File;
use std::io::{self, Read};

use nix::unistd::Pid;

/// One socket is a line of about 150 bytes; a sandbox with more sockets than fit here is not idle.
const TABLE_BYTES_MAX: u64 = 1 << 20;

/// Why a sandbox should not be dumped now.
#[derive(Debug, thiserror::Error)]
pub enum NotDumpable {
    /// A TCP connection is open: its other end would wait forever.
    #[error("a TCP connection is open (local port {local_port}, remote port {remote_port}, {state})")]
    OpenConnection {
        /// Port on the sandbox's side, or on the agent's if the socket is the agent's.
        local_port: u16,
        /// The other port.
        remote_port: u16,
        /// TCP's name for the state.
        state: &'static str,
    },
    /// The socket table cannot be read or understood.
    #[error("read the sockets of process {pid}")]
    Sockets {
        /// The sandbox's root process.
        pid: Pid,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Looks for open TCP connections in the network namespace of a process. Costs two small reads.
///
/// A connection of the agent's own into that namespace counts too, so close it first.
pub fn check_dumpable(pid: Pid) -> Result<(), NotDumpable> {
    for family in ["tcp", "tcp6"] {
        match read_table(pid, family) {
            Ok(table) => first_open(&table).map_or(Ok(()), Err)?,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && family == "tcp6" => {}
            Err(source) => return Err(NotDumpable::Sockets { pid, source }),
        }
    }
    Ok(())
}

fn read_table(pid: Pid, family: &str) -> io::Result<String> {
    let mut table = String::new();
    let read =
        File::open(format!("/proc/{pid}/net/{family}"))?.take(TABLE_BYTES_MAX).read_to_string(&mut table)?;
    if u64::try_from(read).is_ok_and(|read| read == TABLE_BYTES_MAX) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too many sockets"));
    }
    Ok(table)
}

/// The first socket of a table of the kernel's that is a live connection and belongs to a process.
fn first_open(table: &str) -> Option<NotDumpable> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let inode = fields.nth(5)?;
        let state = match state {
            "01" => "ESTABLISHED",
            "02" => "SYN_SENT",
            "03" => "SYN_RECV",
            "04" => "FIN_WAIT1",
            "05" => "FIN_WAIT2",
            "08" => "CLOSE_WAIT",
            "09" => "LAST_ACK",
            "0B" => "CLOSING",
            // TIME_WAIT, CLOSE and LISTEN: nobody waits for an answer.
            _ => return None,
        };
        // A connection that is just being taken leave of by the kernel has no owner any more. One that is not yet
        // accepted has none yet, and dies with the listening socket's queue: that one counts.
        let leaving = matches!(state, "FIN_WAIT1" | "FIN_WAIT2" | "LAST_ACK" | "CLOSING");
        if inode == "0" && leaving {
            return None;
        }
        Some(NotDumpable::OpenConnection { local_port: port(local), remote_port: port(remote), state })
    })
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn line(state: &str, inode: u32) -> String {
        format!(
            "{HEAD}   0: 0100007F:1F90 0100007F:C350 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 20 4 30 10 -1\n"
        )
    }

    #[test]
    fn live_connections_are_seen_and_others_are_not() {
        let open = first_open(&line("01", 77));
        assert!(
            matches!(
                open,
                Some(NotDumpable::OpenConnection {
                    local_port: 8080,
                    remote_port: 50000,
                    state: "ESTABLISHED"
                })
            ),
            "{open:?}"
        );
        assert!(first_open(&line("0A", 77)).is_none(), "listening");
        assert!(first_open(&line("06", 0)).is_none(), "time wait");
        assert!(first_open(&line("04", 0)).is_none(), "the kernel finishes it alone");
        assert!(first_open(&line("01", 0)).is_some(), "not yet accepted");
        assert!(first_open(HEAD).is_none());
        assert!(first_open("garbage\nmore garbage").is_none());
    }

    #[test]
    fn this_process_has_a_table_that_can_be_read() {
        assert!(read_table(Pid::this(), "tcp").unwrap().starts_with("  sl"));
    }
}
