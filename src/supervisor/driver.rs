//! The driver: performs what a [`Job`] asks for, and tells it what happens.
//!
//! The thread that waits for the answer runs this loop itself: one wait over the sockets and
//! notice pipes of its workers and the nearest deadline.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::time::Duration;

use super::events::{Action, Ending, Event, TaskId, Verdict, WorkerId};
use super::job::{Job, Policy};
use super::roster::{Exit, Fleet, HostWorker, News, Parcel};
use super::worker::{TerminateReason, TerminateStep, WorkerState};
use crate::error::Error;
use crate::sys::{self, DUMP_SIGNAL, Interest, TERMINATE_SIGNAL, Waiter, Woken};
use crate::time::Moment;
use crate::transport::{Body, Handed, Reply, ReplyKind};

/// The function that a job calls, and the surroundings that it runs in.
#[derive(Debug, Default)]
pub struct Payload {
    /// The function's number, the same for the same bytes.
    pub function: u64,
    /// The pickled function.
    pub function_bytes: Vec<u8>,
    /// The version of the host's surroundings.
    pub context: u64,
    /// The surroundings.
    pub context_bytes: Vec<u8>,
}

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
    /// The worker's pid.
    pub pid: Option<i32>,
    /// How the worker ended, if it has.
    pub exit: Option<Exit>,
    /// How many bytes it used, if it was killed for that.
    pub over_memory: Option<u64>,
    /// Its Python stack when it was killed, or at a fatal signal.
    pub stack: Option<String>,
    /// What was wrong with what the worker wrote, if that is why it was ended.
    pub corrupt: Option<String>,
    /// How long the last attempt ran.
    pub elapsed: Duration,
    /// How often it was started.
    pub attempts: u32,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Something ended.
    Done,
    /// The slice of time is over.
    Slice,
    /// A signal handler ran.
    Interrupted,
}

struct Crew {
    id: WorkerId,
    worker: HostWorker,
    corrupt: Option<String>,
}

/// Runs one job.
pub struct Driver {
    job: Job,
    fleet: Fleet,
    payload: Payload,
    limit: u32,
    crew: Vec<Crew>,
    arguments: HashMap<TaskId, Vec<u8>>,
    replies: HashMap<TaskId, Body>,
    done: Vec<Outcome>,
    start_error: Option<StartError>,
    /// What has happened and was not told to the job yet. One queue: while the job's wishes are
    /// being carried out, news wait here, so that its view and the world's stay in step.
    events: VecDeque<Event>,
    waiter: Waiter,
    /// The process that made this. A copy of it must not touch its workers.
    owner: i32,
    closed: bool,
}

impl Driver {
    /// A driver for a job without tasks.
    pub fn new(policy: Policy, fleet: Fleet, payload: Payload) -> Self {
        Self {
            limit: policy.calls_per_worker.unwrap_or(u32::MAX),
            job: Job::new(policy),
            fleet,
            payload,
            crew: Vec::new(),
            arguments: HashMap::new(),
            replies: HashMap::new(),
            done: Vec::new(),
            start_error: None,
            events: VecDeque::new(),
            waiter: Waiter::default(),
            owner: sys::pid(),
            closed: false,
        }
    }

    /// Whether this process made it, and is not a forked copy.
    pub fn is_owner(&self) -> bool {
        sys::pid() == self.owner
    }

    /// Adds a task.
    pub fn submit(&mut self, task: u64, arguments: Vec<u8>) {
        let task = TaskId(task);
        self.arguments.insert(task, arguments);
        self.feed(Event::Submitted { task });
    }

    /// Tasks that have not ended.
    pub fn unfinished(&self) -> usize {
        self.job.unfinished()
    }

    /// Tasks that wait for a worker: more are not needed while there are plenty.
    pub fn queued(&self) -> usize {
        self.job.queued()
    }

    /// How many workers the system allows, if those are fewer than were asked for.
    pub fn reduced_to(&self) -> Option<usize> {
        self.job.reduced_to()
    }

    /// Why no worker could be had, the last time that this happened.
    pub fn start_error(&self) -> Option<&StartError> {
        self.start_error.as_ref()
    }

