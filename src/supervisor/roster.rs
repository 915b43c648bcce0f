//! Where workers come from, and where idle ones wait between jobs.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;

use super::arguments::{Arguments, Batch};
use super::events::{Run, TaskId};
use super::functions::Functions;
use super::spares::{Demand, Found, MOST_OF_ALL};
use crate::error::Error;
use crate::forkserver::{ForkedWorker, Forkserver, NOTICE_LEN, Notice};
use crate::sys::fault::{Step, reach};
use crate::sys::{self, Interest};
use crate::time::Moment;
use crate::transport::{
    Corrupt, Handed, HostChannel, Limits, Outgoing, Reply, ReplyKind, Ring, Section, SocketState, Values,
};

/// The task number under which a worker's setup travels.
pub const SETUP: u64 = u64::MAX;

/// Most bytes of arguments that go together: their room in the ring is free again when the last of
/// them is answered.
const TOGETHER_MAX: usize = 4096;

/// Most things that are kept of what a worker says while nobody listens.
const ASIDES_MAX: usize = 2048;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was reaped.
    Reaped {
        /// Exit code, or negative signal number.
        status: i32,
        /// Peak resident memory in bytes.
        peak_memory: u64,
    },
    /// It was killed and runs no more, but was not reaped yet.
    Killed,
    /// Its forkserver ended, and it with it.
    Lost,
}

/// What a notice pipe said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The worker exists.
    Forked,
    /// It could not be forked, for this error number.
    ForkFailed(i32),
    /// It ended.
    Exited(Exit),
}

/// Tasks in a worker's hands that went together, and what was sent along with them.
#[derive(Clone, Copy, Debug)]
struct InHand {
    run: Run,
    function: Option<u64>,
    previous_context: u64,
}

/// The host's side of one worker.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each tells of something that the others do not")]
pub struct HostWorker {
    server: Arc<Forkserver>,
    id: u64,
    /// The way to it.
    pub channel: HostChannel,
    notice: OwnedFd,
    /// Whether its socket has ended.
    hung_up: bool,
    partial: Vec<u8>,
    /// Its pid, once known.
    pub pid: Option<i32>,
    /// Whether its forkserver may have told something of it since that was last read.
    pub has_news: bool,
    /// Whether it has said that it is set up.
    pub ready: bool,
    /// Whether its setup has failed while nobody waited for it.
    unfit: bool,
    /// Calls that it has served.
    pub served: u32,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
    /// How many bytes it used when that was more than it may.
    pub over_memory: Option<u64>,
    /// What it has said while nobody listened: that was while it was set up.
    pub asides: Vec<Reply>,
    functions: Functions,
    /// The one that it was sent last, which is mostly the next one as well.
    last_function: u64,
    context: u64,
    in_hand: VecDeque<InHand>,
    /// How many tasks those are.
    load: usize,
    /// How many of the newest of those it was not handed yet.
    staged: usize,
}

/// The function that a job calls, and the surroundings that it runs in.
#[derive(Debug, Default)]
pub struct Payload {
    /// The function's number, the same for the same bytes.
    pub function: u64,
    /// The pickled function: one file for all workers if it is large.
    pub function_batch: Batch,
    /// The version of the host's surroundings.
    pub context: u64,
    /// The surroundings.
    pub context_bytes: Vec<u8>,
}

/// What became of staged tasks.
#[derive(Debug)]
pub struct Published {
    /// Whether the worker has them now.
    pub handed: Handed,
    /// Whether it slept and was woken.
    pub rung: bool,
    /// If it does not have them: these.
    pub back: Vec<Run>,
}

impl HostWorker {
    fn new(server: Arc<Forkserver>, forked: ForkedWorker, context: u64) -> Self {
        Self {
            server,
            id: forked.id,
            channel: forked.channel,
            notice: forked.notice,
            hung_up: false,
            partial: Vec::new(),
            pid: None,
            has_news: true,
            ready: false,
            unfit: false,
            served: 0,
            exit: None,
            over_memory: None,
            asides: Vec::new(),
            functions: Functions::default(),
            last_function: 0,
            context,
            in_hand: VecDeque::new(),
            load: 0,
            staged: 0,
        }
    }

