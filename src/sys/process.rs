//! Processes: their start, their place in the tree, their end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::Mode;

use super::socket::retry;

/// How a process ended: an exit code, or the negative number of the signal that killed it, as in
/// Python's `subprocess`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus(pub i32);

/// A child that was reaped.
#[derive(Clone, Copy, Debug)]
pub struct Reaped {
    /// Its pid, which is free for reuse from now on.
    pub pid: i32,
    /// How it ended.
    pub status: ExitStatus,
    /// Its peak resident memory in bytes.
    pub peak_memory: u64,
}

/// This process.
pub fn pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// The parent of this process.
pub fn parent_pid() -> i32 {
    nix::unistd::getppid().as_raw()
}

/// Leaves at once: no destructor, no `atexit`, no flush.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit is always sound.
    unsafe { libc::_exit(code) }
}

/// Whether this process has no thread but this one, as far as the platform tells.
pub fn is_single_threaded() -> bool {
    use std::os::unix::fs::MetadataExt;
    // One directory for each thread, and each of those links here.
    std::fs::metadata("/proc/self/task").is_ok_and(|task| task.nlink() == 3)
}

/// Starts `program` in a process group of its own with `stdin` as its standard input; standard
/// output and error are inherited.
pub fn spawn_interpreter(
    program: &str,
    arguments: &[String],
    environment: &[(Vec<u8>, Vec<u8>)],
    stdin: OwnedFd,
) -> io::Result<Child> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::process::CommandExt;
    let os = |bytes: &'_ [u8]| std::ffi::OsStr::from_bytes(bytes).to_owned();
    let mut command = Command::new(program);
    if std::env::current_dir().is_err() {
        // An interpreter should not start in a directory that is gone: CPython 3.13.0 cannot import
        // extension modules there.
        command.current_dir("/");
    }
    command
        .args(arguments)
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (os(name), os(value))))
        .stdin(Stdio::from(stdin))
        .process_group(0)
        .spawn()
}

/// Takes over the descriptor behind standard input and leaves the null device there.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let socket = move_high(io::stdin().as_fd().try_clone_to_owned()?)?;
    null_stdin()?;
    Ok(socket)
}

/// What says that a process may not open more files.
pub const OUT_OF_DESCRIPTORS: i32 = libc::EMFILE;

/// Opens the null device.
pub fn null_device() -> io::Result<OwnedFd> {
    Ok(open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Puts standard input at end of file.
pub fn null_stdin() -> io::Result<()> {
    let null = null_device()?;
    nix::unistd::dup2_stdin(&null)?;
    Ok(())
}

/// Moves a descriptor out of the way of user code that closes or reuses low numbers.
pub fn move_high(fd: OwnedFd) -> io::Result<OwnedFd> {
    const HIGH: u64 = 512;
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let lowest = RawFd::try_from((soft / 2).min(HIGH)).expect("at most HIGH");
    let Ok(moved) = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(lowest)) else {
        // All high ones are taken. Where it is, it works as well, only nearer to the user's.
        return Ok(fd);
    };
    // SAFETY: fcntl has just made it; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// Closes every descriptor but these and the standard streams.
///
/// Only for a process in which nobody else's code runs any more: their descriptors are gone too.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        close_between(first, fd - 1);
        first = first.max(fd + 1);
    }
    close_between(first, RawFd::MAX);
}

