//! The forkserver: the one process that forks, kills and reaps workers.
//!
//! ```text
//! host --control, life--> guard --fork--> forkserver --fork--> worker --> what the function starts
//! ```
//!
//! All but the host are child subreapers, so no descendant ever leaves the tree. The forkserver is
//! single-threaded and alone signals and reaps workers, so a pid is never signalled after it was
//! reaped. It tells of each worker on a pipe of that worker's own (a [`Notice`]); nobody shares a
//! reader. The guard holds the host's life socket and waits: when the host or the forkserver ends,
//! in any way, it kills everything below itself and leaves. The end of the life socket tells the
//! host that nothing is left.
//!
//! These loops are small enough to be read whole; what to do with a worker's tasks is decided in
//! `supervisor`, not here.

mod client;
mod control;
mod guard;
mod memory;
mod server;

pub use client::{ForkedWorker, Forkserver};
#[cfg(any(test, feature = "fuzzing"))]
pub use control::fuzz_messages;
pub use control::{NOTICE_LEN, Notice};
pub use server::{Booted, Interpreter, WorkerEnds, boot};
