//! A peer that writes whatever the bytes of a fuzzer say: see `crate::fuzzing`.
//!
//! Most steps write what a sound peer might write, at the place where it would, with one thing or
//! another wrong: bytes alone would hardly ever get past the first check.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use super::claim;
use super::host::{HostChannel, Ring};
use super::layout::{
    ASLEEP, CLAIM, DUMP_COMPLETE, HOST_ASLEEP, INLINE_MAX, REQUESTS, RESPONSE_READ, RESPONSE_WRITTEN,
    RESPONSES, RING_LEN, SEGMENT_LEN, STACK, STACK_LEN, WORKER_ASLEEP,
};
use super::parcel::{self, Arrived};
use super::record::{
    Body, Parsed, REQUEST_HEADER, RESPONSE_HEADER, ReplyKind, RequestHeader, ResponseHeader, SHORT_MAX,
    check_positions, padded, short_header, skip_mark,
};
use super::worker::{Received, WorkerChannel};
use crate::sys::{self, Blob, Segment};

/// Most steps of one run, so that each is over soon.
const STEPS: usize = 200;

/// The bytes, taken from the front; zeroes when there are no more.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        front
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let front = self.take(N);
        bytes[..front.len()].copy_from_slice(front);
        bytes
    }

    fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// The next step, until there are no bytes or have been steps enough.
    fn steps(&mut self, mut step: impl FnMut(u8, &mut Self)) {
        for _ in 0..STEPS {
            if self.0.is_empty() {
                return;
            }
            let kind = self.byte();
            step(kind, self);
        }
    }
}

/// One of the two peers.
struct Peer<'a> {
    segment: &'a Segment,
    socket: Option<OwnedFd>,
    /// The file that it has sent last, to change it afterwards.
    sent: Option<OwnedFd>,
}

impl Peer<'_> {
    /// Bytes at a place of a region, cut off at its end.
    fn scribble(&self, start: usize, len: usize, input: &mut Input<'_>) {
        let at = usize::from(input.short()) * 8 % len;
        let bytes = input.byte();
        let bytes = input.take(usize::from(bytes));
        self.segment.write(start + at, &bytes[..bytes.len().min(len - at)]);
    }

    /// A file of some length, or several, or something that is no such file.
    fn send_file(&mut self, input: &mut Input<'_>) {
        let Some(socket) = &self.socket else { return };
        let len = usize::from(input.short());
        let copies = usize::from(input.byte() % 8);
        let file = match input.byte() {
            0 => std::fs::File::open("/").map(OwnedFd::from),
            1 => io::pipe().map(|(reader, _)| reader.into()),
            2..=5 => Ok(parcel_file(len, input)),
            _ => Blob::create(&[&vec![1; len]]),
        }
        .expect("a descriptor");
        // A full socket is the peer's loss.
        let _ = sys::send_message(socket.as_fd(), b"f", &vec![file.as_fd(); copies]);
        self.sent = Some(file);
    }

    /// Takes from the file what it can: all of it, or a hole in its middle.
    fn take_back(&self) {
        if let Some(file) = self.sent.as_ref().and_then(|file| file.try_clone().ok()) {
            let _ = std::fs::File::from(file).set_len(0);
        }
    }

    fn ring(&self) {
        if let Some(socket) = &self.socket {
            let _ = sys::send_message(socket.as_fd(), b"d", &[]);
        }
    }
}

/// A file that might be a parcel: sealed as it should be, or not.
fn parcel_file(len: usize, input: &mut Input<'_>) -> OwnedFd {
    let file = if input.byte() == 0 { Blob::create(&[]) } else { sys::lasting_file() }.expect("a file");
    let file = std::fs::File::from(file);
    // So long that some are mapped.
    let len = len * usize::from(input.byte() % 4);
    file.set_len(len as u64).expect("a sparse file");
    let mut head = parcel::MAGIC.to_le_bytes().to_vec();
    head.extend(u64::from(input.byte() % 2).to_le_bytes());
    head.extend((u64::from(input.short()) * u64::from(input.byte() % 4)).to_le_bytes());
    let count = input.byte() % 4;
    head.extend(u64::from(count).to_le_bytes());
    for _ in 0..count {
        let len = if input.byte() == 0 { input.word() } else { u64::from(input.short()) };
        head.extend(len.to_le_bytes());
    }
    file.write_at(&head[..head.len().min(len)], 0).expect("a head");
    file.into()
}

