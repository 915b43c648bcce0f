//! The call that this process runs, if it is a worker: whether what a thread publishes still belongs to it,
//! and how long it has.
//!
//! There is one worker a process, so this is there once. A thread that the function has started may ask at
//! any moment, also when the call has ended and the next one runs.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::layout::{ENCLOSING, HANDED_AT, TIMEOUT};
use crate::sys::{LastingSegment, Segment};
use crate::time::Moment;

/// Nothing runs. No task has this number.
const NONE: u64 = u64::MAX - 1;
/// The setup runs, which is no call.
const SETUP: u64 = u64::MAX;

struct Running {
    segment: LastingSegment,
    task: AtomicU64,
    /// When the worker began it.
    started: AtomicU64,
    /// When the answer before it was complete.
    answered: AtomicU64,
    /// How many threads may be sending something for it.
    publishing: AtomicU32,
}

static RUNNING: Running = Running {
    segment: LastingSegment::unset(),
    task: AtomicU64::new(NONE),
    started: AtomicU64::new(0),
    answered: AtomicU64::new(0),
    publishing: AtomicU32::new(0),
};

/// This process is a worker from now on. It may be a copy of another one, which was in the middle of a call.
pub fn open(segment: &'static Segment) {
    RUNNING.segment.set(segment);
    RUNNING.task.store(NONE, Ordering::SeqCst);
    RUNNING.answered.store(0, Ordering::Relaxed);
    RUNNING.publishing.store(0, Ordering::SeqCst);
}

/// It runs this task.
pub fn begin(task: u64, now: Moment) {
    RUNNING.started.store(now.as_nanos(), Ordering::Relaxed);
    RUNNING.task.store(task, Ordering::Release);
}

/// It has run it, and nothing more is sent for it: true once no thread is about to. Until then, ask again.
#[must_use]
pub fn end() -> bool {
    // Who publishes raises the count, then looks at the task: one of us sees the other.
    RUNNING.task.swap(NONE, Ordering::SeqCst);
    RUNNING.publishing.load(Ordering::SeqCst) == 0
}

/// The answer was complete then.
pub fn answered(at: Moment) {
    RUNNING.answered.store(at.as_nanos(), Ordering::Relaxed);
}

/// Which task runs.
pub fn task() -> Option<u64> {
    task_or_setup().filter(|&task| task != SETUP)
}

/// The same; the setup counts as one.
pub fn task_or_setup() -> Option<u64> {
    Some(RUNNING.task.load(Ordering::Acquire)).filter(|&task| task != NONE)
}

/// Does this for as long as the task runs; `None` if it does not any more.
pub fn during<T>(task: u64, act: impl FnOnce() -> T) -> Option<T> {
    struct Lowered;
    impl Drop for Lowered {
        fn drop(&mut self) {
            RUNNING.publishing.fetch_sub(1, Ordering::SeqCst);
        }
    }
    RUNNING.publishing.fetch_add(1, Ordering::SeqCst);
    let _lowered = Lowered;
    (RUNNING.task.load(Ordering::SeqCst) == task).then(act)
}

/// The nearest deadline of the call that runs, and of those that enclose it.
pub fn deadline() -> Option<Moment> {
    let segment = RUNNING.segment.get()?;
    task()?;
    let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
    let started = read(&RUNNING.started);
    let handed_at = read(segment.u64(HANDED_AT));
    // As the host has it: since it was handed out, or since the answer before it. What was handed out later
    // waits behind it.
    let since = if handed_at <= started { handed_at.max(read(&RUNNING.answered)) } else { started };
    let some = |value: u64| Some(value).filter(|&value| value > 0);
    let timeout = some(read(segment.u64(TIMEOUT))).map(Duration::from_nanos);
    let own = timeout.map(|timeout| Moment::from_nanos(since) + timeout);
    let enclosing = some(read(segment.u64(ENCLOSING))).map(Moment::from_nanos);
    own.into_iter().chain(enclosing).min()
}
