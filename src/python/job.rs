//! Rosters and jobs: the host's side.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pyo3::exceptions::{PyException, PyOverflowError, PyRuntimeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use super::asides;
use super::leaving::call_out;
use super::parcel::{Arrived, packed};
use super::plain;
use super::watches::{Captures, Surroundings};
use crate::supervisor::{
    self, Attempt, Batch, Begun, Driver, Ending, Exit, Fleet, Launch, Payload, Policy, StartError, Wait, Warm,
};
use crate::sys;
use crate::time::Moment;
use crate::transport::{Body, Ring, Small};

/// How long a wait goes without a look for signals. One that arrives while we wait ends the wait
/// at once; one that slips in just before is found after this.
const SLICE: Duration = Duration::from_millis(100);

/// A forkserver with its workers, kept between jobs.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct Roster(pub Arc<supervisor::Roster>);

/// How to start the forkserver: program, arguments, environment.
type LaunchArguments = (String, Vec<String>, Vec<(Vec<u8>, Vec<u8>)>);

/// The same, taken over once for many jobs.
#[pyclass(frozen, name = "Launch", module = "killercall._core")]
#[derive(Debug)]
pub struct PyLaunch(Arc<Launch>);

#[pymethods]
impl PyLaunch {
    #[new]
    fn new(command: LaunchArguments) -> Self {
        let (program, arguments, environment) = command;
        Self(Arc::new(Launch { program, arguments, environment }))
    }
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

    /// The pids of those of them that are known to be there.
    fn idle_pids(&self, py: Python<'_>) -> Vec<i32> {
        py.detach(|| self.0.idle_pids())
    }

    /// Starts the forkserver unless it runs, and does not wait until it is there.
    fn start(&self, py: Python<'_>, launch: &PyLaunch) -> PyResult<()> {
        Ok(detached(py, || self.0.start(&launch.0))??)
    }

    /// Asks the forkserver to import modules before it forks further workers.
    fn preload(&self, py: Python<'_>, launch: &PyLaunch, modules: &str) -> PyResult<()> {
        Ok(detached(py, || self.0.preload(&launch.0, modules))??)
    }

    /// Ends the workers of one kind that wait, which nobody will ask for again.
    fn discard(&self, py: Python<'_>, key: u64) {
        py.detach(|| self.0.discard(key));
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
    /// Bytes, or a parcel.
    body: Option<Py<PyAny>>,
    plain: bool,
    /// The same of what was published.
    partial: Option<Py<PyAny>>,
    partial_plain: bool,
    pid: Option<i32>,
    exitcode: Option<i32>,
    over_memory: Option<u64>,
    stack: Option<String>,
    corrupt: Option<String>,
    elapsed: f64,
    /// Seconds from the beginning of the job to that of the last attempt.
    started: Option<f64>,
    attempts: u32,
}

fn bytes<'py>(py: Python<'py>, body: &Body) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, body.len(), |into| Ok(body.read(0, into)?))
}

/// What Python makes a value of.
fn content(py: Python<'_>, body: Body) -> PyResult<Bound<'_, PyAny>> {
    match body {
        Body::Parcel(parcel) => Ok(Bound::new(py, Arrived::new(parcel))?.into_any()),
        body => Ok(bytes(py, &body)?.into_any()),
    }
}

/// A value that the function returned, if it came plain.
fn plain_value<'py>(py: Python<'py>, body: &Body) -> PyResult<Bound<'py, PyAny>> {
    match body {
        Body::Inline(bytes) => plain::decode(py, bytes),
        Body::File(_) | Body::Parcel(_) => {
            let bytes = bytes(py, body)?;
            plain::decode(py, bytes.as_bytes())
        }
    }
}

