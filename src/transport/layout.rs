//! Where everything lies in a segment. Words that different sides write are on different cache
//! lines.

/// Bytes of one ring. A power of two, and a multiple of the alignment of records.
pub const RING_LEN: usize = 64 * 1024;
/// Bodies above this length travel as a file of their own.
pub const INLINE_MAX: usize = 16 * 1024;
/// Bytes for the stack dump: `faulthandler` shows at most 100 frames a thread.
pub const STACK_LEN: usize = 64 * 1024;

/// Written by the host: whether it sleeps and wants to be rung (u32): `AWAKE`, `ASLEEP` or `DOZING`.
pub const HOST_ASLEEP: usize = 64;
/// It does not.
pub const AWAKE: u32 = 0;
/// It does, with the next answer.
pub const ASLEEP: u32 = 1;
/// It does, but not for every answer.
pub const DOZING: u32 = 2;
/// The worker does until there is room for its answer.
pub const STUCK: u32 = 3;
/// Written by the host: how far it has read the responses (u64).
pub const RESPONSE_READ: usize = 72;
/// Written by the host: the worker is to end once its stack is dumped (u32).
pub const DUMP_IS_LAST: usize = 80;
/// Written by the host: on which processor it was, counted from one (u32).
pub const HOST_CPU: usize = 84;
/// Written by the host: how many calls it had handed out when it last took back what was not started (u64).
pub const CUT: usize = 88;
/// Written by the host: the same of the time before (u64).
pub const CUT_BEFORE: usize = 96;
/// Written by the worker: whether it sleeps and wants to be rung (u32): `AWAKE`, `ASLEEP` until there is a
/// request, or `STUCK`.
pub const WORKER_ASLEEP: usize = 128;
/// Written by the worker: how far it has written responses (u64).
pub const RESPONSE_WRITTEN: usize = 136;
/// Written by the worker's signal handler: the stack dump is complete (u32).
pub const DUMP_COMPLETE: usize = 144;
/// Written by the worker: on which processor it was, counted from one (u32).
pub const WORKER_CPU: usize = 148;
/// Nobody knows.
pub const NO_CPU: u32 = 0;
/// It is on its way to another one.
pub const MOVING: u32 = u32::MAX;
/// Written by both: the claim word (u64).
pub const CLAIM: usize = 192;
// Written by the host, right before it hands out calls through that word: so no other cache line has to change
// hands for them. All are in nanoseconds, the moments of the monotonic clock.
/// When it last handed out calls (u64).
pub const HANDED_AT: usize = 200;
/// How long each of them may take (u64), zero for any length.
pub const TIMEOUT: usize = 208;
/// The nearest deadline of all that encloses them (u64), zero if there is none.
pub const ENCLOSING: usize = 216;

/// Start of the request ring.
pub const REQUESTS: usize = 4096;
/// Start of the response ring.
pub const RESPONSES: usize = REQUESTS + RING_LEN;
/// Start of the stack dump.
pub const STACK: usize = RESPONSES + RING_LEN;
/// Bytes of a segment.
pub const SEGMENT_LEN: usize = STACK + STACK_LEN;
