//! The host's end of a worker's channel.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use super::claim;
use super::files::{FILES_MAX, FilesIn, FilesOut, SocketState};
use super::layout::{
    CLAIM, DUMP_COMPLETE, HOST_ASLEEP, INLINE_MAX, REQUESTS, RESPONSE_READ, RESPONSE_WRITTEN, RESPONSES,
    RING_LEN, SEGMENT_LEN, STACK, STACK_LEN, WORKER_ASLEEP,
};
use super::record::{
    Body, Corrupt, Parsed, REQUEST_HEADER, RESPONSE_HEADER, Reply, RequestHeader, ResponseHeader,
    check_positions, padded, skip_mark,
};
use crate::sys::fault::{Step, reach};
use crate::sys::{self, Blob, Segment};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Handed {
    /// It is the worker's now, unless it is taken back.
    Yes,
    /// The ring is full; try again after a reply.
    NoRoom,
    /// The worker has ended by itself.
    Retired,
    /// What the worker was handed and what its claim word says of that differ: it gets nothing more.
    Unsound,
}

/// A request in the ring that has not been answered.
#[derive(Clone, Copy, Debug)]
struct Outstanding {
    start: usize,
    end: usize,
    in_file: bool,
}

/// The host's end of a channel.
#[derive(Debug)]
pub struct HostChannel {
    segment: Segment,
    socket: OwnedFd,
    outstanding: VecDeque<Outstanding>,
    /// How many requests were handed out, as the claim word should say.
    handed: u32,
    /// Where the last answered request ended, which is where the worker reads on.
    answered_end: usize,
    response_read: u64,
    files_in: FilesIn,
    files_out: FilesOut,
}

