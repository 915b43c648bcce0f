//! Rosters and jobs: the host's side.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pyo3::exceptions::{PyOverflowError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::supervisor::{self, Driver, Ending, Exit, Fleet, Launch, Payload, Policy, StartError, Wait};
use crate::sys;
use crate::transport::Body;

/// How long a wait goes without a look for signals. One that arrives while we wait ends the wait
/// at once; one that slips in just before is found after this.
const SLICE: Duration = Duration::from_millis(100);

/// A forkserver with its workers, kept between jobs.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct Roster(pub Arc<supervisor::Roster>);

/// How to start the forkserver: program, arguments, environment.
type LaunchArguments = (String, Vec<String>, Vec<(Vec<u8>, Vec<u8>)>);

fn launch((program, arguments, environment): LaunchArguments) -> Launch {
    Launch { program, arguments, environment }
}

#[pymethods]
impl Roster {
    /// An empty one; its forkserver is started at need.
    #[new]
    fn new() -> Self {
        Self(Arc::default())
    }

    /// Whether the forkserver runs.
    fn has_server(&self, py: Python<'_>) -> bool {
        // Detached, as everything that takes a lock of the roster: its holder may be about to log,
        // for which it has to attach.
        py.detach(|| self.0.has_server())
    }

    /// How many workers wait for a job.
    fn idle(&self, py: Python<'_>) -> usize {
        py.detach(|| self.0.idle())
    }

    /// Asks the forkserver to import modules before it forks further workers.
    fn preload(&self, py: Python<'_>, start: LaunchArguments, modules: &str) -> PyResult<()> {
        let launch = launch(start);
        Ok(detached(py, || self.0.preload(&launch, modules))??)
    }

    /// Ends the forkserver and all its workers, and waits until nothing is left of them.
    fn shutdown(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || self.0.shutdown())
    }
}

/// How a task ended.
#[pyclass(frozen, get_all, module = "killercall._core")]
#[derive(Debug)]
pub struct Outcome {
    task: u64,
    ending: &'static str,
    body: Option<Py<PyBytes>>,
    pid: Option<i32>,
    exitcode: Option<i32>,
    over_memory: Option<u64>,
    stack: Option<String>,
    corrupt: Option<String>,
    elapsed: f64,
    attempts: u32,
}

fn bytes<'py>(py: Python<'py>, body: &Body) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, body.len(), |into| Ok(body.read(0, into)?))
}

fn to_python(py: Python<'_>, outcome: supervisor::Outcome) -> PyResult<Outcome> {
    let exitcode = outcome.exit.and_then(|exit| match exit {
        Exit::Reaped { status, .. } => Some(status),
        Exit::Killed => Some(-sys::KILL_SIGNAL),
        Exit::Lost => None,
    });
    Ok(Outcome {
        task: outcome.task,
        ending: match outcome.ending {
            Ending::Returned => "returned",
            Ending::Raised => "raised",
            Ending::TimedOut => "timed_out",
            Ending::Died => "died",
            Ending::OverMemory => "over_memory",
            Ending::Cancelled => "cancelled",
            Ending::NotStarted => "not_started",
        },
        body: outcome.body.map(|body| bytes(py, &body).map(Bound::unbind)).transpose()?,
        pid: outcome.pid,
        exitcode,
        over_memory: outcome.over_memory,
        stack: outcome.stack,
        corrupt: outcome.corrupt,
        elapsed: outcome.elapsed.as_secs_f64(),
        attempts: outcome.attempts,
    })
}

/// What happened, error number, exit code, bytes of memory that were too many, and the pickled
/// exception.
type StartFailure<'py> = (String, Option<i32>, Option<i32>, Option<u64>, Option<Bound<'py, PyBytes>>);

/// The tasks of one call or one map, and the workers that run them.
#[pyclass(frozen, module = "killercall._core")]
pub struct Job {
    driver: Mutex<Driver>,
}

impl Job {
    /// A job belongs to the thread that waits for it. Blocking here while attached could stop that
    /// thread for good, so a second one gets an error.
    fn driver(&self) -> PyResult<MutexGuard<'_, Driver>> {
        let driver = self
            .driver
            .try_lock()
            .map_err(|_| PyRuntimeError::new_err("the job is in use by another thread"))?;
        if !driver.is_owner() {
            return Err(PyRuntimeError::new_err("the job belongs to the process that forked this one"));
        }
        Ok(driver)
    }
}

/// Runs this detached, and finds what Python's logging has raised meanwhile: a handler of the user's
/// that fails, or Ctrl+C. The bridge to it has nobody to return an error to, and leaves it set.
fn detached<T: Send>(py: Python<'_>, run: impl FnOnce() -> T + Send) -> PyResult<T> {
    let value = py.detach(run);
    PyErr::take(py).map_or(Ok(value), Err)
}

/// Ends what is unfinished, with its grace period unless another signal handler raises.
fn wind_down(py: Python<'_>, driver: &mut Driver) -> PyResult<()> {
    detached(py, || driver.cancel_all(true))?;
    while driver.unfinished() > 0 {
        detached(py, || driver.wait(SLICE))??;
        driver.take_done();
        if py.check_signals().is_err() {
            detached(py, || driver.cancel_all(false))?;
        }
    }
    Ok(())
}

