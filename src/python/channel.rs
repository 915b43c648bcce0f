//! The worker's channel, and the short way through a worker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use pyo3::exceptions::{PyConnectionError, PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::asides::{Asides, Printer};
use super::calls::Arguments;
use super::parcel::{Arrived, Parcel};
use super::plain;
use super::processes::take_fd;
use super::watches::Surroundings;
use crate::supervisor::{Functions, SETUP};
use crate::sys;
use crate::sys::fault::{Step, reach};
use crate::time::Moment;
use crate::transport::plain::skip;
use crate::transport::{
    Body, INLINE_MAX, Received, ReplyKind, Request, Slept, Small, WorkerChannel, pool, running,
};

/// The worker's end of the channel to its host.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct Channel {
    inner: Arc<Mutex<WorkerChannel>>,
    /// What this process says beside its work.
    asides: Arc<Asides>,
    /// Functions that can be called with nothing before and after but what `serve` does.
    functions: Mutex<HashMap<u64, Py<PyAny>>>,
    /// All functions that have come.
    arrived: Mutex<Functions>,
    /// Whether they can be called so now.
    is_direct: AtomicBool,
    /// The surroundings that each call finds.
    surroundings: Mutex<Option<Py<Surroundings>>>,
    /// In a forked child of this process it is another one.
    generation: u64,
}

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
        let inner = Arc::new(Mutex::new(inner));
        Ok(Self {
            asides: Arc::new(Asides::over(Arc::clone(&inner))),
            inner,
            functions: Mutex::default(),
            arrived: Mutex::default(),
            is_direct: AtomicBool::new(true),
            surroundings: Mutex::default(),
            generation: sys::fork_generation(),
        })
    }

    /// Prepares for stack dumps; returns the signal, and the descriptor to dump to.
    fn prepare_dump(&self) -> PyResult<(i32, i32)> {
        Ok((crate::sys::DUMP_SIGNAL, self.inner()?.prepare_dump()?))
    }

    /// From now on `serve` calls this function itself where the arguments are plain.
    fn know(&self, number: u64, function: Py<PyAny>) {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner).insert(number, function);
    }

    /// It does not have it any more.
    fn forget(&self, number: u64) {
        let known = self.functions.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        drop(known);
    }

    /// A function has come, in so many bytes or as a large one; returns those that have to go for it.
    fn arrives(&self, number: u64, bytes: Option<usize>) -> Vec<u64> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).insert(number, bytes)
    }

    /// Whether `serve` may do so.
    fn set_direct(&self, is_direct: bool) {
        self.is_direct.store(is_direct, Ordering::Relaxed);
    }

    /// What each call is to find; `serve` has its handler restore it.
    fn set_surroundings(&self, surroundings: Py<Surroundings>) {
        let mut slot = self.surroundings.lock().unwrap_or_else(PoisonError::into_inner);
        let before = slot.replace(surroundings);
        drop(slot);
        drop(before);
    }

    /// Serves requests until the host is gone, none came for as many seconds as the handler's
    /// `idle_limit()` says, or the handler wants to leave.
    ///
    /// Calls with plain arguments of functions that it knows are made here. For the rest the handler
    /// has methods: `answer(task, number, context, function, arguments, plain)` does all of it and says
    /// whether to go on, and so do `dump(task, number, value)` and `raised(task, number, error)` with what
    /// a function came to here; `leave_if_stray()`, `flush()` and `restore()`.
    fn serve(&self, handler: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = handler.py();
        let module = py.import("sys")?;
        let buffer = Small::new();
        let names = module.dict();
        let mut desk = Desk {
            handler,
            sys: module,
            names,
            buffer,
            is_tidy: true,
            has_rehearsed: false,
            last: None,
            several: None,
            has_next: false,
            path: None,
        };
        loop {
            let received =
                if std::mem::take(&mut desk.has_next) { Some(Received::Next) } else { self.take()? };
            if let Some(received) = received {
                let goes_on = match received {
                    Received::Request(request) if request.count > 1 => {
                        desk.several = Some(Several { request, next: 0, position: 0 });
                        self.call_next(&mut desk)?
                    }
                    Received::Request(request) => self.answer(&mut desk, request)?,
                    Received::Next => self.call_next(&mut desk)?,
                };
                if !goes_on {
                    return Ok(());
                }
            } else if !self.spin(py)? {
                if !desk.has_rehearsed && self.inner()?.served() == 0 {
                    desk.has_rehearsed = true;
                    handler.call_method0(intern!(py, "rehearse"))?;
                    continue;
                }
                if !desk.is_tidy {
                    desk.is_tidy = true;
                    desk.flush()?;
                    self.look_around(&mut desk)?;
                }
                if !self.sleep(handler)? {
                    return Ok(());
                }
            }
        }
    }

    /// Sends a response; false if the host is gone. If this process has served as many calls as it may,
    /// `most`, it ends with that, so that none of its other threads goes on.
    ///
    /// The body is bytes, or for a value a parcel.
    #[pyo3(signature = (kind, task, body, most = None))]
    fn send(
        &self,
        py: Python<'_>,
        kind: &str,
        task: u64,
        body: &Bound<'_, PyAny>,
        most: Option<u32>,
    ) -> PyResult<bool> {
        let kind = match kind {
            "ready" => ReplyKind::Ready,
            "setup failed" => ReplyKind::SetupFailed,
            "returned" => ReplyKind::Returned,
            "returned plain" => ReplyKind::ReturnedPlain,
            "raised" => ReplyKind::Raised,
            "raised retryable" => ReplyKind::RaisedRetryable,
            other => return Err(PyValueError::new_err(format!("unknown kind of response: {other:?}"))),
        };
        reach(if kind == ReplyKind::Ready { Step::WorkerSetUp } else { Step::WorkerRan });
        self.end_call(py);
        let is_last = most.is_some_and(|most| self.inner().is_ok_and(|inner| inner.served() >= most));
        if is_last {
            self.inner()?.hang_up_with_next();
        }
        let sent = if let Ok(parcel) = body.cast::<Parcel>() {
            let parcel = &parcel.get().0;
            let mut guard = self.inner()?;
            let inner: &mut WorkerChannel = &mut guard;
            py.detach(|| inner.send_parcel(kind, task, parcel))?
        } else {
            self.respond(py, kind, task, body.cast::<PyBytes>()?.as_bytes(), sys::now())?
        };
        if is_last {
            sys::exit_now(0);
        }
        Ok(sent)
    }

    /// Tells the host what the call that runs has so far; any thread may do so. Nothing is done where none
    /// runs, and in a process that this one has forked.
    ///
    /// What is not plain, or all if it `must_dump`, becomes bytes or a parcel by `dumps`.
    fn publish(&self, value: &Bound<'_, PyAny>, dumps: &Bound<'_, PyAny>, must_dump: bool) -> PyResult<()> {
        let py = value.py();
        let Some(task) = self.task() else { return Ok(()) };
        let mut buffer = Small::new();
        if !must_dump && plain::encode(value, &mut buffer) {
            return self.tell(py, ReplyKind::PublishedPlain, task, &buffer);
        }
        let dumped = dumps.call1((value,))?;
        if let Ok(parcel) = dumped.cast::<Parcel>() {
            if self.task() == Some(task) {
                let parcel = &parcel.get().0;
                py.detach(|| {
                    running::during(task, || self.lock().send_parcel(ReplyKind::Published, task, parcel))
                })
                .transpose()?;
            }
            return Ok(());
        }
        self.tell(py, ReplyKind::Published, task, dumped.cast::<PyBytes>()?.as_bytes())
    }

    /// A stream of bytes for the host's standard output, or for standard error if the descriptor is 2.
    fn printer(&self, fd: i32) -> Printer {
        Printer::new(Arc::clone(&self.asides), fd)
    }

    /// Sends a log record to the host.
    fn log(&self, py: Python<'_>, record: &[u8]) -> PyResult<()> {
        self.asides.say(py, ReplyKind::Logged, record)?;
        self.asides.announce(py)
    }

    /// Tells the host more of what the call that runs has so far: it keeps all of it, one after the other.
    fn append(&self, py: Python<'_>, more: &[u8]) -> PyResult<()> {
        if more.len() > INLINE_MAX {
            let message = format!("at most {INLINE_MAX} bytes go at once, not {}", more.len());
            return Err(PyValueError::new_err(message));
        }
        let Some(task) = self.task() else { return Ok(()) };
        self.tell(py, ReplyKind::Appended, task, more)
    }
}

