//! A job: the tasks of one call or one map, and the workers that run them.
//!
//! Pure: [`Job::handle`] takes what happened and when, and says what to do. It reads no clock and
//! touches no process, so that millions of schedules can be simulated.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::events::{Action, Ending, Event, Run, Span, TaskId, Verdict, WorkerId};
use super::runs::Runs;
use super::worker::{TerminateReason, TerminateStep, Worker, WorkerState};
use crate::time::Moment;
use crate::transport::Limits;

/// How long a stack dump may take before we do without.
pub const DUMP_LIMIT: Duration = Duration::from_millis(20);
/// How long a kill may go unanswered before the forkserver is nudged. It answers within 20 ms,
/// whatever the kernel still has to tear down.
pub const NUDGE_LIMIT: Duration = Duration::from_millis(35);
/// How long after that before it is taken to be stuck.
pub const STUCK_LIMIT: Duration = Duration::from_millis(500);
/// The same for a worker that was never ready: its forkserver may itself be starting, and running
/// workers must not end with it because somebody no longer wants another one.
pub const UNBORN_LIMIT: Duration = Duration::from_secs(5);
/// How long a worker may start before its forkserver is nudged, and how often.
const START_NUDGE: Duration = Duration::from_millis(150);
/// How many workers in a row may end while they start before we give up.
const START_ATTEMPTS: u32 = 3;
/// About how much work to hand to a worker at a time. A wake-up costs tens of microseconds, so
/// this keeps it to a few per cent.
const AHEAD: Duration = Duration::from_millis(2);
/// Most tasks handed ahead.
const AHEAD_MAX: usize = 1024;

/// What a job's caller asked for.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// For each attempt of each task.
    pub timeout: Option<Duration>,
    /// Between the polite and the forced end.
    pub grace: Duration,
    /// Most workers at once.
    pub workers: usize,
    /// How often a failed task is tried again.
    pub retries: u32,
    /// Whether a missed deadline is a failure to try again after.
    pub retry_timed_out: bool,
    /// Whether a worker's death is.
    pub retry_died: bool,
    /// Whether too much memory is.
    pub retry_over_memory: bool,
    /// When whatever is unfinished counts as timed out.
    pub budget: Option<Moment>,
    /// Calls that a worker may serve.
    pub calls_per_worker: Option<u32>,
    /// How long a worker may take to get ready.
    pub start_limit: Duration,
}

impl Policy {
    /// What concerns the function.
    pub fn limits(&self) -> Limits {
        Limits { timeout: self.timeout, budget: self.budget }
    }
}

/// The tasks and workers of one call or one map.
#[derive(Debug)]
pub struct Job {
    policy: Policy,
    queue: Runs,
    /// How many tasks have not ended.
    unfinished: usize,
    /// How often those of them have failed that have and are tried again.
    failures: HashMap<TaskId, u32>,
    /// Those of them that are not wanted any more.
    cancelled: HashSet<TaskId>,
    /// None with a smaller number is, either.
    cancelled_before: TaskId,
    /// Whether there may be such tasks.
    has_cancelled: bool,
    /// The number after that of the last task.
    next_task: TaskId,
    /// In the order of their ids.
    workers: Vec<(WorkerId, Worker)>,
    next_worker: u64,
    /// How many workers can be had; starts as the policy's, and shrinks when the system says no.
    available: usize,
    start_failures: u32,
    /// How many tasks a worker's ring seems to have room for.
    room: usize,
    /// A running average of how long a task takes.
    pace: Option<Duration>,
}

impl Job {
    /// A job without tasks.
    pub fn new(policy: Policy) -> Self {
        Self {
            queue: Runs::default(),
            unfinished: 0,
            failures: HashMap::new(),
            cancelled: HashSet::new(),
            cancelled_before: TaskId(0),
            has_cancelled: false,
            next_task: TaskId(0),
            workers: Vec::new(),
            next_worker: 0,
            available: policy.workers.max(1),
            start_failures: 0,
            room: AHEAD_MAX,
            pace: None,
            policy,
        }
    }

