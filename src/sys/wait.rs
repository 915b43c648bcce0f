//! One wait for many things: descriptors, a moment, a signal.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::time::Moment;

/// A descriptor to wait for, and what it turned out to be.
#[derive(Debug)]
pub struct Interest<'fd> {
    /// Readable, or at its end, or broken: reading it tells.
    pub fd: BorrowedFd<'fd>,
    /// Set by the wait.
    pub ready: bool,
}

impl<'fd> Interest<'fd> {
    /// Wants to know when `fd` can be read.
    pub fn new(fd: BorrowedFd<'fd>) -> Self {
        Self { fd, ready: false }
    }
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// At least one descriptor is ready.
    Ready,
    /// The moment has come, or the slice of time is over.
    Timer,
    /// A signal handler ran in this thread.
    Interrupted,
}

/// Waits with a timer of its own.
///
/// The kernel lets `poll`'s own timeout slip by up to a thousandth of its length; a timerfd is not
/// rounded that way, so a deadline far ahead is kept as well as a near one.
#[derive(Debug, Default)]
pub struct Waiter {
    #[cfg(target_os = "linux")]
    timer: Option<Timer>,
}

impl Waiter {
    /// Waits until a descriptor is ready, `until` has come, a signal handler ran, or `slice` has
    /// passed.
    pub fn wait(
        &mut self,
        interests: &mut [Interest<'_>],
        until: Option<Moment>,
        slice: Duration,
    ) -> io::Result<Woken> {
        let mut timeout = slice;
        if let Some(until) = until {
            let left = until.since(super::now());
            if left.is_zero() {
                timeout = Duration::ZERO;
            } else if left < slice {
                #[cfg(target_os = "linux")]
                if let Ok(timer) = self.timer() {
                    return wait_with_timer(timer, interests, until, slice);
                }
                // There is none, or this process has no descriptor left for one: then the timeout
                // of `poll` is good enough, and better than no wait.
                timeout = left;
            }
        }
        let mut fds: Vec<PollFd<'_>> = poll_fds(interests);
        let woken = poll_once(&mut fds, timeout)?;
        let ready: Vec<bool> = fds.iter().map(is_ready).collect();
        set_ready(interests, &ready);
        Ok(woken)
    }

    #[cfg(target_os = "linux")]
    fn timer(&mut self) -> io::Result<&mut Timer> {
        Ok(match &mut self.timer {
            Some(timer) => timer,
            none => none.insert(Timer::new()?),
        })
    }
}

#[cfg(target_os = "linux")]
fn wait_with_timer(
    timer: &mut Timer,
    interests: &mut [Interest<'_>],
    until: Moment,
    slice: Duration,
) -> io::Result<Woken> {
    use std::os::fd::AsFd;
    timer.arm(until)?;
    let mut fds: Vec<PollFd<'_>> = poll_fds(interests);
    fds.push(PollFd::new(timer.fd.as_fd(), PollFlags::POLLIN));
    let woken = poll_once(&mut fds, slice)?;
    let ready: Vec<bool> = fds[..interests.len()].iter().map(is_ready).collect();
    set_ready(interests, &ready);
    if woken == Woken::Ready && !ready.contains(&true) { Ok(Woken::Timer) } else { Ok(woken) }
}

/// Waits until `fd` can be read or is at its end, or `length` has passed: then false.
pub fn wait_readable(fd: BorrowedFd<'_>, length: Duration) -> io::Result<bool> {
    let until = super::now() + length;
    let mut waiter = Waiter::default();
    loop {
        let mut interests = [Interest::new(fd)];
        waiter.wait(&mut interests, Some(until), length)?;
        if interests[0].ready {
            return Ok(true);
        }
        if super::now() >= until {
            return Ok(false);
        }
    }
}

fn poll_fds<'fd>(interests: &[Interest<'fd>]) -> Vec<PollFd<'fd>> {
    interests.iter().map(|interest| PollFd::new(interest.fd, PollFlags::POLLIN)).collect()
}

fn is_ready(fd: &PollFd<'_>) -> bool {
    fd.revents().is_none_or(|events| !events.is_empty())
}

fn set_ready(interests: &mut [Interest<'_>], ready: &[bool]) {
    for (interest, &ready) in interests.iter_mut().zip(ready) {
        interest.ready = ready;
    }
}

fn poll_once(fds: &mut [PollFd<'_>], timeout: Duration) -> io::Result<Woken> {
    // Rounded up: waking a fraction of a millisecond early would only mean to wait again.
    let millis = timeout.as_micros().div_ceil(1000);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    match poll(fds, timeout) {
        Ok(0) => Ok(Woken::Timer),
        Ok(_) => Ok(Woken::Ready),
        Err(nix::Error::EINTR) => Ok(Woken::Interrupted),
        Err(error) => Err(error.into()),
    }
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Timer {
    fd: nix::sys::timerfd::TimerFd,
    armed: Option<Moment>,
}

#[cfg(target_os = "linux")]
impl Timer {
    fn new() -> io::Result<Self> {
        use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self { fd: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?, armed: None })
    }

    /// A repeated wait for the same moment costs no system call.
    fn arm(&mut self, until: Moment) -> io::Result<()> {
        use nix::sys::time::TimeSpec;
        use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};
        if self.armed != Some(until) {
            let spec = TimeSpec::from_duration(Duration::from_nanos(until.as_nanos()));
            self.fd.set(Expiration::OneShot(spec), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            self.armed = Some(until);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_wait_ends_for_its_reason() {
        let (reader, writer) = crate::sys::pipe().unwrap();
        let mut waiter = Waiter::default();
        let start = crate::sys::now();
        let mut interests = [Interest::new(reader.as_fd())];
        let long = Duration::from_secs(60);
        let woken = waiter.wait(&mut interests, Some(start + Duration::from_millis(20)), long).unwrap();
        assert_eq!((Woken::Timer, false), (woken, interests[0].ready));
        assert!(crate::sys::now().since(start) >= Duration::from_millis(20));
        crate::sys::send_all(writer.as_fd(), b"x").unwrap();
        let woken = waiter.wait(&mut interests, Some(start + long), long).unwrap();
        assert_eq!((Woken::Ready, true), (woken, interests[0].ready));
        drop(writer);
        assert!(wait_readable(reader.as_fd(), long).unwrap());
    }
}