    /// What to wait for: its socket, and the pipe on which its forkserver tells of it. A socket that has
    /// ended would be readable for ever.
    pub fn interests(&self) -> (Option<BorrowedFd<'_>>, BorrowedFd<'_>) {
        ((!self.hung_up).then(|| self.channel.socket()), self.notice.as_fd())
    }

    /// Empties its socket of doorbells.
    pub fn wake(&mut self) -> std::io::Result<()> {
        self.hung_up |= self.channel.wake()? == SocketState::Ended;
        Ok(())
    }

    /// Whether its forkserver is of no more use.
    pub fn is_lost(&self) -> bool {
        self.server.is_lost()
    }

    /// Whether it has this function and these surroundings.
    pub fn knows(&self, payload: &Payload) -> bool {
        self.context == payload.context
            && (self.last_function == payload.function || self.functions.contains(payload.function))
    }

    /// Writes tasks, with the function and the surroundings if it does not have them. It gets them with
    /// the next [`publish`](Self::publish). Returns those for which there is no room.
    pub fn stage(&mut self, run: Run, payload: &Payload, arguments: &Arguments) -> std::io::Result<Run> {
        let mut left = run;
        while left.count > 0
            && let Some((batch, place)) = arguments.get(left.first)
        {
            // Function and surroundings go with a call of its own.
            let most = if batch.plain && self.knows(payload) { left.count } else { 1 };
            let count = most.min(batch.fitting(place, TOGETHER_MAX));
            let (now, rest) = left.split(count);
            if !self.stage_some(now, payload, batch.section(place, place + count), batch.plain)? {
                break;
            }
            left = rest;
        }
        Ok(left)
    }

    fn stage_some(
        &mut self,
        run: Run,
        payload: &Payload,
        arguments: Section<'_>,
        plain: bool,
    ) -> std::io::Result<bool> {
        let knows = self.last_function == payload.function || self.functions.contains(payload.function);
        let function = (!knows).then_some(payload.function);
        let context_bytes = if self.context == payload.context { &[][..] } else { &payload.context_bytes };
        let function_section = if knows { Section::Bytes(&[]) } else { payload.function_batch.section(0, 1) };
        let staged = self.channel.stage(&Outgoing {
            task: run.first.0,
            count: run.count,
            function: payload.function,
            sections: [Section::Bytes(context_bytes), function_section, arguments],
            plain,
        })?;
        if staged {
            if let Some(number) = function {
                self.functions.insert(number, payload.function_batch.small_len());
            }
            self.last_function = payload.function;
            let previous_context = std::mem::replace(&mut self.context, payload.context);
            self.in_hand.push_back(InHand { run, function, previous_context });
            self.load += run.count;
            self.staged += run.count;
        }
        Ok(staged)
    }

    /// Whether a task may be staged: an earlier call may have written over what the worker goes by.
    pub fn is_sound(&self) -> bool {
        self.channel.is_sound()
    }

    /// Hands it all that was staged.
    pub fn publish(&mut self, now: Moment, limits: Limits) -> std::io::Result<Published> {
        let staged = std::mem::take(&mut self.staged);
        let (handed, rung) = self.channel.publish(now, limits)?;
        let back = if handed == Handed::Yes { Vec::new() } else { self.forget(staged) };
        Ok(Published { handed, rung, back })
    }

    /// Takes back what it has not started; what travelled along it does not have after all.
    pub fn revoke(&mut self) -> usize {
        let count = self.channel.revoke().min(self.load);
        self.forget(count);
        count
    }

    /// It does not have its `count` newest tasks; these, oldest first.
    fn forget(&mut self, count: usize) -> Vec<Run> {
        let mut forgotten = Vec::new();
        let mut left = count.min(self.load);
        self.load -= left;
        while left > 0
            && let Some(hand) = self.in_hand.pop_back()
        {
            let (kept, back) = hand.run.split(hand.run.count.saturating_sub(left));
            left -= back.count;
            forgotten.push(back);
            if kept.count > 0 {
                self.in_hand.push_back(InHand { run: kept, ..hand });
                continue;
            }
            self.context = hand.previous_context;
            if let Some(function) = hand.function {
                // What it let go of for that counts as gone all the same, and is sent again.
                self.functions.remove(function);
                self.last_function = 0;
            }
        }
        forgotten.reverse();
        forgotten
    }

