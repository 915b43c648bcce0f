//! Random schedules against the pure core, with made-up time.
//!
//! A seed decides everything: the policy, the tasks, how long each attempt takes and how it ends,
//! who dies, stops, refuses or scribbles and when, and how late the driver wakes up. The world below
//! obeys the job's actions as processes would, and each step is checked against the promises.
//!
//! `KILLERCALL_SIMULATIONS=<n>` sets how many schedules run; `KILLERCALL_SIMULATION_SEED=<seed>`
//! replays one and prints its trace.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::events::{Action, Ending, Event, Run, Span, TaskId, Verdict, WorkerId};
use super::job::{DUMP_LIMIT, Job, NUDGE_LIMIT, Policy, STUCK_LIMIT};
use super::worker::WorkerState;
use crate::time::Moment;

/// Most requests that a simulated ring holds.
const RING: usize = 16;
/// How late the driver wakes up at most.
const LATE: Duration = Duration::from_millis(3);
/// How long a kill takes at most, if it works.
const KILL_TAKES: Duration = Duration::from_millis(2);

/// Splitmix64: enough for schedules, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    fn up_to(&mut self, length: Duration) -> Duration {
        Duration::from_nanos(self.below(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// How an attempt goes on.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answers(Verdict),
    Dies,
    AnswersThenDies,
    Scribbles,
    Never,
}

/// A task that a worker has started.
#[derive(Clone, Copy, Debug)]
struct Running {
    task: TaskId,
    since: Moment,
    ends: Moment,
    fate: Fate,
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
struct SimulatedWorker {
    ready_at: Option<Moment>,
    ready: bool,
    dies_at: Option<Moment>,
    dumps_at: Option<Moment>,
    dumped: bool,
    /// Stopped: it starts nothing and answers nothing.
    stopped: bool,
    waiting: VecDeque<TaskId>,
    handed_at: Option<Moment>,
    running: Option<Running>,
    published: VecDeque<(TaskId, Verdict, Moment)>,
    corrupt: bool,
    corrupt_told: bool,
    dead: bool,
    exit_told: bool,
    unkillable: bool,
    /// The forkserver kills it for its memory.
    over_memory: bool,
    /// Its forkserver is stopped until it is nudged.
    unheard: bool,
    /// The same, and it was not even forked.
    unforked: bool,
    /// It ends by itself and takes nothing more.
    retired: bool,
    news: VecDeque<Event>,
}

struct World {
    seed: u64,
    random: Random,
    now: Moment,
    policy: Policy,
    job: Job,
    events: VecDeque<Event>,
    workers: Vec<(WorkerId, SimulatedWorker)>,
    starts: HashMap<TaskId, u32>,
    /// Whether the last attempt of a task was answered in time, and how.
    in_time: HashMap<TaskId, (bool, Verdict)>,
    ended: HashMap<TaskId, Ending>,
    submitted: u64,
    cancelled: HashSet<TaskId>,
    foreseen: HashSet<(WorkerId, TaskId, Option<Moment>)>,
    hopeless: bool,
    calm: bool,
    trace: bool,
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut random = Random(seed);
        let now = Moment::from_nanos(1_000_000_000_000);
        let millis = |n: u64| Duration::from_millis(n);
        let policy = Policy {
            timeout: (!random.one_in(8)).then(|| millis(1 + random.below(40))),
            grace: if random.one_in(3) { millis(1 + random.below(30)) } else { Duration::ZERO },
            workers: usize::try_from(1 + random.below(6)).unwrap(),
            retries: if random.one_in(3) { u32::try_from(random.below(4)).unwrap() } else { 0 },
            retry_timed_out: random.one_in(2),
            retry_died: random.one_in(2),
            retry_over_memory: random.one_in(2),
            budget: random.one_in(6).then(|| now + millis(1 + random.below(200))),
            calls_per_worker: match random.below(6) {
                0 => Some(1),
                1 => Some(u32::try_from(1 + random.below(5)).unwrap()),
                _ => None,
            },
            start_limit: millis(400),
        };
        // Half of the schedules have no faults but those of the tasks themselves.
        let calm = random.one_in(2);
        Self {
            seed,
            random,
            now,
            job: Job::new(policy),
            policy,
            events: VecDeque::new(),
            workers: Vec::new(),
            starts: HashMap::new(),
            in_time: HashMap::new(),
            ended: HashMap::new(),
            submitted: 0,
            cancelled: HashSet::new(),
            foreseen: HashSet::new(),
            hopeless: false,
            calm,
            trace,
        }
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        if self.trace {
            println!("{:>12} us  {what}", self.now.as_nanos() / 1000 - 1_000_000_000);
        }
    }

    fn run(&mut self) {
        self.note(format_args!("seed {} {:?} calm={}", self.seed, self.policy, self.calm));
        let total = self.random.below(50);
        let at_once = self.random.one_in(2);
        let mut steps = 0;
        while self.submitted < total || self.job.unfinished() > 0 {
            steps += 1;
            assert!(steps < 200_000, "the job makes no progress");
            if self.submitted < total && (at_once || self.random.one_in(3)) {
                let first = TaskId(self.submitted);
                let count = (1 + self.random.below(8)).min(total - self.submitted);
                self.submitted += count;
                let count = usize::try_from(count).unwrap();
                self.feed(Event::Submitted { run: Run { first, count } });
                continue;
            }
            self.interfere();
            // What has happened unread rings the driver at once.
            let unread = self.workers.iter().any(|(_, worker)| worker.has_news()).then_some(self.now);
            let next = self.job.due().into_iter().chain(self.next_happening()).chain(unread).min();
            let Some(next) = next else {
                assert!(
                    self.submitted < total || self.job.unfinished() == 0,
                    "{} tasks are left, and nothing is due or under way",
                    self.job.unfinished()
                );
                continue;
            };
            let late = if self.random.one_in(10) { self.random.up_to(LATE) } else { Duration::ZERO };
            self.advance(next.max(self.now) + late);
            self.pump();
            self.check();
        }
        assert_eq!(usize::try_from(total).unwrap(), self.ended.len(), "each task ends");
        assert!(
            !self
                .workers
                .iter()
                .any(|(_, worker)| !worker.dead && worker.running.is_some() && !worker.unkillable)
                || self.job.is_killing(),
            "a worker still runs a task that has ended"
        );
    }

    /// What users and chance do at any moment.
    fn interfere(&mut self) {
        if self.random.one_in(200) && self.submitted > 0 {
            let task = TaskId(self.random.below(self.submitted));
            self.cancelled.insert(task);
            self.feed(Event::Cancelled { task });
        }
        if self.random.one_in(1500) {
            self.cancelled.extend((0..self.submitted).map(TaskId));
            let gently = self.random.one_in(2);
            self.feed(Event::CancelledAll { gently });
        }
        if !self.calm && self.random.one_in(60) && !self.workers.is_empty() {
            let at = usize::try_from(self.random.below(self.workers.len() as u64)).unwrap();
            let worker = &mut self.workers[at].1;
            match self.random.below(4) {
                3 => {
                    worker.over_memory = true;
                    worker.dies_at = Some(self.now + self.random.up_to(LATE));
                    // One that needs too much to start will do so again.
                    self.hopeless = true;
                }
                // Without a deadline nothing would ever end it.
                0 if self.policy.timeout.is_some() => worker.stopped = true,
                1 => worker.dies_at = Some(self.now + self.random.up_to(LATE)),
                _ if worker.ready && worker.waiting.is_empty() && worker.running.is_none() => {
                    worker.retired = true;
                }
                _ => {}
            }
        }
    }

    fn next_happening(&self) -> Option<Moment> {
        self.workers.iter().filter_map(|(_, worker)| worker.next_happening()).min()
    }

    /// Lets the world go on until `until`, in the order in which things happen.
    fn advance(&mut self, until: Moment) {
        while let Some(next) = self.next_happening().filter(|&next| next <= until) {
            self.now = self.now.max(next);
            for at in 0..self.workers.len() {
                if self.workers[at].1.next_happening() == Some(next) {
                    self.happen(at);
                }
            }
        }
        self.now = self.now.max(until);
    }

    fn happen(&mut self, at: usize) {
        let now = self.now;
        let (id, worker) = &mut self.workers[at];
        let id = *id;
        let is_due = |moment: Option<Moment>| moment.is_some_and(|moment| moment <= now);
        if is_due(worker.dies_at) {
            worker.dead = true;
            worker.dies_at = None;
            return self.note(format_args!("{id:?} is dead"));
        }
        if is_due(worker.ready_at) {
            worker.ready_at = None;
            worker.ready = true;
            worker.news.push_back(Event::Ready { worker: id, served: 0 });
        } else if is_due(worker.dumps_at) {
            worker.dumps_at = None;
            worker.dumped = true;
            worker.news.push_back(Event::Dumped { worker: id });
        } else if let Some(running) = worker.running.filter(|running| running.ends <= now && !worker.stopped)
        {
            self.finish(at, running);
        }
    }

    fn finish(&mut self, at: usize, running: Running) {
        let (id, worker) = &mut self.workers[at];
        let id = *id;
        let verdict = match running.fate {
            Fate::Answers(verdict) => verdict,
            Fate::AnswersThenDies => Verdict::Returned,
            Fate::Dies => {
                worker.dead = true;
                return self.note(format_args!("{id:?} died of {:?}", running.task));
            }
            Fate::Scribbles => {
                worker.corrupt = true;
                worker.stopped = true;
                return self.note(format_args!("{id:?} scribbled in {:?}", running.task));
            }
            Fate::Never => unreachable!("it never ends"),
        };
        worker.running = None;
        worker.published.push_back((running.task, verdict, self.now));
        let in_time = self.policy.timeout.is_none_or(|timeout| self.now <= running.since + timeout)
            && self.policy.budget.is_none_or(|budget| self.now <= budget);
        if matches!(running.fate, Fate::AnswersThenDies) {
            worker.dead = true;
        }
        self.in_time.insert(running.task, (in_time, verdict));
        self.note(format_args!("{id:?} answered {:?}: {verdict:?}, in time: {in_time}", running.task));
        self.claim(at);
    }

    /// The worker starts its next task, if it has one.
    fn claim(&mut self, at: usize) {
        let (id, worker) = &mut self.workers[at];
        if worker.dead || worker.stopped || worker.running.is_some() || !worker.ready {
            return;
        }
        let Some(task) = worker.waiting.pop_front() else { return };
        let id = *id;
        let elsewhere = |(other, worker): &(WorkerId, SimulatedWorker)| {
            *other != id && !worker.dead && worker.running.is_some_and(|running| running.task == task)
        };
        assert!(!self.workers.iter().any(elsewhere), "{task:?} runs twice at a time");
        assert!(!self.ended.contains_key(&task), "{task:?} was started after it had ended");
        let starts = self.starts.entry(task).or_default();
        *starts += 1;
        assert!(*starts <= 1 + self.policy.retries, "{task:?} was started {starts} times");
        self.in_time.remove(&task);
        let (length, fate) = self.draw_fate();
        let running = Running { task, since: self.now, ends: self.now + length, fate };
        self.workers[at].1.running = Some(running);
        self.note(format_args!("{id:?} starts {task:?}: {fate:?} after {length:?}"));
    }

    fn draw_fate(&mut self) -> (Duration, Fate) {
        let timeout = self.policy.timeout.unwrap_or(Duration::from_millis(5));
        let random = &mut self.random;
        let length = match random.below(12) {
            0..=3 => Duration::ZERO,
            4..=6 => random.up_to(Duration::from_micros(100)),
            7 | 8 => random.up_to(Duration::from_millis(4)),
            9 => timeout,
            10 => timeout + random.up_to(Duration::from_micros(50)),
            _ => timeout.saturating_sub(random.up_to(Duration::from_micros(50))),
        };
        let fate = match random.below(if self.calm { 11 } else { 15 }) {
            8 => Fate::Answers(Verdict::Raised { retryable: false }),
            9 => Fate::Answers(Verdict::Raised { retryable: true }),
            // Without a deadline nothing would ever end it.
            10 if self.policy.timeout.is_some() => Fate::Never,
            11 | 12 => Fate::Dies,
            13 => Fate::AnswersThenDies,
            14 => Fate::Scribbles,
            _ => Fate::Answers(Verdict::Returned),
        };
        let length = if matches!(fate, Fate::Never) { Duration::from_secs(1_000_000) } else { length };
        (length, fate)
    }

    /// As the driver does: all answers and news first, then time.
    fn pump(&mut self) {
        for at in 0..self.workers.len() {
            self.read_values(at);
            self.read_answers(at);
            let news = std::mem::take(&mut self.workers[at].1.news);
            self.events.extend(news);
            if self.workers[at].1.dead && !self.workers[at].1.exit_told {
                self.read_answers(at);
                let (id, worker) = &mut self.workers[at];
                worker.exit_told = true;
                let started = usize::from(worker.running.is_some());
                let over_memory = worker.over_memory;
                self.events.push_back(Event::Exited { worker: *id, started, over_memory });
            }
            self.settle();
        }
        if self.random.one_in(4) {
            // The world does not wait between the driver's last look and its reading of the clock.
            let moves_on = self.random.up_to(Duration::from_micros(200));
            self.advance(self.now + moves_on);
        }
        self.feed(Event::Tick);
        self.workers.retain(|(_, worker)| !worker.exit_told);
    }

    /// Many answers at once, where all are as they should be.
    fn read_values(&mut self, at: usize) {
        let (id, worker) = &mut self.workers[at];
        let state = self.job.worker(*id).map(|worker| worker.state);
        let Some(WorkerState::Running { since, .. }) = state else { return };
        if !self.events.is_empty() || self.policy.calls_per_worker.is_some() || self.random.one_in(3) {
            return;
        }
        let values = || worker.published.iter().take_while(|(_, verdict, _)| *verdict == Verdict::Returned);
        let count = values().count();
        if count > 0
            && self.job.are_in_time(since, values().map(|(_, _, finished_at)| *finished_at), self.now)
        {
            let finished_at = worker.published.drain(..count).next_back().unwrap().2;
            let event = Event::Advanced { worker: *id, count, finished_at };
            self.feed(event);
        }
    }

    fn read_answers(&mut self, at: usize) {
        let (id, worker) = &mut self.workers[at];
        for (_, verdict, finished_at) in worker.published.drain(..) {
            self.events.push_back(Event::Replied { worker: *id, verdict, finished_at });
        }
        if worker.corrupt && !worker.corrupt_told {
            worker.corrupt_told = true;
            self.events.push_back(Event::Corrupted { worker: *id });
        }
    }

    fn feed(&mut self, event: Event) {
        self.events.push_back(event);
        self.settle();
    }

    /// As a driver does, which takes in some or all of the news before it has the job settle.
    fn settle(&mut self) {
        let mut actions = Vec::new();
        loop {
            let event = self.events.pop_front();
            if let Some(event) = event {
                if event != Event::Tick {
                    self.note(format_args!("  > {event:?}"));
                }
                self.job.handle(event, self.now, &mut actions);
            }
            if event.is_none() || self.random.one_in(3) {
                self.job.settle(self.now, &mut actions);
            }
            let done = event.is_none() && actions.is_empty();
            for action in std::mem::take(&mut actions) {
                self.note(format_args!("  < {action:?}"));
                self.perform(action);
            }
            if done && self.events.is_empty() {
                return;
            }
        }
    }

    fn find(&self, id: WorkerId) -> usize {
        self.workers.iter().position(|(other, _)| *other == id).expect("an action names a worker that exists")
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start { worker } => self.start(worker),
            Action::Foresee { worker } => {
                let at = self.find(worker);
                let running = self.job.worker(worker).expect("it runs");
                let task = running.tasks().next().expect("only what runs is foreseen to be late");
                let attempt = (worker, task, running.running_since());
                assert!(self.foreseen.insert(attempt), "{task:?} is foreseen to be late twice");
                assert!(!self.workers[at].1.exit_told, "{worker:?} is no more");
            }
            Action::Hand { worker, run } => self.hand(worker, run),
            Action::Revoke { worker } => {
                let at = self.find(worker);
                let count = self.workers[at].1.waiting.len();
                self.workers[at].1.waiting.clear();
                self.read_answers(at);
                self.events.push_back(Event::Revoked { worker, count });
            }
            Action::Dump { worker } => {
                let at = self.find(worker);
                self.check_is_late(at);
                if !self.random.one_in(4) && !self.workers[at].1.stopped {
                    let takes = self.random.up_to(DUMP_LIMIT * 2);
                    self.workers[at].1.dumps_at = Some(self.now + takes);
                }
            }
            Action::Terminate { worker } => {
                let at = self.find(worker);
                let takes = self.random.up_to(self.policy.grace * 2);
                let obeys = self.random.one_in(2);
                let now = self.now;
                if let Some(running) = &mut self.workers[at].1.running
                    && obeys
                {
                    running.ends = now + takes;
                    running.fate = Fate::Answers(Verdict::Raised { retryable: false });
                }
            }
            Action::Kill { worker, dump } => {
                let at = self.find(worker);
                let mut takes = self.random.up_to(KILL_TAKES);
                if dump {
                    self.check_is_late(at);
                    takes += if self.random.one_in(4) { DUMP_LIMIT } else { self.random.up_to(DUMP_LIMIT) };
                }
                let unkillable = !self.calm && self.random.one_in(50);
                let unheard = !self.calm && self.random.one_in(20);
                let worker = &mut self.workers[at].1;
                (worker.unkillable, worker.unheard) = (unkillable, unheard);
                if !unkillable && !unheard {
                    worker.dies_at = Some(self.now + takes);
                }
            }
            Action::Nudge { worker } => {
                let at = self.find(worker);
                let takes = self.random.up_to(KILL_TAKES);
                let now = self.now;
                let worker = &mut self.workers[at].1;
                if std::mem::take(&mut worker.unheard) && !worker.unkillable {
                    worker.dies_at = Some(now + takes);
                }
                if std::mem::take(&mut worker.unforked) {
                    worker.ready_at = Some(now + takes);
                }
            }
            Action::Abandon { worker } => {
                let at = self.find(worker);
                assert!(self.workers[at].1.unkillable, "{worker:?} was abandoned though a kill works");
                // The forkserver's end takes all its workers along.
                let at = self.now + Duration::from_micros(1);
                for (_, worker) in &mut self.workers {
                    worker.dies_at = Some(at);
                }
            }
            Action::CompleteRun { run } => {
                for task in run.tasks() {
                    let attempts = self.starts.get(&task).copied().unwrap_or(0);
                    self.complete(task, Ending::Returned, attempts, Span::NONE);
                }
            }
            Action::Complete { task, ending, attempts, span, .. } => {
                self.complete(task, ending, attempts, span);
            }
        }
    }

    fn start(&mut self, id: WorkerId) {
        let mut worker = SimulatedWorker::default();
        let takes = self.random.up_to(Duration::from_millis(5));
        match self.random.below(if self.calm { 8 } else { 12 }) {
            0 if self.random.one_in(20) => {
                // None to be had.
                self.hopeless = true;
                return self.events.push_back(Event::StartFailed { worker: id, hopeless: true });
            }
            // Idle from another job.
            0..=2 => {
                worker.ready = true;
                let served = self.policy.calls_per_worker.map_or(0, |limit| limit - 1);
                self.events.push_back(Event::Ready { worker: id, served });
            }
            8 => {
                worker.dies_at = Some(self.now + takes);
                self.hopeless = true;
            }
            // Never ready.
            9 if self.random.one_in(3) => self.hopeless = true,
            10 if self.random.one_in(3) => worker.unforked = true,
            _ => worker.ready_at = Some(self.now + takes),
        }
        self.workers.push((id, worker));
    }

    fn hand(&mut self, id: WorkerId, run: Run) {
        let at = self.find(id);
        let now = self.now;
        let worker = &mut self.workers[at].1;
        let outstanding =
            worker.waiting.len() + worker.published.len() + usize::from(worker.running.is_some());
        if worker.retired {
            worker.dead = true;
            worker.exit_told = true;
            self.read_answers(at);
            return self.events.push_back(Event::Refused { worker: id, run, retired: true });
        }
        if outstanding == 0 {
            worker.handed_at = Some(now);
        }
        let (taken, refused) = run.split(RING.saturating_sub(outstanding));
        worker.waiting.extend(taken.tasks());
        if refused.count > 0 {
            self.events.push_back(Event::Refused { worker: id, run: refused, retired: false });
        }
        self.claim(at);
    }

    /// No worker is ended for a deadline that has not passed.
    fn check_is_late(&self, at: usize) {
        let (id, worker) = &self.workers[at];
        if self.policy.budget.is_some_and(|budget| self.now >= budget) {
            return;
        }
        let since = worker.running.map(|running| running.since).or(worker.handed_at);
        let timeout = self.policy.timeout.expect("without a timeout there is no deadline");
        assert!(
            since.is_some_and(|since| self.now >= since + timeout),
            "{id:?} is ended for a deadline, but its task runs since {since:?}"
        );
    }

    fn complete(&mut self, task: TaskId, ending: Ending, attempts: u32, span: Span) {
        let before = self.ended.insert(task, ending);
        assert!(before.is_none(), "{task:?} ended twice: {before:?} and {ending:?}");
        let starts = self.starts.get(&task).copied().unwrap_or(0);
        // An attempt that was handed out, never taken up and late counts all the same.
        assert!((starts..=1 + self.policy.retries).contains(&attempts), "{attempts} attempts of {task:?}");
        let in_time = self.in_time.get(&task).copied();
        match ending {
            Ending::Returned | Ending::Raised => {
                let in_time = in_time.unwrap_or_else(|| panic!("{task:?} has a result that nobody gave")).0;
                assert!(in_time, "{task:?} was answered too late, and is said to have ended in time");
            }
            Ending::Died | Ending::OverMemory => {
                assert!(in_time.is_none(), "{task:?} was answered, and is said to have died");
            }
            Ending::TimedOut => {
                // One that failed in time may wait for another attempt when the budget is spent.
                let waited = matches!(in_time, Some((_, Verdict::Raised { retryable: true })));
                let lost = in_time.is_some_and(|(in_time, _)| in_time) && !waited;
                assert!(!lost, "{task:?} was answered in time, and is said to be late");
                let budget_over = self.policy.budget.is_some_and(|budget| self.now >= budget);
                assert!(budget_over || self.policy.timeout.is_some_and(|timeout| span.elapsed >= timeout));
            }
            Ending::Cancelled => assert!(self.cancelled.contains(&task), "{task:?} was not cancelled"),
            Ending::NotStarted => assert!(self.hopeless, "{task:?} was not started for no reason"),
        }
    }

    /// What holds whenever the driver has done its round.
    fn check(&self) {
        let states: Vec<_> = self.workers.iter().filter_map(|(id, _)| self.job.worker(*id)).collect();
        let live = states.iter().filter(|worker| worker.is_live()).count();
        assert!(live <= self.policy.workers, "{live} workers");
        let idle = states.iter().any(|worker| worker.state == WorkerState::Idle);
        if idle {
            assert_eq!(0, self.job.queued(), "a worker is idle while tasks wait");
            for worker in &states {
                assert!(
                    worker.load() <= 1 || !worker.is_live(),
                    "a worker is idle while {} wait behind another task",
                    worker.load() - 1
                );
            }
        }
        if self.policy.budget.is_some_and(|budget| self.now >= budget) {
            assert_eq!(0, self.job.queued(), "the budget is spent, and tasks wait");
        }
        // None outlives its deadline by more than the steps that end it.
        let Some(timeout) = self.policy.timeout else { return };
        let steps = DUMP_LIMIT + self.policy.grace + NUDGE_LIMIT + STUCK_LIMIT + KILL_TAKES + LATE * 8;
        for (id, worker) in &self.workers {
            if let Some(running) = worker.running.filter(|_| !worker.dead) {
                assert!(
                    self.now <= running.since + timeout + steps,
                    "{id:?} runs {:?} since {:?}",
                    running.task,
                    running.since
                );
            }
        }
    }
}