    /// A job with one task, which a worker that has served so many calls was handed at `since`.
    pub fn underway(policy: Policy, task: TaskId, served: u32, since: Moment) -> (Self, WorkerId) {
        let mut job = Self::new(policy);
        job.unfinished = 1;
        job.next_task = TaskId(task.0 + 1);
        let mut worker = Worker::starting(since, since);
        (worker.state, worker.served, worker.was_ready) = (WorkerState::Idle, served, true);
        worker.hand(Run::one(task), since, job.deadline(since));
        let id = job.add(worker);
        (job, id)
    }

    fn add(&mut self, worker: Worker) -> WorkerId {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        self.workers.push((id, worker));
        id
    }

    /// Tasks that have not ended.
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Tasks that wait for a worker.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How many workers can be had, if those are fewer than were asked for.
    pub fn reduced_to(&self) -> Option<usize> {
        Some(self.available).filter(|&available| available < self.policy.workers)
    }

    /// Workers that are being killed because of their task.
    pub fn is_killing(&self) -> bool {
        self.workers.iter().any(|(_, worker)| {
            matches!(worker.state, WorkerState::Terminating { reason, .. } if reason != TerminateReason::WornOut)
        })
    }

    /// The state of a worker, for the driver.
    pub fn worker(&self, id: WorkerId) -> Option<&Worker> {
        self.place(id).map(|at| &self.workers[at].1)
    }

    fn place(&self, id: WorkerId) -> Option<usize> {
        self.workers.binary_search_by_key(&id, |(other, _)| *other).ok()
    }

    /// When to send a tick at the latest.
    pub fn due(&self) -> Option<Moment> {
        let workers = self.workers.iter().filter_map(|(_, worker)| worker.due());
        let budget = self.policy.budget.filter(|_| !self.queue.is_empty());
        workers.chain(budget).min()
    }

    /// Takes in what happened; appends what to do about it at once. [`settle`](Self::settle) has to
    /// follow, after this or some more.
    pub fn handle(&mut self, event: Event, now: Moment, actions: &mut Vec<Action>) {
        match event {
            Event::Submitted { run } => {
                self.unfinished += run.count;
                self.next_task = TaskId(run.first.0 + run.count as u64);
                self.queue.push_back(run);
            }
            Event::Ready { worker, served } => self.ready(worker, served),
            Event::StartFailed { worker, hopeless } => self.start_failed(worker, hopeless, actions),
            Event::Replied { worker, verdict, finished_at } => {
                self.replied(worker, verdict, finished_at, now, actions);
            }
            Event::Advanced { worker, count, finished_at } => {
                self.advanced(worker, count, finished_at, now, actions);
            }
            Event::Revoked { worker, count } => self.revoked(worker, count),
            Event::Refused { worker, run, retired } => self.refused(worker, run, retired),
            Event::Dumped { worker } => self.dumped(worker, now, actions),
            Event::Corrupted { worker } => self.end_worker(worker, TerminateReason::Corrupted, now, actions),
            Event::Exited { worker, started, over_memory } => {
                self.exited(worker, started, over_memory, now, actions);
            }
            Event::Cancelled { task } => self.cancel(task),
            Event::CancelledAll { gently } => self.cancel_all(gently, now, actions),
            Event::Tick => self.check_deadlines(now, actions),
        }
    }

    fn find(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.place(id).map(|at| &mut self.workers[at].1)
    }

    fn deadline(&self, since: Moment) -> Option<Moment> {
        let own = self.policy.timeout.map(|timeout| since + timeout);
        own.into_iter().chain(self.policy.budget).min()
    }

    fn ready(&mut self, id: WorkerId, served: u32) {
        self.start_failures = 0;
        let worker = self.find(id).unwrap_or_else(|| panic!("{id:?} is ready but was not asked for"));
        worker.was_ready = true;
        match worker.state {
            WorkerState::Starting { .. } => {
                worker.state = WorkerState::Idle;
                worker.served = served;
            }
            // It got ready while it was being ended.
            WorkerState::Terminating { .. } => {}
            other => panic!("{id:?} is ready but was {other:?}"),
        }
    }

