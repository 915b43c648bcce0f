//! The forkserver's loop.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::control::{COMMAND_LEN, Command, Introduction, Notice};
use super::guard;
use super::memory::{self, MemoryWatch};
use crate::sys::fault::{Step, reach};
use crate::sys::{self, Blob, ChildSignal, Interest, OwnChildren, Reaped};
use crate::time::Moment;

/// How long a caller waits for the kernel to tear down killed processes.
const TEAR_DOWN_LIMIT: Duration = Duration::from_millis(20);
/// How long a worker that was asked for its stack may take to end by its own hand.
const DUMP_LIMIT: Duration = Duration::from_millis(20);
/// How often a sweep looks again even if no child's end woke it.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Bounds one system call; nothing depends on its length.
const LONG: Duration = Duration::from_secs(3600);

/// What the loop needs of the interpreter that it runs in.
pub trait Interpreter {
    /// Forks: the child's pid in the parent, `None` in the child.
    fn fork(&mut self) -> io::Result<Option<i32>>;
    /// Imports modules whose names are separated by commas. A failure is left to the worker that
    /// needs the module, which tries again and can say so.
    fn preload(&mut self, modules: &str);
}

/// A new worker's ends of its channel.
#[derive(Debug)]
pub struct WorkerEnds {
    /// The file behind the segment.
    pub segment: OwnedFd,
    /// The socket beside it.
    pub socket: OwnedFd,
    /// Whether to go on in a fresh interpreter.
    pub exec: bool,
    /// Most bytes of memory for it; zero for no limit.
    max_memory: u64,
}

/// Where [`boot`] comes out.
#[derive(Debug)]
pub enum Booted {
    /// In a new worker.
    Worker(WorkerEnds),
    /// In the forkserver, at its end: all workers are gone.
    Ended,
}

/// Turns this process into guard and forkserver. Returns in each worker, and at the end.
///
/// With `detach`, this process leaves at once and its child goes on, so that a host's `os.wait()`
/// never sees a child of ours.
///
/// A failure to get there is told to the host through the control socket, so that it can name the
/// limit that was hit.
pub fn boot(control: OwnedFd, detach: bool, interpreter: &mut dyn Interpreter) -> io::Result<Booted> {
    let mut commands = Commands { control, partial: Vec::new(), fds: Vec::new(), spare: None };
    match found_family(&mut commands, detach, interpreter) {
        Ok(Role::Guard { life, server, lives, pid }) => {
            drop(commands);
            // A copy of the host has the host's descriptors, perhaps all that it may have: then it could
            // not even look for its descendants. And nobody should find a pipe held open by a guard.
            let kept: Vec<_> = life.iter().chain([&server, &lives]).map(AsFd::as_fd).collect();
            sys::close_all_but(&kept);
            reach(Step::GuardUnknown);
            introduce(&life[0], Introduction { guard: sys::pid(), server: Some(pid) });
            reach(Step::GuardIntroduced);
            guard::stand(&life, &server);
        }
        Ok(Role::Server { guard, lives, signal }) => {
            sys::keep_reserve();
            let pid = sys::pid();
            let server = Server {
                pid,
                commands,
                guard,
                _lives: lives,
                signal,
                children: Vec::new(),
                own: OwnChildren::default(),
                to_do: VecDeque::new(),
            };
            server.serve(interpreter)
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0);
            // If the host is gone, nobody wants to know.
            let _ = sys::send_message(commands.control.as_fd(), &Notice::ForkFailed { errno }.encode(), &[]);
            Ok(Booted::Ended)
        }
    }
}

/// What a process has become. Each holds a pipe that ends with the other, and one that tells the
/// other of its own end.
enum Role {
    Guard { life: Vec<OwnedFd>, server: OwnedFd, lives: OwnedFd, pid: i32 },
    Server { guard: OwnedFd, lives: OwnedFd, signal: ChildSignal },
}