fn to_python(py: Python<'_>, outcome: supervisor::Outcome, began: Moment) -> PyResult<Outcome> {
    let trouble = outcome.trouble;
    let partial_plain = outcome.partial.as_ref().is_some_and(|partial| partial.plain);
    let partial = outcome.partial.map(|partial| content(py, partial.body).map(Bound::unbind)).transpose()?;
    let exitcode = trouble.as_ref().and_then(|trouble| trouble.exit).and_then(|exit| match exit {
        Exit::Reaped { status, .. } => Some(status),
        Exit::Killed => Some(-sys::KILL_SIGNAL),
        Exit::Lost => None,
    });
    let (over_memory, stack, corrupt) =
        trouble.map_or((None, None, None), |trouble| (trouble.over_memory, trouble.stack, trouble.corrupt));
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
        body: outcome.body.map(|body| content(py, body).map(Bound::unbind)).transpose()?,
        plain: outcome.plain,
        partial,
        partial_plain,
        pid: outcome.pid,
        exitcode,
        over_memory,
        stack,
        corrupt,
        elapsed: outcome.span.elapsed.as_secs_f64(),
        started: outcome.span.since.map(|since| since.since(began).as_secs_f64()),
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
    began: Moment,
    /// Is called with what workers have said beside their work.
    listener: Py<PyAny>,
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

/// Hands up what workers have said.
fn hand_up(py: Python<'_>, driver: &mut Driver, listener: &Py<PyAny>) -> PyResult<()> {
    if driver.has_asides() {
        let said = asides::to_python(py, driver.take_asides())?;
        call_out(|| listener.bind(py).call1((said,)))?;
    }
    Ok(())
}

/// Ends what is unfinished, with its grace period unless another signal handler raises.
fn wind_down(py: Python<'_>, driver: &mut Driver, listener: &Py<PyAny>) -> PyResult<()> {
    detached(py, || driver.cancel_all(true))?;
    while driver.unfinished() > 0 {
        detached(py, || driver.wait(SLICE))??;
        drop(driver.take_done());
        // What is raised last is not told: the first is what the caller gets.
        if hand_up(py, driver, listener).and_then(|()| py.check_signals()).is_err() {
            detached(py, || driver.cancel_all(false))?;
        }
    }
    Ok(())
}

fn wait(py: Python<'_>, driver: &mut Driver, listener: &Py<PyAny>) -> PyResult<()> {
    let mut is_done = false;
    loop {
        // Before the wait, too: a handler may have run while the short way of a call was tried.
        if let Err(interrupt) = py.check_signals().and_then(|()| hand_up(py, driver, listener)) {
            wind_down(py, driver, listener)?;
            return Err(interrupt);
        }
        if is_done {
            return Ok(());
        }
        is_done = detached(py, || driver.wait(SLICE))?? == Wait::Done;
    }
}

fn seconds(value: f64) -> PyResult<Duration> {
    // Infinity and what a Duration cannot hold are the caller's: Python checks arguments first.
    Duration::try_from_secs_f64(value).map_err(|error| PyOverflowError::new_err(format!("{value}: {error}")))
}

/// What a call of a function takes beside its arguments: worker, function and limits.
#[pyclass(frozen, module = "killercall._core")]
pub struct Plan {
    policy: Policy,
    fleet: Arc<Fleet>,
    payload: Arc<Payload>,
}

#[pymethods]
impl Plan {
    /// Times are in seconds. Without `launch` the roster's forkserver was made for this plan.
    #[new]
    #[pyo3(signature = (roster, launch, *, key, exec, keep, setup, context, context_bytes, function,
        function_bytes, timeout, grace, retries, retry_timed_out, retry_died, retry_over_memory,
        calls_per_worker, start_limit, max_memory))]
    #[expect(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "keyword arguments from one caller"
    )]
    fn new(
        roster: &Roster,
        launch: Option<&PyLaunch>,
        key: u64,
        exec: bool,
        keep: bool,
        setup: Vec<u8>,
        context: u64,
        context_bytes: Vec<u8>,
        function: u64,
        function_bytes: &Bound<'_, PyAny>,
        timeout: Option<f64>,
        grace: f64,
        retries: u32,
        retry_timed_out: bool,
        retry_died: bool,
        retry_over_memory: bool,
        calls_per_worker: Option<u32>,
        start_limit: f64,
        max_memory: Option<u64>,
    ) -> PyResult<Self> {
        let policy = Policy {
            timeout: timeout.map(seconds).transpose()?,
            grace: seconds(grace)?,
            workers: 1,
            retries,
            retry_timed_out,
            retry_died,
            retry_over_memory,
            budget: None,
            calls_per_worker,
            start_limit: seconds(start_limit)?,
        };
        let fleet = Fleet {
            roster: Arc::clone(&roster.0),
            launch: launch.map(|launch| Arc::clone(&launch.0)),
            key,
            exec,
            max_memory: max_memory.unwrap_or(0),
            keep,
            setup,
            context,
        };
        let function_batch = packed(function_bytes)?;
        let payload = Payload { function, function_batch, context, context_bytes };
        Ok(Self { policy, fleet: Arc::new(fleet), payload: Arc::new(payload) })
    }
}