/// Seconds to the nearest deadline of the call that this process runs; none if it runs none, or that has none.
#[pyfunction]
pub fn time_left() -> Option<f64> {
    running::deadline().map(|deadline| deadline.since(sys::now()).as_secs_f64())
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, WorkerChannel> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task that runs, if anything may be said of it here.
    fn task(&self) -> Option<u64> {
        running::task().filter(|_| sys::fork_generation() == self.generation)
    }

    /// Sends something of a task, unless it has ended.
    fn tell(&self, py: Python<'_>, kind: ReplyKind, task: u64, body: &[u8]) -> PyResult<()> {
        // It may have forked while it was pickled.
        if self.task() != Some(task) {
            return Ok(());
        }
        // To let other threads run costs more than this does, where nothing has to be waited for.
        let at_once = running::during(task, || {
            let mut inner = match self.inner.try_lock() {
                Ok(inner) => inner,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return None,
            };
            inner.has_room(body.len()).then(|| inner.send(kind, task, body, sys::now()))
        });
        let sent = match at_once {
            Some(None) => {
                py.detach(|| running::during(task, || self.lock().send(kind, task, body, sys::now())))
            }
            at_once => at_once.flatten(),
        };
        // Whether the host is gone, the answer will tell.
        sent.transpose()?;
        Ok(())
    }

    /// The function has ended: no thread of it says anything more.
    fn end_call(&self, py: Python<'_>) {
        // Whether the host is gone, the answer will tell.
        let _ = self.asides.finish(py);
        if !running::end() {
            py.detach(|| {
                while !running::end() {
                    drop(self.lock());
                    std::thread::yield_now();
                }
            });
        }
    }

    /// The next call, if there is one.
    fn take(&self) -> PyResult<Option<Received>> {
        let received = self.inner()?.try_receive().map_err(|e| PyConnectionError::new_err(e.to_string()))?;
        match &received {
            Some(Received::Request(request)) if request.task == SETUP => reach(Step::WorkerSetupClaimed),
            Some(_) => reach(Step::WorkerClaimed),
            None => {}
        }
        Ok(received)
    }

    /// Looks for a request for a moment; whether there is one.
    fn spin(&self, py: Python<'_>) -> PyResult<bool> {
        let mut guard = self.inner()?;
        let inner: &mut WorkerChannel = &mut guard;
        Ok(py.detach(|| inner.spin())?)
    }

    /// Waits for a request; false when the host is gone or none came for as long as the handler says.
    fn sleep(&self, handler: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = handler.py();
        let idle: f64 = handler.call_method0(intern!(py, "idle_limit"))?.extract()?;
        let limit = Duration::try_from_secs_f64(idle).map_err(|e| PyValueError::new_err(e.to_string()))?;
        let mut guard = self.inner()?;
        let inner: &mut WorkerChannel = &mut guard;
        let short = if pool::is_empty() { limit } else { limit.min(KEEP) };
        match py.detach(|| inner.sleep(short))? {
            Slept::Rung => {}
            Slept::Timeout if pool::clear() => {}
            Slept::Interrupted => {
                drop(guard);
                py.check_signals()?;
            }
            Slept::Ended => return Ok(false),
            Slept::Timeout => return Ok(!inner.retire()),
        }
        Ok(true)
    }

    /// Sends without giving up the interpreter where nothing has to be waited for.
    fn respond(
        &self,
        py: Python<'_>,
        kind: ReplyKind,
        task: u64,
        body: &[u8],
        finished: Moment,
    ) -> PyResult<bool> {
        let mut guard = self.inner()?;
        let inner: &mut WorkerChannel = &mut guard;
        if inner.has_room(body.len()) {
            return Ok(inner.send(kind, task, body, finished)?);
        }
        Ok(py.detach(|| inner.send(kind, task, body, finished))?)
    }

    /// Sends a plain value, and takes the next call of the same request in the same breath.
    fn respond_and_take(&self, desk: &mut Desk<'_, '_>, task: u64, finished: Moment) -> PyResult<bool> {
        let (kind, body) = (ReplyKind::ReturnedPlain, &desk.buffer);
        let mut inner = self.inner()?;
        if !inner.has_room(body.len()) {
            drop(inner);
            return self.respond(desk.sys.py(), kind, task, body, finished);
        }
        let goes_on = inner.send(kind, task, body, finished)?;
        desk.has_next = goes_on
            && desk.several.is_some()
            && inner.try_next().map_err(|e| PyConnectionError::new_err(e.to_string()))?;
        if desk.has_next {
            reach(Step::WorkerClaimed);
        }
        Ok(goes_on)
    }

    /// The function, if calls of it can be made right here.
    fn direct<'py>(&self, desk: &mut Desk<'_, 'py>, number: u64) -> Option<Bound<'py, PyAny>> {
        if !self.is_direct.load(Ordering::Relaxed) {
            return None;
        }
        if desk.last.as_ref().is_none_or(|(other, _)| *other != number) {
            let py = desk.sys.py();
            let functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
            let found = functions.get(&number).map(|function| function.bind(py).clone());
            desk.last = found.map(|function| (number, function));
        }
        desk.last.as_ref().map(|(_, function)| function.clone())
    }

    /// Answers a request for one call; whether to go on.
    fn answer(&self, desk: &mut Desk<'_, '_>, request: Request) -> PyResult<bool> {
        let [context, function, _] = request.sections;
        if request.plain
            && context + function == 0
            && let Some(function) = self.direct(desk, request.function)
        {
            let arguments = arguments(desk.sys.py(), &request);
            return self.call(desk, request.task, request.function, &function, arguments);
        }
        // It may replace what this function is.
        desk.last = None;
        running::begin(request.task, sys::now());
        hand_over(desk.handler, request)
    }

    /// Makes the next call of a request for several; whether to go on.
    fn call_next(&self, desk: &mut Desk<'_, '_>) -> PyResult<bool> {
        let py = desk.sys.py();
        let gone = || PyConnectionError::new_err("a call of a request that is not there");
        let number = desk.several.as_ref().ok_or_else(gone)?.request.function;
        let function = self.direct(desk, number);
        let several = desk.several.as_mut().ok_or_else(gone)?;
        // Only what fits the ring goes together.
        let (start, bytes) = (several.position, &several.request.inline);
        let mut rest = bytes.get(start..).ok_or_else(gone)?;
        let arguments = match &function {
            Some(_) => Some(plain::decode_args(py, &mut rest)),
            None => skip(&mut rest).map(|()| None).map_err(|e| PyConnectionError::new_err(e.to_string()))?,
        };
        several.position = bytes.len() - rest.len();
        let task = several.request.task + several.next;
        several.next += 1;
        let dumped = function.is_none().then(|| PyBytes::new(py, &bytes[start..several.position]));
        if several.next == several.request.count {
            desk.several = None;
        }
        if let (Some(function), Some(arguments)) = (function, arguments) {
            return self.call(desk, task, number, &function, arguments);
        }
        let parts = (task, number, py.None(), py.None(), dumped, true);
        running::begin(task, sys::now());
        desk.handler.call_method1(intern!(py, "answer"), parts)?.extract()
    }

    /// Calls the function and answers; whether to go on.
    fn call<'py>(
        &self,
        desk: &mut Desk<'_, 'py>,
        task: u64,
        number: u64,
        function: &Bound<'py, PyAny>,
        arguments: PyResult<Arguments<'py>>,
    ) -> PyResult<bool> {
        let (py, handler) = (function.py(), desk.handler);
        let started = sys::now();
        running::begin(task, started);
        let called = arguments.and_then(|arguments| arguments.call(function));
        if sys::fork_generation() != self.generation {
            handler.call_method0(intern!(py, "leave_if_stray"))?;
        }
        self.end_call(py);
        desk.buffer.clear();
        let plain = called.as_ref().is_ok_and(|value| plain::encode(value, &mut desk.buffer));
        let mut finished = sys::now();
        let was_quick = finished.since(started) < QUICK;
        // A list is changed in no time.
        let was_quick = was_quick && desk.has_same_path();
        desk.is_tidy &= !was_quick;
        let goes_on = match called {
            Ok(_) if plain && was_quick => {
                reach(Step::WorkerRan);
                self.respond_and_take(desk, task, finished)?
            }
            Ok(_) if plain => {
                desk.flush()?;
                finished = sys::now();
                reach(Step::WorkerRan);
                self.respond(py, ReplyKind::ReturnedPlain, task, &desk.buffer, finished)?
            }
            Ok(value) => handler.call_method1(intern!(py, "dump"), (task, number, value))?.extract()?,
            Err(error) => {
                let error = error.into_value(py);
                handler.call_method1(intern!(py, "raised"), (task, number, error))?.extract()?
            }
        };
        if !was_quick {
            // After the answer: nobody waits for this.
            self.look_around(desk)?;
        }
        Ok(goes_on)
    }

    /// Has the handler put back what calls have changed.
    fn look_around(&self, desk: &mut Desk<'_, '_>) -> PyResult<()> {
        let py = desk.sys.py();
        let slot = self.surroundings.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = slot.as_ref().map(|expected| expected.clone_ref(py));
        drop(slot);
        if let Some(expected) = expected
            && !expected.get().is_current(py)?
        {
            desk.handler.call_method0(intern!(py, "restore"))?;
        }
        desk.remember_path();
        Ok(())
    }
}