    /// Takes what has ended since the last time.
    pub fn take_done(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.done)
    }

    /// Ends all that is not finished.
    pub fn cancel_all(&mut self, gently: bool) {
        self.feed(Event::CancelledAll { gently });
    }

    /// Waits until something has ended, a signal handler ran, or `slice` has passed.
    pub fn wait(&mut self, slice: Duration) -> Result<Wait, Error> {
        let end = sys::now() + slice;
        loop {
            self.pump();
            if !self.done.is_empty() || self.job.unfinished() == 0 {
                return Ok(Wait::Done);
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
        for Crew { id, worker, .. } in self.crew.drain(..) {
            match self.job.worker(id).map(|worker| worker.state) {
                Some(WorkerState::Idle) if self.fleet.keep && worker.served < self.limit => {
                    self.fleet.roster.release(self.fleet.key, worker);
                }
                Some(WorkerState::Terminating {
                    step: TerminateStep::Killing | TerminateStep::Nudged | TerminateStep::Abandoned,
                    ..
                }) => {}
                _ => worker.kill(),
            }
        }
        if !self.fleet.keep && self.fleet.launch.is_none() {
            self.fleet.roster.shutdown();
        }
        // A traceback may keep this object for long; the timer's descriptor must not stay as well.
        self.waiter = Waiter::default();
        Ok(())
    }

    /// Waits for any of the workers, the nearest deadline, or `end`.
    fn sleep(&mut self, end: Moment) -> Result<Woken, Error> {
        let mut may_sleep = true;
        for crew in &self.crew {
            may_sleep &= crew.worker.channel.prepare_sleep();
        }
        let mut woken = Woken::Ready;
        if may_sleep {
            let until = self.job.due().into_iter().chain([end]).min();
            let mut interests: Vec<Interest<'_>> = self
                .crew
                .iter()
                .flat_map(|crew| [crew.worker.channel.socket(), crew.worker.notice().as_fd()])
                .map(Interest::new)
                .collect();
            let slice = end.since(sys::now()).max(Duration::from_millis(1));
            woken = self.waiter.wait(&mut interests, until, slice).map_err(Error::system("wait"))?;
        }
        for at in 0..self.crew.len() {
            // A socket at its end is no news: the notice pipe says what happened.
            if let Err(error) = self.crew[at].worker.channel.wake()
                && self.crew[at].corrupt.is_none()
            {
                let event = self.corrupted(at, format!("socket: {error}"));
                self.events.push_back(event);
            }
        }
        Ok(woken)
    }

    /// Reads all that there is to read, then lets time pass: so what is finished is never taken
    /// for late.
    fn pump(&mut self) {
        for at in 0..self.crew.len() {
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
                    self.settle();
                    let crew = &self.crew[at];
                    let over_memory = crew.worker.over_memory;
                    let handed = self.job.worker(id).map_or(0, |worker| worker.handed.len());
                    let started = crew.worker.started(handed, crew.corrupt.is_none());
                    self.note_failed_start(id, exit, over_memory);
                    let over_memory = over_memory.is_some();
                    self.events.push_back(Event::Exited { worker: id, started, over_memory });
                }
            }
        }
        self.settle();
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

    fn read_replies(&mut self, at: usize) {
        while self.crew[at].corrupt.is_none() {
            let event = match self.crew[at].worker.channel.receive() {
                Ok(None) => return,
                Ok(Some(reply)) => self.read_reply(at, reply),
                Err(corrupt) => self.corrupted(at, corrupt.0),
            };
            self.events.push_back(event);
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
            ReplyKind::Returned => Verdict::Returned,
            ReplyKind::Raised => Verdict::Raised { retryable: false },
            ReplyKind::RaisedRetryable => Verdict::Raised { retryable: true },
        };
        match hand.answered() {
            Some(task) if task.0 == reply.task => {
                self.replies.insert(task, reply.body);
                let finished_at = Moment::from_nanos(reply.finished_at);
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
        let mut actions = Vec::new();
        while let Some(event) = self.events.pop_front() {
            self.job.handle(event, sys::now(), &mut actions);
            for action in actions.drain(..) {
                self.perform(action);
            }
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start { worker } => self.start(worker),
            Action::Hand { worker, task } => {
                let refusal = self.hand(worker, task);
                self.events.extend(refusal);
            }
            Action::Revoke { worker } => {
                let Some(at) = self.crew.iter().position(|crew| crew.id == worker) else { return };
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
            Action::Kill { worker } => self.with(worker, HostWorker::kill),
            Action::Nudge { worker } => self.with(worker, HostWorker::nudge),
            Action::Abandon { worker } => self.with(worker, HostWorker::abandon),
            Action::Complete { task, ending, worker, attempts, elapsed } => {
                self.complete(task, ending, worker, attempts, elapsed);
            }
        }
    }

    fn with(&self, id: WorkerId, act: impl Fn(&HostWorker)) {
        if let Some(crew) = self.crew.iter().find(|crew| crew.id == id) {
            act(&crew.worker);
        }
    }

    fn start(&mut self, id: WorkerId) {
        match self.fleet.worker(self.limit) {
            Ok(worker) => {
                if worker.ready {
                    self.events.push_back(Event::Ready { worker: id, served: worker.served });
                }
                self.crew.push(Crew { id, worker, corrupt: None });
            }
            Err(error) => {
                self.start_error = Some(StartError::System(error));
                self.events.push_back(Event::StartFailed { worker: id, hopeless: true });
            }
        }
    }

    fn hand(&mut self, id: WorkerId, task: TaskId) -> Option<Event> {
        let at = self.crew.iter().position(|crew| crew.id == id)?;
        let crew = &mut self.crew[at];
        let arguments = self.arguments.get(&task)?;
        let parcel = Parcel {
            function: self.payload.function,
            function_bytes: &self.payload.function_bytes,
            context: self.payload.context,
            context_bytes: &self.payload.context_bytes,
            arguments,
        };
        match crew.worker.hand(task, &parcel) {
            Ok(Handed::Yes) => None,
            Ok(Handed::NoRoom) => Some(Event::Refused { worker: id, task, retired: false }),
            Ok(Handed::Unsound) => {
                self.read_replies(at);
                let idle = self.crew[at].worker.in_hand() == 0;
                if idle {
                    // An earlier call has written over its memory. This one has nothing to do with it.
                    log::info!("worker {id:?} is not fit for use any more");
                    self.crew[at].worker.kill();
                } else if self.crew[at].corrupt.is_none() {
                    // The one that it runs has, and counts as started.
                    let event = self.corrupted(at, "its claim word was changed".into());
                    self.events.push_back(Event::Refused { worker: id, task, retired: false });
                    return Some(event);
                }
                Some(Event::Refused { worker: id, task, retired: idle })
            }
            Ok(Handed::Retired) => {
                // What it answered before that comes first: a host that was stopped for a minute may
                // not have read it yet.
                self.read_replies(at);
                Some(Event::Refused { worker: id, task, retired: true })
            }
            Err(error) => {
                // Out of descriptors or memory, or the worker's socket is gone: this worker takes
                // nothing; its notice pipe tells if it has ended.
                log::info!("failed to hand a task to worker {id:?}: {error}");
                Some(Event::Corrupted { worker: id })
            }
        }
    }

    fn complete(
        &mut self,
        task: TaskId,
        ending: Ending,
        worker: Option<WorkerId>,
        attempts: u32,
        elapsed: Duration,
    ) {
        self.arguments.remove(&task);
        let body = self.replies.remove(&task);
        let crew = worker.and_then(|id| self.crew.iter().find(|crew| crew.id == id));
        let exit = crew.and_then(|crew| crew.worker.exit);
        self.done.push(Outcome {
            task: task.0,
            ending,
            body: body.filter(|_| matches!(ending, Ending::Returned | Ending::Raised)),
            pid: crew.and_then(|crew| crew.worker.pid),
            exit,
            over_memory: crew.and_then(|crew| crew.worker.over_memory),
            stack: crew
                .filter(|_| matches!(ending, Ending::TimedOut | Ending::Died | Ending::OverMemory))
                .and_then(|crew| crew.worker.channel.stack()),
            corrupt: crew.and_then(|crew| crew.corrupt.clone()),
            elapsed,
            attempts,
        });
    }
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
