//! The driver: performs what a [`Job`] asks for, and tells it what happens.
//!
//! The thread that waits for the answer runs this loop itself: one wait over the sockets and
//! notice pipes of its workers and the nearest deadline.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::arguments::{Arguments, Batch};
use super::events::{Action, Ending, Event, Run, Span, TaskId, Verdict, WorkerId};
use super::job::{Job, Policy};
use super::roster::{Exit, Fleet, HostWorker, News, Payload};
use super::worker::{TerminateReason, TerminateStep, Worker, WorkerState};
use crate::error::Error;
use crate::sys::{self, DUMP_SIGNAL, Interest, TERMINATE_SIGNAL, Woken};
use crate::time::Moment;
use crate::transport::{Body, Corrupt, Handed, Limits, Reply, ReplyKind, Ring, Values};

/// How long to wait for the end of a worker that has answered its last call.
const SEE_OFF_LIMIT: Duration = Duration::from_millis(20);
/// Most parts of a line that are kept back until it is whole.
const LINE_MAX: usize = 256;
/// How long descriptors may go without a look while there are answers to read.
const LOOK: Duration = Duration::from_micros(500);

/// Why no worker could be had.
#[derive(Debug)]
pub enum StartError {
    /// The system refused.
    System(Error),
    /// The forkserver could not fork, for this error number.
    Fork(i32),
    /// The setup failed; the body is the exception.
    Setup(Body),
    /// The worker ended before it was set up.
    Exited(Exit),
    /// It was not set up in time.
    Slow,
    /// It used this many bytes of memory, more than it may.
    OverMemory(u64),
}

/// How a task ended, with all that is known of it.
#[derive(Debug)]
pub struct Outcome {
    /// The task.
    pub task: u64,
    /// How it ended.
    pub ending: Ending,
    /// The value or the exception.
    pub body: Option<Body>,
    /// Whether that is a plain value.
    pub plain: bool,
    /// What it has published last, if it timed out; or all that it has appended, however it ended.
    pub partial: Option<Partial>,
    /// The worker's pid.
    pub pid: Option<i32>,
    /// The last attempt.
    pub span: Span,
    /// How often it was started.
    pub attempts: u32,
    /// What there is to say of a worker that did not answer.
    pub trouble: Option<Box<Trouble>>,
}

/// What became of a worker that did not answer.
#[derive(Debug)]
pub struct Trouble {
    /// How the worker ended, if it has.
    pub exit: Option<Exit>,
    /// How many bytes it used, if it was killed for that.
    pub over_memory: Option<u64>,
    /// Its Python stack when it was killed, or at a fatal signal.
    pub stack: Option<String>,
    /// What was wrong with what the worker wrote, if that is why it was ended.
    pub corrupt: Option<String>,
}

/// What a function had so far.
#[derive(Debug)]
pub struct Partial {
    /// As bytes.
    pub body: Body,
    /// Whether it is a plain value.
    pub plain: bool,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Something ended.
    Done,
    /// A worker has said something beside its work.
    Said,
    /// The slice of time is over.
    Slice,
    /// A signal handler ran.
    Interrupted,
}

struct Crew {
    id: WorkerId,
    worker: Box<HostWorker>,
    corrupt: Option<String>,
    /// What the task that it runs, or ran last, has published.
    partial: Option<(TaskId, Reply)>,
    /// The parts of a line that it has begun to print.
    line: Vec<Reply>,
}

impl Crew {
    fn new(id: WorkerId, worker: Box<HostWorker>) -> Self {
        Self { id, worker, corrupt: None, partial: None, line: Vec::new() }
    }

    /// The newest one counts; what was appended comes one after the other.
    fn keep(&mut self, task: TaskId, newest: Reply) {
        if let (ReplyKind::Appended, Body::Inline(more), Some((owner, kept))) =
            (newest.kind, &newest.body, &mut self.partial)
            && *owner == task
            && kept.kind == ReplyKind::Appended
            && let Body::Inline(bytes) = &mut kept.body
        {
            bytes.extend_from_slice(more);
        } else {
            self.partial = Some((task, newest));
        }
    }

