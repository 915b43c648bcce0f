//! The worker's end of its channel.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::claim;
use super::files::{FILES_MAX, FilesIn, FilesOut, SocketState, next};
use super::host::{open_file, ring};
use super::layout::{
    ASLEEP, AWAKE, CLAIM, CUT, CUT_BEFORE, DOZING, DUMP_COMPLETE, DUMP_IS_LAST, HOST_ASLEEP, HOST_CPU,
    INLINE_MAX, REQUESTS, RESPONSE_READ, RESPONSE_WRITTEN, RESPONSES, RING_LEN, SEGMENT_LEN, STACK, STUCK,
    WORKER_ASLEEP, WORKER_CPU,
};
use super::parcel::Parcel;
use super::record::{
    Body, Corrupt, Parsed, REQUEST_HEADER, RESPONSE_HEADER, ReplyKind, RequestHeader, ResponseHeader,
    SHORT_HEADER, SHORT_MAX, Small, padded, short_header, skip_mark,
};
use super::running;
use super::spin::{Places, Spin};
use crate::sys::fault::{self, Step, reach};
use crate::sys::{self, Interest, Segment, Woken};
use crate::time::Moment;

/// Most answers that a dozing host is not told of: a good part of what a ring holds.
const UNTOLD_MAX: u32 = 256;
/// The same of what a function publishes, for which no host has to be awake: in bytes of the ring.
const UNTOLD_BYTES_MAX: u64 = RING_LEN as u64 / 2;
/// Most files under way that hold what was published: the host wants the newest one only.
const PUBLISHED_FILES_MAX: usize = 2;

/// One request, as the worker got it.
#[derive(Debug)]
pub struct Request {
    /// Which task it is.
    pub task: u64,
    /// Which function it calls.
    pub function: u64,
    /// The lengths of its three parts.
    pub sections: [usize; 3],
    /// Those that came in the ring, one after the other.
    pub inline: Small,
    /// Those that came in files, each with its place among the three.
    pub files: Vec<(usize, Body)>,
    /// Whether the last part is plain.
    pub plain: bool,
    /// How many calls this is for; their arguments follow each other in the last part. The second and
    /// later ones are received one by one.
    pub count: u64,
}

/// What the worker has started with.
#[derive(Debug)]
pub enum Received {
    /// The first call of a request.
    Request(Request),
    /// The next call of the request before.
    Next,
}

/// A request for several calls that is not done with.
#[derive(Clone, Copy, Debug)]
struct Begun {
    /// The number of its first call.
    first: u64,
    /// How many calls it is for, unless the host takes back those that were not started.
    count: u64,
    /// How many of its calls were started.
    started: u64,
}

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slept {
    /// Something may have come.
    Rung,
    /// Nothing came in time.
    Timeout,
    /// A signal handler ran.
    Interrupted,
    /// The host is gone.
    Ended,
}

/// The worker's end of a channel.
#[derive(Debug)]
pub struct WorkerChannel {
    segment: &'static Segment,
    file: OwnedFd,
    socket: OwnedFd,
    /// How many requests were started, as the claim word should say.
    claimed: u64,
    begun: Option<Begun>,
    /// A call that has started and was not received yet.
    ahead: Option<Request>,
    read_at: usize,
    written: u64,
    files_in: FilesIn,
    files_out: FilesOut,
    /// Where the records end whose files the host may not have taken yet.
    files_pending: VecDeque<u64>,
    spin: Spin,
    /// How many answers the host does not know of, if it dozes.
    untold: u32,
    /// Whether it dozed when we last found it not awake.
    host_dozes: bool,
    /// Whether we hang up with the next answer.
    hangs_up: bool,
}

impl WorkerChannel {
    /// Opens the channel behind a segment's file and a socket.
    pub fn open(file: OwnedFd, socket: OwnedFd) -> io::Result<Self> {
        reach(Step::WorkerOpens);
        let file = sys::move_high(file)?;
        let socket = sys::move_high(socket)?;
        // Leaked on purpose: the signal handler that marks a dump points into it, and it lives as
        // long as the process.
        let segment: &'static Segment = Box::leak(Box::new(Segment::map(file.as_fd(), SEGMENT_LEN)?));
        running::open(segment);
        Ok(Self::over(segment, file, socket))
    }

    /// A channel at its start.
    pub(super) fn over(segment: &'static Segment, file: OwnedFd, socket: OwnedFd) -> Self {
        Self {
            segment,
            file,
            socket,
            claimed: 0,
            begun: None,
            ahead: None,
            read_at: 0,
            written: 0,
            files_in: FilesIn::default(),
            files_out: FilesOut::default(),
            files_pending: VecDeque::new(),
            spin: Spin::default(),
            untold: 0,
            host_dozes: false,
            hangs_up: false,
        }
    }

