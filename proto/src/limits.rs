//! The largest of everything that crosses a wire. Receivers check these before they take memory.

/// Bytes of one gRPC message.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes of a request or answer body.
pub const BODY_BYTES_MAX: usize = 6 << 20;
/// Bytes of a function file.
pub const FUNCTION_BYTES_MAX: usize = 64 << 10;
/// Sandboxes one agent may report.
pub const SANDBOXES_MAX: usize = 16_384;
/// Base snapshots one agent may report.
pub const SNAPSHOTS_MAX: usize = 4_096;
/// Tenants whose keys one node may know: each has a sandbox or a base snapshot there.
pub const NODE_TENANTS_MAX: usize = SANDBOXES_MAX + SNAPSHOTS_MAX;
/// Pages in one registry batch, looked up or registered.
pub const BATCH_PAGES_MAX: usize = 1_024;
/// Chunk hashes of one page.
pub const PAGE_CHUNKS_MAX: usize = 32;
/// Candidates the registry names for one page.
pub const PAGE_CANDIDATES_MAX: usize = 8;
/// Processes in the layout of a base snapshot.
pub const LAYOUT_PROCESSES_MAX: usize = 1_024;
/// Runs of pages in the layout of one process.
pub const LAYOUT_RUNS_MAX: usize = 1 << 20;
/// Bytes of what a clone needs besides the pages of its snapshot. It travels in one message with the layout.
pub const CLONE_BYTES_MAX: usize = 8 << 20;
/// Bytes of the private files of a sandbox that goes to another node, packed.
pub const MOVED_FILES_BYTES_MAX: u64 = 256 << 20;
/// Bytes of one part of a dedup image on its way to another node.
pub const IMAGE_PART_BYTES_MAX: usize = 1 << 20;
/// Bytes of a node's address, as host:port.
pub const ADDRESS_BYTES_MAX: usize = 256;
/// Bytes of a path in a layout: as long as Linux allows.
pub const PATH_BYTES_MAX: usize = 4_096;
/// Base snapshots one dedup image may refer to, whatever the configuration says.
pub const IMAGE_BASES_MAX: usize = 64;
/// Bytes of a failure's message.
pub const FAILURE_BYTES_MAX: usize = 4 << 10;
/// Lines of output that go with a failure.
pub const FAILURE_LINES_MAX: usize = 20;
/// Tokens of the HTTP gateway.
pub const TOKENS_MAX: usize = 4_096;
/// Functions that one token names.
pub const TOKEN_FUNCTIONS_MAX: usize = 256;
/// Headers of one request or answer.
pub const HEADERS_MAX: usize = 100;
/// Phases one operation may report.
pub const PHASES_MAX: usize = 32;
/// Options of one traced decision that were not chosen.
pub const TRACE_OPTIONS_MAX: usize = 16;
/// Inputs of one traced decision.
pub const TRACE_FACTS_MAX: usize = 32;
/// Bytes of one text in a traced event.
pub const TRACE_TEXT_MAX: usize = 1 << 10;
/// Events in one answer about a sandbox.
pub const TRACE_EVENTS_MAX: usize = 256;
/// Mappings in one heat map.
pub const HEAT_MAPPINGS_MAX: usize = 16_384;
/// Ranges in one heat map, over all its mappings.
pub const HEAT_RANGES_MAX: usize = 262_144;
/// Bytes of a mapping's name.
pub const HEAT_NAME_BYTES_MAX: usize = 256;
/// Base snapshots in one node's account: those that it reports, and others of which single pages are here.
pub const ACCOUNT_SNAPSHOTS_MAX: usize = 4 * SNAPSHOTS_MAX;
