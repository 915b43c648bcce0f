//! The worker's channel.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use pyo3::exceptions::{PyConnectionError, PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::processes::take_fd;
use crate::supervisor::SETUP;
use crate::sys::fault::{Step, reach};
use crate::transport::{ReplyKind, Request, Slept, WorkerChannel};

/// The worker's end of the channel to its host.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct Channel {
    inner: Mutex<WorkerChannel>,
}

/// What `receive` returns: task, function, then the three sections: `None` where empty, or where there
/// is no memory for them. Arguments are never empty.
type Received<'py> =
    (u64, u64, Option<Bound<'py, PyBytes>>, Option<Bound<'py, PyBytes>>, Option<Bound<'py, PyBytes>>);

impl Channel {
    fn inner(&self) -> PyResult<MutexGuard<'_, WorkerChannel>> {
        self.inner.try_lock().map_err(|_| PyRuntimeError::new_err("the channel is in use"))
    }
}

#[pymethods]
impl Channel {
    /// Opens the channel behind a segment's file and a socket, and owns both.
    #[new]
    fn new(segment: i32, socket: i32) -> PyResult<Self> {
        let inner = WorkerChannel::open(take_fd(segment), take_fd(socket))?;
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// Prepares for stack dumps; returns the signal, and the descriptor to dump to.
    fn prepare_dump(&self) -> PyResult<(i32, i32)> {
        Ok((crate::sys::DUMP_SIGNAL, self.inner()?.prepare_dump()?))
    }

    /// The next request, or `None` when the host is gone or none came for `idle` seconds.
    fn receive<'py>(&self, py: Python<'py>, idle: f64) -> PyResult<Option<Received<'py>>> {
        let limit = Duration::try_from_secs_f64(idle).map_err(|e| PyValueError::new_err(e.to_string()))?;
        let mut guard = self.inner()?;
        let inner: &mut WorkerChannel = &mut guard;
        loop {
            let request = inner.try_receive().map_err(|e| PyConnectionError::new_err(e.to_string()))?;
            if let Some(request) = request {
                reach(if request.task == SETUP { Step::WorkerSetupClaimed } else { Step::WorkerClaimed });
                return to_python(py, &request).map(Some);
            }
            match py.detach(|| inner.sleep(limit))? {
                Slept::Rung => {}
                Slept::Interrupted => py.check_signals()?,
                Slept::Ended => return Ok(None),
                Slept::Timeout => {
                    if inner.retire() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Sends a response; false if the host is gone.
    fn send(&self, py: Python<'_>, kind: &str, task: u64, body: &[u8]) -> PyResult<bool> {
        let kind = match kind {
            "ready" => ReplyKind::Ready,
            "setup failed" => ReplyKind::SetupFailed,
            "returned" => ReplyKind::Returned,
            "raised" => ReplyKind::Raised,
            "raised retryable" => ReplyKind::RaisedRetryable,
            other => return Err(PyValueError::new_err(format!("unknown kind of response: {other:?}"))),
        };
        reach(if kind == ReplyKind::Ready { Step::WorkerSetUp } else { Step::WorkerRan });
        let mut guard = self.inner()?;
        let inner: &mut WorkerChannel = &mut guard;
        Ok(py.detach(|| inner.send(kind, task, body))?)
    }
}

fn to_python<'py>(py: Python<'py>, request: &Request) -> PyResult<Received<'py>> {
    let mut offset = 0;
    let mut section = |len: usize| {
        let bytes = PyBytes::new_with(py, len, |into| Ok(request.body.read(offset, into)?));
        offset += len;
        match bytes {
            Err(error) if error.is_instance_of::<PyMemoryError>(py) => Ok(None),
            bytes => bytes.map(Some),
        }
    };
    let [context, function, arguments] = request.sections;
    let context = if context > 0 { section(context)? } else { None };
    let function_bytes = if function > 0 { section(function)? } else { None };
    Ok((request.task, request.function, context, function_bytes, section(arguments)?))
}