    /// Prepares for stack dumps and returns the descriptor that they are written to.
    pub fn prepare_dump(&self) -> io::Result<i32> {
        use std::io::{Seek, SeekFrom};
        std::fs::File::from(self.file.try_clone()?).seek(SeekFrom::Start(STACK as u64))?;
        sys::install_dump_mark(self.segment, DUMP_COMPLETE, DUMP_IS_LAST, self.socket.as_fd())?;
        Ok(self.file.as_raw_fd())
    }

    /// Starts the next call, if there is one.
    pub fn try_receive(&mut self) -> Result<Option<Received>, Corrupt> {
        if let Some(request) = self.ahead.take() {
            return Ok(Some(Received::Request(request)));
        }
        Ok(if self.claim()? { Some(self.claimed_call()?) } else { None })
    }

    /// Whether the next call is of the same request as the one before and has started. Any other one is left
    /// to [`try_receive`](Self::try_receive).
    pub fn try_next(&mut self) -> Result<bool, Corrupt> {
        let is_done = self.begun.is_none_or(|begun| begun.started >= begun.count);
        if is_done || !self.claim()? {
            return Ok(false);
        }
        match self.claimed_call()? {
            Received::Next => Ok(true),
            // The host had taken back the rest, and handed out something else.
            Received::Request(request) => {
                self.ahead = Some(request);
                Ok(false)
            }
        }
    }

    /// Makes the next call ours, if there is one.
    fn claim(&mut self) -> Result<bool, Corrupt> {
        let claim = claim::load(self.segment.u64(CLAIM));
        if claim.claimed != claim::low(self.claimed) || claim.unclaimed() as usize > RING_LEN {
            return Err(Corrupt(format!(
                "{} requests were started, and not {}",
                self.claimed, claim.claimed
            )));
        }
        if claim.unclaimed() == 0 || !claim::claim(self.segment.u64(CLAIM)) {
            return Ok(false);
        }
        self.claimed += 1;
        Ok(true)
    }

    /// Where that one is: in the request that was begun, or in the next one.
    fn claimed_call(&mut self) -> Result<Received, Corrupt> {
        if let Some(begun) = &mut self.begun {
            // The host may have taken back the rest before it handed out this call. What it has taken back since
            // does not matter here.
            let last = self.segment.u64(CUT).load(Ordering::Acquire);
            let is_before = last < self.claimed;
            let cut = if is_before { last } else { self.segment.u64(CUT_BEFORE).load(Ordering::Acquire) };
            if begun.started < begun.count && cut < begun.first {
                begun.started += 1;
                return Ok(Received::Next);
            }
            self.begun = None;
        }
        loop {
            let room = RING_LEN - self.read_at;
            let parsed = if room < REQUEST_HEADER {
                Parsed::Skip
            } else {
                let mut header = [0; REQUEST_HEADER];
                self.segment.read(REQUESTS + self.read_at, &mut header);
                RequestHeader::parse(&header, room as u64)?
            };
            match parsed {
                // Any record fits at the start; and who went there again would go round for ever.
                Parsed::Skip if self.read_at == 0 => {
                    return Err(Corrupt("request ring skips all of itself".into()));
                }
                Parsed::Skip => self.read_at = 0,
                Parsed::Record(header) => {
                    if header.count > 1 {
                        let (first, count) = (self.claimed, header.count);
                        self.begun = Some(Begun { first, count, started: 1 });
                    }
                    return self.receive_record(&header).map(Received::Request);
                }
            }
        }
    }

    fn receive_record(&mut self, header: &RequestHeader) -> Result<Request, Corrupt> {
        let len = usize::try_from(header.inline()).expect("what was parsed fits the ring");
        let start = self.read_at + REQUEST_HEADER;
        let mut inline = Small::from_elem(0, len);
        debug_assert!(start + len <= RING_LEN, "{len} bytes at {start} of the ring");
        self.segment.read(REQUESTS + start, &mut inline);
        self.read_at = start + len.next_multiple_of(8);
        let sections = header.sections.map(|section| usize::try_from(section).unwrap_or(usize::MAX));
        let mut files = Vec::new();
        let mut number = header.file;
        for at in (0..3).filter(|&at| header.in_file[at]) {
            let fd = self.files_in.take(number, self.socket.as_fd())?;
            let body = open_file(fd, sections[at], header.parcels[at]);
            files.push((at, body.map_err(|error| Corrupt(format!("request: {error}")))?));
            number = next(number);
        }
        let RequestHeader { task, function, plain, count, .. } = *header;
        Ok(Request { task, function, sections, inline, files, plain, count })
    }