/// The short way of a call: in a worker that is there, with an answer at once.
#[pyclass(frozen, module = "killercall._core")]
pub struct Caller {
    warm: Warm,
    captures: Vec<Py<Captures>>,
    surroundings: Py<Surroundings>,
    /// Pickles what is not plain; `None` where nothing may go plain.
    dumps: Py<PyAny>,
    is_plain: bool,
    /// Of the jobs of calls that go on.
    listener: Py<PyAny>,
    /// Is called before each call; so that what the host has printed comes first.
    flush: Option<Py<PyAny>>,
    /// In a forked copy of this process it is another one, and the workers are not the copy's.
    generation: u64,
}

#[pymethods]
impl Caller {
    /// `dumps` takes arguments and keyword arguments, where they are not plain, or must not be.
    #[new]
    fn new(
        plan: &Plan,
        captures: Vec<Py<Captures>>,
        surroundings: Py<Surroundings>,
        dumps: Py<PyAny>,
        is_plain: bool,
        listener: Py<PyAny>,
        flush: Option<Py<PyAny>>,
    ) -> Self {
        let warm = Warm::new(plan.policy, Arc::clone(&plan.fleet), Arc::clone(&plan.payload));
        let generation = sys::fork_generation();
        Self { warm, captures, surroundings, dumps, is_plain, listener, flush, generation }
    }

    /// The value; or an outcome whose value has to be unpickled; or a job that goes on. `NotImplemented`
    /// if nothing was begun: there is no such worker, or the function is not what it was.
    fn call(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: &Bound<'_, PyDict>,
    ) -> PyResult<Py<PyAny>> {
        if sys::fork_generation() != self.generation || !self.surroundings.get().is_current(py)? {
            return Ok(py.NotImplemented());
        }
        for captures in &self.captures {
            if !captures.get().is_current(py)? {
                return Ok(py.NotImplemented());
            }
        }
        self.flush(py)?;
        let arguments = self.arguments(args, kwargs)?;
        // To let other threads run costs more than a quick answer, most of all where they are many.
        let attempt = match self.warm.begin(arguments) {
            Begun::Ended(attempt) => attempt,
            Begun::Pending(pending) => detached(py, || self.warm.finish(pending))?,
            Begun::Nothing(arguments) => detached(py, || self.warm.call(arguments))?,
        };
        match attempt {
            Attempt::Returned { body, plain } => match plain.then(|| plain_value(py, &body)) {
                Some(Ok(value)) => Ok(value.unbind()),
                // What is wrong with it, if anything is, is told by whoever unpickles it.
                _ => Ok(Bound::new(py, Outcome::returned(py, 0, body, plain)?)?.into_any().unbind()),
            },
            Attempt::Nobody => Ok(py.NotImplemented()),
            Attempt::Underway(driver) => {
                let (driver, listener) = (Mutex::new(*driver), self.listener.clone_ref(py));
                let job = Job { driver, began: sys::now(), listener };
                Ok(Bound::new(py, job)?.into_any().unbind())
            }
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for captures in &self.captures {
            visit.call(captures)?;
        }
        visit.call(&self.surroundings)?;
        visit.call(&self.listener)?;
        visit.call(&self.flush)?;
        visit.call(&self.dumps)
    }
}

fn plain_call(args: &Bound<'_, PyTuple>, kwargs: &Bound<'_, PyDict>) -> Option<Small> {
    let mut bytes = Small::new();
    let named = Some(kwargs).filter(|kwargs| !kwargs.is_empty());
    plain::encode_call(args, named, &mut bytes).then_some(bytes)
}

impl Caller {
    /// What cannot be written is told whoever prints it; but not what a signal handler raises.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        match self.flush.as_ref().map(|flush| call_out(|| flush.bind(py).call0())) {
            Some(Err(error)) if !error.is_instance_of::<PyException>(py) => Err(error),
            _ => Ok(()),
        }
    }

    fn arguments(&self, args: &Bound<'_, PyTuple>, kwargs: &Bound<'_, PyDict>) -> PyResult<Batch> {
        if self.is_plain
            && let Some(bytes) = plain_call(args, kwargs)
        {
            return Ok(Batch::one(bytes, true));
        }
        packed(&call_out(|| self.dumps.bind(args.py()).call1((args, kwargs)))?)
    }
}