fn close_between(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: closing descriptors has no memory effects; their owners are the caller's affair.
    #[cfg(target_os = "linux")]
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    for fd in first..=last.min(RawFd::try_from(soft).unwrap_or(65_536)) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// Lets the next program that this process execs keep `fd`.
pub fn keep_across_exec(fd: &OwnedFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// Owns an open descriptor whose number came to us through Python; its sender has let go of it.
pub fn own(fd: RawFd) -> OwnedFd {
    assert!(fd >= 0, "{fd} is no descriptor");
    // SAFETY: both callers, `boot` and the worker's start, pass numbers that this crate gave away
    // with `into_raw_fd`, or that its own exec kept open for just this.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Becomes the leader of a new session and process group; being one already is fine.
pub fn become_leader() -> io::Result<()> {
    match nix::unistd::setsid() {
        Ok(_) | Err(nix::Error::EPERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Adopts descendants whose parents end, so that they never leave this process's tree.
#[cfg(target_os = "linux")]
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// There is no such thing here: descendants that move to another session escape.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "the Linux twin can fail")]
pub fn become_subreaper() -> io::Result<()> {
    Ok(())
}

/// Ties this process's life to that of its parent, which must be `parent` and single-threaded
/// (the kernel watches the parent's thread, not its process). Returns false if it died meanwhile.
#[cfg(target_os = "linux")]
pub fn die_with_parent(parent: i32) -> io::Result<bool> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    // Compared with the pid that forked us, not with 1: in a container init is anybody.
    Ok(parent_pid() == parent)
}

/// Elsewhere the worker learns of it by the end of its socket.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "the Linux twin can fail")]
pub fn die_with_parent(parent: i32) -> io::Result<bool> {
    Ok(parent_pid() == parent)
}

/// A descriptor of the process `pid`, which the caller knows is not reaped yet. It becomes readable
/// when the process ends, however many copies of it are held elsewhere, and never means another
/// process. `None` where the kernel has none.
#[cfg(target_os = "linux")]
pub fn handle(pid: i32) -> Option<OwnedFd> {
    // SAFETY: the call has no memory effects; nix has no wrapper for it.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).ok().filter(|&fd| fd >= 0)?;
    // SAFETY: the kernel has just made it; nobody else has it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// See above.
#[cfg(not(target_os = "linux"))]
pub fn handle(_pid: i32) -> Option<OwnedFd> {
    None
}

/// A number that is the parent's plus one in each process that was forked by way of the C library, so
/// that whoever keeps it can tell a copy from the original without a system call.
pub fn fork_generation() -> u64 {
    static GENERATION: AtomicU64 = AtomicU64::new(0);
    static REGISTERED: Once = Once::new();
    extern "C" fn count() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }
    REGISTERED.call_once(|| {
        // SAFETY: the handler only adds to an atomic. That there is no memory for one more handler
        // means that copies are not told apart here; whoever asks for the pid still can.
        unsafe { libc::pthread_atfork(None, None, Some(count)) };
    });
    GENERATION.load(Ordering::Relaxed)
}

/// Counts how often this process begins and ends to fork by way of the C library, since this was first
/// asked: if it is the same at two moments, nothing that was made and dropped between them has a copy in
/// another process. A child starts with a number that its parent had in between.
pub fn fork_count() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static REGISTERED: Once = Once::new();
    extern "C" fn count() {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
    REGISTERED.call_once(|| {
        // What another thread makes after the first handler and before the fork is copied as well: so
        // the parent counts once more after it.
        // SAFETY: as in `fork_generation`; these handlers run in the parent, before and after the fork.
        unsafe { libc::pthread_atfork(Some(count), Some(count), None) };
    });
    COUNT.load(Ordering::Relaxed)
}

/// The working directory as bytes; `None` if it is gone.
pub fn current_directory() -> Option<Vec<u8>> {
    use std::os::unix::ffi::OsStringExt;
    nix::unistd::getcwd().ok().map(|path| path.into_os_string().into_vec())
}

/// Whether it is this one. Before each call, so without taking memory for it.
pub fn is_current_directory(directory: Option<&[u8]>) -> bool {
    let mut bytes = [0u8; 512];
    // SAFETY: the buffer is ours and as long as it says.
    let found = unsafe { libc::getcwd(bytes.as_mut_ptr().cast(), bytes.len()) };
    if found.is_null() {
        // It is longer, or gone.
        return current_directory().as_deref() == directory;
    }
    directory.is_some_and(|directory| {
        directory.len() < bytes.len() && bytes.starts_with(directory) && bytes[directory.len()] == 0
    })
}

/// A process that is no child of this one, to send signals to.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    handle: Option<OwnedFd>,
}

impl Process {
    /// With the handle that came along; without one the pid has to do.
    pub fn new(pid: i32, handle: Option<OwnedFd>) -> Self {
        Self { pid, handle }
    }

    /// Whether it can be signalled at any time: a mere pid may mean another process one day.
    pub fn is_certain(&self) -> bool {
        self.handle.is_some()
    }

    /// Waits until it has ended; false if that takes longer. Nothing is known without a handle.
    pub fn wait(&self, limit: Duration) -> bool {
        let Some(handle) = &self.handle else { return true };
        super::wait_readable(handle.as_fd(), limit).unwrap_or(true)
    }

    /// Whether it runs or would if it had a core: it neither sleeps nor was stopped.
    pub fn is_runnable(&self) -> bool {
        super::state(self.pid) == Some('R')
    }

    /// Sends it a signal; that it has ended is no error.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match &self.handle {
            #[cfg(target_os = "linux")]
            Some(handle) => {
                use std::os::fd::AsRawFd;
                // SAFETY: the call has no memory effects without a siginfo; nix has no wrapper.
                let sent = nix::errno::Errno::result(unsafe {
                    libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), signal, 0, 0)
                });
                match sent {
                    Ok(_) | Err(nix::Error::ESRCH) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            _ => super::signal::send(self.pid, signal),
        }
    }
}

/// Reaps one child that has ended, if there is one: `Ok(None)` if none has, an error (`ECHILD`)
/// if there are no children at all.
pub fn try_reap_any() -> io::Result<Option<Reaped>> {
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = retry(|| {
        // SAFETY: both pointers are to live locals. nix has no wait4, and waitid tells no usage.
        nix::errno::Errno::result(unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) })
    })?;
    if pid == 0 {
        return Ok(None);
    }
    let status = if libc::WIFSIGNALED(status) {
        ExitStatus(-libc::WTERMSIG(status))
    } else {
        ExitStatus(libc::WEXITSTATUS(status))
    };
    // Linux counts in KiB, macOS in bytes.
    let unit = if cfg!(target_os = "linux") { 1024 } else { 1 };
    let peak_memory = u64::try_from(usage.ru_maxrss).unwrap_or(0) * unit;
    Ok(Some(Reaped { pid, status, peak_memory }))
}

/// Waits for our own child `pid` to end and reaps it; that somebody else did so already is fine.
pub fn reap(pid: i32) -> io::Result<()> {
    match retry(|| nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)) {
        Err(error) if error.raw_os_error() != Some(libc::ECHILD) => Err(error),
        _ => Ok(()),
    }
}
