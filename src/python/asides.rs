//! What a worker says beside its work: what it prints, and its log records.
//!
//! All of it goes the way of its answers, so that nothing overtakes anything, and a thread may say it at
//! any moment. What finds no room, or is said while the host does not listen, waits in a backlog.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use pyo3::exceptions::PyOSError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::sys;
use crate::transport::{INLINE_MAX, Reply, ReplyKind, WorkerChannel, running};

/// How much waits for its turn at most: who says more waits itself, or, if nobody listens, what is oldest
/// is dropped.
const BACKLOG_MAX: usize = 1 << 16;

#[derive(Debug, Default)]
struct Backlog {
    pieces: VecDeque<(ReplyKind, Vec<u8>)>,
    bytes: usize,
}

impl Backlog {
    fn push(&mut self, kind: ReplyKind, piece: &[u8]) {
        self.bytes += piece.len();
        self.pieces.push_back((kind, piece.to_vec()));
    }

    fn pop(&mut self) -> Option<(ReplyKind, Vec<u8>)> {
        let found = self.pieces.pop_front()?;
        self.bytes -= found.1.len();
        Some(found)
    }

    /// Drops what is oldest until the rest is not too much.
    fn trim(&mut self) {
        while self.bytes > BACKLOG_MAX && self.pop().is_some() {}
    }
}

/// The way of all that to the host.
#[derive(Debug)]
pub struct Asides {
    channel: Arc<Mutex<WorkerChannel>>,
    backlog: Mutex<Backlog>,
    /// Whether there is something in it, at a glance.
    has_backlog: AtomicBool,
    /// Whether the host keeps what was said last until the line is whole.
    is_open: AtomicBool,
    /// In a forked child of this process it is another one.
    generation: u64,
}

impl Asides {
    /// Over the channel of this process.
    pub fn over(channel: Arc<Mutex<WorkerChannel>>) -> Self {
        Self {
            channel,
            backlog: Mutex::default(),
            has_backlog: AtomicBool::new(false),
            is_open: AtomicBool::new(false),
            generation: sys::fork_generation(),
        }
    }

    /// Whether this is another process, which must leave the channel alone.
    fn is_stray(&self) -> bool {
        sys::fork_generation() != self.generation
    }

    /// Says something. The host need not be told at once; it finds it when it looks.
    ///
    /// Holds the interpreter where nothing has to be waited for: so the parts of a line stay together.
    pub fn say(&self, py: Python<'_>, kind: ReplyKind, bytes: &[u8]) -> PyResult<()> {
        if self.is_stray() {
            return Ok(());
        }
        for piece in pieces(kind, bytes) {
            self.say_piece(py, kind, piece)?;
        }
        if let Some(last) = bytes.last() {
            self.is_open.store(kind != ReplyKind::Logged && *last != b'\n', Ordering::Relaxed);
        }
        Ok(())
    }

    fn say_piece(&self, py: Python<'_>, kind: ReplyKind, piece: &[u8]) -> PyResult<()> {
        if self.say_at_once(kind, piece)? {
            return Ok(());
        }
        let mut backlog = self.backlog();
        backlog.push(kind, piece);
        let is_much = backlog.bytes > BACKLOG_MAX;
        self.has_backlog.store(true, Ordering::Relaxed);
        drop(backlog);
        if is_much { self.catch_up(py) } else { Ok(()) }
    }

    /// Has the host look at what was said, after the backlog. Waits for room if it has to.
    pub fn announce(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_stray() {
            return Ok(());
        }
        if self.is_open.swap(false, Ordering::Relaxed) {
            self.say_piece(py, ReplyKind::Printed, &[])?;
        }
        self.finish(py)?;
        if let Some(task) = running::task_or_setup() {
            running::during(task, || match self.channel.try_lock() {
                Ok(mut channel) => channel.announce(),
                // Who is at it has the host look, if it waits for that.
                Err(_) => Ok(()),
            })
            .transpose()?;
        }
        Ok(())
    }