impl Outcome {
    fn returned(py: Python<'_>, task: u64, body: Body, plain: bool) -> PyResult<Self> {
        Ok(Self {
            task,
            ending: "returned",
            body: Some(content(py, body)?.unbind()),
            plain,
            partial: None,
            partial_plain: false,
            pid: None,
            exitcode: None,
            over_memory: None,
            stack: None,
            corrupt: None,
            elapsed: 0.0,
            started: None,
            attempts: 1,
        })
    }
}

#[pymethods]
impl Job {
    /// A job without tasks, for so many workers. Its budget is in seconds from now on. The answers of a
    /// `bulk` are wanted together. `listener` is called with what workers say beside their work, a list of
    /// pairs: 1 for standard output, 2 for standard error or 0 for a log record; and bytes.
    #[new]
    fn new(
        plan: &Plan,
        workers: usize,
        budget: Option<f64>,
        bulk: bool,
        listener: Py<PyAny>,
    ) -> PyResult<Self> {
        let began = sys::now();
        let budget = budget.map(seconds).transpose()?.map(|budget| began + budget);
        let policy = Policy { workers, budget, ..plan.policy };
        let ring = if bulk { Ring::WhenItPays } else { Ring::AtOnce };
        let driver = Driver::new(policy, Arc::clone(&plan.fleet), Arc::clone(&plan.payload), ring);
        Ok(Self { driver: Mutex::new(driver), began, listener })
    }

    /// Adds a task; its arguments are bytes or a parcel.
    fn submit(&self, task: u64, arguments: &Bound<'_, PyAny>) -> PyResult<()> {
        self.driver()?.submit(task, packed(arguments)?);
        Ok(())
    }

    /// Adds a task whose arguments are plain; false if they are not.
    fn submit_call(
        &self,
        task: u64,
        args: &Bound<'_, PyTuple>,
        kwargs: &Bound<'_, PyDict>,
    ) -> PyResult<bool> {
        let Some(bytes) = plain_call(args, kwargs) else { return Ok(false) };
        self.driver()?.submit(task, Batch::one(bytes, true));
        Ok(true)
    }

    /// Adds those of `items` from `start` on that are plain, numbered by their places, until one is
    /// not or there are `most`; returns the place after the last one.
    fn submit_items(&self, items: &Bound<'_, PyList>, start: usize, most: usize) -> PyResult<usize> {
        let end = items.len().min(start.saturating_add(most));
        let (mut bytes, mut ends) = (Small::new(), Vec::with_capacity(end.saturating_sub(start)));
        for place in start..end {
            if !plain::encode_item(&items.get_item(place)?, &mut bytes) {
                break;
            }
            ends.push(bytes.len());
        }
        bytes.truncate(ends.last().copied().unwrap_or(0));
        let next = start + ends.len();
        if next > start {
            self.driver()?.submit(start as u64, Batch::many(bytes, ends));
        }
        Ok(next)
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
        wait(py, driver, &self.listener)?;
        driver.take_done().map(|outcome| to_python(py, outcome, self.began)).collect()
    }

    /// The same; plain values go right to their places in `values`. Returns how many did, and the other
    /// outcomes.
    fn wait_into(&self, py: Python<'_>, values: &Bound<'_, PyList>) -> PyResult<(usize, Vec<Outcome>)> {
        let mut guard = self.driver()?;
        let driver: &mut Driver = &mut guard;
        wait(py, driver, &self.listener)?;
        let (mut placed, mut others) = (0, Vec::new());
        let bulk = driver.values();
        let mut start = 0;
        for (task, _, end) in bulk.items.drain(..) {
            let bytes = &bulk.bytes[start..end];
            start = end;
            if let (Ok(value), Ok(place)) = (plain::decode(py, bytes), usize::try_from(task)) {
                values.set_item(place, value)?;
                placed += 1;
            } else {
                others.push(Outcome::returned(py, task, Body::Inline(bytes.into()), true)?);
            }
        }
        bulk.bytes.clear();
        for outcome in driver.take_done() {
            if let (true, Some(body)) = (outcome.plain, &outcome.body)
                && let Ok(place) = usize::try_from(outcome.task)
                && let Ok(value) = plain_value(py, body)
            {
                values.set_item(place, value)?;
                placed += 1;
            } else {
                others.push(to_python(py, outcome, self.began)?);
            }
        }
        Ok((placed, others))
    }