    /// How many tasks it has that are not answered.
    pub fn in_hand(&self) -> usize {
        self.load
    }

    /// Whether it has started any of what it has in hand.
    pub fn has_begun(&self) -> bool {
        self.channel.unclaimed() < self.load
    }

    /// Whether there is something for it that it was not handed yet.
    pub fn has_staged(&self) -> bool {
        self.staged > 0
    }

    /// Whether what it has in hand is all that it may serve.
    pub fn is_last(&self, limit: u32) -> bool {
        self.served as usize + self.load >= limit as usize
    }

    /// How many of the `handed` tasks that its job knows of it has started.
    ///
    /// A sound worker is in the middle of one at most. One that wrote nonsense may have gone on after
    /// the answer that was refused (which is in hand no more), and its account of what it has not
    /// started counts only as far as it can be.
    pub fn started(&self, handed: usize, sound: bool) -> usize {
        let in_hand = self.load;
        let unclaimed = self.channel.unclaimed();
        if sound {
            return usize::from(in_hand > 0 && unclaimed != in_hand);
        }
        let refused = handed.saturating_sub(in_hand);
        (refused + in_hand.checked_sub(unclaimed).unwrap_or(in_hand)).max(1)
    }

    /// The task that it runs, if it runs one.
    pub fn running(&self) -> Option<TaskId> {
        self.in_hand.front().map(|hand| hand.run.first)
    }

    /// Its oldest task is answered.
    pub fn answered(&mut self) -> Option<TaskId> {
        self.served = self.served.saturating_add(1);
        self.take_oldest(1).map(|run| run.first)
    }

    fn take_oldest(&mut self, count: usize) -> Option<Run> {
        let hand = self.in_hand.front_mut()?;
        let (taken, rest) = hand.run.split(count);
        hand.run = rest;
        if rest.count == 0 {
            self.in_hand.pop_front();
        }
        self.load -= taken.count;
        Some(taken)
    }

    /// Its next response, if there is one.
    pub fn receive(&mut self) -> Result<Option<Reply>, Corrupt> {
        let task = self.in_hand.front().map_or(SETUP, |hand| hand.run.first.0);
        self.channel.receive(task)
    }

    /// Takes plain values for as long as they answer its oldest tasks, one after the other; how many.
    pub fn receive_values(&mut self, into: &mut Values) -> Result<usize, Corrupt> {
        let mut count = 0;
        while let Some(hand) = self.in_hand.front() {
            let run = hand.run;
            let received = self.channel.receive_values(run.first.0, run.count, into)?;
            if received > 0 {
                self.take_oldest(received);
                self.served = self.served.saturating_add(u32::try_from(received).unwrap_or(u32::MAX));
            }
            count += received;
            if received < run.count {
                break;
            }
        }
        Ok(count)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        if self.server.signal(self.id, signal).is_err() {
            self.server.set_lost();
        }
    }

    /// Kills it and all that it started.
    pub fn kill(&self) {
        self.kill_with(false);
    }

    /// The same, but it is asked for its stack first.
    pub fn dump_and_kill(&self) {
        self.channel.make_dump_last();
        self.kill_with(true);
    }

    fn kill_with(&self, dump: bool) {
        if self.server.kill(self.id, dump).is_err() {
            self.server.set_lost();
        }
    }

    /// Lets it and its forkserver go on, if somebody has stopped them.
    pub fn nudge(&self) {
        self.server.nudge();
        self.signal(sys::CONTINUE_SIGNAL);
    }

    /// Ends its forkserver, and with it all of its workers, unless that is only busy: then it has
    /// lately told of another worker.
    pub fn abandon(&self) {
        if self.server.is_busy() {
            return;
        }
        if !self.server.is_lost() {
            log::info!("the forkserver does not answer; ending it and all its workers");
        }
        self.server.shutdown();
    }

    /// Whether it can take calls or will, by all that is known now. For one that nobody waits for.
    fn is_fit(&mut self) -> bool {
        if !self.ready && !self.has_got_ready() {
            // Nobody asked for it by name: who does is told of the failure of his own.
            self.kill();
            self.unfit = true;
        }
        while let Some(News::Forked) = self.news() {}
        !self.unfit && self.exit.is_none() && !self.is_lost()
    }