/// Forks the guard and the forkserver; returns in both.
fn found_family(
    commands: &mut Commands,
    detach: bool,
    interpreter: &mut dyn Interpreter,
) -> io::Result<Role> {
    sys::become_leader()?;
    let life = match commands.wait_first()? {
        (Command::Attach, fds) if !fds.is_empty() => fds,
        (other, _) => return Err(io::Error::other(format!("first command was {other:?}"))),
    };
    reach(Step::GuardUnborn);
    if detach && let Some(guard) = interpreter.fork()? {
        reach(Step::GuardBorn);
        // It says so itself as well, unless somebody stops it before.
        introduce(&life[0], Introduction { guard, server: None });
        sys::exit_now(0);
    }
    reach(Step::GuardForked);
    sys::become_subreaper()?;
    let (server_life, server_lives) = sys::pipe()?;
    let (guard_life, guard_lives) = sys::pipe()?;
    if let Some(server) = interpreter.fork()? {
        return Ok(Role::Guard { life, server: server_life, lives: guard_lives, pid: server });
    }
    // The life socket must have no holder but the guard: its end means that nothing is left.
    drop((life, server_life, guard_lives));
    reach(Step::ServerUp);
    sys::become_subreaper()?;
    Ok(Role::Server { guard: guard_life, lives: server_lives, signal: ChildSignal::install()? })
}

/// Tells the host who is there. A host that is gone already is found out in a moment.
fn introduce(life: &OwnedFd, pids: Introduction) {
    let handles: Vec<OwnedFd> =
        std::iter::once(pids.guard).chain(pids.server).filter_map(sys::handle).collect();
    let fds: Vec<_> = handles.iter().map(AsFd::as_fd).collect();
    let _ = sys::send_message(life.as_fd(), &pids.encode(), &fds);
}

/// The control socket, message by message.
#[derive(Debug)]
struct Commands {
    control: OwnedFd,
    partial: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// Makes room for one descriptor of a command when there is no other.
    spare: Option<OwnedFd>,
}

impl Commands {
    /// The next command with its descriptors; `Ok(None)` if there is none yet, an error of kind
    /// `UnexpectedEof` if the host is gone.
    fn next(&mut self) -> io::Result<Option<(Command, Vec<OwnedFd>)>> {
        while self.partial.len() < COMMAND_LEN {
            let mut bytes = [0; COMMAND_LEN];
            let missing = COMMAND_LEN - self.partial.len();
            self.spare = None;
            let received = sys::receive(self.control.as_fd(), &mut bytes[..missing]);
            self.spare = sys::null_device().ok();
            let Some(received) = received? else {
                return Ok(None);
            };
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.partial.extend_from_slice(&bytes[..received.bytes]);
            self.fds.extend(received.fds);
        }
        let bytes: [u8; COMMAND_LEN] = self.partial[..].try_into().expect("just that many were read");
        self.partial.clear();
        Ok(Some((Command::decode(&bytes)?, std::mem::take(&mut self.fds))))
    }

    fn wait_first(&mut self) -> io::Result<(Command, Vec<OwnedFd>)> {
        loop {
            if let Some(first) = self.next()? {
                return Ok(first);
            }
            sys::wait_readable(self.control.as_fd(), LONG)?;
        }
    }
}

/// What takes longer than a moment.
#[derive(Debug)]
enum ToDo {
    Import(String),
    Fork(Wanted),
}

/// A worker that was asked for and is not forked yet.
#[derive(Debug)]
struct Wanted {
    worker: u64,
    notice: OwnedFd,
    ends: WorkerEnds,
}

/// One worker.
#[derive(Debug)]
struct Child {
    worker: u64,
    pid: i32,
    notice: OwnedFd,
    state: ChildState,
    memory: Option<MemoryWatch>,
}

#[derive(Clone, Copy, Debug)]
enum ChildState {
    Alive,
    /// It was asked at that moment for its stack, after which it ends by its own hand.
    Dumping(Moment),
    /// It was killed at that moment and is not reaped yet.
    Killed(Moment),
    /// It was killed, and the host has been told not to wait.
    GivenUp,
    /// It was reaped at that moment; what it had started may still be there.
    Reaped(Reaped, Moment),
}

#[derive(Debug)]
struct Server {
    pid: i32,
    commands: Commands,
    guard: OwnedFd,
    /// Only its existence matters: the guard sees the end of it.
    _lives: OwnedFd,
    signal: ChildSignal,
    children: Vec<Child>,
    own: OwnChildren,
    /// Done one at a time, between all else: a kill must not wait for the forks of forty workers.
    to_do: VecDeque<ToDo>,
}

