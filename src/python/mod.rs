//! The Python face: the only room that names `pyo3`. It converts, detaches, waits, checks for
//! signals and converts back; meaning, defaults and documentation are in `python/killercall`.

mod processes;
mod channel;
mod exceptions;
mod job;

pub use processes::{ServerCopy, boot, keep_open};
pub use channel::Channel;
pub use job::{Job, Outcome, Roster};
