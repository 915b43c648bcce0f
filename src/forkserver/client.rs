//! The host's side of a forkserver.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::control::{COMMAND_LEN, Command, Introduction, NOTICE_LEN, Notice};
use crate::error::Error;
use crate::sys::fault::{Step, reach};
use crate::sys::{self, Process};
use crate::time::Moment;
use crate::transport::HostChannel;

/// How long an orderly end may take before it is left to itself.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long after its last word a forkserver is taken to be at work.
const BUSY_LIMIT: Duration = Duration::from_millis(500);
/// How long a forkserver that waits for a core is given, from the first thing that it was asked and has
/// not answered. Nobody else would be quicker on such a machine, and its end costs all its workers.
const STARVED_LIMIT: Duration = Duration::from_secs(5);
/// How long the guard may take before it is taken for stopped.
const STOPPED_LIMIT: Duration = Duration::from_millis(300);

/// A worker that is being forked.
#[derive(Debug)]
pub struct ForkedWorker {
    /// Its number, unique in its forkserver.
    pub id: u64,
    /// The way to it.
    pub channel: HostChannel,
    /// Where its forkserver tells of it.
    pub notice: OwnedFd,
}

/// Who has to be reaped once the forkserver runs.
#[derive(Debug)]
enum Launcher {
    /// The interpreter that forked the guard and left.
    Interpreter(Child),
    /// The guard itself, a direct child: a copy of the host.
    Guard(i32),
    /// Nobody any more.
    None,
}

/// A running forkserver. Dropping it ends it, and with it all its workers.
#[derive(Debug)]
pub struct Forkserver {
    control: Mutex<OwnedFd>,
    life: OwnedFd,
    launcher: Mutex<Launcher>,
    next_worker: AtomicU64,
    lost: AtomicBool,
    over: AtomicBool,
    /// When it last said something, in nanoseconds.
    heard: AtomicU64,
    /// When it was first asked for something after that.
    asked: AtomicU64,
    /// The process that made this. A copy of it must not end it.
    owner: i32,
    /// Whom to let go on if they do not do as they are told: who was started, then, once they are
    /// known, guard and forkserver.
    family: Mutex<Vec<Arc<Process>>>,
}

