//! Signals: those we send, the notice of a child's end, and the mark after a stack dump.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::fault::{Step, reach};
use super::memory::Segment;

/// Asks politely; may be ignored.
pub const TERMINATE_SIGNAL: i32 = libc::SIGTERM;
/// Cannot be ignored.
pub const KILL_SIGNAL: i32 = libc::SIGKILL;

/// Lets a stopped process go on; no effect on others.
pub const CONTINUE_SIGNAL: i32 = libc::SIGCONT;

/// The private signal on which a worker dumps its Python stacks. Real-time signals are unknown to
/// other software; where there are none, SIGUSR2 has to do.
#[cfg(target_os = "linux")]
pub const DUMP_SIGNAL: i32 = 62;
/// See above.
#[cfg(not(target_os = "linux"))]
pub const DUMP_SIGNAL: i32 = libc::SIGUSR2;

/// Sends `signal` to the process `pid`, which the caller knows is not reaped yet. That it has
/// ended meanwhile is no error.
pub fn send(pid: i32, signal: i32) -> io::Result<()> {
    assert!(pid > 1, "a signal to pid {pid} would reach more than one process");
    // SAFETY: kill has no memory effects. nix's wrapper cannot name real-time signals.
    let sent = nix::errno::Errno::result(unsafe { libc::kill(pid, signal) });
    match sent {
        Ok(_) | Err(nix::Error::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The write end that the SIGCHLD handler rings, or -1.
static CHILD_BELL: AtomicI32 = AtomicI32::new(-1);

extern "C" fn ring_child_bell(_signal: libc::c_int) {
    let bell = CHILD_BELL.load(Ordering::Relaxed);
    if bell >= 0 {
        // SAFETY: write is async-signal-safe. A full pipe means that the loop will wake anyway.
        // errno is saved around it: the handler may interrupt code that is about to read it.
        unsafe {
            let errno = errno_location();
            let saved = *errno;
            libc::write(bell, b"c".as_ptr().cast(), 1);
            *errno = saved;
        }
    }
}

/// Where this thread's errno lives.
unsafe fn errno_location() -> *mut libc::c_int {
    #[cfg(target_os = "linux")]
    // SAFETY: always valid for the calling thread.
    return unsafe { libc::__errno_location() };
    #[cfg(not(target_os = "linux"))]
    // SAFETY: always valid for the calling thread.
    return unsafe { libc::__error() };
}

/// Turns SIGCHLD into something to poll. For processes of our own only, never for the host.
#[derive(Debug)]
pub struct ChildSignal {
    reader: OwnedFd,
    _writer: OwnedFd,
}

impl ChildSignal {
    /// Starts to listen.
    pub fn install() -> io::Result<Self> {
        let (reader, writer) = super::socket::pipe()?;
        CHILD_BELL.store(writer.as_raw_fd(), Ordering::Relaxed);
        let signal = Self { reader, _writer: writer };
        signal.listen()?;
        Ok(signal)
    }

    /// Listens again, after other code may have changed the signal's handler or blocked it.
    pub fn listen(&self) -> io::Result<()> {
        let action = SigAction::new(
            SigHandler::Handler(ring_child_bell),
            SaFlags::SA_RESTART | SaFlags::SA_NOCLDSTOP,
            SigSet::empty(),
        );
        // SAFETY: the handler only does what is async-signal-safe.
        unsafe { sigaction(Signal::SIGCHLD, &action) }?;
        let mut child = SigSet::empty();
        child.add(Signal::SIGCHLD);
        Ok(child.thread_unblock()?)
    }

    /// Becomes readable when a child has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Forgets what has been rung so far.
    pub fn clear(&self) {
        let mut bytes = [0; 64];
        while matches!(nix::unistd::read(&self.reader, &mut bytes), Ok(1..)) {}
    }
}

impl Drop for ChildSignal {
    fn drop(&mut self) {
        CHILD_BELL.store(-1, Ordering::Relaxed);
        let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default action runs no code of ours.
        let reset = unsafe { sigaction(Signal::SIGCHLD, &action) };
        debug_assert!(reset.is_ok(), "SIGCHLD is a signal: {reset:?}");
    }
}

/// Where the dump handler leaves its mark, and whom it tells.
static DUMP_MARK: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());
static DUMP_BELL: AtomicI32 = AtomicI32::new(-1);
/// Where the host says that this process is to end once its stack is dumped.
static DUMP_IS_LAST: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn mark_dump(_signal: libc::c_int) {
    // SAFETY: the pointer is null or into a mapping that was leaked for it; send is
    // async-signal-safe; errno is put back.
    unsafe {
        let errno = errno_location();
        let saved = *errno;
        reach(Step::WorkerDumps);
        if let Some(mark) = DUMP_MARK.load(Ordering::Relaxed).as_ref() {
            mark.store(1, Ordering::Release);
            if let Some(last) = DUMP_IS_LAST.load(Ordering::Relaxed).as_ref()
                && last.load(Ordering::Acquire) != 0
            {
                // The deadline has passed. From here it takes one hop less than by the forkserver.
                libc::kill(libc::getpid(), libc::SIGKILL);
            }
            libc::send(DUMP_BELL.load(Ordering::Relaxed), b"s".as_ptr().cast(), 1, libc::MSG_DONTWAIT);
        }
        *errno = saved;
    }
}

/// On `DUMP_SIGNAL`, sets the word at `mark` of `segment` and rings `bell`, or ends this process if the
/// word at `last` is set.
///
/// Python's `faulthandler.register(..., chain=True)`, called afterwards, dumps first and then
/// calls this handler: so the mark says that the dump is complete.
pub fn install_dump_mark(
    segment: &'static Segment,
    mark: usize,
    last: usize,
    bell: BorrowedFd<'_>,
) -> io::Result<()> {
    DUMP_BELL.store(bell.as_raw_fd(), Ordering::Relaxed);
    DUMP_IS_LAST.store(std::ptr::from_ref(segment.u32(last)).cast_mut(), Ordering::Release);
    DUMP_MARK.store(std::ptr::from_ref(segment.u32(mark)).cast_mut(), Ordering::Release);
    // SAFETY: the handler only does what is async-signal-safe; the struct is plain data. nix's
    // sigaction cannot name real-time signals.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = mark_dump as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        nix::errno::Errno::result(libc::sigaction(DUMP_SIGNAL, &raw const action, std::ptr::null_mut()))?;
    }
    Ok(())
}
