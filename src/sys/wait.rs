//! One wait for many things: descriptors, a moment, a signal.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use smallvec::SmallVec;

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

/// Waits until a descriptor is ready, `until` has come, a signal handler ran, or `slice` has passed.
///
/// The kernel may be late by a thousandth of what it is asked to wait, and by a twentieth of a
/// millisecond at least: whoever has a deadline to keep gives a slice of a tenth of a second.
pub fn wait(interests: &mut [Interest<'_>], until: Option<Moment>, slice: Duration) -> io::Result<Woken> {
    let left = until.map(|until| until.since(super::now()));
    let timeout = left.into_iter().chain([slice]).min().unwrap_or(slice);
    let mut fds: SmallVec<[PollFd<'_>; 4]> =
        interests.iter().map(|interest| PollFd::new(interest.fd, PollFlags::POLLIN)).collect();
    let woken = poll_once(&mut fds, timeout)?;
    let ready: SmallVec<[bool; 4]> = fds.iter().map(is_ready).collect();
    drop(fds);
    for (interest, ready) in interests.iter_mut().zip(ready) {
        interest.ready = ready;
    }
    Ok(woken)
}

/// Waits until `fd` can be read or is at its end, or `length` has passed: then false.
pub fn wait_readable(fd: BorrowedFd<'_>, length: Duration) -> io::Result<bool> {
    let until = super::now() + length;
    loop {
        let mut interests = [Interest::new(fd)];
        wait(&mut interests, Some(until), length)?;
        if interests[0].ready {
            return Ok(true);
        }
        if super::now() >= until {
            return Ok(false);
        }
    }
}

fn is_ready(fd: &PollFd<'_>) -> bool {
    fd.revents().is_none_or(|events| !events.is_empty())
}

fn poll_once(fds: &mut [PollFd<'_>], timeout: Duration) -> io::Result<Woken> {
    match poll_for(fds, timeout) {
        Ok(0) => Ok(Woken::Timer),
        Ok(_) => Ok(Woken::Ready),
        Err(nix::Error::EINTR) => Ok(Woken::Interrupted),
        Err(error) => Err(error.into()),
    }
}

#[cfg(target_os = "linux")]
fn poll_for(fds: &mut [PollFd<'_>], timeout: Duration) -> nix::Result<i32> {
    nix::poll::ppoll(fds, Some(nix::sys::time::TimeSpec::from_duration(timeout)), None)
}

/// Rounded up: waking a fraction of a millisecond early would only mean to wait again.
#[cfg(not(target_os = "linux"))]
fn poll_for(fds: &mut [PollFd<'_>], timeout: Duration) -> nix::Result<i32> {
    use nix::poll::{PollTimeout, poll};
    let millis = timeout.as_micros().div_ceil(1000);
    poll(fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_wait_ends_for_its_reason() {
        let (reader, writer) = crate::sys::pipe().unwrap();
        let start = crate::sys::now();
        let mut interests = [Interest::new(reader.as_fd())];
        let long = Duration::from_secs(60);
        let woken = wait(&mut interests, Some(start + Duration::from_millis(20)), long).unwrap();
        assert_eq!((Woken::Timer, false), (woken, interests[0].ready));
        assert!(crate::sys::now().since(start) >= Duration::from_millis(20));
        crate::sys::send_all(writer.as_fd(), b"x").unwrap();
        let woken = wait(&mut interests, Some(start + long), long).unwrap();
        assert_eq!((Woken::Ready, true), (woken, interests[0].ready));
        drop(writer);
        assert!(wait_readable(reader.as_fd(), long).unwrap());
    }
}