impl SimulatedWorker {
    fn has_news(&self) -> bool {
        !self.published.is_empty()
            || !self.news.is_empty()
            || (self.dead && !self.exit_told)
            || (self.corrupt && !self.corrupt_told)
    }

    fn next_happening(&self) -> Option<Moment> {
        if self.dead {
            return None;
        }
        let ends = self.running.filter(|_| !self.stopped).map(|running| running.ends);
        [self.ready_at, self.dies_at, self.dumps_at, ends].into_iter().flatten().min()
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| {
        value.parse().unwrap_or_else(|error| panic!("{variable} must be a number, not {value:?}: {error}"))
    })
}

#[test]
fn random_schedules_keep_the_promises() {
    if let Some(seed) = number("KILLERCALL_SIMULATION_SEED") {
        return World::new(seed, true).run();
    }
    let first = number("KILLERCALL_SIMULATION_FIRST").unwrap_or(0);
    let count = number("KILLERCALL_SIMULATIONS").unwrap_or(100_000);
    for seed in first..first + count {
        let run = std::panic::AssertUnwindSafe(|| World::new(seed, false).run());
        if std::panic::catch_unwind(run).is_err() {
            println!("the schedule of seed {seed}, step by step:");
            let traced = std::panic::AssertUnwindSafe(|| World::new(seed, true).run());
            let _ = std::panic::catch_unwind(traced);
            panic!("seed {seed} broke a promise; KILLERCALL_SIMULATION_SEED={seed} replays it");
        }
    }
}
