//! Every message between the pure core and its driver.

use std::time::Duration;

use crate::time::Moment;

/// One item of work. A task ends exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// Tasks that are numbered one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first of them.
    pub first: TaskId,
    /// How many.
    pub count: usize,
}

/// One worker of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

/// How the function answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With a value.
    Returned,
    /// With an exception.
    Raised {
        /// Whether it is one of those that `retry_on` names.
        retryable: bool,
    },
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// There are new tasks.
    Submitted {
        /// These.
        run: Run,
    },
    /// A worker is set up, or was taken over idle.
    Ready {
        /// The worker.
        worker: WorkerId,
        /// Calls that it has served for others.
        served: u32,
    },
    /// A worker could not be had.
    StartFailed {
        /// The worker.
        worker: WorkerId,
        /// Whether another attempt would fail the same way.
        hopeless: bool,
    },
    /// A worker answered its oldest task.
    Replied {
        /// The worker.
        worker: WorkerId,
        /// How.
        verdict: Verdict,
        /// When the complete answer was there.
        finished_at: Moment,
    },
    /// A worker that is running returned values for its oldest tasks, each of them in time.
    Advanced {
        /// The worker.
        worker: WorkerId,
        /// How many tasks.
        count: usize,
        /// When the last complete value was there.
        finished_at: Moment,
    },
    /// A worker's tasks that it had not started were taken back, newest first.
    Revoked {
        /// The worker.
        worker: WorkerId,
        /// How many.
        count: usize,
    },
    /// A worker had no room for tasks, or has ended by itself.
    Refused {
        /// The worker.
        worker: WorkerId,
        /// The tasks.
        run: Run,
        /// Whether it will take none any more.
        retired: bool,
    },
    /// A worker's stack dump is complete.
    Dumped {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker wrote nonsense.
    Corrupted {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker ended, and all that it had started with it.
    Exited {
        /// The worker.
        worker: WorkerId,
        /// How many of its tasks it had started, oldest first: one at most, unless it wrote nonsense.
        started: usize,
        /// Whether it was killed because it used too much memory.
        over_memory: bool,
    },
    /// A task is not wanted any more.
    #[cfg_attr(not(test), expect(dead_code, reason = "futures, which cancel one task, are to come"))]
    Cancelled {
        /// The task.
        task: TaskId,
    },
    /// No task is wanted any more.
    CancelledAll {
        /// Whether running tasks get their grace period.
        gently: bool,
    },
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Get a worker: answer with `Ready` or `StartFailed`.
    Start {
        /// The worker to be.
        worker: WorkerId,
    },
    /// A worker will be lost in a moment: see to it that another one is ready by then, if that is wanted,
    /// and that it is not only stopped.
    Foresee {
        /// The worker.
        worker: WorkerId,
    },
    /// Hand tasks to a worker; answer with `Refused` for those that cannot be.
    Hand {
        /// The worker.
        worker: WorkerId,
        /// The tasks.
        run: Run,
    },
    /// Take back what a worker has not started; read its answers, then answer with `Revoked`.
    Revoke {
        /// The worker.
        worker: WorkerId,
    },
    /// Ask a worker for its stack.
    Dump {
        /// The worker.
        worker: WorkerId,
    },
    /// Ask a worker to end its task.
    Terminate {
        /// The worker.
        worker: WorkerId,
    },
    /// Kill a worker and all that it started; `Exited` follows.
    Kill {
        /// The worker.
        worker: WorkerId,
        /// Whether it is asked for its stack first, which must not hold up the kill for longer than a
        /// dump may take.
        dump: bool,
    },
    /// What was asked of the forkserver is not done: let it go on, if somebody has stopped it.
    Nudge {
        /// The worker.
        worker: WorkerId,
    },
    /// The kill had no effect: do without the forkserver; `Exited` follows.
    Abandon {
        /// The worker.
        worker: WorkerId,
    },
    /// Tasks have ended with the values that were there when the worker advanced.
    CompleteRun {
        /// The tasks.
        run: Run,
    },
    /// A task has ended.
    Complete {
        /// The task.
        task: TaskId,
        /// How.
        ending: Ending,
        /// The worker that had it last.
        worker: Option<WorkerId>,
        /// How often it was started.
        attempts: u32,
        /// Its last attempt.
        span: Span,
    },
}

/// When an attempt at a task began, and how long it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Since when, if that is known.
    pub since: Option<Moment>,
    /// How long.
    pub elapsed: Duration,
}

impl Span {
    /// That of an attempt that was not begun, or of which nothing is known.
    pub const NONE: Self = Self { since: None, elapsed: Duration::ZERO };
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a value.
    Returned,
    /// With an exception.
    Raised,
    /// Its deadline passed, or the budget was spent.
    TimedOut,
    /// Its worker ended.
    Died,
    /// Its worker was killed because it used too much memory.
    OverMemory,
    /// It was not wanted any more.
    Cancelled,
    /// No worker could be had.
    NotStarted,
}
