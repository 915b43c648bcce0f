//! How a process becomes a forkserver, and where its workers come out.

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::job::Roster;
use super::leaving::call_out;
use crate::forkserver::{self, Booted, Forkserver, Interpreter};
use crate::supervisor;
use crate::sys;

struct Callbacks<'a, 'py> {
    fork: &'a Bound<'py, PyAny>,
    preload: &'a Bound<'py, PyAny>,
}

impl Interpreter for Callbacks<'_, '_> {
    fn fork(&mut self) -> io::Result<Option<i32>> {
        let pid: i32 = self.fork.call0().and_then(|pid| pid.extract()).map_err(|error| {
            let errno = error.value(self.fork.py()).getattr("errno").and_then(|errno| errno.extract());
            errno.map_or_else(|_| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
        })?;
        Ok((pid != 0).then_some(pid))
    }

    fn preload(&mut self, modules: &str) {
        if let Err(error) = self.preload.call1((modules,)) {
            error.write_unraisable(self.preload.py(), Some(self.preload));
        }
    }
}

/// Turns this process into guard and forkserver.
///
/// Returns `None` in the forkserver at its end. In each new worker returns the file descriptors
/// of its segment and socket, and whether to go on in a fresh interpreter.
#[pyfunction]
#[pyo3(signature = (control, fork, preload))]
pub fn boot(
    control: Option<i32>,
    fork: &Bound<'_, PyAny>,
    preload: &Bound<'_, PyAny>,
) -> PyResult<Option<(i32, i32, bool)>> {
    let (control, detach) = match control {
        Some(fd) => {
            sys::null_stdin()?;
            (take_fd(fd), false)
        }
        None => (sys::take_stdin()?, true),
    };
    match forkserver::boot(control, detach, &mut Callbacks { fork, preload })? {
        Booted::Ended => Ok(None),
        Booted::Worker(ends) => Ok(Some((ends.segment.into_raw_fd(), ends.socket.into_raw_fd(), ends.exec))),
    }
}

/// What a small file says. Between opening and closing it no signal handler of Python's can run, which might
/// leave it open.
#[pyfunction]
pub fn read_text(path: &str) -> PyResult<String> {
    Ok(std::fs::read_to_string(path)?)
}

/// Lets the next program that this process execs inherit these descriptors.
#[pyfunction]
pub fn keep_open(fds: Vec<i32>) -> PyResult<()> {
    for fd in fds {
        let fd = take_fd(fd);
        sys::keep_across_exec(&fd)?;
        let _ = fd.into_raw_fd();
    }
    Ok(())
}

/// In a worker with a memory limit: makes room to tell that it was met.
#[pyfunction]
pub fn ease_memory_limit() -> PyResult<()> {
    Ok(sys::ease_memory_limit()?)
}

/// Owns a descriptor that Python code passed on to us.
pub fn take_fd(fd: i32) -> OwnedFd {
    sys::own(fd)
}

/// Kills and reaps all that this process has started, as far as it may.
#[pyfunction]
pub fn end_descendants(py: Python<'_>) {
    py.detach(sys::end_descendants);
}

/// A forkserver to be: a copy of the host.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct ServerCopy {
    server: Mutex<Option<Forkserver>>,
    control: Mutex<Option<OwnedFd>>,
}

#[pymethods]
impl ServerCopy {
    /// Makes both sides.
    #[new]
    fn new() -> PyResult<Self> {
        let (server, control) = Forkserver::prepare()?;
        Ok(Self { server: Mutex::new(Some(server)), control: Mutex::new(Some(control)) })
    }

    /// Forks. Returns the forkserver's roster in the host, and in the copy the descriptor for `boot`.
    ///
    /// One step, in which no signal handler of Python's can raise: after it, whoever drops the
    /// roster ends the copy and reaps it. Between a fork in Python and the assignment of its pid,
    /// Ctrl+C would lose the pid.
    fn fork(&self, fork: &Bound<'_, PyAny>) -> PyResult<(Option<Roster>, Option<i32>)> {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(server), Some(control)) = (server, control) else {
            return Err(PyRuntimeError::new_err("fork() was called twice"));
        };
        let pid: i32 = call_out(|| fork.call0())?.extract()?;
        if pid == 0 {
            drop(server);
            return Ok((None, Some(control.into_raw_fd())));
        }
        server.set_guard(pid);
        Ok((Some(Roster(Arc::new(supervisor::Roster::with_server(server)))), None))
    }
}
