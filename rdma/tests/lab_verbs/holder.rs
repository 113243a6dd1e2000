//! The host that is read.

use std::{
    ffi::CString,
    fs::File,
    io::Write,
    net::IpAddr,
    time::{Duration, Instant},
};

use medes_rdma::Holder;
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

use crate::{ORDER_PORT, PAGE, PAGES, RDMA_PORT, WORD, word_at};

const HOUR: Duration = Duration::from_secs(3600);

fn file(sealed: bool) -> File {
    let name = CString::new("lab").expect("a name");
    let fd = memfd_create(name.as_c_str(), MFdFlags::MFD_ALLOW_SEALING).expect("a memory file");
    let mut file = File::from(fd);
    for page in 0..PAGES {
        let bytes: Vec<u8> = (0..PAGE / 8).flat_map(|word| word_at(page, word).to_le_bytes()).collect();
        file.write_all(&bytes).expect("room");
    }
    if sealed {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("sealed");
    }
    file
}

/// Serves until it is killed.
pub(crate) async fn run(address: IpAddr) {
    let (holder, serving) = Holder::listen((address, RDMA_PORT).into(), WORD).expect("listen by RDMA");
    let (sealed, open) = (file(true), file(false));
    let listener = TcpListener::bind((address, ORDER_PORT)).await.expect("listen for orders");
    println!("holder is ready");
    let orders = async {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            let (reader, mut writer) = stream.into_split();
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let answer = obey(&holder, &line, &sealed, &open);
                if writer.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
                    break;
                }
            }
        }
    };
    tokio::select! {
        error = serving => panic!("no more readers are let in: {error}"),
        () = orders => {}
    }
}

fn obey(holder: &Holder, order: &str, sealed: &File, open: &File) -> String {
    let words: Vec<&str> = order.split(' ').collect();
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    match words[0] {
        "expose" | "expose-open" => {
            let file = if words[0] == "expose" { sealed } else { open };
            match holder.expose(number(1), number(2), file, Instant::now()) {
                Ok(remote) => format!("{} {} {}", remote.address, remote.key, remote.bytes),
                Err(error) => format!(
                    "refused {error}: {}",
                    std::error::Error::source(&error).map_or_else(String::new, ToString::to_string)
                ),
            }
        }
        "revoke" => {
            holder.revoke(number(1));
            "revoked".into()
        }
        "expire" => {
            holder.revoke_older(HOUR, Instant::now() + HOUR);
            "expired".into()
        }
        "close" => {
            holder.revoke_older(HOUR, Instant::now() + 2 * HOUR);
            "closed".into()
        }
        "depth" => holder.depth(number(1)).map_or_else(|| "none".into(), |depth| depth.to_string()),
        "readers" => holder.readers().to_string(),
        "pid" => std::process::id().to_string(),
        other => panic!("{other}?"),
    }
}