    /// Looks whether it says that it is set up; false if it says that it is not.
    fn has_got_ready(&mut self) -> bool {
        let before = self.asides.len();
        while !self.ready {
            match self.receive() {
                Ok(None) => break,
                Ok(Some(reply)) if reply.kind == ReplyKind::Ready => self.ready = true,
                Ok(Some(reply)) if reply.kind.is_aside() => self.asides.push(reply),
                Ok(Some(_)) | Err(_) => return false,
            }
        }
        // What is not acknowledged before the end of the loop fits a ring.
        let has_heard = self.asides.len() > before;
        self.asides.truncate(ASIDES_MAX);
        !has_heard || self.channel.acknowledge().is_ok()
    }

    /// The same of whether it is set up.
    fn is_ready(&mut self) -> bool {
        if !self.ready {
            self.is_fit();
        }
        self.ready
    }

    /// Sleeps until it has something to say, until `end` at most.
    pub fn sleep(&mut self, end: Moment) -> Result<(), Corrupt> {
        if !self.channel.prepare_sleep(Ring::AtOnce) {
            self.channel.stay_awake();
            return Ok(());
        }
        let (socket, notice) = self.interests();
        let mut interests: SmallVec<[_; 2]> = socket.into_iter().chain([notice]).map(Interest::new).collect();
        // Whatever ends it, whoever looks next finds out.
        let _ = sys::wait(&mut interests, Some(end), end.since(sys::now()));
        drop(interests);
        self.wake().map_err(|error| Corrupt(format!("socket: {error}")))
    }

    /// Waits until it runs no more code, as far as its socket tells, for at most `limit`: it ends by its
    /// own hand once it has answered its last call.
    pub fn see_off(&mut self, limit: Duration) {
        let until = sys::now() + limit;
        loop {
            if self.wake().is_err() || self.hung_up {
                return;
            }
            while let Some(News::Forked) = self.news() {}
            if self.exit.is_some() || sys::now() >= until {
                return;
            }
            let (socket, notice) = self.interests();
            let mut interests: Vec<_> = socket.into_iter().chain([notice]).map(Interest::new).collect();
            if sys::wait(&mut interests, Some(until), limit).is_err() {
                return;
            }
        }
    }

    /// The next thing that its forkserver says of it, if there is one.
    pub fn news(&mut self) -> Option<News> {
        if self.exit.is_some() {
            return None;
        }
        let mut bytes = [0; NOTICE_LEN];
        while self.partial.len() < NOTICE_LEN {
            let missing = NOTICE_LEN - self.partial.len();
            match sys::read_pipe(self.notice.as_fd(), &mut bytes[..missing]) {
                // Its end of the pipe may be held by a forkserver that could not be ended.
                Ok(None) if self.server.is_over() => return Some(self.lost()),
                Ok(None) => return None,
                Ok(Some(read)) if read > 0 => self.partial.extend_from_slice(&bytes[..read]),
                Ok(Some(_)) | Err(_) => return Some(self.lost()),
            }
        }
        let record: [u8; NOTICE_LEN] = self.partial[..].try_into().expect("just that many were read");
        self.partial.clear();
        self.server.is_heard();
        let exit = match Notice::decode(&record) {
            Ok(Notice::Forked { pid }) => {
                self.pid = Some(pid);
                self.server.is_up();
                return Some(News::Forked);
            }
            Ok(Notice::ForkFailed { errno }) => {
                self.exit = Some(Exit::Killed);
                return Some(News::ForkFailed(errno));
            }
            Ok(Notice::Exited { status, peak_memory }) => Exit::Reaped { status: status.0, peak_memory },
            Ok(Notice::OverMemory { used }) => {
                self.over_memory = Some(used);
                return self.news();
            }
            Ok(Notice::Killed) => Exit::Killed,
            Err(_) => return Some(self.lost()),
        };
        self.exit = Some(exit);
        Some(News::Exited(exit))
    }

