//! The way of bytes between host and worker: a shared segment with two rings, and a socket.
//!
//! ```text
//! segment   0        4 KiB          68 KiB          132 KiB        196 KiB
//!           | status | request ring | response ring | stack dump   |
//! ```
//!
//! The status block holds the claim word, the ring positions and the sleep flags. Each side owns
//! the words that it writes; the claim word alone is written by both, by compare-and-swap. A side
//! that goes to sleep raises its flag, looks once more, and waits on the socket; the other side
//! rings there only if the flag is up. What does not fit a ring travels as a file over the
//! socket; large values are packed as parcels, which the receiver maps. The stack region is the tail of the file, which is sealed against growing: the
//! worker's dump is written through the file and cannot go past it.
//!
//! This module decides nothing about tasks; it moves records and refuses those that make no sense.

mod claim;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod host;
mod layout;
pub mod parcel;
pub mod plain;
pub mod pool;
mod record;
pub mod running;
mod spin;
mod worker;

pub use files::SocketState;
pub use host::{Handed, HostChannel, Limits, Outgoing, Ring, Section, Values};
pub use layout::{INLINE_MAX, SEGMENT_LEN};
pub use record::{Body, Corrupt, Reply, ReplyKind, Small};
pub use worker::{Received, Request, Slept, WorkerChannel};
