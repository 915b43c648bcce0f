//! The host's end of a worker's channel.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::claim;
use super::files::{FILES_MAX, FilesIn, FilesOut, SocketState};
use super::layout::{
    ASLEEP, AWAKE, CLAIM, CUT, CUT_BEFORE, DOZING, DUMP_COMPLETE, DUMP_IS_LAST, ENCLOSING, HANDED_AT,
    HOST_ASLEEP, HOST_CPU, INLINE_MAX, REQUESTS, RESPONSE_READ, RESPONSE_WRITTEN, RESPONSES, RING_LEN,
    SEGMENT_LEN, STACK, STACK_LEN, STUCK, TIMEOUT, WORKER_ASLEEP, WORKER_CPU,
};
use super::parcel::{Arrived, Parcel};
use super::record::{
    Body, Corrupt, Parsed, REQUEST_HEADER, RESPONSE_HEADER, Reply, ReplyKind, RequestHeader, ResponseHeader,
    SHORT_HEADER, Small, check_positions, padded, skip_mark,
};
use super::running;
use super::spin::{Places, Spin};
use crate::sys::fault::{Step, reach};
use crate::sys::{self, Blob, Segment};
use crate::time::Moment;

/// What became of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Handed {
    /// They are the worker's now, unless they are taken back.
    Yes,
    /// The worker has ended by itself.
    Retired,
    /// What the worker was handed and what its claim word says of that differ: it gets nothing more.
    Unsound,
}

/// One part of a request.
#[derive(Clone, Copy, Debug)]
pub enum Section<'a> {
    /// As bytes; none if the worker has it.
    Bytes(&'a [u8]),
    /// In a file that was packed for it.
    Parcel(&'a Parcel),
}

impl Section<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Parcel(parcel) => parcel.len(),
        }
    }
}

/// A request as it goes to a worker: one call, or plain calls whose arguments follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Which task it is, or the first of them.
    pub task: u64,
    /// How many calls.
    pub count: usize,
    /// Which function it calls.
    pub function: u64,
    /// Surroundings, function and arguments; the first two are empty if the worker has them.
    pub sections: [Section<'a>; 3],
    /// Whether the arguments are plain.
    pub plain: bool,
}

/// How long calls may take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Each of them.
    pub timeout: Option<Duration>,
    /// All of them together.
    pub budget: Option<Moment>,
}

/// A request in the ring that has not been answered.
#[derive(Clone, Copy, Debug)]
struct Outstanding {
    /// Where the worker reads on after the request before: this one is there, or at the ring's start.
    begin: usize,
    end: usize,
    /// How many files the worker has taken, or got rid of, once this is answered.
    files: usize,
    /// How many calls it is for.
    count: usize,
    /// How many of those are answered.
    answered: usize,
}

/// Plain values that came one after the other.
#[derive(Debug, Default)]
pub struct Values {
    /// All their bytes.
    pub bytes: Vec<u8>,
    /// Task, when its value was complete, and where its bytes end.
    pub items: Vec<(u64, u64, usize)>,
}

/// How soon a worker is to ring a host that sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// With the next answer.
    AtOnce,
    /// When it has nothing more to do, or has answered a good many.
    WhenItPays,
}