    fn start_failed(&mut self, id: WorkerId, hopeless: bool, actions: &mut Vec<Action>) {
        self.workers.retain(|(other, _)| *other != id);
        self.start_failures += 1;
        if !hopeless && self.start_failures < START_ATTEMPTS {
            return;
        }
        let live = self.workers.iter().filter(|(_, worker)| worker.is_live()).count();
        if live > 0 {
            // Fewer will do.
            self.available = live;
        } else {
            self.drain_queue(Ending::NotStarted, Some(id), actions);
        }
    }

    /// Whatever waits for a worker ends like this.
    fn drain_queue(&mut self, ending: Ending, worker: Option<WorkerId>, actions: &mut Vec<Action>) {
        for task in std::mem::take(&mut self.queue).tasks() {
            self.drop_unstarted(task, ending, worker, actions);
        }
    }

    fn replied(
        &mut self,
        id: WorkerId,
        verdict: Verdict,
        finished_at: Moment,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let (timeout, budget) = (self.policy.timeout, self.policy.budget);
        let Some(worker) = self.find(id) else { return };
        // A stamp outside of what is possible is the worker's invention.
        let since = worker.running_since().unwrap_or(now);
        let finished_at = finished_at.clamp(since.min(now), now);
        let state = worker.state;
        let span = worker.span(finished_at);
        let task = worker.finish(finished_at, |since| {
            timeout.map(|timeout| since + timeout).into_iter().chain(budget).min()
        });
        let Some(task) = task else {
            return self.end_worker(id, TerminateReason::Corrupted, now, actions);
        };
        let served = worker.served;
        let more = worker.load() > 0;
        match state {
            WorkerState::Running { deadline: Some(deadline), .. } if finished_at > deadline => {
                // The stamp decides, not how late we read it: so it is the same on a busy machine.
                self.failed(task, Ending::TimedOut, self.policy.retry_timed_out, id, span, actions);
                // What it started goes with it, unless it has begun the next task by now.
                if !more && let Some(worker) = self.find(id) {
                    worker.terminate(TerminateReason::TimedOut(deadline), TerminateStep::Grace, now, now);
                    self.kill(id, now, actions);
                }
            }
            WorkerState::Running { .. } => {
                // Smaller ones may follow.
                self.room = (self.room + 1).min(AHEAD_MAX);
                self.pace = Some(self.pace.map_or(span.elapsed, |pace| (pace * 7 + span.elapsed) / 8));
                self.answered(task, verdict, id, span, actions);
                if self.policy.calls_per_worker.is_some_and(|limit| served >= limit) {
                    self.end_worker(id, TerminateReason::WornOut, now, actions);
                }
            }
            WorkerState::Terminating { reason, .. } => {
                match reason {
                    TerminateReason::TimedOut(deadline) if finished_at > deadline => {
                        self.failed(task, Ending::TimedOut, self.policy.retry_timed_out, id, span, actions);
                    }
                    TerminateReason::Cancelled => {
                        self.complete(task, Ending::Cancelled, Some(id), span, actions);
                    }
                    _ => self.answered(task, verdict, id, span, actions),
                }
                // The function has ended: no need to wait for the rest of its grace.
                self.kill(id, now, actions);
            }
            other => panic!("{id:?} answered {task:?} but was {other:?}"),
        }
    }

    /// Whether tasks that a worker has run one after the other since then were all in time, by these
    /// stamps, none of which is out of order or to come.
    pub fn are_in_time(&self, since: Moment, stamps: impl Iterator<Item = Moment>, now: Moment) -> bool {
        let mut before = since;
        let mut stamps = stamps.map(|stamp| {
            // No later than it was, or it would have been handed out later.
            let in_time = self.deadline(before).is_none_or(|deadline| stamp <= deadline);
            let in_order = before <= stamp && stamp <= now;
            before = stamp;
            in_time && in_order
        });
        stamps.all(|good| good)
    }