    /// Adds what it has said to a line; whether there is a whole one, or what is to be seen as it is.
    fn adds_to_line(&mut self, aside: Reply) -> bool {
        let is_whole = aside.kind == ReplyKind::Logged || ends_line(&aside.body);
        self.line.push(aside);
        is_whole || self.line.len() >= LINE_MAX
    }

    /// What it has published of a task that has ended like this, as far as that is of use.
    fn take_partial(&mut self, task: TaskId, ending: Ending) -> Option<Partial> {
        let (_, reply) = self.partial.take_if(|(owner, _)| *owner == task)?;
        let is_wanted = ending == Ending::TimedOut || reply.kind == ReplyKind::Appended;
        is_wanted.then(|| Partial { plain: reply.kind.is_plain(), body: reply.body })
    }
}

/// Runs one job.
pub struct Driver {
    job: Job,
    fleet: Arc<Fleet>,
    payload: Arc<Payload>,
    limit: u32,
    limits: Limits,
    /// In the order of their ids.
    crew: Vec<Crew>,
    arguments: Arguments,
    /// Answers that the job has not been told of, or has yet to take.
    replies: VecDeque<(TaskId, Reply)>,
    done: Vec<Outcome>,
    /// The values of tasks that have ended with nothing else to be said of them.
    values: Values,
    start_error: Option<StartError>,
    /// What workers have said beside their work, in their order; to be taken after each wait.
    asides: Vec<Reply>,
    /// Whether a worker was lost for which there is no other yet.
    lost: bool,
    /// What has happened and was not told to the job yet. One queue: while the job's wishes are
    /// being carried out, news wait here, so that its view and the world's stay in step.
    events: VecDeque<Event>,
    /// Empty; kept for the memory that it has.
    actions: Vec<Action>,
    /// How soon workers are to wake us.
    ring: Ring,
    /// When we last looked at all descriptors.
    looked_at: Moment,
    /// The process that made this. A copy of it must not touch its workers.
    owner: i32,
    closed: bool,
}

impl Driver {
    /// A driver for a job without tasks. If its answers are wanted together, `ring` can wait.
    pub fn new(policy: Policy, fleet: Arc<Fleet>, payload: Arc<Payload>, ring: Ring) -> Self {
        Self {
            limit: policy.calls_per_worker.unwrap_or(u32::MAX),
            limits: policy.limits(),
            job: Job::new(policy),
            fleet,
            payload,
            crew: Vec::new(),
            arguments: Arguments::default(),
            replies: VecDeque::new(),
            done: Vec::new(),
            values: Values::default(),
            start_error: None,
            asides: Vec::new(),
            lost: false,
            events: VecDeque::new(),
            actions: Vec::new(),
            ring,
            looked_at: Moment::from_nanos(0),
            owner: sys::pid(),
            closed: false,
        }
    }

    /// Takes over the one task of a job that a worker was handed at `since`, and what it has answered,
    /// if it has.
    pub fn take_over(
        policy: Policy,
        fleet: Arc<Fleet>,
        payload: Arc<Payload>,
        (task, arguments, since): (TaskId, Arguments, Moment),
        worker: Box<HostWorker>,
        answer: Option<Result<Reply, Corrupt>>,
    ) -> Self {
        let mut driver = Self::new(policy, fleet, payload, Ring::AtOnce);
        let (job, id) = Job::underway(policy, task, worker.served, since);
        driver.job = job;
        driver.arguments = arguments;
        driver.crew.push(Crew::new(id, worker));
        if let Some(answer) = answer {
            let event = driver.read_answer(0, answer);
            driver.events.extend(event);
        }
        driver
    }

    /// Whether this process made it, and is not a forked copy.
    pub fn is_owner(&self) -> bool {
        sys::pid() == self.owner
    }

    /// Adds tasks. They go to workers with the next [`wait`](Self::wait).
    pub fn submit(&mut self, first: u64, batch: Batch) {
        let run = Run { first: TaskId(first), count: batch.count() };
        self.arguments.push(run.first, batch);
        self.events.push_back(Event::Submitted { run });
    }

    /// Tasks that have not ended.
    pub fn unfinished(&self) -> usize {
        self.arguments.len()
    }