    /// The forkserver ended without a word about this worker. Waits until the guard has swept.
    fn lost(&mut self) -> News {
        if self.pid.is_none()
            && let Some(errno) = self.server.failure()
        {
            self.server.shutdown();
            self.exit = Some(Exit::Lost);
            return News::ForkFailed(errno);
        }
        if !self.server.is_lost() {
            log::info!("the forkserver has ended; a new one is started at need");
        }
        if !self.server.is_over() {
            self.server.shutdown();
        }
        self.exit = Some(Exit::Lost);
        News::Exited(Exit::Lost)
    }
}

/// How to start the forkserver of a slot.
#[derive(Debug)]
pub struct Launch {
    /// The interpreter.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its environment.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Workers that wait, boxed because they are large and come and go with every call.
type Waiting = Vec<Box<HostWorker>>;

/// The workers of one kind that wait for a call. Those that never served one are its spares.
#[derive(Debug, Default)]
struct Idle {
    waiting: Waiting,
    demand: Demand,
    /// Spares that are being asked for just now.
    coming: usize,
}

impl Idle {
    /// How many of them a call would take that wants fewer than `limit` calls served.
    fn open_to(&self, limit: u32) -> usize {
        self.coming + self.waiting.iter().filter(|worker| worker.served < limit).count()
    }

    fn spares(&self) -> usize {
        self.open_to(1)
    }

    fn lease_knowing(&mut self, payload: &Payload) -> Option<Box<HostWorker>> {
        while let Some(at) = self.waiting.iter().rposition(|worker| worker.knows(payload)) {
            let mut worker = self.waiting.remove(at);
            worker.has_news = true;
            // That it has died meanwhile is found out when it does not start what it is handed.
            if !worker.is_lost() {
                return Some(worker);
            }
        }
        None
    }
}

/// The forkserver of a roster, and the workers that wait for the next job.
#[derive(Debug, Default)]
pub struct Roster {
    server: Mutex<Option<Arc<Forkserver>>>,
    idle: Mutex<HashMap<u64, Idle>>,
    /// Those that were given back while another thread had the others, each with its kind. Locked for a
    /// moment only, and nothing is said under this lock, so that everybody may wait for it.
    returned: Mutex<Vec<(u64, Box<HostWorker>)>>,
}

/// Whether the other end of the control socket is gone.
fn has_ended(error: &Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.source_error().kind(), BrokenPipe | ConnectionReset)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves these maps whole: each change to them is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which of these to take: one that is ready rather than one that starts; of those that are ready the one
/// that waited least, as its memory is warm and the others may retire, and a spare last; of those that
/// start the one that began first.
fn best(waiting: &mut Waiting, limit: u32) -> Option<usize> {
    let mut spare = None;
    let mut starts = None;
    for (at, worker) in waiting.iter_mut().enumerate().rev() {
        if worker.served >= limit {
            continue;
        }
        if worker.is_ready() {
            if worker.served > 0 {
                return Some(at);
            }
            spare = spare.or(Some(at));
        } else {
            starts = Some(at);
        }
    }
    spare.or(starts)
}

impl Roster {
    /// A roster whose forkserver is a copy of the host that was made for it.
    pub fn with_server(server: Forkserver) -> Self {
        Self { server: Mutex::new(Some(Arc::new(server))), ..Self::default() }
    }

    fn idle_workers(&self) -> MutexGuard<'_, HashMap<u64, Idle>> {
        let mut idle = lock(&self.idle);
        self.take_returned(&mut idle);
        idle
    }

    fn take_returned(&self, idle: &mut HashMap<u64, Idle>) {
        for (key, worker) in lock(&self.returned).drain(..) {
            idle.entry(key).or_default().waiting.push(worker);
        }
    }

    /// Whether a forkserver is there, so that nothing has to be launched.
    pub fn has_server(&self) -> bool {
        lock(&self.server).as_ref().is_some_and(|server| !server.is_lost())
    }

    /// The forkserver, launched if there is none that works.
    fn server(&self, launch: Option<&Launch>) -> Result<Arc<Forkserver>, Error> {
        if launch.is_some() && !self.has_server() {
            // Not under the lock: a handler of the user's may make a call of its own.
            log::debug!("starting the forkserver");
        }
        let mut slot = lock(&self.server);
        if let Some(server) = slot.as_ref().filter(|server| !server.is_lost()) {
            return Ok(Arc::clone(server));
        }
        let Some(launch) = launch else {
            let source = std::io::Error::other("the copy of the host has ended");
            return Err(Error::Forkserver { step: "reach it", source });
        };
        let server = Arc::new(Forkserver::launch(&launch.program, &launch.arguments, &launch.environment)?);
        *slot = Some(Arc::clone(&server));
        Ok(server)
    }