impl Server {
    fn serve(mut self, interpreter: &mut dyn Interpreter) -> io::Result<Booted> {
        loop {
            if !self.attend(None)? {
                return Ok(self.end());
            }
            match self.to_do.pop_front() {
                None => {}
                Some(ToDo::Import(modules)) => self.import(&modules, interpreter),
                Some(ToDo::Fork(wanted)) => {
                    if let Some(ends) = self.fork(wanted, interpreter)? {
                        // In the worker: dropping `self` closes all that is the forkserver's.
                        return Ok(Booted::Worker(ends));
                    }
                }
            }
        }
    }

    /// Obeys the host and sees to the workers; then waits for news, unless there is something to do
    /// now. Beside an import there is nothing to do until `end` is readable. False when the host or the
    /// guard is gone.
    fn attend(&mut self, end: Option<&OwnedFd>) -> io::Result<bool> {
        loop {
            match self.commands.next() {
                Ok(Some((command, fds))) => {
                    reach(Step::ServerCommanded);
                    self.perform(command, fds)?;
                }
                Ok(None) => break,
                Err(_) => return Ok(false),
            }
        }
        let look_at = self.watch_memory().into_iter().chain(self.watch_dumps()).min();
        let settling = self.settle();
        if end.is_none() && !self.to_do.is_empty() {
            return Ok(true);
        }
        let fds = [self.commands.control.as_fd(), self.guard.as_fd(), self.signal.fd()];
        let mut interests: Vec<Interest<'_>> =
            fds.into_iter().chain(end.map(AsFd::as_fd)).map(Interest::new).collect();
        sys::wait(&mut interests, look_at, if settling { LOOK_AGAIN } else { LONG })?;
        let (guard, signal) = (interests[1].ready, interests[2].ready);
        if signal {
            self.signal.clear();
        }
        Ok(!guard)
    }

    /// Imports modules. That may take seconds, in which deadlines have to be kept: so a thread attends
    /// to all else meanwhile, and is gone before the next fork. Imports want the main thread; nothing
    /// else here needs the interpreter.
    fn import(&mut self, modules: &str, interpreter: &mut dyn Interpreter) {
        let Ok((end, importing)) = sys::pipe() else {
            return interpreter.preload(modules);
        };
        let server = &mut *self;
        std::thread::scope(|scope| {
            let attendance = move || {
                while matches!(sys::wait_readable(end.as_fd(), Duration::ZERO), Ok(false)) {
                    if !matches!(server.attend(Some(&end)), Ok(true)) {
                        guard::sweep();
                        sys::exit_now(0);
                    }
                }
            };
            // If there is no thread to be had, deadlines wait.
            let _ = std::thread::Builder::new().spawn_scoped(scope, attendance);
            interpreter.preload(modules);
            drop(importing);
        });
        // A module may have had its own mind about the end of children; without it, some wait for ever.
        let _ = self.signal.listen();
    }

    /// The host or the guard is gone: so must be all workers, then this process. Only then do the
    /// notice pipes end, so that a host that hears of it knows that nothing runs any more.
    fn end(self) -> Booted {
        reach(Step::ServerSweeps);
        // A guard that somebody has stopped must see that it is over.
        let parent = sys::parent_pid();
        if parent > 1 {
            let _ = sys::send(parent, sys::CONTINUE_SIGNAL);
        }
        guard::sweep();
        drop(self);
        Booted::Ended
    }