    /// Tasks that wait for a worker: more are not needed while there are plenty.
    pub fn queued(&self) -> usize {
        self.job.queued() + (self.unfinished() - self.job.unfinished())
    }

    /// Those of them that have large arguments.
    pub fn large(&self) -> usize {
        self.arguments.packed()
    }

    /// How many workers the system allows, if those are fewer than were asked for.
    pub fn reduced_to(&self) -> Option<usize> {
        self.job.reduced_to()
    }

    /// Why no worker could be had, the last time that this happened.
    pub fn start_error(&self) -> Option<&StartError> {
        self.start_error.as_ref()
    }

    /// Takes what workers have said beside their work.
    pub fn take_asides(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.asides)
    }

    /// Whether they have said something that nobody has taken.
    pub fn has_asides(&self) -> bool {
        !self.asides.is_empty()
    }

    /// Takes what has ended since the last time.
    pub fn take_done(&mut self) -> std::vec::Drain<'_, Outcome> {
        self.done.drain(..)
    }

    /// The same for values of a bulk, of which there is nothing else to be said.
    pub fn values(&mut self) -> &mut Values {
        &mut self.values
    }

    /// Ends all that is not finished.
    pub fn cancel_all(&mut self, gently: bool) {
        self.feed(Event::CancelledAll { gently });
    }

    /// Whether something has ended that nobody has taken.
    pub fn has_done(&self) -> bool {
        !self.done.is_empty() || !self.values.items.is_empty()
    }

    /// Waits until something has ended or was said, a signal handler ran, or `slice` has passed.
    pub fn wait(&mut self, slice: Duration) -> Result<Wait, Error> {
        let end = sys::now() + slice;
        loop {
            self.pump();
            if self.has_done() || self.unfinished() == 0 {
                return Ok(Wait::Done);
            }
            if self.has_asides() {
                return Ok(Wait::Said);
            }
            if sys::now() >= end {
                return Ok(Wait::Slice);
            }
            if self.sleep(end)? == Woken::Interrupted {
                return Ok(Wait::Interrupted);
            }
        }
    }

    /// Ends the job: kills what still runs and waits until it is dead, keeps idle workers.
    pub fn close(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        self.cancel_all(false);
        while self.job.is_killing() {
            self.sleep(sys::now() + Duration::from_secs(1))?;
            self.pump();
        }
        for Crew { id, mut worker, mut line, .. } in self.crew.drain(..) {
            self.asides.append(&mut line);
            match self.job.worker(id).map(|worker| worker.state) {
                Some(WorkerState::Idle) if self.fleet.keep && worker.served < self.limit => {
                    self.fleet.roster.release(self.fleet.key, worker);
                }
                Some(WorkerState::Terminating {
                    step: TerminateStep::Killing | TerminateStep::Nudged | TerminateStep::Abandoned,
                    ..
                }) => {
                    if worker.served >= self.limit {
                        worker.see_off(SEE_OFF_LIMIT);
                    }
                }
                _ => worker.kill(),
            }
        }
        if std::mem::take(&mut self.lost) {
            self.fleet.replace(self.limit);
        }
        if !self.fleet.keep && self.fleet.launch.is_none() {
            self.fleet.roster.shutdown();
        }
        Ok(())
    }

    /// Waits for any of the workers, the nearest deadline, or `end`.
    fn sleep(&mut self, end: Moment) -> Result<Woken, Error> {
        let Some(until) = self.lie_down(end) else { return Ok(Woken::Ready) };
        let mut interests: SmallVec<[Interest<'_>; 4]> = self.interests().map(Interest::new).collect();
        let slice = until.since(sys::now()).max(Duration::from_millis(1));
        let woken = sys::wait(&mut interests, Some(until), slice).map_err(Error::system("wait"))?;
        let ready: SmallVec<[bool; 4]> = interests.iter().map(|interest| interest.ready).collect();
        drop(interests);
        self.get_up(&mut ready.into_iter());
        Ok(woken)
    }

    /// Has the workers ring from now on. Until when to sleep, `end` at most; `None` if there is something to
    /// do first, and they need not ring.
    fn lie_down(&mut self, end: Moment) -> Option<Moment> {
        let mut may_sleep = true;
        for crew in &mut self.crew {
            may_sleep &= crew.worker.channel.prepare_sleep(self.ring);
        }
        let now = sys::now();
        if !may_sleep && now.since(self.looked_at) < LOOK {
            for crew in &self.crew {
                crew.worker.channel.stay_awake();
            }
            return None;
        }
        // With something to do there is only a look at the rest, such as who has died.
        let end = if may_sleep { end } else { now };
        self.job.due().into_iter().chain([end]).min()
    }

    /// What to wait for meanwhile.
    fn interests(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.crew.iter().flat_map(|crew| {
            let (socket, notice) = crew.worker.interests();
            socket.into_iter().chain([notice])
        })
    }

    /// Takes note of which of those are ready, and has nobody ring any more.
    fn get_up(&mut self, ready: &mut impl Iterator<Item = bool>) {
        self.looked_at = sys::now();
        for at in 0..self.crew.len() {
            let worker = &mut self.crew[at].worker;
            let mut is_ready = || ready.next().unwrap_or(true);
            let is_rung = worker.interests().0.is_some() && is_ready();
            worker.has_news |= is_ready();
            if !is_rung {
                worker.channel.stay_awake();
                continue;
            }
            // A socket at its end is no news: the notice pipe says what happened.
            if let Err(error) = worker.wake()
                && self.crew[at].corrupt.is_none()
            {
                let event = self.corrupted(at, format!("socket: {error}"));
                self.events.push_back(event);
            }
        }
    }

    /// Reads all that there is to read, then lets time pass: so what is finished is never taken
    /// for late.
    fn pump(&mut self) {
        for at in 0..self.crew.len() {
            self.read_values(at);
            self.read(at);
        }
        self.feed(Event::Tick);
        // Those that ended are not needed any more.
        self.crew.retain(|crew| self.job.worker(crew.id).is_some());
    }

    fn read(&mut self, at: usize) {
        self.read_replies(at);
        let id = self.crew[at].id;
        let dumping = matches!(
            self.job.worker(id).map(|worker| worker.state),
            Some(WorkerState::Terminating { step: TerminateStep::Dumping, .. })
        );
        if dumping && self.crew[at].worker.channel.dump_complete() {
            self.events.push_back(Event::Dumped { worker: id });
        }
        if !std::mem::take(&mut self.crew[at].worker.has_news) {
            return;
        }
        while let Some(news) = self.crew[at].worker.news() {
            match news {
                News::Forked => {}
                News::ForkFailed(errno) => {
                    self.start_error = Some(StartError::Fork(errno));
                    self.events.push_back(Event::StartFailed { worker: id, hopeless: true });
                }
                News::Exited(exit) => {
                    // What it had answered before it ended counts, and comes first: so that the reason
                    // for which its setup failed is not taken for a mere end.
                    self.read_replies(at);
                    self.hear(at);
                    self.settle();
                    let crew = &self.crew[at];
                    let over_memory = crew.worker.over_memory;
                    let handed = self.job.worker(id).map_or(0, Worker::load);
                    let started = crew.worker.started(handed, crew.corrupt.is_none());
                    self.note_failed_start(id, exit, over_memory);
                    let over_memory = over_memory.is_some();
                    self.lost |= self.is_loss(id);
                    self.events.push_back(Event::Exited { worker: id, started, over_memory });
                }
            }
        }
        self.settle();
    }

    /// Whether the end of a worker is one that its like may meet again: what retired was not needed, and
    /// who cancels has had enough.
    fn is_loss(&self, id: WorkerId) -> bool {
        self.job.worker(id).is_some_and(|worker| {
            worker.was_ready
                && match worker.state {
                    WorkerState::Running { .. } => true,
                    WorkerState::Terminating { reason, .. } => {
                        matches!(reason, TerminateReason::TimedOut(_) | TerminateReason::Corrupted)
                    }
                    WorkerState::Starting { .. } | WorkerState::Idle => false,
                }
        })
    }

    fn note_failed_start(&mut self, id: WorkerId, exit: Exit, over_memory: Option<u64>) {
        match self.job.worker(id).map(|worker| worker.state) {
            Some(WorkerState::Starting { .. }) => {
                self.start_error = Some(over_memory.map_or(StartError::Exited(exit), StartError::OverMemory));
            }
            Some(WorkerState::Terminating { reason: TerminateReason::StartTimedOut, .. }) => {
                self.start_error = Some(StartError::Slow);
            }
            _ => {}
        }
    }

    /// Reads many answers at once, where all of them are values in time and nothing else is to be said.
    fn read_values(&mut self, at: usize) {
        let Crew { id, worker, corrupt, partial, .. } = &mut self.crew[at];
        let (id, is_bulk) = (*id, self.ring == Ring::WhenItPays && self.limit == u32::MAX);
        let state = self.job.worker(id).map(|worker| worker.state);
        let Some(WorkerState::Running { since, .. }) = state.filter(|_| is_bulk && corrupt.is_none()) else {
            return;
        };
        debug_assert!(self.events.is_empty(), "the job has to know of all that was before");
        let before = (self.values.items.len(), self.values.bytes.len());
        let received = worker.receive_values(&mut self.values);
        let stamps = self.values.items[before.0..].iter().map(|&(_, stamp, _)| Moment::from_nanos(stamp));
        let count = stamps.len();
        if count > 0 && self.job.are_in_time(since, stamps, sys::now()) {
            let &(_, stamp, _) = self.values.items.last().expect("there is more than one");
            let finished_at = Moment::from_nanos(stamp);
            // Of one of these, if of any.
            *partial = None;
            self.events.push_back(Event::Advanced { worker: id, count, finished_at });
        } else if count > 0 {
            // One by one, then.
            let mut start = before.1;
            for (task, finished_at, end) in self.values.items.split_off(before.0) {
                let body = Body::Inline(self.values.bytes[start..end].into());
                start = end;
                let reply = Reply { kind: ReplyKind::ReturnedPlain, task, finished_at, body };
                let (worker, verdict) = (id, Verdict::Returned);
                let finished_at = Moment::from_nanos(finished_at);
                self.replies.push_back((TaskId(task), reply));
                self.events.push_back(Event::Replied { worker, verdict, finished_at });
            }
            self.values.bytes.truncate(before.1);
        }
        if let Err(corrupt) = received {
            let event = self.corrupted(at, corrupt.0);
            self.events.push_back(event);
        }
        self.acknowledge(at, count > 0);
        self.settle();
    }

    fn acknowledge(&mut self, at: usize, received: bool) {
        if received
            && let Err(error) = self.crew[at].worker.channel.acknowledge()
            && self.crew[at].corrupt.is_none()
        {
            let event = self.corrupted(at, format!("doorbell: {error}"));
            self.events.push_back(event);
        }
    }

    fn read_replies(&mut self, at: usize) {
        let mut received = false;
        while self.crew[at].corrupt.is_none() {
            let answer = match self.crew[at].worker.receive() {
                Ok(None) => break,
                Ok(Some(reply)) => Ok(reply),
                Err(corrupt) => Err(corrupt),
            };
            received = true;
            let event = self.read_answer(at, answer);
            self.events.extend(event);
        }
        self.acknowledge(at, received);
    }

    /// What has happened by that, if anything has.
    fn read_answer(&mut self, at: usize, answer: Result<Reply, Corrupt>) -> Option<Event> {
        match answer {
            Ok(reply) if reply.kind.is_publication() => self.read_publication(at, reply),
            Ok(reply) if reply.kind.is_aside() => {
                if self.crew[at].adds_to_line(reply) {
                    self.hear(at);
                }
                None
            }
            Ok(reply) => {
                self.hear(at);
                Some(self.read_reply(at, reply))
            }
            Err(corrupt) => Some(self.corrupted(at, corrupt.0)),
        }
    }

    /// What a worker has begun to say is all for now. Lines of others do not get between its parts.
    fn hear(&mut self, at: usize) {
        self.asides.append(&mut self.crew[at].line);
    }

    fn read_publication(&mut self, at: usize, reply: Reply) -> Option<Event> {
        let crew = &mut self.crew[at];
        match crew.worker.running() {
            Some(task) if task.0 == reply.task => {
                crew.keep(task, reply);
                None
            }
            other => {
                let what = format!("published something of task {} instead of {other:?}", reply.task);
                Some(self.corrupted(at, what))
            }
        }
    }

    fn corrupted(&mut self, at: usize, what: String) -> Event {
        let crew = &mut self.crew[at];
        log::info!("worker {:?} (pid {:?}) wrote nonsense: {what}", crew.id, crew.worker.pid);
        crew.corrupt = Some(what);
        Event::Corrupted { worker: crew.id }
    }

    fn read_reply(&mut self, at: usize, reply: Reply) -> Event {
        let Crew { id: worker, worker: hand, .. } = &mut self.crew[at];
        let worker = *worker;
        let verdict = match reply.kind {
            ReplyKind::Ready | ReplyKind::SetupFailed if hand.ready => {
                return self.corrupted(at, format!("{:?} after it was set up", reply.kind));
            }
            ReplyKind::Ready => {
                hand.ready = true;
                // Its forkserver says the same, but may be slower.
                hand.pid = hand.pid.or_else(|| pid_in(&reply.body));
                return Event::Ready { worker, served: 0 };
            }
            ReplyKind::SetupFailed => {
                hand.kill();
                self.start_error = Some(StartError::Setup(reply.body));
                return Event::StartFailed { worker, hopeless: true };
            }
            ReplyKind::Returned | ReplyKind::ReturnedPlain => Verdict::Returned,
            ReplyKind::Raised => Verdict::Raised { retryable: false },
            ReplyKind::RaisedRetryable => Verdict::Raised { retryable: true },
            ReplyKind::Published
            | ReplyKind::PublishedPlain
            | ReplyKind::Appended
            | ReplyKind::Printed
            | ReplyKind::PrintedError
            | ReplyKind::Logged => unreachable!("it is no answer"),
        };
        match hand.answered() {
            Some(task) if task.0 == reply.task => {
                let finished_at = Moment::from_nanos(reply.finished_at);
                self.replies.push_back((task, reply));
                Event::Replied { worker, verdict, finished_at }
            }
            other => self.corrupted(at, format!("an answer to task {} instead of {other:?}", reply.task)),
        }
    }

    fn feed(&mut self, event: Event) {
        self.events.push_back(event);
        self.settle();
    }

    /// Tells the job what happened, and performs what it asks for, until nothing is left.
    fn settle(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        loop {
            // After all that is read has happened, and one reading for all of it.
            let now = sys::now();
            while let Some(event) = self.events.pop_front() {
                self.job.handle(event, now, &mut actions);
                for action in actions.drain(..) {
                    self.perform(action);
                }
            }
            self.job.settle(now, &mut actions);
            for action in actions.drain(..) {
                self.perform(action);
            }
            self.publish_all(now);
            if self.events.is_empty() {
                self.actions = actions;
                return;
            }
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start { worker } => self.start(worker),
            Action::Foresee { worker } => {
                self.fleet.replace(self.limit);
                // One that has not even begun may have been stopped by somebody while it waited.
                self.with(worker, |worker| {
                    if !worker.has_begun() {
                        worker.nudge();
                    }
                });
            }
            Action::Hand { worker, run } => {
                if let Some(refusal) = self.stage(worker, run) {
                    self.events.push_back(refusal);
                }
            }
            Action::Revoke { worker } => {
                let Some(at) = self.place(worker) else { return };
                self.publish(at, sys::now());
                let count = self.crew[at].worker.revoke();
                // What it answered before that comes first.
                self.read_replies(at);
                // Of what is left a sound worker has started one, and cannot have started more.
                if self.crew[at].worker.in_hand() > 1 && self.crew[at].corrupt.is_none() {
                    let event = self.corrupted(at, "more than one request was started at a time".into());
                    self.events.push_back(event);
                }
                self.events.push_back(Event::Revoked { worker, count });
            }
            Action::Dump { worker } => self.with(worker, |worker| worker.signal(DUMP_SIGNAL)),
            Action::Terminate { worker } => self.with(worker, |worker| worker.signal(TERMINATE_SIGNAL)),
            Action::Kill { worker, dump: false } => self.with(worker, HostWorker::kill),
            Action::Kill { worker, dump: true } => self.with(worker, HostWorker::dump_and_kill),
            Action::Nudge { worker } => self.with(worker, HostWorker::nudge),
            Action::Abandon { worker } => {
                self.with(worker, HostWorker::abandon);
                // All of its workers may be lost now, and their pipes need not tell.
                for crew in &mut self.crew {
                    crew.worker.has_news = true;
                }
            }
            Action::CompleteRun { run } => self.arguments.remove(run),
            Action::Complete { task, ending, worker, attempts, span } => {
                self.complete(task, ending, worker, attempts, span);
            }
        }
    }

    fn with(&self, id: WorkerId, act: impl Fn(&HostWorker)) {
        if let Some(at) = self.place(id) {
            act(&self.crew[at].worker);
        }
    }

    fn place(&self, id: WorkerId) -> Option<usize> {
        self.crew.binary_search_by_key(&id, |crew| crew.id).ok()
    }

    fn start(&mut self, id: WorkerId) {
        match self.fleet.worker(self.limit) {
            Ok(mut worker) => {
                self.asides.append(&mut worker.asides);
                if worker.ready {
                    self.events.push_back(Event::Ready { worker: id, served: worker.served });
                }
                self.crew.push(Crew::new(id, worker));
            }
            Err(error) => {
                self.start_error = Some(StartError::System(error));
                self.events.push_back(Event::StartFailed { worker: id, hopeless: true });
            }
        }
    }

    /// Writes tasks to a worker; it gets all of them together.
    fn stage(&mut self, id: WorkerId, run: Run) -> Option<Event> {
        let at = self.place(id)?;
        // What an attempt before this one came to is not wanted any more.
        self.replies.retain(|(task, _)| !run.contains(*task));
        for crew in &mut self.crew {
            crew.partial.take_if(|(task, _)| run.contains(*task));
        }
        let Crew { worker, corrupt, .. } = &mut self.crew[at];
        if worker.in_hand() == 0 && !worker.is_sound() {
            if corrupt.is_none() {
                // An earlier call has written over its memory. This one has nothing to do with it.
                log::info!("worker {id:?} is not fit for use any more");
                worker.kill();
            }
            return Some(Event::Refused { worker: id, run, retired: true });
        }
        match worker.stage(run, &self.payload, &self.arguments) {
            Ok(Run { count: 0, .. }) => None,
            Ok(run) => Some(Event::Refused { worker: id, run, retired: false }),
            Err(error) => Some(Self::not_handed(id, &error)),
        }
    }

    /// Out of descriptors or memory, or the worker's socket is gone: this worker takes nothing; its
    /// notice pipe tells if it has ended.
    fn not_handed(id: WorkerId, error: &std::io::Error) -> Event {
        log::info!("failed to hand a task to worker {id:?}: {error}");
        Event::Corrupted { worker: id }
    }

    fn publish_all(&mut self, now: Moment) {
        for at in 0..self.crew.len() {
            self.publish(at, now);
        }
    }

    /// Hands a worker what was staged for it.
    fn publish(&mut self, at: usize, now: Moment) {
        let id = self.crew[at].id;
        let is_new = self.crew[at].worker.has_staged();
        let published = match self.crew[at].worker.publish(now, self.limits) {
            Ok(published) => published,
            Err(error) => return self.events.push_back(Self::not_handed(id, &error)),
        };
        if published.handed == Handed::Yes {
            if is_new && self.crew[at].worker.is_last(self.limit) {
                // Now that the caller waits for the function anyway.
                self.fleet.replace(self.limit);
            }
            return;
        }
        // What it answered before that comes first: a host that was stopped for a minute may not have
        // read it yet.
        self.read_replies(at);
        let idle = self.crew[at].worker.in_hand() == 0;
        if published.handed == Handed::Unsound && idle {
            // Something has written over its memory in this very moment.
            log::info!("worker {id:?} is not fit for use any more");
            self.crew[at].worker.kill();
        } else if published.handed == Handed::Unsound && self.crew[at].corrupt.is_none() {
            // The one that it runs has, and counts as started.
            let event = self.corrupted(at, "its claim word was changed".into());
            self.events.push_back(event);
        }
        let retired = published.handed == Handed::Retired || idle;
        let refused = published.back.into_iter().rev();
        self.events.extend(refused.map(|run| Event::Refused { worker: id, run, retired }));
    }

    fn complete(
        &mut self,
        task: TaskId,
        ending: Ending,
        worker: Option<WorkerId>,
        attempts: u32,
        span: Span,
    ) {
        self.arguments.remove(Run::one(task));
        // Mostly the first one.
        let reply = self.replies.iter().position(|(other, _)| *other == task);
        let reply = reply.and_then(|at| self.replies.remove(at)).map(|(_, reply)| reply);
        let mut crew = worker.and_then(|id| self.place(id)).map(|at| &mut self.crew[at]);
        let partial = crew.as_mut().and_then(|crew| crew.take_partial(task, ending));
        let crew = crew.as_deref();
        let answered = matches!(ending, Ending::Returned | Ending::Raised);
        let trouble = crew.filter(|_| !answered).map(|crew| {
            Box::new(Trouble {
                exit: crew.worker.exit,
                over_memory: crew.worker.over_memory,
                stack: matches!(ending, Ending::TimedOut | Ending::Died | Ending::OverMemory)
                    .then(|| crew.worker.channel.stack())
                    .flatten(),
                corrupt: crew.corrupt.clone(),
            })
        });
        self.done.push(Outcome {
            task: task.0,
            ending,
            plain: reply.as_ref().is_some_and(|reply| reply.kind.is_plain()),
            body: reply.filter(|_| answered).map(|reply| reply.body),
            partial,
            pid: crew.and_then(|crew| crew.worker.pid),
            span,
            attempts,
            trouble,
        });
    }
}

