//! Files that travel over the socket beside the rings.
//!
//! Each is numbered by the order in which it was sent, and a record names the number of its file:
//! so a file whose record was taken back is skipped, not mistaken for the next one.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::record::Corrupt;
use crate::sys;

/// Most files under way at once: a process with few descriptors has room for them, and the socket's
/// buffer holds several times as many.
pub const FILES_MAX: usize = 16;

/// Most files that wait to be used. Those that were taken back wait with the others.
const WAITING_MAX: usize = 16 * FILES_MAX;

/// Most messages that are read in one go. A sound peer rings once a sleep and sends few files; one
/// that floods the socket must not keep us from looking at the clock.
const DRAIN_MAX: usize = 32 * FILES_MAX;

/// What the socket brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    /// It is open, and has been emptied unless the peer floods it.
    Open,
    /// The peer is gone.
    Ended,
}

/// The files received so far and not used yet.
#[derive(Debug, Default)]
pub struct FilesIn {
    waiting: VecDeque<(u32, OwnedFd)>,
    received: u32,
}

impl FilesIn {
    /// Empties the socket of doorbells, and of files.
    pub fn drain(&mut self, socket: BorrowedFd<'_>) -> io::Result<SocketState> {
        self.read(socket, true)
    }

    /// The same after a ring. Mostly there is one bell and no more, which is not worth another look: what
    /// else there is ends the next wait.
    pub fn answer_bell(&mut self, socket: BorrowedFd<'_>) -> io::Result<SocketState> {
        self.read(socket, false)
    }

    fn read(&mut self, socket: BorrowedFd<'_>, all: bool) -> io::Result<SocketState> {
        let mut bells = [0; 64];
        for _ in 0..DRAIN_MAX {
            let Some(received) = sys::receive(socket, &mut bells)? else { break };
            if received.cut {
                // A sound peer sends them one by one, so it is mostly the limit that keeps them out.
                return Err(io::Error::other(
                    "a file was lost on the way, as this process may not have more of them open (ulimit -n)",
                ));
            }
            let only_bells = received.fds.is_empty() && (1..bells.len()).contains(&received.bytes);
            for fd in received.fds {
                self.received = next(self.received);
                if self.waiting.len() < WAITING_MAX {
                    self.waiting.push_back((self.received, fd));
                }
            }
            if received.bytes == 0 {
                return Ok(SocketState::Ended);
            }
            if only_bells && !all {
                break;
            }
        }
        Ok(SocketState::Open)
    }

    /// Takes the file with this number; those before it belonged to records that were taken back.
    pub fn take(&mut self, number: u32, socket: BorrowedFd<'_>) -> Result<OwnedFd, Corrupt> {
        // The file was sent before its record was published, so it is here or in the socket.
        self.drain(socket).map_err(|error| Corrupt(format!("socket: {error}")))?;
        while let Some((received, fd)) = self.waiting.pop_front() {
            if received == number {
                return Ok(fd);
            }
        }
        Err(Corrupt(format!("file {number} was announced but not sent")))
    }
}

/// The count of files sent.
#[derive(Debug, Default)]
pub struct FilesOut {
    sent: u32,
}

impl FilesOut {
    /// Sends a file with these contents and returns its number.
    pub fn send(&mut self, socket: BorrowedFd<'_>, parts: &[&[u8]]) -> io::Result<u32> {
        self.send_file(socket, sys::Blob::create(parts)?.as_fd())
    }

    /// Sends this file and returns its number.
    pub fn send_file(&mut self, socket: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
        sys::send_message(socket, b"f", &[file])?;
        self.sent = next(self.sent);
        Ok(self.sent)
    }
}

/// The number of the file after this one. Zero means "no file", so counting leaves it out.
pub fn next(number: u32) -> u32 {
    number.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_floods_the_socket_does_not_hold_the_reader() {
        let (ours, theirs) = sys::socket_pair().unwrap();
        while sys::send_message(theirs.as_fd(), &[b'd'; 1000], &[]).is_ok() {}
        let mut files = FilesIn::default();
        assert_eq!(SocketState::Open, files.drain(ours.as_fd()).unwrap());
        assert!(sys::receive(ours.as_fd(), &mut [0; 64]).unwrap().is_some(), "all was read in one go");
    }

    #[test]
    fn files_that_nobody_asked_for_are_closed() {
        let (ours, theirs) = sys::socket_pair().unwrap();
        let mut files = FilesIn::default();
        let mut sent = FilesOut::default();
        for number in 1..=u32::try_from(2 * WAITING_MAX).unwrap() {
            assert_eq!(number, sent.send(theirs.as_fd(), &[b"x"]).unwrap());
            assert_eq!(SocketState::Open, files.drain(ours.as_fd()).unwrap());
        }
        assert_eq!(WAITING_MAX, files.waiting.len());
        assert!(files.take(3, ours.as_fd()).is_ok());
        assert!(files.take(2, ours.as_fd()).is_err(), "it was skipped");
    }
}