/// Unpacks it, and looks at every page of it after the peer has done its worst.
fn check_parcel(arrived: Arrived, spoil: impl FnOnce()) {
    let len = arrived.len();
    let Ok((layout, memory)) = arrived.unpack() else { return };
    spoil();
    assert!(memory.len() <= len && layout.stream.end <= memory.len());
    let mut end = 0;
    for part in [&layout.stream].into_iter().chain(&layout.buffers) {
        assert!(end <= part.start && part.start <= part.end && part.end <= memory.len(), "{layout:?}");
        end = part.end;
    }
    let pages = memory.copy();
    assert_eq!(memory.len(), pages.len());
}

fn check_body(body: &Body, announced: usize) {
    assert_eq!(announced, body.len());
    let mut bytes = vec![0; announced.min(RING_LEN)];
    let read = body.read(0, &mut bytes);
    match body {
        Body::Inline(inline) => {
            assert!(inline.len() <= INLINE_MAX && read.is_ok(), "{} bytes, {read:?}", inline.len());
        }
        Body::File(_) | Body::Parcel(_) => {}
    }
    assert!(body.read(announced, &mut [0]).is_err());
    assert!(body.read(usize::MAX, &mut [0, 0]).is_err());
}

/// A worker writes to its host.
pub fn host_reads(bytes: &[u8]) {
    let (mut host, file, socket) = HostChannel::create().expect("a channel");
    let segment = Segment::map(file.as_fd(), SEGMENT_LEN).expect("the same segment");
    let mut peer = Peer { segment: &segment, socket: Some(socket), sent: None };
    let written = segment.u64(RESPONSE_WRITTEN);
    let mut handed = 0;
    Input(bytes).steps(|step, input| match step % 16 {
        0 | 1 => {
            // Responses are written only to what was handed out.
            let sections = [usize::from(input.byte()), usize::from(input.short()), 0];
            let sections = sections.map(|len| vec![2; len]);
            let [context, function, arguments] = &sections;
            if let Ok(true) = host.hand(handed, 0, [context, function, arguments]) {
                handed += 1;
            }
        }
        2..=4 => {
            let at = written.load(Ordering::Relaxed);
            let kind = ReplyKind::ALL[usize::from(input.byte()) % ReplyKind::ALL.len()];
            let (len, file) = (u64::from(input.short()), u32::from(input.byte() % 4));
            let parcel = len % 2 == 1;
            let (finished_at, is_short) = (u64::MAX, false);
            let header = ResponseHeader { kind, task: 0, finished_at, len, parcel, file, is_short };
            let ring = usize::try_from(at % RING_LEN as u64).expect("less than a ring") / 8 * 8;
            let header = header.encode();
            peer.segment.write(RESPONSES + ring, &header[..header.len().min(RING_LEN - ring)]);
            let inline = if file == 0 { len } else { 0 };
            written.store(at.wrapping_add(RESPONSE_HEADER as u64 + padded(inline)), Ordering::Relaxed);
        }
        14 => {
            let at = written.load(Ordering::Relaxed);
            let ring = usize::try_from(at % RING_LEN as u64).expect("less than a ring") / 8 * 8;
            let header = short_header(u64::from(input.byte() % 2), u64::MAX, usize::from(input.byte()));
            peer.segment.write(RESPONSES + ring, &header[..header.len().min(RING_LEN - ring)]);
            written.store(at.wrapping_add(u64::from(input.byte()) * 8), Ordering::Relaxed);
        }
        5 => {
            let at = written.load(Ordering::Relaxed);
            let ring = usize::try_from(at % RING_LEN as u64).expect("less than a ring") / 8 * 8;
            peer.segment.write(RESPONSES + ring, &skip_mark());
            written.store(at.wrapping_add((RING_LEN - ring) as u64), Ordering::Relaxed);
        }
        6 => peer.scribble(RESPONSES, RING_LEN, input),
        7 => peer.scribble(0, REQUESTS, input),
        8 => {
            written.fetch_add(u64::from(input.short()) * 8, Ordering::Relaxed);
        }
        9 => written.store(input.word(), Ordering::Relaxed),
        10 => segment.u64(CLAIM).store(input.word(), Ordering::Relaxed),
        11 => peer.send_file(input),
        12 => {
            let before = host.outstanding();
            let revoked = host.revoke();
            assert_eq!(before.saturating_sub(revoked), host.outstanding());
        }
        13 => {
            peer.scribble(STACK, STACK_LEN, input);
            segment.u32(DUMP_COMPLETE).store(u32::from(input.byte()), Ordering::Relaxed);
            segment.u32(WORKER_ASLEEP).store(ASLEEP, Ordering::Relaxed);
            if input.byte() == 0 {
                peer.socket = None;
            }
            peer.ring();
            let _ = (host.prepare_sleep(Ring::AtOnce), host.wake(), host.unclaimed(), host.dump_complete());
            assert!(host.stack().is_none_or(|stack| !stack.is_empty() && !stack.contains('\0')));
        }
        _ => {
            let before = host.outstanding();
            if let Ok(Some(reply)) = host.receive(0) {
                let _ = host.acknowledge();
                let answers = usize::from(reply.kind.is_answer());
                assert_eq!(before, host.outstanding() + answers, "an answer to nothing");
                check_body(&reply.body, reply.body.len());
                if let Body::Parcel(parcel) = reply.body {
                    check_parcel(parcel, || peer.take_back());
                }
            }
        }
    });
}