    fn perform(&mut self, command: Command, fds: Vec<OwnedFd>) -> io::Result<()> {
        match command {
            Command::Fork { worker, exec, max_memory } => {
                let mut fds = fds.into_iter();
                match (fds.next(), fds.next(), fds.next()) {
                    (Some(notice), Some(segment), Some(socket)) => {
                        let ends = WorkerEnds { segment, socket, exec, max_memory };
                        self.to_do.push_back(ToDo::Fork(Wanted { worker, notice, ends }));
                    }
                    // The others were lost on the way: this process may not open more.
                    (Some(notice), ..) => {
                        tell(&notice, Notice::ForkFailed { errno: sys::OUT_OF_DESCRIPTORS });
                    }
                    // Its end tells the host.
                    (None, ..) => {}
                }
            }
            Command::Signal { worker, signal } => {
                if let Some(child) = self.alive(worker) {
                    sys::send(child.pid, signal)?;
                }
            }
            Command::Kill { worker, dump } => {
                if let Some(child) = self.children.iter_mut().find(|child| child.worker == worker) {
                    let now = sys::now();
                    match child.state {
                        ChildState::Alive if dump => {
                            // What it has started ends after it: whoever waits for that could go on, and
                            // would have another stack.
                            child.state = ChildState::Dumping(now);
                            reach(Step::ServerKills);
                            sys::send(child.pid, sys::DUMP_SIGNAL)?;
                            reach(Step::ServerKilled);
                        }
                        ChildState::Alive | ChildState::Dumping(_) => {
                            child.state = ChildState::Killed(now);
                            reach(Step::ServerKills);
                            sys::kill_tree(child.pid);
                            reach(Step::ServerKilled);
                        }
                        ChildState::Killed(_) | ChildState::GivenUp | ChildState::Reaped(..) => {}
                    }
                } else {
                    // Not forked yet, and now it will not be.
                    self.to_do.retain(|to_do| match to_do {
                        ToDo::Fork(wanted) if wanted.worker == worker => {
                            tell(&wanted.notice, Notice::Killed);
                            false
                        }
                        _ => true,
                    });
                }
            }
            Command::Preload { len } => {
                let modules = fds.into_iter().next().and_then(|fd| read_text(fd, len));
                self.to_do.extend(modules.map(ToDo::Import));
            }
            Command::Attach => {}
        }
        Ok(())
    }

    fn alive(&mut self, worker: u64) -> Option<&mut Child> {
        self.children
            .iter_mut()
            .find(|child| child.worker == worker && matches!(child.state, ChildState::Alive))
    }

    fn fork(
        &mut self,
        Wanted { worker, notice, ends }: Wanted,
        interpreter: &mut dyn Interpreter,
    ) -> io::Result<Option<WorkerEnds>> {
        reach(Step::ServerForks);
        match interpreter.fork() {
            Ok(Some(pid)) => {
                reach(Step::ServerForked);
                tell(&notice, Notice::Forked { pid });
                reach(Step::ServerTold);
                let watch = || MemoryWatch::new(ends.max_memory, sys::now());
                let memory = (ends.max_memory > 0).then(watch);
                self.children.push(Child { worker, pid, notice, state: ChildState::Alive, memory });
                Ok(None)
            }
            Ok(None) => {
                reach(Step::WorkerForked);
                sys::release_reserve();
                sys::become_leader()?;
                reach(Step::WorkerLeads);
                sys::become_subreaper()?;
                if !sys::die_with_parent(self.pid)? {
                    sys::exit_now(1);
                }
                if ends.max_memory > 0 {
                    let limit = memory::kernel_limit(ends.max_memory);
                    sys::limit_memory(limit, memory::RESERVE, ends.exec)?;
                }
                Ok(Some(ends))
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                tell(&notice, Notice::ForkFailed { errno });
                Ok(None)
            }
        }
    }

    /// Kills whose trees use more memory than they may; returns when to look again.
    fn watch_memory(&mut self) -> Option<Moment> {
        for child in &mut self.children {
            let Some(memory) = child.memory.as_mut().filter(|_| matches!(child.state, ChildState::Alive))
            else {
                continue;
            };
            let now = sys::now();
            if now < memory.look_at {
                continue;
            }
            if let Some(used) = memory.over {
                tell(&child.notice, Notice::OverMemory { used });
                child.state = ChildState::Killed(now);
                sys::kill_tree(child.pid);
            } else if memory.look(child.pid, self.pid) {
                // It ends in a moment anyway; where it was is good to know.
                let _ = sys::send(child.pid, sys::DUMP_SIGNAL);
            }
        }
        let alive = self.children.iter().filter(|child| matches!(child.state, ChildState::Alive));
        alive.filter_map(|child| child.memory.as_ref().map(|memory| memory.look_at)).min()
    }

    /// Kills who was asked for its stack and has not ended; returns when to look again.
    fn watch_dumps(&mut self) -> Option<Moment> {
        let now = sys::now();
        let mut look_at: Option<Moment> = None;
        for child in &mut self.children {
            let ChildState::Dumping(at) = child.state else { continue };
            if now >= at + DUMP_LIMIT {
                child.state = ChildState::Killed(now);
                sys::kill_tree(child.pid);
            } else {
                look_at = look_at.into_iter().chain([at + DUMP_LIMIT]).min();
            }
        }
        look_at
    }