    /// Asks something of the forkserver. If it turns out to have ended while nobody had a worker there to
    /// tell, asks another one.
    fn ask<T>(
        &self,
        launch: Option<&Launch>,
        ask: impl Fn(&Arc<Forkserver>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let server = self.server(launch)?;
        let error = match ask(&server) {
            Err(error) if launch.is_some() && has_ended(&error) => error,
            answer => return answer,
        };
        let said = server.failure();
        server.shutdown();
        if let Some(errno) = said {
            return Err(Error::system("fork")(std::io::Error::from_raw_os_error(errno)));
        }
        log::info!("failed to {error}; another forkserver is started");
        ask(&self.server(launch)?)
    }

    /// Asks the forkserver to import modules.
    pub fn preload(&self, launch: &Launch, modules: &str) -> Result<(), Error> {
        self.ask(Some(launch), |server| server.preload(modules).map_err(Error::forkserver("preload modules")))
    }

    /// Takes an idle worker of this kind that has served fewer than `limit` calls.
    fn lease(&self, key: u64, limit: u32) -> Option<Box<HostWorker>> {
        let mut idle = self.idle_workers();
        let Idle { waiting, demand, .. } = idle.get_mut(&key)?;
        let mut found = None;
        while let Some(at) = best(waiting, limit) {
            let mut worker = waiting.remove(at);
            if worker.is_fit() {
                worker.has_news = true;
                found = Some(worker);
                break;
            }
        }
        let state = match &found {
            Some(worker) if worker.ready => Found::Ready,
            Some(_) => Found::Starting,
            None => Found::Nothing,
        };
        demand.wanted(state, sys::now());
        found
    }

    /// Takes an idle worker of this kind that has all that the payload needs.
    pub fn lease_knowing(&self, key: u64, payload: &Payload) -> Option<Box<HostWorker>> {
        self.idle_workers().get_mut(&key)?.lease_knowing(payload)
    }

    /// The same for who must not wait for the thread that has them now.
    pub fn try_lease_knowing(&self, key: u64, payload: &Payload) -> Option<Box<HostWorker>> {
        let mut idle = self.idle.try_lock().ok()?;
        self.take_returned(&mut idle);
        idle.get_mut(&key)?.lease_knowing(payload)
    }

    /// Takes a worker back, to wait for the next job.
    pub fn release(&self, key: u64, worker: Box<HostWorker>) {
        if worker.exit.is_some() || worker.is_lost() {
            return;
        }
        let mut idle = self.idle_workers();
        for kind in idle.values_mut() {
            // Those that have retired meanwhile.
            kind.waiting.retain_mut(|worker| worker.is_fit());
        }
        idle.entry(key).or_default().waiting.push(worker);
    }

    /// A worker of this kind was lost: whether there should be a spare for the next call that wants fewer
    /// than `limit` calls served, which is counted as coming then.
    fn lacks_spare(&self, key: u64, limit: u32) -> bool {
        let mut idle = self.idle_workers();
        let kind = idle.entry(key).or_default();
        let wanted = kind.demand.lost(sys::now());
        kind.waiting.retain_mut(|worker| worker.is_fit());
        if kind.open_to(limit) >= wanted {
            return false;
        }
        kind.coming += 1;
        if idle.values().map(Idle::spares).sum::<usize>() > MOST_OF_ALL {
            let others = idle.iter_mut().filter(|(other, _)| **other != key);
            for (_, kind) in others {
                if let Some(at) = kind.waiting.iter().position(|worker| worker.served == 0) {
                    kind.waiting.remove(at).kill();
                    break;
                }
            }
        }
        true
    }

    /// The spare that was coming is there, or cannot be had.
    fn keep_spare(&self, key: u64, spare: Option<Box<HostWorker>>) {
        let mut idle = self.idle_workers();
        let kind = idle.entry(key).or_default();
        // A shutdown meanwhile has forgotten that it was coming.
        kind.coming = kind.coming.saturating_sub(1);
        kind.waiting.extend(spare);
    }

    /// The same for one that was leased just before: a look at the others can wait, and so nobody is waited
    /// for.
    pub fn give_back(&self, key: u64, worker: Box<HostWorker>) {
        match self.idle.try_lock() {
            Ok(mut idle) => idle.entry(key).or_default().waiting.push(worker),
            Err(_) => lock(&self.returned).push((key, worker)),
        }
    }

    /// Ends those of one kind that wait, which nobody will ask for again.
    pub fn discard(&self, key: u64) {
        let found = self.idle_workers().remove(&key);
        for worker in found.into_iter().flat_map(|kind| kind.waiting) {
            worker.kill();
        }
    }

    /// How many workers wait.
    pub fn idle(&self) -> usize {
        self.idle_workers().values().map(|kind| kind.waiting.len()).sum()
    }

    /// The pids of those that are known to be there.
    pub fn idle_pids(&self) -> Vec<i32> {
        let mut idle = self.idle_workers();
        for kind in idle.values_mut() {
            kind.waiting.retain_mut(|worker| worker.is_fit());
        }
        idle.values().flat_map(|kind| &kind.waiting).filter_map(|worker| worker.pid).collect()
    }

    /// Launches the forkserver if there is none that works.
    pub fn start(&self, launch: &Launch) -> Result<(), Error> {
        self.server(Some(launch)).map(|_| ())
    }

    /// Ends the forkserver and all workers, and waits until nothing is left of them.
    pub fn shutdown(&self) {
        let server = lock(&self.server).take();
        self.idle_workers().clear();
        if let Some(server) = server {
            server.shutdown();
        }
    }
}

/// One kind of worker: those that are set up alike and may stand in for each other.
#[derive(Debug)]
pub struct Fleet {
    /// Where its workers wait.
    pub roster: Arc<Roster>,
    /// How to start the forkserver; `None` if it was made for this job.
    pub launch: Option<Arc<Launch>>,
    /// Which idle workers are of this kind.
    pub key: u64,
    /// Whether workers are fresh interpreters.
    pub exec: bool,
    /// Most bytes of memory for a worker and all that it starts; zero for no limit.
    pub max_memory: u64,
    /// Whether idle workers are kept after the job.
    pub keep: bool,
    /// What a new worker is set up with.
    pub setup: Vec<u8>,
    /// The version of the host's surroundings that the setup holds.
    pub context: u64,
}

impl Fleet {
    /// Gets a worker that has served fewer than `limit` calls: an idle one, or a new one.
    pub fn worker(&self, limit: u32) -> Result<Box<HostWorker>, Error> {
        if let Some(worker) = self.roster.lease(self.key, limit) {
            return Ok(worker);
        }
        self.roster.ask(self.launch.as_deref(), |server| self.fork(server))
    }