    /// Many at once of those that are answered as they should be.
    fn advanced(
        &mut self,
        id: WorkerId,
        count: usize,
        finished_at: Moment,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let (timeout, budget) = (self.policy.timeout, self.policy.budget);
        let worker = self.find(id).unwrap_or_else(|| panic!("{id:?} has advanced but does not exist"));
        let WorkerState::Running { since, .. } = worker.state else {
            panic!("{id:?} has advanced but was {:?}", worker.state)
        };
        let finished_at = finished_at.clamp(since.min(now), now);
        let elapsed = finished_at.since(since) / u32::try_from(count).unwrap_or(u32::MAX).max(1);
        let runs = worker.finish_some(count, finished_at, |since| {
            timeout.map(|timeout| since + timeout).into_iter().chain(budget).min()
        });
        self.room = (self.room + count).min(AHEAD_MAX);
        self.pace = Some(self.pace.map_or(elapsed, |pace| (pace + elapsed) / 2));
        for run in runs {
            self.unfinished -= run.count;
            self.failures.retain(|&task, _| !run.contains(task));
            self.cancelled.retain(|&task| !run.contains(task));
            actions.push(Action::CompleteRun { run });
        }
    }

    fn answered(
        &mut self,
        task: TaskId,
        verdict: Verdict,
        id: WorkerId,
        span: Span,
        actions: &mut Vec<Action>,
    ) {
        match verdict {
            Verdict::Returned => self.complete(task, Ending::Returned, Some(id), span, actions),
            Verdict::Raised { retryable } => {
                self.failed(task, Ending::Raised, retryable, id, span, actions);
            }
        }
    }

    /// An attempt has failed: another one, or the end.
    fn failed(
        &mut self,
        task: TaskId,
        ending: Ending,
        retryable: bool,
        id: WorkerId,
        span: Span,
        actions: &mut Vec<Action>,
    ) {
        let attempts = self.failures.get(&task).copied().unwrap_or(0) + 1;
        if retryable && attempts <= self.policy.retries && !self.is_cancelled(task) {
            self.failures.insert(task, attempts);
            self.queue.push_back(Run::one(task));
        } else {
            self.complete(task, ending, Some(id), span, actions);
        }
    }

    fn is_cancelled(&self, task: TaskId) -> bool {
        task < self.cancelled_before || self.cancelled.contains(&task)
    }

    /// A task that was started has ended.
    fn complete(
        &mut self,
        task: TaskId,
        ending: Ending,
        worker: Option<WorkerId>,
        span: Span,
        actions: &mut Vec<Action>,
    ) {
        let attempts = self.forget(task) + 1;
        actions.push(Action::Complete { task, ending, worker, attempts, span });
    }

    /// A task has ended while it waited.
    fn drop_unstarted(
        &mut self,
        task: TaskId,
        ending: Ending,
        worker: Option<WorkerId>,
        actions: &mut Vec<Action>,
    ) {
        let attempts = self.forget(task);
        actions.push(Action::Complete { task, ending, worker, attempts, span: Span::NONE });
    }

    /// How often it has failed before.
    fn forget(&mut self, task: TaskId) -> u32 {
        self.unfinished -= 1;
        self.cancelled.remove(&task);
        self.failures.remove(&task).unwrap_or(0)
    }

    fn revoked(&mut self, id: WorkerId, count: usize) {
        let Some(worker) = self.find(id) else { return };
        let taken = worker.take_back(count);
        self.requeue(taken);
    }

    /// Puts tasks that were handed out but not started back where they were: in front.
    fn requeue(&mut self, runs: Vec<Run>) {
        runs.into_iter().rev().for_each(|run| self.queue.push_front(run));
    }

    fn refused(&mut self, id: WorkerId, run: Run, retired: bool) {
        let Some(at) = self.place(id) else { return };
        if retired {
            let (_, worker) = self.workers.remove(at);
            let (_, untouched) = worker.dissolve(0);
            self.requeue(untouched);
        } else {
            let worker = &mut self.workers[at].1;
            worker.full = true;
            worker.give_back(run);
            self.room = worker.load().max(1);
            self.queue.push_front(run);
        }
    }