/// A call that took less has neither left this directory nor set a variable, for which Python alone
/// takes longer. Looking takes longer than such a call, too: that can wait until there is nothing
/// else to do. What it has printed goes out then as well.
const QUICK: Duration = Duration::from_nanos(250);

/// How long an idle worker keeps files that it might use again.
const KEEP: Duration = Duration::from_secs(2);

/// A request for several calls, and how far it has come.
struct Several {
    request: Request,
    /// How many calls were made.
    next: u64,
    /// Where the arguments of the next one are.
    position: usize,
}

/// What `serve` has at hand.
struct Desk<'a, 'py> {
    handler: &'a Bound<'py, PyAny>,
    sys: Bound<'py, PyModule>,
    /// What is in that module.
    names: Bound<'py, PyDict>,
    buffer: Small,
    /// The function that was called last.
    last: Option<(u64, Bound<'py, PyAny>)>,
    /// What is left of a request for several calls.
    several: Option<Several>,
    /// Whether the next one of them was taken already.
    has_next: bool,
    /// What `sys.path` is, and how long, when nothing has been changed.
    path: Option<(Bound<'py, PyAny>, usize)>,
    /// Whether all output is flushed, and the surroundings were looked at.
    is_tidy: bool,
    /// Whether this worker has found the time to prepare for its first call.
    has_rehearsed: bool,
}

impl Desk<'_, '_> {
    /// Whether `sys.path` is as long as it was, at a glance.
    fn has_same_path(&self) -> bool {
        let now = self.names.get_item(intern!(self.sys.py(), "path"));
        match (now, &self.path) {
            (Ok(Some(now)), Some((path, len))) => now.is(path) && now.len().is_ok_and(|now| now == *len),
            _ => false,
        }
    }

    /// All is as it should be.
    fn remember_path(&mut self) {
        let path = self.sys.getattr(intern!(self.sys.py(), "path")).ok();
        self.path = path.and_then(|path| path.len().ok().map(|len| (path, len)));
    }

    /// What was printed is seen before the answer.
    fn flush(&self) -> PyResult<()> {
        let py = self.sys.py();
        let flushed = [intern!(py, "stdout"), intern!(py, "stderr")].into_iter().all(|name| {
            self.sys
                .getattr(name)
                .is_ok_and(|stream| stream.is_none() || stream.call_method0(intern!(py, "flush")).is_ok())
        });
        if !flushed {
            // There is something unusual about it, and a long way to get along with that.
            self.handler.call_method0(intern!(py, "flush"))?;
        }
        Ok(())
    }
}

fn arguments<'py>(py: Python<'py>, request: &Request) -> PyResult<Arguments<'py>> {
    // There is nothing else in such a request.
    match request.files.first() {
        None => plain::decode_arguments(py, &request.inline),
        Some((_, body)) => {
            let bytes = PyBytes::new_with(py, body.len(), |into| Ok(body.read(0, into)?))?;
            plain::decode_arguments(py, bytes.as_bytes())
        }
    }
}

