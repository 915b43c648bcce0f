//! How a process becomes a forkserver, and where its workers come out.

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::job::Roster;
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

/// A forkserver to be: a copy of the host.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct ServerCopy {
    server: Mutex<Option<Forkserver>>,
}

#[pymethods]
impl ServerCopy {
    /// Makes the host's side, and the descriptor for the copy's `boot`.
    #[staticmethod]
    fn prepare() -> PyResult<(Self, i32)> {
        let (server, control) = Forkserver::prepare()?;
        Ok((Self { server: Mutex::new(Some(server)) }, control.into_raw_fd()))
    }

    /// In the host: the copy is the process `pid`. Closes the copy's descriptor.
    fn forked(&self, pid: i32, control: i32) -> PyResult<Roster> {
        drop(take_fd(control));
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let server = server.ok_or_else(|| PyRuntimeError::new_err("forked() was called twice"))?;
        server.set_guard(pid);
        Ok(Roster(Arc::new(supervisor::Roster::with_server(server))))
    }

    /// In the copy: closes the host's side.
    fn close(&self) {
        drop(self.server.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