/// The host's end of a channel.
#[derive(Debug)]
pub struct HostChannel {
    segment: Segment,
    socket: OwnedFd,
    outstanding: VecDeque<Outstanding>,
    /// How many calls those are for that are not answered.
    calls: usize,
    /// How many files were sent that the worker may not have taken yet.
    files: usize,
    /// How many of those belonged to requests that were taken back. The worker gets rid of them when it
    /// takes the next file, so they count until then.
    stray_files: usize,
    /// How many of the newest calls the worker has not been told of.
    staged: usize,
    /// How many calls were handed out, as the claim word should say.
    handed: u64,
    /// How many those were when calls were taken back the last time.
    last_cut: u64,
    /// Where the last answered request ended, which is where the worker reads on.
    answered_end: usize,
    response_read: u64,
    files_in: FilesIn,
    files_out: FilesOut,
    spin: Spin,
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
            calls: 0,
            files: 0,
            stray_files: 0,
            staged: 0,
            handed: 0,
            last_cut: 0,
            answered_end: 0,
            response_read: 0,
            files_in: FilesIn::default(),
            files_out: FilesOut::default(),
            spin: Spin::default(),
        };
        Ok((channel, file, theirs))
    }

    /// Writes a request. The worker gets it with the next [`publish`](Self::publish); false if there is
    /// no room for it.
    pub fn stage(&mut self, request: &Outgoing<'_>) -> io::Result<bool> {
        let Outgoing { task, count, function, sections, plain } = *request;
        let (in_file, inline) = in_files(&sections);
        let files = in_file.iter().filter(|&&in_file| in_file).count();
        let size = REQUEST_HEADER + usize::try_from(padded(inline as u64)).expect("it fits a ring");
        // With nothing but strays under way there is no answer to wait for.
        let full = self.files + files > FILES_MAX && self.files > self.stray_files;
        if files > 0 && (count > 1 || full) {
            return Ok(false);
        }
        let begin = self.end();
        let Some(start) = self.room_for(size) else { return Ok(false) };
        let file = if files > 0 { self.send_files(&sections, in_file)? } else { 0 };
        self.files += files;
        let files = if files > 0 { files + std::mem::take(&mut self.stray_files) } else { 0 };
        let lengths = sections.map(|section| section.len() as u64);
        let parcels = sections.map(|section| matches!(section, Section::Parcel(_)));
        let header = RequestHeader {
            task,
            function,
            sections: lengths,
            plain,
            count: count as u64,
            in_file,
            parcels,
            file,
        };
        self.segment.write(REQUESTS + start, &header.encode());
        reach(Step::HostHeaderWritten);
        let mut at = REQUESTS + start + REQUEST_HEADER;
        for (section, in_file) in sections.into_iter().zip(in_file) {
            if let (Section::Bytes(bytes), false) = (section, in_file) {
                self.segment.write(at, bytes);
                at += bytes.len();
            }
        }
        reach(Step::HostRequestWritten);
        self.outstanding.push_back(Outstanding { begin, end: start + size, files, count, answered: 0 });
        self.calls += count;
        self.staged += count;
        Ok(true)
    }

    /// Sends those sections that travel in files, and returns the number of the first one.
    fn send_files(&mut self, sections: &[Section<'_>; 3], in_file: [bool; 3]) -> io::Result<u32> {
        let mut first = 0;
        for (section, _) in sections.iter().zip(in_file).filter(|(_, in_file)| *in_file) {
            let number = match section {
                Section::Bytes(bytes) => self.files_out.send(self.socket.as_fd(), &[bytes])?,
                Section::Parcel(parcel) => self.files_out.send_file(self.socket.as_fd(), parcel.file())?,
            };
            first = if first == 0 { number } else { first };
        }
        reach(Step::HostFileSent);
        Ok(first)
    }

    /// Whether the claim word says of an idle worker what it should. One that has it otherwise may start at once
    /// whatever is written to its ring, so it must not get anything.
    pub fn is_sound(&self) -> bool {
        self.agrees(claim::load(self.segment.u64(CLAIM)), self.calls - self.staged)
    }

    fn agrees(&self, claim: claim::Claim, calls: usize) -> bool {
        claim.handed == claim::low(self.handed) && claim.unclaimed() as usize <= calls
    }

    /// Hands all that was staged to the worker, and wakes it if it sleeps: then the second value is
    /// true. If it does not take them, they were never handed out.
    ///
    /// The function may ask how long it has: by these limits, and those of the call that this process runs
    /// itself, if it is a worker.
    pub fn publish(&mut self, now: Moment, limits: Limits) -> io::Result<(Handed, bool)> {
        let staged = std::mem::take(&mut self.staged);
        if staged == 0 {
            return Ok((Handed::Yes, false));
        }
        let count = u32::try_from(staged).expect("a ring holds fewer");
        let claim = claim::load(self.segment.u64(CLAIM));
        let before = self.calls - staged;
        let handed = if !self.agrees(claim, before) {
            Handed::Unsound
        } else if self.hand_out(count, now, limits) {
            self.handed += u64::from(count);
            reach(Step::HostHanded);
            return Ok((Handed::Yes, self.wake_worker(|flag| flag != AWAKE)?));
        } else {
            Handed::Retired
        };
        self.forget(staged);
        Ok((handed, false))
    }

    fn hand_out(&self, count: u32, now: Moment, limits: Limits) -> bool {
        let enclosing = limits.budget.into_iter().chain(running::deadline()).min();
        let timeout = limits.timeout.map_or(0, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(0));
        let words = [(HANDED_AT, now.as_nanos()), (TIMEOUT, timeout)];
        for (at, value) in words.into_iter().chain([(ENCLOSING, enclosing.map_or(0, Moment::as_nanos))]) {
            self.segment.u64(at).store(value, Ordering::Relaxed);
        }
        claim::hand(self.segment.u64(CLAIM), count)
    }

    /// The newest `count` calls are the worker's no more.
    fn forget(&mut self, count: usize) {
        let mut left = count.min(self.calls);
        self.calls -= left;
        while left > 0
            && let Some(request) = self.outstanding.back_mut()
        {
            let back = left.min(request.count - request.answered);
            left -= back;
            request.count -= back;
            let Outstanding { end, files, count, answered, .. } = *request;
            if answered == count {
                self.outstanding.pop_back();
                self.stray_files += files;
                if count > 0 {
                    self.answered_end = end;
                }
            }
        }
    }

    /// Where the worker reads on after all that was handed to it.
    fn end(&self) -> usize {
        self.outstanding.back().map_or(self.answered_end, |request| request.end)
    }

    /// Where in the ring `size` bytes in one piece fit, leaving a mark if that is at its start.
    ///
    /// The worker reads a place only after it has claimed the request there, and follows the
    /// requests one after the other; so a mark left by a request that was taken back is simply
    /// written over, and any other one stays until the request that it leads to is answered.
    fn room_for(&self, size: usize) -> Option<usize> {
        let end = self.end();
        match self.outstanding.front().map(|request| request.begin) {
            Some(begin) if begin >= end => (end + size <= begin).then_some(end),
            _ if end + size <= RING_LEN => Some(end),
            Some(begin) if size > begin => None,
            _ => {
                if RING_LEN - end >= skip_mark().len() {
                    self.segment.write(REQUESTS + end, &skip_mark());
                }
                Some(0)
            }
        }
    }

    /// Takes back all that the worker has not started, newest last, and tells how many. What is staged
    /// has to be published before.
    pub fn revoke(&mut self) -> usize {
        debug_assert_eq!(0, self.staged, "requests are staged");
        let revoked = claim::revoke(self.segment.u64(CLAIM));
        self.handed = self.handed.saturating_sub(u64::from(revoked));
        if revoked > 0 {
            self.cut();
        }
        // A worker that scribbled over the claim word cannot make us forget more than there is.
        self.forget(revoked as usize);
        revoked as usize
    }

    /// Says that what is handed out from now on is not what the worker finds next in the run that it has
    /// begun.
    ///
    /// Not in the run's own record, whose place may be another one's by the time the worker looks. It goes by
    /// the newest cut before the call that it has claimed. As long as it does not claim another one all cuts
    /// after that are at the same place, so the last two that differ are enough.
    fn cut(&mut self) {
        if self.last_cut != self.handed {
            self.segment.u64(CUT_BEFORE).store(self.last_cut, Ordering::Release);
            self.segment.u64(CUT).store(self.handed, Ordering::Release);
            self.last_cut = self.handed;
        }
    }

    /// Stages and publishes one request; whether the worker has it.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn hand(&mut self, task: u64, function: u64, sections: [&[u8]; 3]) -> io::Result<bool> {
        let sections = sections.map(Section::Bytes);
        let request = Outgoing { task, count: 1, function, sections, plain: false };
        Ok(self.stage(&request)? && self.publish(sys::now(), Limits::default())?.0 == Handed::Yes)
    }

    /// How many calls the worker has, answered ones not counted.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn outstanding(&self) -> usize {
        self.calls
    }

    /// How many the worker has not started, by its own account.
    pub fn unclaimed(&self) -> usize {
        claim::load(self.segment.u64(CLAIM)).unclaimed() as usize
    }

    /// The next response, if there is one, which should be to `task`. The worker can use its room again
    /// after the next [`acknowledge`](Self::acknowledge).
    pub fn receive(&mut self, task: u64) -> Result<Option<Reply>, Corrupt> {
        let Some((header, at)) = self.next_header(task)? else { return Ok(None) };
        self.receive_record(&header, at).map(Some)
    }

    /// Takes plain values for as long as they answer the tasks from `first` on, at most `most`; returns
    /// how many.
    pub fn receive_values(&mut self, first: u64, most: usize, into: &mut Values) -> Result<usize, Corrupt> {
        let mut count = 0;
        while count < most
            && let Some((header, at)) = self.next_header(first + count as u64)?
            && header.kind == ReplyKind::ReturnedPlain
            && header.file == 0
            && header.task == first + count as u64
        {
            let (before, len) = (into.bytes.len(), usize::try_from(header.len).expect("it fits a ring"));
            into.bytes.resize(before + len, 0);
            self.segment.read(RESPONSES + at, &mut into.bytes[before..]);
            self.finish(&header)?;
            into.items.push((header.task, header.finished_at, before + len));
            count += 1;
        }
        Ok(count)
    }

    /// Finds the next response, which should be to `task`, and where in the ring its body is.
    fn next_header(&mut self, task: u64) -> Result<Option<(ResponseHeader, usize)>, Corrupt> {
        loop {
            let written = self.segment.u64(RESPONSE_WRITTEN).load(Ordering::Acquire);
            let available = check_positions(self.response_read, written)?;
            if available == 0 {
                return Ok(None);
            }
            let at = usize::try_from(self.response_read % RING_LEN as u64).expect("less than a ring");
            let room = RING_LEN - at;
            let within = available.min(room as u64);
            let mut short = [0; SHORT_HEADER];
            let parsed = if room < SHORT_HEADER {
                Some(Parsed::Skip)
            } else {
                self.segment.read(RESPONSES + at, &mut short);
                ResponseHeader::parse_short(&short, task, within)?
            };
            match parsed {
                // Any record fits at the start; and a worker that always skips would keep us here.
                Some(Parsed::Skip) if at == 0 => {
                    return Err(Corrupt("response ring skips all of itself".into()));
                }
                Some(Parsed::Skip) if room as u64 <= available => self.consume(room as u64),
                Some(Parsed::Skip) => return Err(Corrupt("response ring skips past its end".into())),
                Some(Parsed::Record(header)) => return Ok(Some((header, at + SHORT_HEADER))),
                None if room < RESPONSE_HEADER => {
                    return Err(Corrupt("response reaches past the end of the ring".into()));
                }
                None => {
                    // The first half was copied; the other one follows, and neither is read again.
                    let mut header = [0; RESPONSE_HEADER];
                    header[..SHORT_HEADER].copy_from_slice(&short);
                    self.segment.read(RESPONSES + at + SHORT_HEADER, &mut header[SHORT_HEADER..]);
                    let header = ResponseHeader::parse(&header, within)?;
                    return Ok(Some((header, at + RESPONSE_HEADER)));
                }
            }
        }
    }

    fn receive_record(&mut self, header: &ResponseHeader, at: usize) -> Result<Reply, Corrupt> {
        let len = usize::try_from(header.len).map_err(|_| Corrupt("response too long".into()))?;
        let body = if header.file == 0 {
            let mut bytes = Small::from_elem(0, len);
            debug_assert!(at + len <= RING_LEN, "{len} bytes at {at} of the ring");
            self.segment.read(RESPONSES + at, &mut bytes);
            Body::Inline(bytes)
        } else {
            let fd = self.files_in.take(header.file, self.socket.as_fd())?;
            open_file(fd, len, header.parcel).map_err(|error| Corrupt(format!("response: {error}")))?
        };
        self.finish(header)?;
        Ok(Reply { kind: header.kind, task: header.task, finished_at: header.finished_at, body })
    }

    /// A response was copied.
    fn finish(&mut self, header: &ResponseHeader) -> Result<(), Corrupt> {
        if !header.kind.is_answer() {
            self.consume(header.size());
            return Ok(());
        }
        reach(Step::HostAnswerSeen);
        self.consume(header.size());
        let handed = self.calls > self.staged;
        let request = self.outstanding.front_mut().filter(|_| handed);
        let request = request
            .ok_or_else(|| Corrupt(format!("response to task {} that was not handed out", header.task)))?;
        self.calls -= 1;
        request.answered += 1;
        if request.answered == request.count {
            self.answered_end = request.end;
            self.files -= request.files;
            self.outstanding.pop_front();
        }
        Ok(())
    }

    fn consume(&mut self, bytes: u64) {
        self.response_read = self.response_read.wrapping_add(bytes);
    }

    /// Lets the worker use the room of all responses that were received.
    pub fn acknowledge(&self) -> io::Result<()> {
        self.segment.u64(RESPONSE_READ).store(self.response_read, Ordering::Release);
        // It may be waiting for that; one that has nothing to do may go on sleeping.
        self.wake_worker(|flag| flag == STUCK).map(|_| ())
    }

    /// Rings the worker if it has raised such a flag; whether it had.
    fn wake_worker(&self, flagged: impl Fn(u32) -> bool) -> io::Result<bool> {
        fence(Ordering::SeqCst);
        let asleep = self.segment.u32(WORKER_ASLEEP);
        if flagged(asleep.load(Ordering::Relaxed)) && asleep.swap(AWAKE, Ordering::SeqCst) != AWAKE {
            ring(self.socket.as_fd())?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Whether there is a response that was not received.
    pub fn has_response(&self) -> bool {
        self.segment.u64(RESPONSE_WRITTEN).load(Ordering::Acquire) != self.response_read
    }

    /// Looks for the response to the call at `since`, for which the worker was woken or not, for as long as
    /// that is cheaper than sleeping; whether there is one.
    pub fn spin(&mut self, since: Moment, woken: bool) -> bool {
        if !self.spin.pays(since, woken) {
            return false;
        }
        let (segment, read) = (&self.segment, self.response_read);
        self.spin.until(places(segment), || segment.u64(RESPONSE_WRITTEN).load(Ordering::Acquire) != read)
    }

    /// Raises the flag that asks the worker to ring. False if there is something to do first.
    #[must_use]
    pub fn prepare_sleep(&mut self, ring: Ring) -> bool {
        self.spin.is_beside(places(&self.segment));
        let flag = match ring {
            Ring::AtOnce => ASLEEP,
            Ring::WhenItPays => DOZING,
        };
        self.segment.u32(HOST_ASLEEP).store(flag, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        !self.has_response()
    }

    /// Lowers the flag, and empties the socket of doorbells.
    pub fn wake(&mut self) -> io::Result<SocketState> {
        self.segment.u32(HOST_ASLEEP).store(AWAKE, Ordering::Relaxed);
        self.files_in.answer_bell(self.socket.as_fd())
    }

    /// Lowers the flag of a host that did not sleep.
    pub fn stay_awake(&self) {
        self.segment.u32(HOST_ASLEEP).store(AWAKE, Ordering::Relaxed);
    }

    /// What to wait for.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Before the worker is asked for its stack: it is to end after that.
    pub fn make_dump_last(&self) {
        self.segment.u32(DUMP_IS_LAST).store(1, Ordering::Release);
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

fn places(segment: &Segment) -> Places<'_> {
    Places { ours: segment.u32(HOST_CPU), theirs: segment.u32(WORKER_CPU) }
}

/// Which sections travel in files, and how many bytes the others have: the largest ones go first until
/// the rest fits.
fn in_files(sections: &[Section<'_>; 3]) -> ([bool; 3], usize) {
    let mut in_file = sections.map(|section| matches!(section, Section::Parcel(_)));
    loop {
        let inline = (0..3).filter(|&at| !in_file[at]);
        let len = inline.clone().map(|at| sections[at].len()).sum();
        match inline.max_by_key(|&at| sections[at].len()) {
            Some(largest) if len > INLINE_MAX => in_file[largest] = true,
            _ => return (in_file, len),
        }
    }
}

/// A file that has arrived.
pub(super) fn open_file(fd: OwnedFd, len: usize, parcel: bool) -> io::Result<Body> {
    Ok(if parcel { Body::Parcel(Arrived::open(fd, len)?) } else { Body::File(Blob::open(fd, len)?) })
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