    /// What has ended since the last time, without waiting.
    fn take(&self, py: Python<'_>) -> PyResult<Vec<Outcome>> {
        let mut guard = self.driver()?;
        let driver: &mut Driver = &mut guard;
        let bulk = driver.values();
        let mut outcomes = Vec::with_capacity(bulk.items.len());
        let mut start = 0;
        for (task, _, end) in bulk.items.drain(..) {
            let body = Body::Inline(bulk.bytes[start..end].into());
            outcomes.push(Outcome::returned(py, task, body, true)?);
            start = end;
        }
        bulk.bytes.clear();
        for outcome in driver.take_done() {
            outcomes.push(to_python(py, outcome, self.began)?);
        }
        Ok(outcomes)
    }

    /// Ends what is unfinished, with its grace period if `gently`. Does not wait until it is dead.
    fn cancel(&self, py: Python<'_>, gently: bool) -> PyResult<()> {
        let mut guard = self.driver()?;
        let driver: &mut Driver = &mut guard;
        detached(py, || driver.cancel_all(gently))
    }

    /// How many workers the system allows, if those are fewer than were asked for.
    fn reduced_to(&self) -> PyResult<Option<usize>> {
        Ok(self.driver()?.reduced_to())
    }

    /// Tasks that wait for a worker.
    fn queued(&self) -> PyResult<usize> {
        Ok(self.driver()?.queued())
    }

    /// Tasks with large arguments that have not ended.
    fn large(&self) -> PyResult<usize> {
        Ok(self.driver()?.large())
    }

    /// Ends the job: kills what still runs, waits until it is dead, and keeps idle workers.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let mut guard = self.driver()?;
        let driver: &mut Driver = &mut guard;
        detached(py, || driver.close())??;
        hand_up(py, driver, &self.listener)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.listener)
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

/// Ends a wait from another thread.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct Waker {
    reader: OwnedFd,
    writer: OwnedFd,
}

#[pymethods]
impl Waker {
    #[new]
    fn new() -> PyResult<Self> {
        let (reader, writer) = sys::pipe()?;
        Ok(Self { reader, writer })
    }

    /// Ends the wait that goes on, or the next one.
    fn wake(&self) -> PyResult<()> {
        match sys::send_all(self.writer.as_fd(), b"w") {
            // As many as fit have been said already.
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Waits until something has ended or was said in any of these jobs, the waker is told to, or so many seconds have passed.
/// Returns the places of those jobs from which something can be taken.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "that is how Python's lists come")]
pub fn wait_any(py: Python<'_>, jobs: Vec<Py<Job>>, waker: &Waker, limit: f64) -> PyResult<Vec<usize>> {
    let limit = seconds(limit)?;
    let mut guards = jobs.iter().map(|job| job.get().driver()).collect::<PyResult<Vec<_>>>()?;
    let mut drivers: Vec<&mut Driver> = guards.iter_mut().map(|guard| &mut **guard).collect();
    detached(py, || supervisor::wait_any(&mut drivers, waker.reader.as_fd(), limit))??;
    for (job, driver) in jobs.iter().zip(&mut drivers) {
        if let Err(error) = hand_up(py, driver, &job.get().listener) {
            // The others have nothing to do with it, nor has the call.
            error.write_unraisable(py, Some(job.get().listener.bind(py)));
        }
    }
    let mut bytes = [0; 64];
    while sys::read_pipe(waker.reader.as_fd(), &mut bytes)?.is_some_and(|read| read > 0) {}
    Ok((0..drivers.len()).filter(|&at| drivers[at].has_done()).collect())
}