    /// Says what is left in the backlog.
    pub fn finish(&self, py: Python<'_>) -> PyResult<()> {
        if self.has_backlog.load(Ordering::Relaxed) && !self.is_stray() { self.catch_up(py) } else { Ok(()) }
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was no need to wait.
    fn say_at_once(&self, kind: ReplyKind, piece: &[u8]) -> PyResult<bool> {
        let Some(task) = running::task_or_setup().filter(|_| !self.has_backlog.load(Ordering::Relaxed))
        else {
            return Ok(false);
        };
        let said = running::during(task, || {
            let mut channel = match self.channel.try_lock() {
                Ok(channel) => channel,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return Ok(false),
            };
            if !channel.has_room(piece.len()) {
                return Ok(false);
            }
            // Whether the host is gone, the answer will tell.
            channel.send(kind, task, piece, sys::now()).map(|_| true)
        });
        Ok(said.transpose()?.unwrap_or(false))
    }

    /// Says what is in the backlog, and waits for room; but not where nobody may be listening: then it is
    /// kept for the next call, as far as it is not too much.
    fn catch_up(&self, py: Python<'_>) -> PyResult<()> {
        let Some(task) = running::task_or_setup() else {
            self.backlog().trim();
            return Ok(());
        };
        let waits = running::task().is_some();
        py.detach(|| running::during(task, || self.empty(task, waits))).transpose()?;
        Ok(())
    }

    fn empty(&self, task: u64, waits: bool) -> std::io::Result<()> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        // Others may add to it for as long as the task runs.
        while running::task_or_setup() == Some(task) {
            let mut backlog = self.backlog();
            let fits =
                backlog.pieces.front().is_some_and(|(_, piece)| waits || channel.has_room(piece.len()));
            if !fits {
                backlog.trim();
                self.has_backlog.store(!backlog.pieces.is_empty(), Ordering::Relaxed);
                break;
            }
            let piece = backlog.pop();
            drop(backlog);
            if let Some((kind, piece)) = piece {
                channel.send(kind, task, &piece, sys::now())?;
            }
        }
        Ok(())
    }
}

/// Text goes in pieces that fit a ring, each of them whole characters if the text is.
fn pieces(kind: ReplyKind, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let most = if kind == ReplyKind::Logged { usize::MAX } else { INLINE_MAX };
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let mut len = rest.len().min(most);
        if len < rest.len() {
            let is_inside = |at: usize| rest[at] & 0xc0 == 0x80;
            len = (len - 3..=len).rev().find(|&at| !is_inside(at)).unwrap_or(len);
        }
        let (piece, after) = rest.split_at(len);
        rest = after;
        Some(piece).filter(|piece| !piece.is_empty())
    })
}

/// What `sys.stdout` and `sys.stderr` of a worker write to: a stream of bytes that leads to those of the host.
#[pyclass(frozen, module = "killercall._core")]
#[derive(Debug)]
pub struct Printer {
    asides: Arc<Asides>,
    kind: ReplyKind,
    fd: i32,
}

impl Printer {
    /// For standard output, or for standard error if the descriptor is 2.
    pub fn new(asides: Arc<Asides>, fd: i32) -> Self {
        let kind = if fd == 2 { ReplyKind::PrintedError } else { ReplyKind::Printed };
        Self { asides, kind, fd }
    }

    /// For a child of the worker, which has nobody to say it to.
    fn write_to_descriptor(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        let os = py.import("os")?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let written: usize = os.call_method1(intern!(py, "write"), (self.fd, rest))?.extract()?;
            rest = &rest[written..];
        }
        Ok(())
    }
}