/// Waits until something has ended or was said in any of these jobs, `bell` can be read, or `slice` has passed.
pub fn wait_any(drivers: &mut [&mut Driver], bell: BorrowedFd<'_>, slice: Duration) -> Result<(), Error> {
    let end = sys::now() + slice;
    loop {
        for driver in &mut *drivers {
            driver.pump();
        }
        let now = sys::now();
        if drivers.iter().any(|driver| driver.has_done() || driver.has_asides()) || now >= end {
            return Ok(());
        }
        let until = drivers.iter_mut().map(|driver| driver.lie_down(end).unwrap_or(now)).chain([end]).min();
        let fds = drivers.iter().flat_map(|driver| driver.interests());
        let mut interests: SmallVec<[Interest<'_>; 8]> =
            [bell].into_iter().chain(fds).map(Interest::new).collect();
        let slice = until.map_or(slice, |until| until.since(sys::now())).max(Duration::from_millis(1));
        let waited = sys::wait(&mut interests, until, slice);
        let ready: SmallVec<[bool; 8]> = interests.iter().map(|interest| interest.ready).collect();
        drop(interests);
        let mut ready = ready.into_iter();
        let is_rung = ready.next().unwrap_or(true);
        for driver in &mut *drivers {
            driver.get_up(&mut ready);
        }
        waited.map_err(Error::system("wait"))?;
        if is_rung {
            return Ok(());
        }
    }
}

/// Whether a text is to be seen without what comes after it: nothing at all says so of what came before.
fn ends_line(text: &Body) -> bool {
    let mut last = [0];
    text.is_empty() || text.read(text.len() - 1, &mut last).is_ok() && matches!(last[0], b'\n' | b'\r')
}

/// The pid that a worker names when it is ready.
fn pid_in(body: &Body) -> Option<i32> {
    let mut bytes = [0; 4];
    body.read(0, &mut bytes).ok()?;
    Some(i32::from_le_bytes(bytes)).filter(|&pid| pid > 0)
}

impl Drop for Driver {
    /// For a caller who was interrupted before it could close: nothing stays behind all the same.
    fn drop(&mut self) {
        if self.is_owner()
            && let Err(error) = self.close()
        {
            log::error!("failed to end a job: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_its_end_or_with_nothing_more() {
        let ends = |text: &[u8]| ends_line(&Body::Inline(text.into()));
        let seen = [&b"a line\n"[..], b"\n", b" 7%\r", b"", b"part", b"\npart"].map(ends);
        assert_eq!([true, true, true, true, false, false], seen);
    }
}
