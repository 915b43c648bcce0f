//! The Python face: the only room that names `pyo3`. It converts, detaches, waits, checks for
//! signals and converts back; meaning, defaults and documentation are in `python/killercall`.

mod asides;
mod buffers;
mod calls;
mod channel;
mod exceptions;
mod job;
mod leaving;
mod logging;
mod parcel;
mod plain;
mod processes;
mod watches;

pub use asides::Printer;
pub use buffers::Memory;
pub use channel::{Channel, time_left};
pub use job::{Caller, Job, Outcome, Plan, PyLaunch, Roster, Waker, wait_any};
pub use logging::install as install_logging;
pub use parcel::{Arrived, Parcel, keep_at_most, keep_nothing};
pub use plain::decode_plain;
pub use processes::{ServerCopy, boot, ease_memory_limit, end_descendants, keep_open, read_text};
pub use watches::{Captures, Surroundings};