    fn dumped(&mut self, id: WorkerId, now: Moment, actions: &mut Vec<Action>) {
        let Some(worker) = self.find(id) else { return };
        if let WorkerState::Terminating { step: TerminateStep::Dumping, until, .. } = &mut worker.state {
            *until = now;
            self.step(id, now, actions);
        }
    }

    fn exited(
        &mut self,
        id: WorkerId,
        started: usize,
        over_memory: bool,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let Some(at) = self.place(id) else { return };
        let (_, worker) = self.workers.remove(at);
        let (span, state) = (worker.span(now), worker.state);
        let (mut begun, untouched) = worker.dissolve(started);
        let next = untouched.first().map(|run| run.first).filter(|_| begun.is_empty());
        self.requeue(untouched);
        let head = begun.pop_front();
        for task in begun {
            // It went on after the answer that was nonsense. What it said of these is not known.
            self.failed(task, Ending::Died, self.policy.retry_died, id, Span::NONE, actions);
        }
        let reason = match state {
            WorkerState::Starting { .. } => return self.start_failed(id, over_memory, actions),
            WorkerState::Terminating { reason: TerminateReason::StartTimedOut, .. } => {
                return self.start_failed(id, true, actions);
            }
            WorkerState::Terminating { reason, .. } => Some(reason),
            WorkerState::Idle | WorkerState::Running { .. } => None,
        };
        let Some(task) = head else {
            // A task that was handed to it but never started has missed its deadline all the same.
            if matches!(reason, Some(TerminateReason::TimedOut(_)))
                && let Some(task) = next
            {
                // It was put back in front just now.
                self.queue.pop_front(1);
                self.failed(task, Ending::TimedOut, self.policy.retry_timed_out, id, span, actions);
            }
            return;
        };
        match reason {
            Some(TerminateReason::TimedOut(_)) => {
                self.failed(task, Ending::TimedOut, self.policy.retry_timed_out, id, span, actions);
            }
            Some(TerminateReason::Cancelled) => {
                self.complete(task, Ending::Cancelled, Some(id), span, actions);
            }
            _ if over_memory => {
                self.failed(task, Ending::OverMemory, self.policy.retry_over_memory, id, span, actions);
            }
            _ => self.failed(task, Ending::Died, self.policy.retry_died, id, span, actions),
        }
    }

    fn cancel(&mut self, task: TaskId) {
        // What this leads to is done when the job settles. One that has ended is not to be found.
        let in_hand = self.workers.iter().any(|(_, worker)| worker.tasks().any(|other| other == task));
        if in_hand || self.queue.contains(task) {
            self.cancelled.insert(task);
            self.has_cancelled = true;
        }
    }

    fn cancel_all(&mut self, gently: bool, now: Moment, actions: &mut Vec<Action>) {
        self.cancelled_before = self.next_task;
        self.has_cancelled = true;
        let ids: Vec<WorkerId> = self.workers.iter().map(|(id, _)| *id).collect();
        for id in ids {
            let Some(worker) = self.find(id) else { continue };
            match worker.state {
                WorkerState::Running { .. } if gently => {
                    self.end_worker(id, TerminateReason::Cancelled, now, actions);
                }
                // One that starts has no caller any more who would see to its limit.
                WorkerState::Running { .. } | WorkerState::Starting { .. } => {
                    let (reason, step) = (TerminateReason::Cancelled, TerminateStep::Grace);
                    worker.terminate(reason, step, now, now);
                    self.kill(id, now, actions);
                }
                WorkerState::Terminating { .. } if !gently => self.kill(id, now, actions),
                _ => {}
            }
        }
    }