    /// Reaps who has ended, kills what they left behind, and tells the host of each worker whose
    /// tree is gone. True while there is something left to wait for.
    fn settle(&mut self) -> bool {
        let now = sys::now();
        while let Ok(Some(reaped)) = sys::try_reap_any() {
            if let Some(child) = self.children.iter_mut().find(|child| child.pid == reaped.pid) {
                child.state = match child.state {
                    // The host knows already; there is nothing left to say.
                    ChildState::GivenUp => ChildState::GivenUp,
                    ChildState::Alive
                    | ChildState::Dumping(_)
                    | ChildState::Killed(_)
                    | ChildState::Reaped(..) => ChildState::Reaped(reaped, now),
                };
                if matches!(child.state, ChildState::GivenUp) {
                    let pid = child.pid;
                    self.children.retain(|child| child.pid != pid);
                }
            }
        }
        let at_peace = |child: &Child| {
            matches!(child.state, ChildState::Alive | ChildState::Dumping(_) | ChildState::GivenUp)
        };
        if self.children.iter().all(at_peace) {
            return false;
        }
        let strays = self.kill_strays();
        let late = |at: Moment| now.since(at) >= TEAR_DOWN_LIMIT;
        // Nobody waits any longer for the kernel, but none of them may run.
        let is_late = |child: &Child| match child.state {
            ChildState::Killed(at) | ChildState::Reaped(_, at) => late(at),
            ChildState::Alive | ChildState::Dumping(_) | ChildState::GivenUp => false,
        };
        let quiet = self.children.iter().any(is_late) && strays.iter().all(|&pid| sys::is_killed(pid));
        self.children.retain_mut(|child| match child.state {
            ChildState::Alive | ChildState::Dumping(_) | ChildState::GivenUp => true,
            ChildState::Killed(at) if !(late(at) && quiet && sys::is_killed(child.pid)) => {
                // What it forked while it was being killed.
                sys::kill_tree(child.pid);
                true
            }
            ChildState::Killed(_) => {
                tell(&child.notice, Notice::Killed);
                child.state = ChildState::GivenUp;
                true
            }
            ChildState::Reaped(_, at) if !(strays.is_empty() || late(at) && quiet) => true,
            ChildState::Reaped(Reaped { status, peak_memory, .. }, _) => {
                reach(Step::ServerReaped);
                // One that was still starting when it was asked for its stack has ended by that signal.
                let over = child.memory.as_ref().and_then(|memory| memory.over);
                if let Some(used) = over.filter(|_| status.0 == -sys::DUMP_SIGNAL) {
                    tell(&child.notice, Notice::OverMemory { used });
                }
                tell(&child.notice, Notice::Exited { status, peak_memory });
                false
            }
        });
        self.children
            .iter()
            .any(|child| matches!(child.state, ChildState::Killed(_) | ChildState::Reaped(..)))
    }

    /// Whoever is a child of ours but not a worker was started by a worker that has ended. When there is
    /// nobody, all that the workers which were reaped had started is gone.
    fn kill_strays(&mut self) -> Vec<i32> {
        let mut strays = self.all_children();
        let is_worker = |pid: i32| {
            self.children
                .iter()
                .any(|child| child.pid == pid && !matches!(child.state, ChildState::Reaped(..)))
        };
        strays.retain(|&pid| !is_worker(pid));
        for &pid in &strays {
            sys::kill_tree(pid);
        }
        strays
    }

    /// All children of this process. None is missed: a list is read exactly as long as nobody leaves it,
    /// and only the thread that reads it reaps; but for an import, which may start programs and wait for
    /// them.
    fn all_children(&mut self) -> Vec<i32> {
        let mut found = self.own.look();
        loop {
            let again = self.own.look();
            if again == found {
                return found;
            }
            found = again;
        }
    }
}

/// The host may be gone or may not want to know any more; both are its affair.
fn tell(notice: &OwnedFd, message: Notice) {
    let _ = sys::send_all(notice.as_fd(), &message.encode());
}

fn read_text(fd: OwnedFd, len: u64) -> Option<String> {
    let blob = Blob::open(fd, usize::try_from(len).ok()?).ok()?;
    let mut bytes = vec![0; blob.len()];
    blob.read(0, &mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}