    /// A worker of this kind was lost or is about to be. If the next call, which wants fewer than `limit`
    /// calls served, should find another one ready, asks for it. What cannot be had is no error: that call
    /// will see for itself.
    pub fn replace(&self, limit: u32) {
        if !self.keep || !self.roster.has_server() || !self.roster.lacks_spare(self.key, limit) {
            return;
        }
        let spare = self.roster.ask(None, |server| self.fork(server));
        if let Err(error) = &spare {
            log::debug!("there is no spare worker: failed to {error}");
        }
        self.roster.keep_spare(self.key, spare.ok());
    }

    fn fork(&self, server: &Arc<Forkserver>) -> Result<Box<HostWorker>, Error> {
        let forked = server.fork_worker(self.exec, self.max_memory)?;
        let mut worker = Box::new(HostWorker::new(Arc::clone(server), forked, self.context));
        reach(Step::HostAsked);
        let sections = [&[], &[], &self.setup[..]].map(Section::Bytes);
        let request = Outgoing { task: SETUP, count: 1, function: 0, sections, plain: false };
        // The first request in an empty ring always has room, and nobody has retired yet.
        let sent = worker
            .channel
            .stage(&request)
            .and_then(|_| worker.channel.publish(sys::now(), Limits::default()));
        let _ = sent.map_err(Error::system("hand a worker its setup"))?;
        Ok(worker)
    }
}