    /// Begins to end a worker, with the steps that its reason asks for.
    fn end_worker(&mut self, id: WorkerId, reason: TerminateReason, now: Moment, actions: &mut Vec<Action>) {
        let grace = self.policy.grace;
        let Some(worker) = self.find(id) else { return };
        if !worker.is_live() {
            return self.kill(id, now, actions);
        }
        let (step, length) = match reason {
            TerminateReason::TimedOut(_) if grace.is_zero() => {
                actions.push(Action::Kill { worker: id, dump: true });
                (TerminateStep::Killing, DUMP_LIMIT + NUDGE_LIMIT)
            }
            TerminateReason::TimedOut(_) => {
                actions.push(Action::Dump { worker: id });
                (TerminateStep::Dumping, DUMP_LIMIT)
            }
            TerminateReason::Cancelled if !grace.is_zero() => {
                actions.push(Action::Terminate { worker: id });
                (TerminateStep::Grace, grace)
            }
            _ => {
                actions.push(Action::Kill { worker: id, dump: false });
                (TerminateStep::Killing, NUDGE_LIMIT)
            }
        };
        worker.terminate(reason, step, now, now + length);
    }

    /// Goes on to the next step of ending a worker.
    fn step(&mut self, id: WorkerId, now: Moment, actions: &mut Vec<Action>) {
        let grace = self.policy.grace;
        let Some(worker) = self.find(id) else { return };
        let WorkerState::Terminating { step, until, .. } = &mut worker.state else { return };
        match *step {
            TerminateStep::Dumping => {
                (*step, *until) = (TerminateStep::Grace, now + grace);
                actions.push(Action::Terminate { worker: id });
            }
            TerminateStep::Grace => self.kill(id, now, actions),
            TerminateStep::Killing => {
                let limit = if worker.was_ready { STUCK_LIMIT } else { UNBORN_LIMIT };
                (*step, *until) = (TerminateStep::Nudged, now + limit);
                actions.push(Action::Nudge { worker: id });
            }
            TerminateStep::Nudged | TerminateStep::Abandoned => {
                // Again and again: a forkserver that still does things for others is given time.
                (*step, *until) = (TerminateStep::Abandoned, now + STUCK_LIMIT);
                actions.push(Action::Abandon { worker: id });
            }
        }
    }

    /// Kills a worker that is being ended, unless it has been killed.
    fn kill(&mut self, id: WorkerId, now: Moment, actions: &mut Vec<Action>) {
        let Some(worker) = self.find(id) else { return };
        let WorkerState::Terminating { step, until, .. } = &mut worker.state else { return };
        if matches!(step, TerminateStep::Dumping | TerminateStep::Grace) {
            (*step, *until) = (TerminateStep::Killing, now + NUDGE_LIMIT);
            actions.push(Action::Kill { worker: id, dump: false });
        }
    }

    /// Does what the new state asks for, after all that is known to have happened was taken in.
    pub fn settle(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.drop_cancelled(now, actions);
        if self.policy.budget.is_some_and(|budget| now >= budget) {
            self.drain_queue(Ending::TimedOut, None, actions);
        }
        self.assign(now, actions);
        self.share(actions);
    }

