//! The Python face: the only room that names `pyo3`. It converts, detaches, waits, checks for
//! signals and converts back; meaning, defaults and documentation are in `python/killercall`.

mod channel;
mod exceptions;
mod job;
mod processes;

pub use channel::Channel;
pub use job::{Job, Outcome, Roster};
pub use processes::{ServerCopy, boot, ease_memory_limit, keep_open};
