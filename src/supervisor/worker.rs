//! One worker: its states and what moves it from one to the next.
//!
//! ```text
//! Starting --ready--> Idle --handed--> Running --replied--> Idle or Running (the next task)
//!    |                                    | deadline, cancel, corrupt, worn out
//!    | start limit                        v
//!    +-----------------------------> Terminating: Dumping -> Grace -> Killing --exited--> gone
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use super::events::TaskId;
use crate::time::Moment;

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// It is being forked and set up.
    Starting {
        /// When we stop waiting for it.
        until: Moment,
        /// When to see to it that its forkserver is not stopped.
        nudge_at: Moment,
    },
    /// It waits for a task.
    Idle,
    /// It runs the oldest of its tasks.
    Running {
        /// Since when.
        since: Moment,
        /// When that task must be done.
        deadline: Option<Moment>,
    },
    /// We are ending it.
    Terminating {
        /// Why.
        reason: TerminateReason,
        /// How far we are.
        step: TerminateStep,
        /// When the next step is due.
        until: Moment,
        /// Since when its task ran.
        since: Moment,
        /// How long that was when we began.
        elapsed: Duration,
    },
}

/// Why a worker is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TerminateReason {
    /// Its task missed this deadline.
    TimedOut(Moment),
    /// Its task is not wanted any more.
    Cancelled,
    /// It wrote nonsense.
    Corrupted,
    /// It did not get ready in time.
    StartTimedOut,
    /// It has served as many calls as it may.
    WornOut,
}

/// How far the end of a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TerminateStep {
    /// It was asked for its stack.
    Dumping,
    /// It was asked to end its task.
    Grace,
    /// It was killed.
    Killing,
    /// The kill was not answered; its forkserver was nudged, in case that somebody has stopped it.
    Nudged,
    /// The kill had no effect; its forkserver is being ended.
    Abandoned,
}

/// A worker and the tasks that it was handed, oldest first.
#[derive(Clone, Debug)]
pub struct Worker {
    /// What it is doing.
    pub state: WorkerState,
    /// The oldest is running or about to; the others wait behind it and can be taken back.
    pub handed: VecDeque<TaskId>,
    /// When each of them was handed out.
    handed_at: VecDeque<Moment>,
    /// How many calls it has served.
    pub served: u32,
    /// Whether it was ever set up.
    pub was_ready: bool,
    /// Whether tasks are being taken back from it.
    pub revoking: bool,
    /// Whether its ring was full when it was last handed a task.
    pub full: bool,
}

impl Worker {
    /// A worker that has been asked for.
    pub fn starting(until: Moment, nudge_at: Moment) -> Self {
        Self {
            state: WorkerState::Starting { until, nudge_at },
            handed: VecDeque::new(),
            handed_at: VecDeque::new(),
            served: 0,
            was_ready: false,
            revoking: false,
            full: false,
        }
    }

    /// Whether it takes tasks now or will.
    pub fn is_live(&self) -> bool {
        !matches!(self.state, WorkerState::Terminating { .. })
    }

    /// It takes on `task`; the clock of its oldest task starts now.
    pub fn hand(&mut self, task: TaskId, now: Moment, deadline: Option<Moment>) {
        match self.state {
            WorkerState::Idle => self.state = WorkerState::Running { since: now, deadline },
            WorkerState::Running { .. } => {}
            other => panic!("a task was handed to a worker that is {other:?}"),
        }
        self.handed.push_back(task);
        self.handed_at.push_back(now);
    }

    /// Its oldest task is answered: the clock of the next started when that answer was complete, or
    /// when it was handed out if that was later.
    pub fn finish(
        &mut self,
        finished_at: Moment,
        deadline: impl Fn(Moment) -> Option<Moment>,
    ) -> Option<TaskId> {
        let task = self.handed.pop_front();
        self.handed_at.pop_front();
        self.served = self.served.saturating_add(1);
        self.full = false;
        if let WorkerState::Running { .. } = self.state {
            self.state = match self.handed_at.front() {
                Some(&handed_at) => {
                    let since = handed_at.max(finished_at);
                    WorkerState::Running { since, deadline: deadline(since) }
                }
                None => WorkerState::Idle,
            };
        }
        task
    }

    /// Its newest `count` tasks were taken back.
    pub fn take_back(&mut self, count: usize) -> VecDeque<TaskId> {
        self.revoking = false;
        let kept = self.handed.len().saturating_sub(count);
        let taken = self.handed.split_off(kept);
        self.handed_at.truncate(kept);
        if self.handed.is_empty() && matches!(self.state, WorkerState::Running { .. }) {
            self.state = WorkerState::Idle;
        }
        taken
    }

    /// Whether there must be no other in its place yet: it is live, or its start is being given up,
    /// and how that ends decides whether another start makes sense.
    pub fn fills_place(&self) -> bool {
        let given_up = TerminateReason::StartTimedOut;
        self.is_live() || matches!(self.state, WorkerState::Terminating { reason, .. } if reason == given_up)
    }

    /// We begin to end it.
    pub fn terminate(&mut self, reason: TerminateReason, step: TerminateStep, now: Moment, until: Moment) {
        let (since, elapsed) = (self.running_since().unwrap_or(now), self.elapsed(now));
        self.state = WorkerState::Terminating { reason, step, until, since, elapsed };
    }

    /// It could not take `task` after all.
    pub fn give_back(&mut self, task: TaskId) {
        if let Some(at) = self.handed.iter().position(|&other| other == task) {
            self.handed.remove(at);
            self.handed_at.remove(at);
        }
        if self.handed.is_empty() && matches!(self.state, WorkerState::Running { .. }) {
            self.state = WorkerState::Idle;
        }
    }

    /// Since when its oldest task runs.
    pub fn running_since(&self) -> Option<Moment> {
        match self.state {
            WorkerState::Running { since, .. } | WorkerState::Terminating { since, .. } => Some(since),
            WorkerState::Starting { .. } | WorkerState::Idle => None,
        }
    }

    /// How long its oldest task has run, or had when we began to end the worker.
    pub fn elapsed(&self, now: Moment) -> Duration {
        match self.state {
            WorkerState::Running { since, .. } => now.since(since),
            WorkerState::Terminating { elapsed, .. } => elapsed,
            WorkerState::Starting { .. } | WorkerState::Idle => Duration::ZERO,
        }
    }

    /// Whether its deadline has passed.
    pub fn is_late(&self, now: Moment) -> bool {
        matches!(self.state, WorkerState::Running { deadline: Some(deadline), .. } if now >= deadline)
    }

    /// The moment at which it wants a tick.
    pub fn due(&self) -> Option<Moment> {
        match self.state {
            WorkerState::Running { deadline, .. } if !self.revoking => deadline,
            WorkerState::Terminating { until, .. } => Some(until),
            WorkerState::Starting { until, nudge_at } => Some(until.min(nudge_at)),
            WorkerState::Idle | WorkerState::Running { .. } => None,
        }
    }
}