/// The segment that workers of this thread share one after the other: theirs lives for ever.
fn worker_segment() -> (&'static Segment, OwnedFd) {
    thread_local! {
        static SEGMENT: (&'static Segment, OwnedFd) = {
            let (segment, file) = Segment::create(SEGMENT_LEN).expect("a segment");
            (Box::leak(Box::new(segment)), file)
        };
    }
    SEGMENT.with(|(segment, file)| {
        segment.write(0, &vec![0; SEGMENT_LEN]);
        (*segment, file.try_clone().expect("a descriptor"))
    })
}

/// A host writes to its worker.
pub fn worker_reads(bytes: &[u8]) {
    let (segment, file) = worker_segment();
    let (socket, theirs) = sys::socket_pair().expect("sockets");
    let mut worker = WorkerChannel::over(segment, file, theirs);
    let mut peer = Peer { segment, socket: Some(socket), sent: None };
    let mut at = 0;
    Input(bytes).steps(|step, input| match step % 12 {
        0..=2 => {
            let sections = match input.byte() {
                0 => [input.word(), input.word(), input.word()],
                1 => [u64::from(input.short()), u64::from(input.short()), 0],
                len => [0, u64::from(len), 1],
            };
            let file = u32::from(input.byte() % 4);
            let (in_file, parcels) = ([file == 2, false, file > 0], [false, false, file == 3]);
            let (plain, count) = (file == 0, u64::from(input.byte() % 3));
            let (task, function) = (0, 0);
            let header = RequestHeader { task, function, sections, plain, count, in_file, parcels, file };
            let inline = (0..3).filter(|&at| !in_file[at]).map(|at| sections[at]);
            let inline = inline.fold(0, u64::wrapping_add) % RING_LEN as u64;
            let header = header.encode();
            segment.write(REQUESTS + at, &header[..header.len().min(RING_LEN - at)]);
            let inline = usize::try_from(padded(inline)).expect("about a ring");
            at = (at + REQUEST_HEADER + inline) % RING_LEN;
            let _ = claim::hand(segment.u64(CLAIM), 1);
        }
        3 => {
            segment.write(REQUESTS + at, &skip_mark());
            at = if input.byte() == 0 { usize::from(input.short()) / 8 * 8 } else { 0 };
        }
        4 => peer.scribble(REQUESTS, RING_LEN, input),
        5 => peer.scribble(0, REQUESTS, input),
        6 => segment.u64(CLAIM).store(input.word(), Ordering::Relaxed),
        7 => peer.send_file(input),
        8 => {
            // Nobody reads, so a full ring must end with the host.
            peer.socket = None;
            let body = vec![3; usize::from(input.short())];
            let _ = worker.send(ReplyKind::Returned, 0, &body, sys::now());
        }
        9 => {
            segment.u64(RESPONSE_READ).store(input.word(), Ordering::Relaxed);
            segment.u32(HOST_ASLEEP).store(1, Ordering::Relaxed);
        }
        _ => {
            if let Ok(Some(Received::Request(request))) = worker.try_receive() {
                let in_files: Vec<usize> = request.files.iter().map(|(at, _)| *at).collect();
                let inline = (0..3).filter(|at| !in_files.contains(at)).map(|at| request.sections[at]);
                assert_eq!(inline.sum::<usize>(), request.inline.len());
                for (at, body) in request.files {
                    check_body(&body, request.sections[at]);
                    if let Body::Parcel(parcel) = body {
                        check_parcel(parcel, || peer.take_back());
                    }
                }
            }
        }
    });
}