    fn drop_cancelled(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if !self.has_cancelled {
            return;
        }
        let mut queue = std::mem::take(&mut self.queue);
        let cancelled = |task: TaskId| self.is_cancelled(task);
        let running: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.is_live() && worker.tasks().any(cancelled))
            .map(|(id, _)| *id)
            .collect();
        let dropped = queue.extract(cancelled);
        self.queue = queue;
        for task in dropped {
            self.drop_unstarted(task, Ending::Cancelled, None, actions);
        }
        for id in running {
            if self.is_alone(id, actions) {
                self.end_worker(id, TerminateReason::Cancelled, now, actions);
            }
        }
        self.has_cancelled =
            self.workers.iter().any(|(_, worker)| worker.tasks().any(|task| self.is_cancelled(task)));
    }

    /// Whether nothing waits behind the running task of a worker. If something does, it is taken
    /// back first, or the kill would hit the next task.
    fn is_alone(&mut self, id: WorkerId, actions: &mut Vec<Action>) -> bool {
        let Some(worker) = self.find(id) else { return false };
        if worker.load() > 1 && !worker.revoking {
            worker.revoking = true;
            actions.push(Action::Revoke { worker: id });
        }
        worker.load() == 1 && !worker.revoking
    }

    /// Ends what is late. Only when time passes, after all answers have been read: an answer that is
    /// there is not late, however late we read it.
    fn check_deadlines(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for at in 0..self.workers.len() {
            let (id, state) = (self.workers[at].0, self.workers[at].1.state);
            if self.workers[at].1.foresees(now) {
                actions.push(Action::Foresee { worker: id });
            }
            match state {
                WorkerState::Running { deadline: Some(deadline), .. }
                    if now >= deadline && self.is_alone(id, actions) =>
                {
                    self.end_worker(id, TerminateReason::TimedOut(deadline), now, actions);
                }
                WorkerState::Starting { until, .. } if now >= until => {
                    self.end_worker(id, TerminateReason::StartTimedOut, now, actions);
                }
                WorkerState::Starting { until, nudge_at } if now >= nudge_at => {
                    let nudge_at = now + START_NUDGE;
                    self.workers[at].1.state = WorkerState::Starting { until, nudge_at };
                    actions.push(Action::Nudge { worker: id });
                }
                WorkerState::Terminating { until, .. } if now >= until => {
                    self.step(id, now, actions);
                }
                _ => {}
            }
        }
    }

    /// Hands queued tasks to workers, and asks for workers while there are too few.
    fn assign(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let deadline = self.deadline(now);
        let limit = self.policy.calls_per_worker.unwrap_or(u32::MAX);
        for (id, worker) in &mut self.workers {
            if worker.state == WorkerState::Idle
                && let Some(run) = self.queue.pop_front(1)
            {
                worker.hand(run, now, deadline);
                actions.push(Action::Hand { worker: *id, run });
            }
        }
        let live = self.workers.iter().filter(|(_, worker)| worker.fills_place()).count();
        let starting = self
            .workers
            .iter()
            .filter(|(_, worker)| matches!(worker.state, WorkerState::Starting { .. }))
            .count();
        let wanted = self.queue.len().saturating_sub(starting).min(self.available.saturating_sub(live));
        for _ in 0..wanted {
            let id = self.add(Worker::starting(now + self.policy.start_limit, now + START_NUDGE));
            actions.push(Action::Start { worker: id });
        }
        if starting + wanted > 0 {
            return;
        }
        let Some(depth) = self.depth() else { return };
        // No more than its share of what is left, or others would have to take that back.
        let left = self.queue.len() + self.workers.iter().map(|(_, worker)| worker.load()).sum::<usize>();
        let depth = depth.min(left.div_ceil(live.max(1))).min(self.room);
        for (id, worker) in &mut self.workers {
            let most = depth.min((limit - worker.served.min(limit)) as usize);
            while matches!(worker.state, WorkerState::Running { .. })
                && !worker.revoking
                && !worker.full
                && !worker.is_late(now)
                && worker.load() < most
                && let Some(run) = self.queue.pop_front(most - worker.load())
            {
                worker.hand(run, now, deadline);
                actions.push(Action::Hand { worker: *id, run });
            }
        }
    }

    /// How many tasks a worker may have at once; `None` until we know how long one takes.
    fn depth(&self) -> Option<usize> {
        let pace = self.pace?.as_nanos().max(1);
        Some(usize::try_from(AHEAD.as_nanos() / pace).unwrap_or(AHEAD_MAX).clamp(2, AHEAD_MAX))
    }

    /// If a worker is idle, nobody may sit on tasks that he has not started.
    fn share(&mut self, actions: &mut Vec<Action>) {
        if !self.queue.is_empty() || !self.workers.iter().any(|(_, worker)| worker.state == WorkerState::Idle)
        {
            return;
        }
        let longest = self
            .workers
            .iter_mut()
            .filter(|(_, worker)| worker.load() > 1 && !worker.revoking && worker.is_live())
            .max_by_key(|(_, worker)| worker.load());
        if let Some((id, worker)) = longest {
            worker.revoking = true;
            actions.push(Action::Revoke { worker: *id });
        }
    }
}