impl Forkserver {
    /// Starts a fresh interpreter that is to call [`boot`](super::boot) on its standard input.
    pub fn launch(
        program: &str,
        arguments: &[String],
        environment: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<Self, Error> {
        let (server, theirs) = Self::prepare()?;
        reach(Step::HostLaunches);
        let child = sys::spawn_interpreter(program, arguments, environment, theirs)
            .map_err(Error::forkserver("run the interpreter"))?;
        server.set_family(child.id().try_into().ok().map(|pid| Process::new(pid, sys::handle(pid))));
        *server.launcher() = Launcher::Interpreter(child);
        Ok(server)
    }

    /// Makes the host's side, and the end to give to a copy of the host that becomes the
    /// forkserver.
    pub fn prepare() -> Result<(Self, OwnedFd), Error> {
        let sockets = Error::forkserver("make sockets");
        let (control, theirs) = sys::socket_pair().map_err(&sockets)?;
        let (life, guard_life) = sys::socket_pair().map_err(&sockets)?;
        // Beside the life socket, which a forked child of the host may hold open by accident.
        let end = sys::handle(sys::pid());
        let fds: Vec<_> = std::iter::once(&guard_life).chain(&end).map(AsFd::as_fd).collect();
        sys::send_message(control.as_fd(), &Command::Attach.encode(), &fds).map_err(sockets)?;
        let server = Self {
            control: Mutex::new(control),
            life,
            launcher: Mutex::new(Launcher::None),
            next_worker: AtomicU64::new(1),
            lost: AtomicBool::new(false),
            over: AtomicBool::new(false),
            heard: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            owner: sys::pid(),
            family: Mutex::default(),
        };
        Ok((server, theirs))
    }

    /// Remembers the copy of the host that was forked, to reap it at the end.
    pub fn set_guard(&self, pid: i32) {
        self.set_family([Process::new(pid, sys::handle(pid))]);
        *self.launcher() = Launcher::Guard(pid);
    }

    fn set_family(&self, family: impl IntoIterator<Item = Process>) {
        *self.family.lock().unwrap_or_else(PoisonError::into_inner) =
            family.into_iter().map(Arc::new).collect();
    }

    fn family(&self) -> Vec<Arc<Process>> {
        self.family.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn launcher(&self) -> std::sync::MutexGuard<'_, Launcher> {
        self.launcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, command: Command, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: [u8; COMMAND_LEN] = command.encode();
        if self.asked.load(Ordering::Relaxed) <= self.heard.load(Ordering::Relaxed) {
            self.asked.store(sys::now().as_nanos(), Ordering::Relaxed);
        }
        sys::send_message(control.as_fd(), &bytes, fds)
    }

    /// Asks for a new worker. Whether it came to be, its notice pipe tells.
    pub fn fork_worker(&self, exec: bool, max_memory: u64) -> Result<ForkedWorker, Error> {
        let (channel, segment, socket) =
            HostChannel::create().map_err(Error::system("make shared memory"))?;
        let (notice, theirs) = sys::pipe().map_err(Error::system("make a pipe"))?;
        let id = self.next_worker.fetch_add(1, Ordering::Relaxed);
        reach(Step::HostAsks);
        self.command(
            Command::Fork { worker: id, exec, max_memory },
            &[theirs.as_fd(), segment.as_fd(), socket.as_fd()],
        )
        .map_err(Error::forkserver("ask for a worker"))?;
        Ok(ForkedWorker { id, channel, notice })
    }

    /// Sends a signal to a worker; one that has ended is passed over.
    pub fn signal(&self, worker: u64, signal: i32) -> io::Result<()> {
        self.command(Command::Signal { worker, signal }, &[])
    }

    /// Kills a worker and all that descends from it; with `dump`, asks it for its stack first.
    pub fn kill(&self, worker: u64, dump: bool) -> io::Result<()> {
        reach(Step::HostKills);
        let sent = self.command(Command::Kill { worker, dump }, &[]);
        reach(Step::HostKilled);
        sent
    }

    /// Asks the forkserver to import modules before it forks further workers.
    pub fn preload(&self, modules: &str) -> io::Result<()> {
        let file = sys::Blob::create(&[modules.as_bytes()])?;
        self.command(Command::Preload { len: modules.len() as u64 }, &[file.as_fd()])
    }

    /// The forkserver answers: reaps the interpreter that launched it.
    ///
    /// That one leaves as soon as it has forked the guard, or would if it were not stopped.
    pub fn is_up(&self) {
        let mut launcher = self.launcher();
        if let Launcher::Interpreter(child) = &mut *launcher {
            // That somebody else reaped it (`os.wait` in another thread) is fine.
            let _ = child.kill();
            let _ = child.wait();
            *launcher = Launcher::None;
        }
    }

    /// The system's error number for which it could not start, if it said so before it ended.
    pub fn failure(&self) -> Option<i32> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; NOTICE_LEN];
        let received = sys::receive(control.as_fd(), &mut bytes).ok()??;
        match Notice::decode(&bytes) {
            Ok(Notice::ForkFailed { errno }) if received.bytes == NOTICE_LEN => Some(errno),
            _ => None,
        }
    }

    /// Remembers that it has just told of one of its workers.
    pub fn is_heard(&self) {
        self.heard.store(sys::now().as_nanos(), Ordering::Relaxed);
    }

    /// Whether it is at work: it has told of one of its workers lately, or waits for a core to run on. On a
    /// machine with far more to do than cores to do it, the answer that somebody waits for may take long
    /// all the same.
    pub fn is_busy(&self) -> bool {
        let since = |moment: &AtomicU64| sys::now().since(Moment::from_nanos(moment.load(Ordering::Relaxed)));
        let is_runnable = || self.family().get(1).is_some_and(|server| server.is_runnable());
        since(&self.heard) < BUSY_LIMIT || (since(&self.asked) < STARVED_LIMIT && is_runnable())
    }

    /// Marks it as useless: it ended, or does not do as it is told.
    pub fn set_lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Whether it is useless.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether it was ended, as far as that was possible: nothing more will be heard of it.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Reads what was said of guard and forkserver so far. False at the end of the socket.
    fn read_life(&self) -> bool {
        loop {
            let mut bytes = [0; NOTICE_LEN];
            match sys::receive(self.life.as_fd(), &mut bytes) {
                Ok(Some(received)) if received.bytes > 0 => {
                    if let Ok(pids) = Introduction::decode(&bytes) {
                        let mut fds = received.fds.into_iter();
                        let family = std::iter::once(pids.guard).chain(pids.server);
                        // The guard knows more, and may have been quicker.
                        if pids.server.is_some() || self.family().len() < 2 {
                            self.set_family(family.map(|pid| Process::new(pid, fds.next())));
                        }
                    }
                }
                Ok(None) => return true,
                Ok(Some(_)) | Err(_) => return false,
            }
        }
    }

    /// Waits until guard and forkserver are gone; false if that takes longer. The end of the life
    /// socket is that of the guard, which is the last to leave unless somebody has killed it.
    fn wait_for_end(&self, limit: Duration) -> bool {
        let until = sys::now() + limit;
        loop {
            let left = until.since(sys::now());
            match sys::wait_readable(self.life.as_fd(), left) {
                Ok(true) => {}
                Ok(false) | Err(_) => return false,
            }
            if !self.read_life() {
                break;
            }
        }
        self.family().iter().all(|process| process.wait(until.since(sys::now())))
    }

    /// Lets guard and forkserver go on, if somebody has stopped them.
    pub fn nudge(&self) {
        let guard_lives = self.read_life();
        for process in self.family() {
            // Who ends after the guard may be reaped by anybody, and its pid given to another.
            if guard_lives || process.is_certain() {
                // That it has just ended is found out elsewhere.
                let _ = process.signal(sys::CONTINUE_SIGNAL);
            }
        }
    }

    /// Ends the forkserver and all its workers, and waits until nothing is left of them.
    pub fn shutdown(&self) {
        self.set_lost();
        // The guard sees the end of file, though this process still holds the socket and reads
        // from it the end of the guard.
        let closed = sys::half_close(self.life.as_fd());
        reach(Step::HostHalfClosed);
        let mut ended = closed.is_err() || self.wait_for_end(STOPPED_LIMIT);
        if !ended {
            self.nudge();
            ended = self.wait_for_end(END_LIMIT);
            if !ended {
                log::error!("the forkserver's guard does not end");
            }
        }
        self.over.store(true, Ordering::Relaxed);
        match std::mem::replace(&mut *self.launcher(), Launcher::None) {
            Launcher::Interpreter(mut child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Launcher::Guard(pid) if ended => {
                // It has ended or is about to: its end of the life socket is closed.
                let _ = sys::reap(pid);
            }
            // Whoever waited for that one could wait for ever.
            still @ Launcher::Guard(_) => *self.launcher() = still,
            Launcher::None => {}
        }
    }
}

impl Drop for Forkserver {
    /// For a caller who was interrupted before it could end this: whoever is a child of this process
    /// is reaped all the same. All else ends by itself when the sockets close.
    fn drop(&mut self) {
        if self.owner == sys::pid() && !matches!(*self.launcher(), Launcher::None) {
            self.shutdown();
        }
    }
}