/// Headers and positions, each on its own.
pub fn records(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (read, written) = (input.word(), input.word());
    if let Ok(available) = check_positions(read, written) {
        assert_eq!(written, read.wrapping_add(available));
        assert!(available <= RING_LEN as u64);
    }
    let room = u64::from(input.short());
    let header = input.array();
    if let Ok(Parsed::Record(header)) = RequestHeader::parse(&header, room) {
        assert_eq!(Ok(Parsed::Record(header)), RequestHeader::parse(&header.encode(), room));
        assert!(REQUEST_HEADER as u64 + header.inline() <= room);
    }
    let header = input.array();
    if let Ok(header) = ResponseHeader::parse(&header, room) {
        assert_eq!(Ok(header), ResponseHeader::parse(&header.encode(), room));
        assert!(header.size() <= room);
    }
    if let Ok(Some(Parsed::Record(header))) = ResponseHeader::parse_short(&input.array(), read, room) {
        assert!(header.size() <= room && header.len <= SHORT_MAX as u64);
    }
}

/// Whatever the word is, each of its operations does what it says.
pub fn claim_word(bytes: &[u8]) {
    let mut input = Input(bytes);
    let word = std::sync::atomic::AtomicU64::new(input.word());
    input.steps(|step, input| {
        let before = claim::load(&word);
        match step % 5 {
            0 => {
                assert_eq!(!before.retired, claim::hand(&word, 1));
                let more = u32::from(!before.retired);
                assert_eq!((before.unclaimed() + more) & 0x7fff_ffff, claim::load(&word).unclaimed());
            }
            1 => {
                assert_eq!(before.unclaimed() > 0, claim::claim(&word));
                assert_eq!(before.unclaimed().saturating_sub(1), claim::load(&word).unclaimed());
            }
            2 => {
                assert_eq!(before.unclaimed(), claim::revoke(&word));
                assert_eq!(0, claim::load(&word).unclaimed());
            }
            3 => {
                assert_eq!(before.unclaimed() == 0, claim::retire(&word));
                let retired = before.retired || before.unclaimed() == 0;
                assert_eq!(claim::Claim { retired, ..before }, claim::load(&word));
            }
            _ => word.store(input.word(), Ordering::Relaxed),
        }
    });
}

/// A file that says to be a parcel, and is taken back when it was taken for one.
pub fn parcel(bytes: &[u8]) {
    let mut input = Input(bytes);
    let len = usize::from(input.short());
    let file = parcel_file(len, &mut input);
    let theirs = std::fs::File::from(file.try_clone().expect("a descriptor"));
    let len = usize::try_from(theirs.metadata().expect("metadata").len()).expect("64 bits");
    assert!(Arrived::open(file.try_clone().expect("a descriptor"), len + 1).is_err());
    if let Ok(arrived) = Arrived::open(file, len) {
        check_parcel(arrived, || {
            let _ = theirs.set_len(0);
            let _ = theirs.write_at(&[255; 64], 0);
        });
    }
}

/// A file that is not what was announced, and changes while it is read.
pub fn blob(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (len, announced) = (u64::from(input.short()), input.word());
    let announced = if input.byte() == 0 { announced } else { len };
    let file = std::fs::File::from(Blob::create(&[]).expect("a file"));
    file.set_len(len).expect("a sparse file");
    let theirs = file.try_clone().expect("a descriptor");
    let opened = Blob::open(file.into(), usize::try_from(announced).expect("64 bits"));
    assert_eq!(len == announced, opened.is_ok());
    let Ok(blob) = opened else { return };
    input.steps(|step, input| {
        if step == 0 {
            theirs.set_len(u64::from(input.short())).expect("a length");
        }
        let offset = if step < 4 { input.word() } else { u64::from(input.short()) };
        let mut into = vec![0; usize::from(input.short())];
        let end = offset.checked_add(into.len() as u64);
        let there = theirs.metadata().expect("metadata").len();
        let readable = into.is_empty() || end.is_some_and(|end| end <= there);
        let offset = usize::try_from(offset).expect("64 bits");
        assert_eq!(readable, blob.read(offset, &mut into).is_ok(), "{offset} of {there}");
    });
}
