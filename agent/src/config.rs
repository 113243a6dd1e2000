//! What an agent is told when it starts.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf};

use medes_proto::{ids::NodeId, units::ByteSize};

use crate::{
    bases::{Budgets, rdma},
    earlier::Room,
    faults::Step,
    roads::{HotPages, HowRestored},
    watch::heat::{HeatSettings, WINDOWS_MAX},
};

/// Flags of `medes-agent run`.
#[derive(Debug, clap::Args)]
pub struct Config {
    /// Name of this node, unique in the cluster
    #[arg(long, env = "MEDES_NODE")]
    pub node: NodeId,
    /// host:port of the controller
    #[arg(long, env = "MEDES_CONTROLLER", default_value = "127.0.0.1:7070")]
    pub controller: String,
    /// Folder for this node's run directory; created if it is not there
    #[arg(long)]
    pub state_dir: PathBuf,
    /// Where other agents and the controller reach this one; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Where other agents read base pages, on the address of --listen; 0 takes a free port
    #[arg(long, default_value_t = 0)]
    pub pages_port: u16,
    /// When base pages are read by RDMA, by this node and from it
    #[arg(long, value_enum, default_value = "auto")]
    pub rdma: rdma::Use,
    /// Where other agents read base pages by RDMA; default: the address of --listen, a free port
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub rdma_listen: Option<SocketAddr>,
    /// Memory this node may use; the controller evicts above it
    #[arg(long, default_value = "2GiB")]
    pub memory_cap: ByteSize,
    /// Room for the images of restores under way; what is larger is not deduplicated
    #[arg(long, default_value = "4GiB")]
    pub scratch: ByteSize,
    /// A criu program, or the root of an extracted package tree; default: criu in PATH
    #[arg(long, env = "MEDES_CRIU")]
    pub criu: Option<PathBuf>,
    /// CRIU processes kept ready for restores
    #[arg(long, default_value_t = NonZeroUsize::MIN.saturating_add(1))]
    pub restore_workers: NonZeroUsize,
    /// Threads for the work on one sandbox's pages; default: one per processor, at most 8
    #[arg(long)]
    pub threads: Option<NonZeroUsize>,
    /// Memory for copies of other nodes' base snapshots, which sandboxes are aligned with
    #[arg(long, default_value_t = ByteSize(Budgets::DEFAULT.replica_bytes))]
    pub replica_memory: ByteSize,
    /// Memory for what base snapshots are aligned by
    #[arg(long, default_value_t = ByteSize(Budgets::DEFAULT.index_bytes as u64))]
    pub index_memory: ByteSize,
    /// Memory for single pages of other nodes' base snapshots
    #[arg(long, default_value_t = ByteSize(Budgets::DEFAULT.page_bytes as u64))]
    pub page_memory: ByteSize,
    /// Track which pages each sandbox writes
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub track_writes: bool,
    /// Windows of requests that the heat of a page is about
    #[arg(long, default_value_t = HeatSettings::DEFAULT.windows, value_parser = clap::value_parser!(u32).range(1..=i64::from(WINDOWS_MAX)))]
    pub heat_windows: u32,
    /// A page written in at least so many percent of them is hot
    #[arg(long, default_value_t = HeatSettings::DEFAULT.hot_percent, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub heat_hot_percent: u32,
    /// A page written in at least so many percent of them is warm
    #[arg(long, default_value_t = HeatSettings::DEFAULT.warm_percent, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub heat_warm_percent: u32,
    /// Windows that must have been seen before any page is called hot
    #[arg(long, default_value_t = HeatSettings::DEFAULT.windows_min, value_parser = clap::value_parser!(u32).range(1..=i64::from(WINDOWS_MAX)))]
    pub heat_windows_min: u32,
    /// Pages of each sandbox whose heat is kept; those beyond are not known and thereby cold
    #[arg(long, default_value_t = HeatSettings::DEFAULT.pages_max)]
    pub heat_pages_max: usize,
    /// Have the kernel programs of the watch write what they could not do to the log
    #[arg(long)]
    pub watch_log: bool,
    /// What a dedup does with pages that requests write all the time
    #[arg(long, default_value = "pack")]
    pub hot_pages: HotPages,
    /// When a sandbox has its memory that is cloned or restored: all of it before it runs, or each page when it is touched
    #[arg(long, default_value = "auto")]
    pub restore: HowRestored,
    /// Take memory of warm sandboxes that they do not touch, some pages at a time between requests
    #[arg(long)]
    pub trim: bool,
    /// Bring back what warm sandboxes have not touched since they came back, while this percentage of the node's memory is free
    #[arg(long, value_name = "PERCENT", conflicts_with = "trim", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub fill_above: Option<u32>,
    /// When this agent ends, base snapshots and sandboxes that rest (parked, in dedup) wait so many seconds for the next one on this node; 0: they
    /// end with it, as they do when it is told so by SIGINT
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=3600))]
    pub takeover: u32,
    /// Have systemd keep sandboxes in a scope beside this service, so that what waits for the next agent does not end with the service, which
    /// must be in a slice of its own
    #[arg(long)]
    pub systemd_scope: bool,
    /// Memory for the images of sandboxes that are warm again: what has not changed is not encoded again
    #[arg(long, default_value_t = ByteSize(Room::DEFAULT_BYTES))]
    pub earlier_memory: ByteSize,
    /// Serve metrics (Prometheus) here, at /metrics; default: nowhere
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// Export spans (OpenTelemetry, OTLP over gRPC) to this collector, such as http://127.0.0.1:4317; default: nowhere
    #[arg(long, value_name = "URL")]
    pub spans: Option<String>,
    /// Certificate of this node; its key (NAME-key.pem) and the cluster's ca.pem lie in the same folder
    #[arg(long, env = "MEDES_IDENTITY", value_name = "NAME.pem")]
    pub identity: Option<PathBuf>,
    /// Serve others than this machine without certificates: whoever reaches the ports may do everything
    #[arg(long, conflicts_with = "identity")]
    pub plaintext: bool,
    /// Make this step fail, for tests
    #[arg(long, hide = true)]
    pub fault: Option<Step>,
    /// How often it fails
    #[arg(long, hide = true, default_value_t = u32::MAX)]
    pub fault_times: u32,
    /// Make happen what this file says at the moment, for tests
    #[arg(long, hide = true)]
    pub fault_file: Option<PathBuf>,
}

impl Config {
    /// Memory for what helps to store sandboxes smaller.
    pub fn budgets(&self) -> Budgets {
        let bytes = |size: ByteSize| usize::try_from(size.0).unwrap_or(usize::MAX);
        let (index_bytes, page_bytes) = (bytes(self.index_memory), bytes(self.page_memory));
        Budgets { replica_bytes: self.replica_memory.0, index_bytes, page_bytes }
    }

    /// When a page is hot or warm. Not yet checked.
    pub const fn heat(&self) -> HeatSettings {
        HeatSettings {
            windows: self.heat_windows,
            hot_percent: self.heat_hot_percent,
            warm_percent: self.heat_warm_percent,
            windows_min: self.heat_windows_min,
            pages_max: self.heat_pages_max,
        }
    }

    /// Threads for the work on one sandbox's pages.
    pub fn threads(&self) -> NonZeroUsize {
        let most = NonZeroUsize::MIN.saturating_add(7);
        self.threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(NonZeroUsize::MIN, |processors| processors.min(most))
        })
    }
}
