//! `killercall._core`: supervision of worker processes with hard deadlines.
//!
//! # Theory of operation
//!
//! A call is a task of a job. The thread that wants the answer drives the job itself: it leases
//! an idle worker (or has the forkserver fork one), writes the request into memory shared with
//! that worker, and waits in one place for the answer, the worker's death notice, and the
//! deadline. At the deadline the worker dumps its Python stack on a signal, then the forkserver
//! kills it and all that descends from it; the death notice comes when none of them is left.
//!
//! Dependencies point one way: `python` (the only room that names pyo3) to `supervisor` (what to
//! do, and when) to `forkserver` and `transport` (processes, and the way of bytes) to `sys` (the
//! only room that names nix or libc, and the only unsafe code but for Python's buffers and calls).

#[cfg(not(unix))]
compile_error!(
    "killercall supports Linux and macOS, not Windows: it needs fork, process groups and unix sockets"
);

// On other systems that is the one error, and not the first of hundreds.
#[cfg(unix)]
pub mod error;
#[cfg(unix)]
pub mod forkserver;
#[cfg(all(unix, any(test, feature = "fuzzing")))]
pub mod fuzzing;
#[cfg(all(unix, feature = "python"))]
mod python;
#[cfg(unix)]
pub mod supervisor;
#[cfg(unix)]
pub mod sys;
#[cfg(unix)]
pub mod time;
#[cfg(unix)]
pub mod transport;

/// The compiled part of killercall; see `_core.pyi`.
#[cfg(all(unix, feature = "python"))]
#[pyo3::pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::python::{
        Arrived, Caller, Captures, Channel, Job, Memory, Outcome, Parcel, Plan, Printer, PyLaunch, Roster,
        ServerCopy, Surroundings, Waker, boot, decode_plain, ease_memory_limit, end_descendants,
        keep_at_most, keep_nothing, keep_open, read_text, time_left, wait_any,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::python::install_logging();
        #[cfg(feature = "fault-injection")]
        {
            super::sys::fault::arm();
            module.add("FAULT_STEPS", super::sys::fault::Step::NAMES)?;
        }
        module.add("APPEND_MAX", super::transport::INLINE_MAX)?;
        module.add("SETUP", super::supervisor::SETUP)?;
        module.add("LARGE_FUNCTIONS_MAX", super::supervisor::LARGE_FUNCTIONS_MAX)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