fn seconds(value: f64) -> PyResult<Duration> {
    // Infinity and what a Duration cannot hold are the caller's: Python checks arguments first.
    Duration::try_from_secs_f64(value).map_err(|error| PyOverflowError::new_err(format!("{value}: {error}")))
}

#[pymethods]
impl Job {
    /// A job without tasks. Times are in seconds.
    #[new]
    #[pyo3(signature = (roster, start, *, key, exec, keep, setup, context, context_bytes, function,
        function_bytes, timeout, grace, workers, retries, retry_timed_out, retry_died, retry_over_memory, budget,
        calls_per_worker, start_limit, max_memory))]
    #[expect(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "keyword arguments from one caller"
    )]
    fn new(
        roster: &Roster,
        start: Option<LaunchArguments>,
        key: u64,
        exec: bool,
        keep: bool,
        setup: Vec<u8>,
        context: u64,
        context_bytes: Vec<u8>,
        function: u64,
        function_bytes: Vec<u8>,
        timeout: Option<f64>,
        grace: f64,
        workers: usize,
        retries: u32,
        retry_timed_out: bool,
        retry_died: bool,
        retry_over_memory: bool,
        budget: Option<f64>,
        calls_per_worker: Option<u32>,
        start_limit: f64,
        max_memory: Option<u64>,
    ) -> PyResult<Self> {
        let policy = Policy {
            timeout: timeout.map(seconds).transpose()?,
            grace: seconds(grace)?,
            workers,
            retries,
            retry_timed_out,
            retry_died,
            retry_over_memory,
            budget: budget.map(seconds).transpose()?.map(|budget| sys::now() + budget),
            calls_per_worker,
            start_limit: seconds(start_limit)?,
        };
        let fleet = Fleet {
            roster: Arc::clone(&roster.0),
            launch: start.map(launch),
            key,
            exec,
            max_memory: max_memory.unwrap_or(0),
            keep,
            setup,
            context,
        };
        let payload = Payload { function, function_bytes, context, context_bytes };
        Ok(Self { driver: Mutex::new(Driver::new(policy, fleet, payload)) })
    }

    /// Adds a task.
    fn submit(&self, py: Python<'_>, task: u64, arguments: Vec<u8>) -> PyResult<()> {
        let mut guard = self.driver()?;
        let driver: &mut Driver = &mut guard;
        detached(py, || driver.submit(task, arguments))
    }

    /// What enters is the job; what leaves ends it. Native, so that no signal handler can raise
    /// between the end of the block and the end of the job.
    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    /// Waits until something has ended, and returns it. Python's signal handlers run meanwhile. When
    /// one raises, what is unfinished ends, with its grace period unless there is a second one; then
    /// the first is raised here.
    fn wait(&self, py: Python<'_>) -> PyResult<Vec<Outcome>> {
        let mut guard = self.driver()?;
        let driver: &mut Driver = &mut guard;
        while detached(py, || driver.wait(SLICE))?? != Wait::Done {
            if let Err(interrupt) = py.check_signals() {
                wind_down(py, driver)?;
                return Err(interrupt);
            }
        }
        driver.take_done().into_iter().map(|outcome| to_python(py, outcome)).collect()
    }

    /// How many workers the system allows, if those are fewer than were asked for.
    fn reduced_to(&self) -> PyResult<Option<usize>> {
        Ok(self.driver()?.reduced_to())
    }

    /// Tasks that wait for a worker.
    fn queued(&self) -> PyResult<usize> {
        Ok(self.driver()?.queued())
    }

    /// Ends the job: kills what still runs, waits until it is dead, and keeps idle workers.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let mut guard = self.driver()?;
        let driver: &mut Driver = &mut guard;
        Ok(detached(py, || driver.close())??)
    }

    /// Why no worker could be had: what happened, error number, exit code, memory, exception.
    fn start_error<'py>(&self, py: Python<'py>) -> PyResult<Option<StartFailure<'py>>> {
        let driver = self.driver()?;
        let Some(error) = driver.start_error() else { return Ok(None) };
        Ok(Some(match error {
            StartError::System(error) => {
                (format!("failed to {error}"), error.source_error().raw_os_error(), None, None, None)
            }
            StartError::Fork(errno) => {
                let source = std::io::Error::from_raw_os_error(*errno);
                (format!("failed to fork a worker: {source}"), Some(*errno), None, None, None)
            }
            StartError::Setup(body) => {
                ("failed to set up a worker".into(), None, None, None, Some(bytes(py, body)?))
            }
            StartError::Exited(Exit::Reaped { status, .. }) => {
                ("a worker ended before it was set up".into(), None, Some(*status), None, None)
            }
            StartError::Exited(Exit::Killed) => {
                ("a worker was killed before it was set up".into(), None, None, None, None)
            }
            StartError::Exited(Exit::Lost) => (
                "the forkserver ended before it had forked a worker; standard error may say why".into(),
                None,
                None,
                None,
                None,
            ),
            StartError::OverMemory(used) => {
                ("a worker used too much memory while it was set up".into(), None, None, Some(*used), None)
            }
            StartError::Slow => ("a worker was not set up in time".into(), None, None, None, None),
        }))
    }
}