    /// Looks for a request for as long as that is cheaper than sleeping; whether there is one. All that
    /// was answered is told before.
    pub fn spin(&mut self) -> io::Result<bool> {
        if self.untold > 0 {
            self.wake_host(true)?;
        }
        let (segment, claimed) = (self.segment, claim::low(self.claimed));
        let places = self.places();
        let found = || claim::load(segment.u64(CLAIM)).handed != claimed;
        if !found() {
            self.spin.make_room(places);
        }
        Ok(self.spin.until(places, found))
    }

    fn places(&self) -> Places<'static> {
        Places { ours: self.segment.u32(WORKER_CPU), theirs: self.segment.u32(HOST_CPU) }
    }

    /// Waits until the host rings, for at most `limit`.
    pub fn sleep(&mut self, limit: Duration) -> io::Result<Slept> {
        let until = sys::now() + limit;
        let asleep = self.segment.u32(WORKER_ASLEEP);
        asleep.store(ASLEEP, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if claim::load(self.segment.u64(CLAIM)).unclaimed() > 0 {
            asleep.store(AWAKE, Ordering::Relaxed);
            return Ok(Slept::Rung);
        }
        reach(Step::WorkerSleeps);
        let slept = self.wait_for_bell(until, limit)?;
        asleep.store(AWAKE, Ordering::Relaxed);
        Ok(slept)
    }

    fn wait_for_bell(&mut self, until: Moment, limit: Duration) -> io::Result<Slept> {
        let mut interests = [Interest::new(self.socket.as_fd())];
        match sys::wait(&mut interests, Some(until), limit)? {
            Woken::Ready => match self.files_in.answer_bell(self.socket.as_fd())? {
                SocketState::Open => Ok(Slept::Rung),
                SocketState::Ended => Ok(Slept::Ended),
            },
            Woken::Timer => Ok(if sys::now() >= until { Slept::Timeout } else { Slept::Rung }),
            Woken::Interrupted => Ok(Slept::Interrupted),
        }
    }

    /// Stops taking requests. False if one has just been handed out.
    #[must_use]
    pub fn retire(&self) -> bool {
        reach(Step::WorkerIdle);
        let retired = claim::retire(self.segment.u64(CLAIM));
        if retired {
            reach(Step::WorkerRetired);
        }
        retired
    }

    /// Whether a response with so long a body can be sent without waiting for the host.
    pub fn has_room(&self, len: usize) -> bool {
        // At worst it starts anew at the ring's start, behind a gap of its own size.
        len <= INLINE_MAX
            && self.unread() + 2 * (RESPONSE_HEADER as u64 + padded(len as u64)) <= RING_LEN as u64
    }

    /// How many calls were made; the setup is none.
    pub fn served(&self) -> u32 {
        claim::low(self.claimed).wrapping_sub(1)
    }

    /// Has the host look at what it was sent, which it may not know of if that was no answer.
    pub fn announce(&mut self) -> io::Result<()> {
        if self.untold > 0 { self.wake_host(true) } else { Ok(()) }
    }

    /// Ends the socket with the next response, as this process ends as soon as that is sent. Until the
    /// kernel would do that it takes down all memory, and the host waits to see that no code runs any more.
    /// So if there are other threads, that is left to the kernel.
    pub fn hang_up_with_next(&mut self) {
        self.hangs_up = sys::is_single_threaded();
    }

    /// Sends a response. False if the host is gone.
    ///
    /// The whole of it was there at `finished_at`, unless it has to be written to a file first. While
    /// the ring is full this waits for the host, whatever signals arrive: half a response
    /// is of no use to anyone.
    pub fn send(&mut self, kind: ReplyKind, task: u64, body: &[u8], finished_at: Moment) -> io::Result<bool> {
        let header = ResponseHeader {
            kind,
            task,
            finished_at: finished_at.as_nanos(),
            len: body.len() as u64,
            parcel: false,
            file: 0,
            is_short: kind == ReplyKind::ReturnedPlain && body.len() <= SHORT_MAX,
        };
        if body.len() <= INLINE_MAX {
            return self.send_record(header, body);
        }
        let file = sys::Blob::create(&[body])?;
        self.send_file(header, file.as_fd())
    }

    /// Sends a response whose body is a parcel. False if the host is gone.
    pub fn send_parcel(&mut self, kind: ReplyKind, task: u64, parcel: &Parcel) -> io::Result<bool> {
        let len = parcel.len() as u64;
        let header =
            ResponseHeader { kind, task, finished_at: 0, len, parcel: true, file: 0, is_short: false };
        self.send_file(header, parcel.file())
    }

    fn send_file(&mut self, header: ResponseHeader, file: BorrowedFd<'_>) -> io::Result<bool> {
        let most = if header.kind.is_answer() { FILES_MAX } else { PUBLISHED_FILES_MAX };
        loop {
            let read = self.read();
            if self.file_may_go(most, read) {
                break;
            }
            if !self.wait_for_room(read)? {
                return Ok(false);
            }
        }
        let file = self.files_out.send_file(self.socket.as_fd(), file)?;
        reach(Step::WorkerFileSent);
        self.send_record(ResponseHeader { file, finished_at: sys::now().as_nanos(), ..header }, &[])
    }

    fn send_record(&mut self, header: ResponseHeader, inline: &[u8]) -> io::Result<bool> {
        let size = header.size();
        let Some(at) = self.make_room(size)? else {
            return Ok(false);
        };
        let header_len = if header.is_short {
            let short = short_header(header.task, header.finished_at, inline.len());
            self.write(RESPONSES + at, &short, Step::WorkerHeaderHalf);
            SHORT_HEADER
        } else {
            self.write(RESPONSES + at, &header.encode(), Step::WorkerHeaderHalf);
            RESPONSE_HEADER
        };
        if header.file == 0 {
            self.write(RESPONSES + at + header_len, inline, Step::WorkerBodyHalf);
        }
        reach(Step::WorkerAnswerWritten);
        if header.kind.is_answer() {
            running::answered(Moment::from_nanos(header.finished_at));
        }
        self.written = self.written.wrapping_add(size);
        if header.file != 0 {
            self.files_pending.push_back(self.written);
        }
        self.segment.u64(RESPONSE_WRITTEN).store(self.written, Ordering::Release);
        reach(Step::WorkerPublished);
        if self.hangs_up {
            // The host hears that as it would hear a bell.
            sys::half_close(self.socket.as_fd())?;
            return Ok(true);
        }
        self.untold += 1;
        if !header.kind.is_answer() {
            // It waits for the answer, or for the deadline, and reads all of this then, unless it is told of
            // it: see `announce`. A large one is not kept waiting, as it takes memory.
            if header.file != 0 || self.untold >= UNTOLD_MAX || self.unread() > UNTOLD_BYTES_MAX {
                self.wake_host(true)?;
            }
            return Ok(true);
        }
        let pays = self.untold >= UNTOLD_MAX || !header.kind.is_value();
        // A host that dozed the last time need not even be looked at: the look waits until all that was
        // written has left this core. If it does not doze any more, it is told before we sleep.
        if pays || !self.host_dozes {
            self.wake_host(pays)?;
        }
        reach(Step::WorkerAnswered);
        Ok(true)
    }

    /// Writes into the segment, with a step half way.
    fn write(&self, at: usize, bytes: &[u8], half_way: Step) {
        let (first, second) = bytes.split_at(if fault::POSSIBLE { bytes.len() / 2 } else { bytes.len() });
        self.segment.write(at, first);
        reach(half_way);
        self.segment.write(at + first.len(), second);
    }

    /// Waits until `size` bytes fit in one piece; returns where, or `None` if the host is gone.
    fn make_room(&mut self, size: u64) -> io::Result<Option<usize>> {
        loop {
            let at = usize::try_from(self.written % RING_LEN as u64).expect("less than a ring");
            let tail = (RING_LEN - at) as u64;
            let skip = if size > tail { tail } else { 0 };
            let read = self.read();
            let unread = self.written.wrapping_sub(read);
            if unread > RING_LEN as u64 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "more was read than was written"));
            }
            if unread + skip + size <= RING_LEN as u64 {
                if skip > 0 {
                    self.segment.write(RESPONSES + at, &skip_mark());
                    self.written = self.written.wrapping_add(skip);
                    return Ok(Some(0));
                }
                return Ok(Some(at));
            }
            if !self.wait_for_room(read)? {
                return Ok(None);
            }
        }
    }

    /// How far the host has read.
    fn read(&self) -> u64 {
        self.segment.u64(RESPONSE_READ).load(Ordering::Acquire)
    }

    fn unread(&self) -> u64 {
        self.written.wrapping_sub(self.read())
    }

    fn file_may_go(&mut self, most: usize, read: u64) -> bool {
        let written = self.written;
        let unread = written.wrapping_sub(read);
        self.files_pending.retain(|&end| written.wrapping_sub(end) < unread);
        self.files_pending.len() < most
    }

    /// Waits until the host has read farther than it had `read` when there was no room. False if it is gone.
    ///
    /// Not than now: a host that has read all of it meanwhile sees no reason to wake anybody, and sleeps.
    fn wait_for_room(&mut self, read: u64) -> io::Result<bool> {
        self.wake_host(true)?;
        let asleep = self.segment.u32(WORKER_ASLEEP);
        asleep.store(STUCK, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.read() != read {
            asleep.store(AWAKE, Ordering::Relaxed);
            return Ok(true);
        }
        let limit = Duration::from_secs(3600);
        let slept = self.wait_for_bell(sys::now() + limit, limit)?;
        asleep.store(AWAKE, Ordering::Relaxed);
        Ok(slept != Slept::Ended)
    }

    /// Rings the host if it sleeps; if it dozes, only where that `pays`.
    fn wake_host(&mut self, pays: bool) -> io::Result<()> {
        fence(Ordering::SeqCst);
        let asleep = self.segment.u32(HOST_ASLEEP);
        match asleep.load(Ordering::Relaxed) {
            AWAKE => self.untold = 0,
            DOZING if !pays => self.host_dozes = true,
            flag => {
                self.host_dozes = flag == DOZING;
                self.untold = 0;
                if asleep.swap(AWAKE, Ordering::SeqCst) != AWAKE {
                    ring(self.socket.as_fd())?;
                    // What else we have to do can wait until it has its answer.
                    if flag == ASLEEP && self.spin.is_beside(self.places()) {
                        std::thread::yield_now();
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Handed, HostChannel, Limits, Outgoing, Ring, Section, Values};
    use super::*;
    use proptest::prelude::*;

    fn pair() -> (HostChannel, WorkerChannel) {
        let (host, file, socket) = HostChannel::create().unwrap();
        (host, WorkerChannel::open(file, socket).unwrap())
    }

    /// All three sections, one after the other.
    fn sections(request: &Request) -> Vec<u8> {
        let mut inline = &request.inline[..];
        let mut all = Vec::new();
        for (at, &len) in request.sections.iter().enumerate() {
            match request.files.iter().find(|(place, _)| *place == at) {
                Some((_, body)) => all.extend(bytes(body)),
                None => all.extend(inline.split_off(..len).unwrap()),
            }
        }
        all
    }

    fn bytes(body: &Body) -> Vec<u8> {
        let mut bytes = vec![0; body.len()];
        body.read(0, &mut bytes).unwrap();
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        /// Whatever is handed, taken back, answered and read, in whatever order, each side gets
        /// just what the other sent.
        #[test]
        fn every_request_is_answered_or_taken_back(
            steps in prop::collection::vec((0u8..5, 0usize..40_000), 1..400),
        ) {
            let (mut host, mut worker) = pair();
            let mut next_task = 0u64;
            let mut handed = VecDeque::new();
            let mut started = VecDeque::new();
            let mut answers = VecDeque::new();
            for (step, size) in steps {
                let size = if size % 7 == 0 { size } else { size % 3000 };
                match step {
                    0 | 1 => {
                        let body = vec![u8::try_from(next_task % 251).unwrap(); size];
                        if host.hand(next_task, 9, [&[], &body, b"x"]).unwrap() {
                            handed.push_back((next_task, size));
                        }
                        next_task += 1;
                    }
                    2 => match worker.try_receive().unwrap() {
                        Some(Received::Next) => prop_assert!(false, "each request is for one call"),
                        Some(Received::Request(request)) => {
                            let (task, size) = handed.pop_front().unwrap();
                            prop_assert_eq!((task, [0, size, 1]), (request.task, request.sections));
                            let mut expected = vec![u8::try_from(task % 251).unwrap(); size];
                            expected.push(b'x');
                            prop_assert_eq!(expected, sections(&request));
                            started.push_back((task, size));
                        }
                        None => prop_assert!(handed.is_empty()),
                    },
                    3 => if let Some((task, size)) = started.front().copied() {
                        // As a worker does: one at a time, and only if it need not wait.
                        if worker.unread() + 2 * size as u64 + 4096 < RING_LEN as u64 && answers.len() < FILES_MAX {
                            prop_assert!(worker.send(ReplyKind::Returned, task, &vec![7; size], sys::now()).unwrap());
                            started.pop_front();
                            answers.push_back((task, size));
                        }
                    },
                    _ => {
                        if size % 2 == 0 {
                            prop_assert_eq!(handed.len(), host.revoke());
                            handed.clear();
                        }
                        while let Some(reply) = host.receive(0).unwrap() {
                            host.acknowledge().unwrap();
                            let (task, size) = answers.pop_front().unwrap();
                            prop_assert_eq!((task, vec![7; size]), (reply.task, bytes(&reply.body)));
                        }
                        prop_assert!(answers.is_empty());
                    }
                }
            }
        }
    }

    /// What a run of calls turns up at the worker.
    #[derive(Debug, Default)]
    struct Runs {
        next_task: u64,
        /// Those that are handed out and not started.
        handed: VecDeque<u64>,
        /// The request that the worker has begun: its first task, calls, and how many were started.
        begun: Option<(u64, u64, u64)>,
        started: VecDeque<u64>,
    }

    impl Runs {
        fn hand(&mut self, host: &mut HostChannel, count: u64, size: usize) {
            let body = vec![7; size];
            let sections = [&[], &[], &body[..]].map(Section::Bytes);
            let task = self.next_task;
            let request =
                Outgoing { task, count: usize::try_from(count).unwrap(), function: 9, sections, plain: true };
            if host.stage(&request).unwrap() {
                assert_eq!(Handed::Yes, host.publish(sys::now(), Limits::default()).unwrap().0);
                self.handed.extend(task..task + count);
            }
            self.next_task += count;
        }

        /// Lets the worker start a call; whatever `meanwhile` does comes after it has claimed it.
        fn start(&mut self, worker: &mut WorkerChannel, meanwhile: impl FnOnce(&mut Self)) {
            let expected = self.handed.pop_front();
            assert_eq!(expected.is_some(), worker.claim().unwrap());
            let Some(expected) = expected else { return };
            meanwhile(self);
            let received = worker.claimed_call().unwrap();
            self.note(expected, &received);
        }

        /// The same as a worker does it that has just answered.
        fn go_on(&mut self, worker: &mut WorkerChannel) {
            let next = worker.try_next().unwrap().then_some(Received::Next);
            let received = next.or_else(|| worker.try_receive().unwrap());
            assert_eq!(self.handed.is_empty(), received.is_none());
            if let (Some(expected), Some(received)) = (self.handed.pop_front(), received) {
                self.note(expected, &received);
            }
        }

        fn note(&mut self, expected: u64, received: &Received) {
            let task = match received {
                Received::Request(request) => {
                    self.begun = Some((request.task, request.count, 1));
                    request.task
                }
                Received::Next => {
                    let (first, count, started) = self.begun.as_mut().expect("a request was begun");
                    assert!(*started < *count, "all of it was started");
                    *started += 1;
                    *first + *started - 1
                }
            };
            assert_eq!(expected, task);
            self.started.push_back(task);
        }

        fn revoke(&mut self, host: &mut HostChannel) {
            assert_eq!(self.handed.len(), host.revoke());
            self.handed.clear();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
        /// However long the runs are, and whatever is taken back of them while the ring goes round, the
        /// worker starts each call that is left, in their order, and no other.
        #[test]
        fn every_call_of_a_run_is_started_once_or_taken_back(
            steps in prop::collection::vec((0u8..8, 1u64..9, 0usize..12_000), 1..600),
        ) {
            let (mut host, mut worker) = pair();
            let mut runs = Runs::default();
            for (step, count, size) in steps {
                match step {
                    0..=3 => runs.hand(&mut host, count, size),
                    4 => (0..count).for_each(|_| runs.start(&mut worker, |_| {})),
                    5 => (0..count).for_each(|_| runs.go_on(&mut worker)),
                    6 if count < 4 => {
                        runs.revoke(&mut host);
                        runs.hand(&mut host, count, size);
                        runs.start(&mut worker, |runs| runs.revoke(&mut host));
                    }
                    7 if count == 1 => runs.revoke(&mut host),
                    _ => {}
                }
                // As a worker does: one at a time.
                for task in std::mem::take(&mut runs.started) {
                    prop_assert!(worker.send(ReplyKind::ReturnedPlain, task, b"x", sys::now()).unwrap());
                    prop_assert_eq!(task, host.receive(task).unwrap().unwrap().task);
                    host.acknowledge().unwrap();
                }
            }
            while !runs.handed.is_empty() {
                runs.start(&mut worker, |_| {});
            }
        }
    }

    /// The same with both sides at work at the same time.
    #[test]
    fn runs_are_taken_back_from_a_worker_that_goes_on() {
        const CALLS: u64 = 300_000;
        let (mut host, mut worker) = pair();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut begun = (0, 0, 0);
                loop {
                    let next = worker.try_next().unwrap().then_some(Received::Next);
                    let task = match next.or_else(|| worker.try_receive().unwrap()) {
                        Some(Received::Request(request)) => {
                            begun = (request.task, request.count, 1);
                            request.task
                        }
                        Some(Received::Next) => {
                            assert!(begun.2 < begun.1, "all of it was started: {begun:?}");
                            begun.2 += 1;
                            begun.0 + begun.2 - 1
                        }
                        None => {
                            std::thread::yield_now();
                            continue;
                        }
                    };
                    assert!(worker.send(ReplyKind::ReturnedPlain, task, b"x", sys::now()).unwrap());
                    if task == CALLS {
                        return;
                    }
                }
            });
            // What was handed out and neither answered nor taken back.
            let mut handed: VecDeque<u64> = VecDeque::new();
            let (mut next, mut dice) = (0, 1u64);
            while next < CALLS || !handed.is_empty() {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let roll = dice >> 33;
                if next <= CALLS && roll % 4 != 0 {
                    let count = (1 + roll % 40).min(CALLS + 1 - next);
                    let body = vec![7; usize::try_from(count * (1 + roll % 60)).unwrap()];
                    let sections = [&[], &[], &body[..]].map(Section::Bytes);
                    let request = Outgoing {
                        task: next,
                        count: usize::try_from(count).unwrap(),
                        function: 9,
                        sections,
                        plain: true,
                    };
                    if host.stage(&request).unwrap() {
                        handed.extend(next..next + count);
                        next += count;
                    }
                    if roll % 3 > 0 {
                        assert_eq!(Handed::Yes, host.publish(sys::now(), Limits::default()).unwrap().0);
                    }
                } else if roll % 64 == 0 && next <= CALLS {
                    assert_eq!(Handed::Yes, host.publish(sys::now(), Limits::default()).unwrap().0);
                    for _ in 0..host.revoke() {
                        next = handed.pop_back().unwrap();
                    }
                }
                if next > CALLS {
                    assert_eq!(Handed::Yes, host.publish(sys::now(), Limits::default()).unwrap().0);
                }
                while let Some(&expected) = handed.front()
                    && let Some(reply) = host.receive(expected).unwrap()
                {
                    assert_eq!(expected, reply.task);
                    handed.pop_front();
                    host.acknowledge().unwrap();
                }
            }
        });
    }

    /// They take up descriptors of the worker until it comes by.
    #[test]
    fn files_that_were_taken_back_count_until_the_worker_is_rid_of_them() {
        let (mut host, mut worker) = pair();
        let body = vec![7; RING_LEN];
        let hand_all = |host: &mut HostChannel, first: u64| {
            (first..first + 100).take_while(|&task| host.hand(task, 9, [&[], &body, b"x"]).unwrap()).count()
        };
        assert_eq!(FILES_MAX, hand_all(&mut host, 0));
        assert_eq!(FILES_MAX, host.revoke());
        assert_eq!(1, hand_all(&mut host, 100), "a worker must have something to do");
        let Some(Received::Request(request)) = worker.try_receive().unwrap() else { panic!("no request") };
        assert_eq!((100, RING_LEN + 1), (request.task, sections(&request).len()));
        assert!(worker.send(ReplyKind::Returned, 100, b"done", sys::now()).unwrap());
        assert_eq!(100, host.receive(0).unwrap().unwrap().task);
        assert_eq!(FILES_MAX, hand_all(&mut host, 200));
    }

    /// It may publish as often as it likes: each is whole, they come in their order, and none is an answer.
    #[test]
    fn what_is_published_is_no_answer() {
        let (mut host, mut worker) = pair();
        assert!(host.hand(7, 9, [b"", b"", b"x"]).unwrap());
        assert!(worker.try_receive().unwrap().is_some());
        let mut values = Values::default();
        for size in [0, 1, 5000, INLINE_MAX, INLINE_MAX + 1] {
            for kind in [ReplyKind::Published, ReplyKind::PublishedPlain] {
                assert!(worker.send(kind, 7, &vec![3; size], sys::now()).unwrap());
                assert_eq!(0, host.receive_values(7, 1, &mut values).unwrap());
                let reply = host.receive(7).unwrap().unwrap();
                assert_eq!((kind, 7, vec![3; size]), (reply.kind, reply.task, bytes(&reply.body)));
                host.acknowledge().unwrap();
                assert_eq!(1, host.outstanding());
            }
        }
        assert!(worker.send(ReplyKind::ReturnedPlain, 7, b"done", sys::now()).unwrap());
        assert_eq!(1, host.receive_values(7, 1, &mut values).unwrap());
        assert_eq!((b"done".to_vec(), 0), (values.bytes, host.outstanding()));
    }

    /// A sleeping host is not woken for a few small ones, and does not miss them.
    /// 1. The worker finds no room.
    /// 2. The host, which is awake, reads all there is.
    /// 3. It finds nothing more and sleeps, and nobody is to be woken.
    /// 4. Now the worker waits.
    #[test]
    fn a_worker_does_not_wait_for_room_that_there_is() {
        let (mut host, mut worker) = pair();
        assert!(host.hand(7, 9, [b"", b"", b"x"]).unwrap());
        assert!(worker.try_receive().unwrap().is_some());
        while worker.has_room(INLINE_MAX) {
            assert!(worker.send(ReplyKind::Printed, 7, &vec![3; INLINE_MAX], sys::now()).unwrap());
        }
        let read = worker.read();
        while host.receive(7).unwrap().is_some() {}
        host.acknowledge().unwrap();
        assert!(host.prepare_sleep(Ring::AtOnce));
        assert!(worker.wait_for_room(read).unwrap());
    }

    #[test]
    fn what_is_said_beside_the_work_is_no_answer_and_of_any_task() {
        let (mut host, mut worker) = pair();
        let is_rung = |host: &HostChannel| sys::wait_readable(host.socket(), Duration::ZERO).unwrap();
        assert!(host.hand(7, 9, [b"", b"", b"x"]).unwrap());
        assert!(worker.try_receive().unwrap().is_some());
        for (kind, size) in [
            (ReplyKind::Printed, 0),
            (ReplyKind::Printed, 5000),
            (ReplyKind::PrintedError, INLINE_MAX),
            (ReplyKind::Logged, 1),
            (ReplyKind::Logged, 3 * INLINE_MAX),
        ] {
            assert!(host.prepare_sleep(Ring::AtOnce));
            assert!(worker.send(kind, 99, &vec![3; size], sys::now()).unwrap());
            assert_eq!(size > INLINE_MAX, is_rung(&host), "only what takes memory does not wait");
            worker.announce().unwrap();
            assert!(is_rung(&host));
            host.wake().unwrap();
            let reply = host.receive(7).unwrap().unwrap();
            assert_eq!((kind, 99, vec![3; size]), (reply.kind, reply.task, bytes(&reply.body)));
            host.acknowledge().unwrap();
            assert_eq!(1, host.outstanding());
            worker.announce().unwrap();
            assert!(!is_rung(&host), "it has been told, and is awake");
        }
        assert!(worker.send(ReplyKind::Returned, 7, b"done", sys::now()).unwrap());
        assert_eq!(ReplyKind::Returned, host.receive(7).unwrap().unwrap().kind);
        assert_eq!(0, host.outstanding());
    }

    #[test]
    fn a_host_sleeps_on_while_little_is_published() {
        let (mut host, mut worker) = pair();
        assert!(host.hand(7, 9, [b"", b"", b"x"]).unwrap());
        assert!(worker.try_receive().unwrap().is_some());
        let is_rung = |host: &HostChannel| sys::wait_readable(host.socket(), Duration::ZERO).unwrap();
        assert!(host.prepare_sleep(Ring::AtOnce));
        for _ in 0..UNTOLD_MAX - 1 {
            assert!(worker.send(ReplyKind::PublishedPlain, 7, b"x", sys::now()).unwrap());
        }
        assert!(!is_rung(&host));
        assert!(!host.prepare_sleep(Ring::AtOnce), "there is something to read");
        assert!(worker.send(ReplyKind::PublishedPlain, 7, b"x", sys::now()).unwrap());
        assert!(is_rung(&host));
        let mut count = 0;
        while host.receive(7).unwrap().is_some() {
            count += 1;
        }
        assert_eq!(UNTOLD_MAX, count);
        host.acknowledge().unwrap();
        host.wake().unwrap();

        assert!(host.prepare_sleep(Ring::AtOnce));
        while worker.unread() <= UNTOLD_BYTES_MAX {
            assert!(!is_rung(&host));
            assert!(worker.send(ReplyKind::Appended, 7, &[0; 4000], sys::now()).unwrap());
        }
        assert!(is_rung(&host), "half of the ring is full");
    }

    #[test]
    fn a_scribbling_worker_is_found_out() {
        let (mut host, worker) = pair();
        worker.segment.u64(RESPONSE_WRITTEN).store(12345, Ordering::Release);
        assert!(host.receive(0).is_err());
        worker.segment.u64(RESPONSE_WRITTEN).store(64, Ordering::Release);
        assert!(host.receive(0).is_err(), "a header of zeroes");
    }

    #[test]
    fn a_scribbling_worker_is_found_out_before_it_gets_anything() {
        let (mut host, worker) = pair();
        assert!(host.is_sound());
        assert!(host.hand(1, 0, [b"", b"", b""]).unwrap());
        assert!(host.is_sound());
        let before = worker.segment.u64(CLAIM).load(Ordering::Acquire);
        for bit in 31..62 {
            worker.segment.u64(CLAIM).store(before ^ 1 << bit, Ordering::Release);
            assert!(!host.is_sound(), "bit {bit}");
        }
    }

    #[test]
    fn a_worker_learns_that_the_host_is_gone() {
        let (host, mut worker) = pair();
        drop(host);
        assert_eq!(Slept::Ended, worker.sleep(Duration::from_secs(60)).unwrap());
    }

    #[test]
    fn a_sleeping_side_is_rung() {
        let (mut host, mut worker) = pair();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let request = loop {
                    match worker.try_receive().unwrap() {
                        Some(Received::Request(request)) => break request,
                        Some(Received::Next) => panic!("the request is for one call"),
                        None => assert_ne!(Slept::Ended, worker.sleep(Duration::from_secs(60)).unwrap()),
                    }
                };
                assert!(worker.send(ReplyKind::Returned, request.task, b"done", sys::now()).unwrap());
            });
            assert!(host.hand(5, 0, [b"", b"", b""]).unwrap());
            let reply = loop {
                if let Some(reply) = host.receive(0).unwrap() {
                    break reply;
                }
                if host.prepare_sleep(Ring::AtOnce) {
                    assert!(sys::wait_readable(host.socket(), Duration::from_secs(60)).unwrap());
                }
                host.wake().unwrap();
            };
            assert_eq!((5, b"done".to_vec()), (reply.task, bytes(&reply.body)));
        });
    }
}
