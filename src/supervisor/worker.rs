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

use smallvec::SmallVec;

use super::events::{Run, Span, TaskId};
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
    /// What it was handed together, and when. The oldest task is running or about to; the others wait
    /// behind it and can be taken back.
    handed: VecDeque<(Run, Moment)>,
    /// How many tasks those are.
    load: usize,
    /// How many calls it has served.
    pub served: u32,
    /// Whether it was ever set up.
    pub was_ready: bool,
    /// Whether tasks are being taken back from it.
    pub revoking: bool,
    /// Whether its ring was full when it was last handed a task.
    pub full: bool,
    /// When to foresee that its oldest task will miss its deadline.
    foresee_at: Option<Moment>,
}

/// How long before a deadline its miss is foreseen: time enough to fork a worker and set it up.
const FORESIGHT: Duration = Duration::from_millis(25);

impl Worker {
    /// A worker that has been asked for.
    pub fn starting(until: Moment, nudge_at: Moment) -> Self {
        Self {
            state: WorkerState::Starting { until, nudge_at },
            handed: VecDeque::new(),
            load: 0,
            served: 0,
            was_ready: false,
            revoking: false,
            full: false,
            foresee_at: None,
        }
    }

    /// Whether it takes tasks now or will.
    pub fn is_live(&self) -> bool {
        !matches!(self.state, WorkerState::Terminating { .. })
    }

    /// How many tasks it has.
    pub fn load(&self) -> usize {
        self.load
    }

    /// The tasks that it has, oldest first.
    pub fn tasks(&self) -> impl Iterator<Item = TaskId> {
        self.handed.iter().flat_map(|(run, _)| run.tasks())
    }

    /// It takes on `run`; the clock of its oldest task starts now.
    pub fn hand(&mut self, run: Run, now: Moment, deadline: Option<Moment>) {
        match self.state {
            WorkerState::Idle => self.run(now, deadline),
            WorkerState::Running { .. } => {}
            other => panic!("a task was handed to a worker that is {other:?}"),
        }
        self.load += run.count;
        self.handed.push_back((run, now));
    }

    /// Takes its oldest tasks from it, at most `count` that were handed together.
    fn pop(&mut self, count: usize) -> Option<Run> {
        let (front, _) = self.handed.front_mut()?;
        let (taken, rest) = front.split(count);
        *front = rest;
        if rest.count == 0 {
            self.handed.pop_front();
        }
        self.load -= taken.count;
        Some(taken)
    }

    /// Its oldest task is answered: the clock of the next started when that answer was complete, or
    /// when it was handed out if that was later.
    pub fn finish(
        &mut self,
        finished_at: Moment,
        deadline: impl Fn(Moment) -> Option<Moment>,
    ) -> Option<TaskId> {
        self.finish_some(1, finished_at, deadline).first().map(|run| run.first)
    }

    /// The same for its `count` oldest ones, the last of them at `finished_at`.
    pub fn finish_some(
        &mut self,
        count: usize,
        finished_at: Moment,
        deadline: impl Fn(Moment) -> Option<Moment>,
    ) -> SmallVec<[Run; 2]> {
        let mut finished = SmallVec::new();
        let mut left = count;
        while left > 0
            && let Some(run) = self.pop(left)
        {
            left -= run.count;
            finished.push(run);
        }
        let served = u32::try_from(count - left).unwrap_or(u32::MAX);
        self.served = self.served.saturating_add(served);
        self.full = false;
        if let WorkerState::Running { .. } = self.state {
            match self.handed.front() {
                Some(&(_, handed_at)) => {
                    let since = handed_at.max(finished_at);
                    self.run(since, deadline(since));
                }
                None => self.state = WorkerState::Idle,
            }
        }
        finished
    }

    /// Its oldest task runs since then.
    fn run(&mut self, since: Moment, deadline: Option<Moment>) {
        self.state = WorkerState::Running { since, deadline };
        self.foresee_at = deadline.map(|deadline| {
            let length = deadline.since(since);
            since + length.saturating_sub(FORESIGHT).max(length / 2)
        });
    }

    /// Whether its oldest task is about to miss its deadline. Said once.
    pub fn foresees(&mut self, now: Moment) -> bool {
        let runs = matches!(self.state, WorkerState::Running { .. });
        runs && self.foresee_at.take_if(|at| now >= *at).is_some()
    }

    /// Its newest `count` tasks were taken back; these, oldest first.
    pub fn take_back(&mut self, count: usize) -> Vec<Run> {
        self.revoking = false;
        let taken = self.drop_newest(count);
        if self.handed.is_empty() && matches!(self.state, WorkerState::Running { .. }) {
            self.state = WorkerState::Idle;
        }
        taken
    }

    fn drop_newest(&mut self, count: usize) -> Vec<Run> {
        let mut taken = Vec::new();
        let mut left = count.min(self.load);
        self.load -= left;
        while left > 0
            && let Some((run, handed_at)) = self.handed.pop_back()
        {
            let (kept, back) = run.split(run.count.saturating_sub(left));
            left -= back.count;
            taken.push(back);
            if kept.count > 0 {
                self.handed.push_back((kept, handed_at));
            }
        }
        taken.reverse();
        taken
    }

    /// It is gone: its `started` oldest tasks, and the others.
    pub fn dissolve(mut self, started: usize) -> (VecDeque<TaskId>, Vec<Run>) {
        let untouched = self.drop_newest(self.load.saturating_sub(started));
        (self.tasks().collect(), untouched)
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

    /// It could not take `run`, the last of what it was handed together, after all.
    pub fn give_back(&mut self, run: Run) {
        if let Some(at) = self.handed.iter().rposition(|(other, _)| other.ends_with(run)) {
            let (other, handed_at) = self.handed[at];
            let (kept, _) = other.split(other.count - run.count);
            self.load -= other.count - kept.count;
            self.handed[at] = (kept, handed_at);
            if kept.count == 0 {
                self.handed.remove(at);
            }
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
    fn elapsed(&self, now: Moment) -> Duration {
        match self.state {
            WorkerState::Running { since, .. } => now.since(since),
            WorkerState::Terminating { elapsed, .. } => elapsed,
            WorkerState::Starting { .. } | WorkerState::Idle => Duration::ZERO,
        }
    }

    /// When its oldest task began, and how long it has run.
    pub fn span(&self, now: Moment) -> Span {
        Span { since: self.running_since(), elapsed: self.elapsed(now) }
    }

    /// Whether its deadline has passed.
    pub fn is_late(&self, now: Moment) -> bool {
        matches!(self.state, WorkerState::Running { deadline: Some(deadline), .. } if now >= deadline)
    }

    /// The moment at which it wants a tick.
    pub fn due(&self) -> Option<Moment> {
        match self.state {
            WorkerState::Running { deadline, .. } if !self.revoking => {
                deadline.into_iter().chain(self.foresee_at).min()
            }
            WorkerState::Terminating { until, .. } => Some(until),
            WorkerState::Starting { until, nudge_at } => Some(until.min(nudge_at)),
            WorkerState::Idle | WorkerState::Running { .. } => None,
        }
    }
}
