//! Snapshots whose pages tell where they belong, holders of them, and readers.

use std::{collections::BTreeMap, io::Write, net::SocketAddr, sync::Arc, time::Duration};

use medes_agent::{
    bases::{
        BasePages, ReadPagesError,
        frame::Token,
        local::{LocalBases, Snapshot},
        serve::PageServer,
        tcp::TcpPages,
    },
    memory_file::MemoryFile,
};
use medes_dedup::page::{BasePage, PAGE_BYTES, Page, PageIndex, SnapshotId, ZERO_PAGE};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Long enough for a busy machine; only what never comes waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// For tests in which something never comes.
pub(crate) const IMPATIENCE: Duration = Duration::from_millis(300);

pub(crate) fn place(snapshot: u64, page: u32) -> BasePage {
    BasePage { snapshot: SnapshotId::new(snapshot).expect("works"), page: PageIndex(page) }
}

/// The page of every snapshot here that belongs there.
pub(crate) fn page(place: BasePage) -> Page {
    let seed = place.snapshot.get() << 32 | u64::from(place.page.0);
    let mut page = ZERO_PAGE;
    for (at, word) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = (seed + at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    }
    page
}

pub(crate) fn snapshot(number: u64, pages: u32) -> Arc<Snapshot> {
    let mut file = MemoryFile::create("test").expect("works");
    for index in 0..pages {
        file.write_all(&page(place(number, index))).expect("works");
    }
    let (id, function, tenant) =
        (SnapshotId::new(number).expect("works"), "f".parse().expect("works"), "t".parse().expect("works"));
    Arc::new(Snapshot::new(id, function, tenant, file.seal().expect("works"), Vec::new()).expect("works"))
}

pub(crate) fn bases(snapshots: &[(u64, u32)]) -> Arc<LocalBases> {
    let bases = Arc::new(LocalBases::default());
    snapshots.iter().for_each(|&(number, pages)| bases.insert(snapshot(number, pages)));
    bases
}

pub(crate) fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("works")
}

pub(crate) async fn server(bases: Arc<LocalBases>) -> PageServer {
    PageServer::start(bases, any_port(), &TaskTracker::new(), CancellationToken::new()).await.expect("works")
}

pub(crate) fn reader(address: SocketAddr, token: Token, patience: Duration) -> TcpPages {
    TcpPages::new((address, token), patience, Arc::default(), TaskTracker::new())
}

pub(crate) fn reader_of(server: &PageServer) -> TcpPages {
    reader(server.address(), server.access().token, PATIENCE)
}

/// Reads into pages that are not zeros before.
pub(crate) async fn read(pages: &dyn BasePages, wanted: &[BasePage]) -> Result<Vec<Page>, ReadPagesError> {
    let mut into = vec![[0xee; PAGE_BYTES]; wanted.len()];
    pages.read(wanted, &mut into).await.map(|()| into)
}

pub(crate) fn assert_right(wanted: &[BasePage], pages: &[Page]) {
    assert_eq!(wanted.len(), pages.len());
    for (wanted, got) in wanted.iter().zip(pages) {
        assert!(*got == page(*wanted), "{wanted} is another page");
    }
}

/// Numbers that look like chance and are the same every time.
pub(crate) fn scattered(count: usize, below: u32) -> Vec<u32> {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut all = BTreeMap::new();
    while all.len() < count {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        all.insert(u32::try_from(seed % u64::from(below)).expect("works"), ());
    }
    all.into_keys().collect()
}