#[pymethods]
impl Printer {
    /// Says these bytes; how many those are.
    fn write(&self, bytes: &Bound<'_, PyAny>) -> PyResult<usize> {
        let py = bytes.py();
        let copied;
        let bytes = if let Ok(bytes) = bytes.cast::<PyBytes>() {
            bytes
        } else {
            let view = py.import("builtins")?.getattr("memoryview")?.call1((bytes,))?;
            copied = view.call_method0("tobytes")?.cast_into::<PyBytes>()?;
            &copied
        };
        let bytes = bytes.as_bytes();
        if self.asides.is_stray() {
            self.write_to_descriptor(py, bytes)?;
        } else {
            self.asides.say(py, self.kind, bytes)?;
        }
        Ok(bytes.len())
    }

    fn writelines(&self, lines: &Bound<'_, PyAny>) -> PyResult<()> {
        lines.try_iter()?.try_for_each(|line| self.write(&line?).map(|_| ()))
    }

    /// Has the host show what was written.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.asides.announce(py)
    }

    /// Does nothing: what the next call prints is to be seen.
    #[expect(clippy::unused_self, reason = "a method for Python")]
    fn close(&self) {}

    /// Where code writes that does not know of this stream.
    fn fileno(&self) -> i32 {
        self.fd
    }

    #[expect(clippy::unused_self, reason = "a method for Python")]
    fn isatty(&self) -> bool {
        false
    }

    #[expect(clippy::unused_self, reason = "a method for Python")]
    fn readable(&self) -> bool {
        false
    }

    #[expect(clippy::unused_self, reason = "a method for Python")]
    fn writable(&self) -> bool {
        true
    }

    #[expect(clippy::unused_self, reason = "a method for Python")]
    fn seekable(&self) -> bool {
        false
    }

    #[getter]
    #[expect(clippy::unused_self, reason = "a property for Python")]
    fn closed(&self) -> bool {
        false
    }

    #[getter]
    fn name(&self) -> &'static str {
        if self.fd == 2 { "<stderr>" } else { "<stdout>" }
    }

    #[getter]
    #[expect(clippy::unused_self, reason = "a property for Python")]
    fn mode(&self) -> &'static str {
        "wb"
    }
}

/// What the host has been told, for Python: which stream, 1 or 2, or 0 for a log record, and the bytes.
pub fn to_python(py: Python<'_>, asides: Vec<Reply>) -> PyResult<Bound<'_, PyList>> {
    let said = PyList::empty(py);
    for aside in asides.into_iter().filter(|aside| !aside.body.is_empty()) {
        let stream = match aside.kind {
            ReplyKind::Printed => 1,
            ReplyKind::PrintedError => 2,
            _ => 0,
        };
        let bytes = PyBytes::new_with(py, aside.body.len(), |into| Ok(aside.body.read(0, into)?));
        said.append((stream, bytes.map_err(|error| PyOSError::new_err(error.to_string()))?))?;
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_comes_in_pieces_of_whole_characters(text in "\\PC{0,9000}") {
            let found: Vec<&[u8]> = pieces(ReplyKind::Printed, text.as_bytes()).collect();
            prop_assert_eq!(text.as_bytes(), found.concat());
            for piece in found {
                prop_assert!(piece.len() <= INLINE_MAX && std::str::from_utf8(piece).is_ok());
            }
        }

        #[test]
        fn bytes_that_are_no_text_come_too(bytes in prop::collection::vec(0x80u8..0xc0, 0..40_000)) {
            prop_assert_eq!(bytes.clone(), pieces(ReplyKind::PrintedError, &bytes).collect::<Vec<_>>().concat());
        }
    }

    #[test]
    fn what_is_oldest_is_dropped() {
        let mut backlog = Backlog::default();
        for piece in 0..9u8 {
            backlog.push(ReplyKind::Printed, &vec![piece; BACKLOG_MAX / 4]);
            backlog.trim();
        }
        let kept: Vec<u8> = std::iter::from_fn(|| backlog.pop()).map(|(_, piece)| piece[0]).collect();
        assert_eq!((kept, 0), (vec![5, 6, 7, 8], backlog.bytes));
    }
}