/// Has the handler do all of it.
fn hand_over(handler: &Bound<'_, PyAny>, request: Request) -> PyResult<bool> {
    let py = handler.py();
    let (mut inline, mut files) = (&request.inline[..], request.files);
    // `None` where empty, or where there is no memory for it. Arguments are never empty.
    let mut section = |at: usize| -> PyResult<Option<Bound<'_, PyAny>>> {
        let file = files.iter().position(|(place, _)| *place == at).map(|found| files.remove(found).1);
        let len = request.sections[at];
        let bytes = match file {
            Some(Body::Parcel(parcel)) => return Ok(Some(Bound::new(py, Arrived::new(parcel))?.into_any())),
            Some(file) => PyBytes::new_with(py, len, |into| Ok(file.read(0, into)?)),
            None => {
                let (section, rest) = inline.split_at(len.min(inline.len()));
                inline = rest;
                PyBytes::new_with(py, section.len(), |into| {
                    into.copy_from_slice(section);
                    Ok(())
                })
            }
        };
        match bytes {
            Err(error) if error.is_instance_of::<PyMemoryError>(py) => Ok(None),
            bytes => Ok(Some(bytes?.into_any())),
        }
    };
    let context = if request.sections[0] > 0 { section(0)? } else { None };
    let function = if request.sections[1] > 0 { section(1)? } else { None };
    let arguments = section(2)?;
    let parts = (request.task, request.function, context, function, arguments, request.plain);
    handler.call_method1(intern!(py, "answer"), parts)?.extract()
}