impl HostChannel {
    /// Makes a channel, and the worker's ends of it: segment and socket.
    pub fn create() -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let (segment, file) = Segment::create(SEGMENT_LEN)?;
        let (ours, theirs) = sys::socket_pair()?;
        let channel = Self {
            segment,
            socket: ours,
            outstanding: VecDeque::new(),
            handed: 0,
            answered_end: 0,
            response_read: 0,
            files_in: FilesIn::default(),
            files_out: FilesOut::default(),
        };
        Ok((channel, file, theirs))
    }

    /// Hands a request to the worker and wakes it if it sleeps.
    pub fn hand(&mut self, task: u64, function: u64, sections: [&[u8]; 3]) -> io::Result<Handed> {
        let claim = claim::load(self.segment.u64(CLAIM));
        if claim.handed != self.handed || claim.unclaimed() as usize > self.outstanding.len() {
            return Ok(Handed::Unsound);
        }
        let len: usize = sections.iter().map(|section| section.len()).sum();
        let in_file = len > INLINE_MAX;
        let inline = if in_file { 0 } else { len };
        let size = REQUEST_HEADER + usize::try_from(padded(inline as u64)).expect("it fits a ring");
        let files = self.outstanding.iter().filter(|request| request.in_file).count();
        let Some(start) = self.room_for(size).filter(|_| !in_file || files < FILES_MAX) else {
            return Ok(Handed::NoRoom);
        };
        let file = if in_file { self.files_out.send(self.socket.as_fd(), &sections)? } else { 0 };
        if in_file {
            reach(Step::HostFileSent);
        }
        let header =
            RequestHeader { task, function, sections: sections.map(|section| section.len() as u64), file };
        self.segment.write(REQUESTS + start, &header.encode());
        reach(Step::HostHeaderWritten);
        if !in_file {
            let mut at = REQUESTS + start + REQUEST_HEADER;
            for section in sections {
                self.segment.write(at, section);
                at += section.len();
            }
        }
        reach(Step::HostRequestWritten);
        if !claim::hand(self.segment.u64(CLAIM)) {
            return Ok(Handed::Retired);
        }
        self.handed = claim::next(self.handed);
        self.outstanding.push_back(Outstanding { start, end: start + size, in_file });
        reach(Step::HostHanded);
        self.wake_worker()?;
        Ok(Handed::Yes)
    }

    /// Where in the ring `size` bytes in one piece fit, leaving a mark if that is at its start.
    ///
    /// The worker reads a place only after it has claimed the request there, and follows the
    /// requests one after the other; so a mark left by a request that was taken back is simply
    /// written over.
    fn room_for(&self, size: usize) -> Option<usize> {
        let end = self.outstanding.back().map_or(self.answered_end, |request| request.end);
        match self.outstanding.front().map(|request| request.start) {
            Some(first) if first >= end => (end + size <= first).then_some(end),
            _ if end + size <= RING_LEN => Some(end),
            Some(first) if size > first => None,
            _ => {
                if RING_LEN - end >= skip_mark().len() {
                    self.segment.write(REQUESTS + end, &skip_mark());
                }
                Some(0)
            }
        }
    }

    /// Takes back all that the worker has not started, newest last, and tells how many.
    pub fn revoke(&mut self) -> usize {
        let revoked = claim::revoke(self.segment.u64(CLAIM));
        self.handed = claim::less(self.handed, revoked);
        // A worker that scribbled over the claim word cannot make us forget more than there is.
        let kept = self.outstanding.len().saturating_sub(revoked as usize);
        self.outstanding.truncate(kept);
        revoked as usize
    }

    /// How many requests the worker has, answered ones not counted.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// How many the worker has not started, by its own account.
    pub fn unclaimed(&self) -> usize {
        claim::load(self.segment.u64(CLAIM)).unclaimed() as usize
    }

    /// The next response, if there is one.
    pub fn receive(&mut self) -> Result<Option<Reply>, Corrupt> {
        loop {
            let written = self.segment.u64(RESPONSE_WRITTEN).load(Ordering::Acquire);
            let available = check_positions(self.response_read, written)?;
            if available == 0 {
                return Ok(None);
            }
            let at = usize::try_from(self.response_read % RING_LEN as u64).expect("less than a ring");
            let room = RING_LEN - at;
            let mut header = [0; RESPONSE_HEADER];
            let parsed = if room < RESPONSE_HEADER {
                Parsed::Skip
            } else {
                self.segment.read(RESPONSES + at, &mut header);
                ResponseHeader::parse(&header, available.min(room as u64))?
            };
            match parsed {
                // Any record fits at the start; and a worker that always skips would keep us here.
                Parsed::Skip if at == 0 => return Err(Corrupt("response ring skips all of itself".into())),
                Parsed::Skip if room as u64 <= available => self.consume(room as u64)?,
                Parsed::Skip => return Err(Corrupt("response ring skips past its end".into())),
                Parsed::Record(header) => return self.receive_record(&header, at).map(Some),
            }
        }
    }

    fn receive_record(&mut self, header: &ResponseHeader, at: usize) -> Result<Reply, Corrupt> {
        let inline = if header.file == 0 { header.len } else { 0 };
        let len = usize::try_from(header.len).map_err(|_| Corrupt("response too long".into()))?;
        let body = if header.file == 0 {
            let mut bytes = vec![0; len];
            debug_assert!(at + RESPONSE_HEADER + len <= RING_LEN, "{len} bytes at {at} of the ring");
            self.segment.read(RESPONSES + at + RESPONSE_HEADER, &mut bytes);
            Body::Inline(bytes)
        } else {
            let fd = self.files_in.take(header.file, self.socket.as_fd())?;
            Body::File(Blob::open(fd, len).map_err(|error| Corrupt(format!("response: {error}")))?)
        };
        reach(Step::HostAnswerSeen);
        self.consume(RESPONSE_HEADER as u64 + padded(inline))?;
        let answered = self.outstanding.pop_front();
        self.answered_end = answered
            .map(|request| request.end)
            .ok_or_else(|| Corrupt(format!("response to task {} that was not handed out", header.task)))?;
        Ok(Reply { kind: header.kind, task: header.task, finished_at: header.finished_at, body })
    }

    fn consume(&mut self, bytes: u64) -> Result<(), Corrupt> {
        self.response_read = self.response_read.wrapping_add(bytes);
        self.segment.u64(RESPONSE_READ).store(self.response_read, Ordering::Release);
        // The worker may be waiting for room.
        self.wake_worker().map_err(|error| Corrupt(format!("doorbell: {error}")))
    }

    /// Rings the worker if it has raised its flag.
    fn wake_worker(&self) -> io::Result<()> {
        fence(Ordering::SeqCst);
        if self.segment.u32(WORKER_ASLEEP).load(Ordering::Relaxed) != 0
            && self.segment.u32(WORKER_ASLEEP).swap(0, Ordering::SeqCst) != 0
        {
            ring(self.socket.as_fd())?;
        }
        Ok(())
    }

    /// Raises the flag that asks the worker to ring. False if there is something to do first.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        self.segment.u32(HOST_ASLEEP).store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.segment.u64(RESPONSE_WRITTEN).load(Ordering::Acquire) == self.response_read
    }

    /// Lowers the flag, and empties the socket of doorbells.
    pub fn wake(&mut self) -> io::Result<SocketState> {
        self.segment.u32(HOST_ASLEEP).store(0, Ordering::Relaxed);
        self.files_in.drain(self.socket.as_fd())
    }

    /// What to wait for.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the stack dump that was asked for is complete.
    pub fn dump_complete(&self) -> bool {
        self.segment.u32(DUMP_COMPLETE).load(Ordering::Acquire) != 0
    }

    /// The stack dump, if the worker wrote one.
    pub fn stack(&self) -> Option<String> {
        let mut bytes = vec![0; STACK_LEN];
        self.segment.read(STACK, &mut bytes);
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(STACK_LEN);
        (end > 0).then(|| String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

/// Rings a sleeping peer. A full socket has unread bells in it already, and a peer that is gone
/// is found out by its death notice.
pub(super) fn ring(socket: BorrowedFd<'_>) -> io::Result<()> {
    match sys::send_message(socket, b"d", &[]) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}
