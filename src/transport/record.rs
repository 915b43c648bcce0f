//! The records in the rings: their headers, and the checks on what a peer wrote.
//!
//! Pure: bytes in, numbers or a refusal out. A header is copied out of shared memory once, then
//! parsed, so that a peer cannot change it between check and use.

use std::fmt;
use std::io;

use smallvec::SmallVec;

use super::layout::{INLINE_MAX, RING_LEN};
use super::parcel::Arrived;
use crate::sys::Blob;

/// Bytes of a request's header.
pub const REQUEST_HEADER: usize = 56;
/// Where in it the count of its calls is: the host takes back calls by making it less.
const COUNT_AT: usize = 48;
/// Bytes of a response's header.
pub const RESPONSE_HEADER: usize = 32;
/// Bytes of that of a plain value which is not long. There are many of those, and each byte of it has
/// to come from another core.
pub const SHORT_HEADER: usize = 16;
/// Longest body behind a short header.
pub const SHORT_MAX: usize = 255;

/// Says that the rest of the ring is unused and the next record is at its start.
const SKIP: u32 = 0x5049_4b53;
/// The lowest seven bits say how its sections travel.
const REQUEST: u32 = 0x5145_5200;
const PLAIN: u32 = 1;
const IN_FILE: [u32; 3] = [1 << 1, 1 << 2, 1 << 3];
const PARCEL: [u32; 3] = [1 << 4, 1 << 5, 1 << 6];
const REQUEST_FLAGS: u32 = 0x7f;
/// The upper bits of the first word of a short header; the lower ones are the length.
const SHORT: u32 = 0x5648_5300;
/// In the kind of a response: its body is a parcel.
const PARCEL_RESPONSE: u32 = 0x8000;

/// Something in shared memory that a sound peer would not have written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt(pub String);

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a response means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// The worker is set up and takes requests.
    Ready,
    /// The worker could not be set up; the body says why.
    SetupFailed,
    /// The function returned; the body is its value, as the serializer made it.
    Returned,
    /// The function returned; the body is its value, plain (see `plain.rs`).
    ReturnedPlain,
    /// The function raised; the body is its exception.
    Raised,
    /// The function raised something that `retry_on` names.
    RaisedRetryable,
    /// The function runs on; the body is what it has so far, as the serializer made it.
    Published,
    /// The same, plain.
    PublishedPlain,
    /// The function runs on; the body comes after those that it has sent like this before.
    Appended,
    /// Text for standard output, of no task in particular.
    Printed,
    /// The same for standard error.
    PrintedError,
    /// A log record, of no task in particular.
    Logged,
}

impl ReplyKind {
    pub(super) const ALL: [Self; 12] = [
        Self::Ready,
        Self::SetupFailed,
        Self::Returned,
        Self::Raised,
        Self::RaisedRetryable,
        Self::ReturnedPlain,
        Self::Published,
        Self::PublishedPlain,
        Self::Appended,
        Self::Printed,
        Self::PrintedError,
        Self::Logged,
    ];

    /// Whether it brings a plain value.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::ReturnedPlain | Self::PublishedPlain)
    }

    /// Whether the function returned.
    pub fn is_value(self) -> bool {
        matches!(self, Self::Returned | Self::ReturnedPlain)
    }

    /// Whether the function goes on after this, which then is no answer.
    pub fn is_publication(self) -> bool {
        matches!(self, Self::Published | Self::PublishedPlain | Self::Appended)
    }

    /// Whether the worker says this beside its work, to whoever listens: it concerns no task.
    pub fn is_aside(self) -> bool {
        matches!(self, Self::Printed | Self::PrintedError | Self::Logged)
    }

    /// Whether a task ends with this, or the setup.
    pub fn is_answer(self) -> bool {
        !(self.is_publication() || self.is_aside())
    }

    /// Whether the body may be a file. What comes in pieces does not need one.
    fn takes_file(self) -> bool {
        !matches!(self, Self::Appended | Self::Printed | Self::PrintedError)
    }

    /// Whether the body may be a parcel.
    fn takes_parcel(self) -> bool {
        matches!(self, Self::Returned | Self::Published)
    }

    fn code(self) -> u32 {
        match self {
            Self::Ready => 0x4b00,
            Self::SetupFailed => 0x4b01,
            Self::Returned => 0x4b02,
            Self::Raised => 0x4b03,
            Self::RaisedRetryable => 0x4b04,
            Self::ReturnedPlain => 0x4b05,
            Self::Published => 0x4b06,
            Self::PublishedPlain => 0x4b07,
            Self::Appended => 0x4b08,
            Self::Printed => 0x4b09,
            Self::PrintedError => 0x4b0a,
            Self::Logged => 0x4b0b,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// Bytes that are mostly few: those of a number or two take no memory of their own.
pub type Small = SmallVec<[u8; 32]>;

/// The bytes that a record carries: in the ring, or in a file of their own.
#[derive(Debug)]
pub enum Body {
    /// Copied out of the ring.
    Inline(Small),
    /// Still in the file.
    File(Blob),
    /// A parcel, still packed.
    Parcel(Arrived),
}

impl Body {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Inline(bytes) => bytes.len(),
            Self::File(blob) => blob.len(),
            Self::Parcel(parcel) => parcel.len(),
        }
    }

    /// Copies a part of them.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Inline(bytes) => {
                let end = offset.checked_add(into.len()).ok_or(io::ErrorKind::InvalidInput)?;
                into.copy_from_slice(bytes.get(offset..end).ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            Self::File(blob) => blob.read(offset, into),
            Self::Parcel(parcel) => parcel.read(offset, into),
        }
    }
}

/// One response, as the host got it.
#[derive(Debug)]
pub struct Reply {
    /// What it means.
    pub kind: ReplyKind,
    /// Which task it answers.
    pub task: u64,
    /// When the worker had the whole of it ready, in nanoseconds of the monotonic clock.
    pub finished_at: u64,
    /// What it carries.
    pub body: Body,
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    pub task: u64,
    pub function: u64,
    pub sections: [u64; 3],
    /// Whether the arguments are plain (see `plain.rs`).
    pub plain: bool,
    /// How many calls it is for, numbered one after the other. Their plain arguments follow each other.
    pub count: u64,
    /// Which sections travel in files of their own; the others follow in the ring.
    pub in_file: [bool; 3],
    /// Which of those are parcels.
    pub parcels: [bool; 3],
    /// The number of the first of those files, the others come right after it; zero if there are none.
    pub file: u32,
}

/// A response's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHeader {
    pub kind: ReplyKind,
    pub task: u64,
    pub finished_at: u64,
    pub len: u64,
    /// Whether the file is a parcel.
    pub parcel: bool,
    /// The number of the file that holds the body; zero if the body follows in the ring.
    pub file: u32,
    /// Whether the header itself is a short one.
    pub is_short: bool,
}

/// What is at a place of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<H> {
    /// A record.
    Record(H),
    /// Nothing more before the ring's end.
    Skip,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes make a word"))
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes make a half-word"))
}

impl RequestHeader {
    /// How many bytes follow in the ring. What was parsed cannot overflow it.
    pub fn inline(&self) -> u64 {
        (0..3).filter(|&at| !self.in_file[at]).map(|at| self.sections[at]).sum()
    }

    pub fn encode(&self) -> [u8; REQUEST_HEADER] {
        let mut bytes = [0; REQUEST_HEADER];
        let mut kind = if self.plain { REQUEST | PLAIN } else { REQUEST };
        if self.file != 0 {
            for at in 0..3 {
                kind |= if self.in_file[at] { IN_FILE[at] } else { 0 };
                kind |= if self.parcels[at] { PARCEL[at] } else { 0 };
            }
        }
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.file.to_le_bytes());
        let words = [self.task, self.function, self.sections[0], self.sections[1], self.sections[2]];
        for (at, value) in words.into_iter().enumerate() {
            bytes[8 + 8 * at..16 + 8 * at].copy_from_slice(&value.to_le_bytes());
        }
        bytes[COUNT_AT..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    /// `room` is how many bytes lie between the record's start and the end of the ring.
    pub fn parse(bytes: &[u8; REQUEST_HEADER], room: u64) -> Result<Parsed<Self>, Corrupt> {
        let kind = half(bytes, 0);
        if kind == SKIP {
            return Ok(Parsed::Skip);
        }
        if kind & !REQUEST_FLAGS != REQUEST {
            return Err(Corrupt(format!("request of unknown kind {kind:#x}")));
        }
        let (in_file, parcels) = (IN_FILE.map(|flag| kind & flag != 0), PARCEL.map(|flag| kind & flag != 0));
        let file = half(bytes, 4);
        if in_file.contains(&true) != (file != 0) || (0..3).any(|at| parcels[at] && !in_file[at]) {
            return Err(Corrupt(format!("request of kind {kind:#x} with file {file}")));
        }
        let sections = [word(bytes, 24), word(bytes, 32), word(bytes, 40)];
        let inline = (0..3).filter(|&at| !in_file[at]).map(|at| sections[at]);
        let inline = inline.fold(0u64, u64::saturating_add);
        if inline > INLINE_MAX as u64 || REQUEST_HEADER as u64 + padded(inline) > room {
            return Err(Corrupt(format!("request of {sections:?} bytes where the ring has {room}")));
        }
        let (count, plain) = (word(bytes, COUNT_AT), kind & PLAIN != 0);
        if count == 0 || count > 1 && !(plain && file == 0) {
            return Err(Corrupt(format!("request for {count} calls, plain: {plain}, file {file}")));
        }
        let (task, function) = (word(bytes, 8), word(bytes, 16));
        Ok(Parsed::Record(Self { task, function, sections, plain, count, in_file, parcels, file }))
    }
}

/// The start of a short header, of which the lower half of the task's number is a part.
pub fn short_header(task: u64, finished_at: u64, len: usize) -> [u8; SHORT_HEADER] {
    let len = u8::try_from(len).expect("a short header is for a short body");
    let mut bytes = [0; SHORT_HEADER];
    bytes[..4].copy_from_slice(&(SHORT | u32::from(len)).to_le_bytes());
    bytes[4..8].copy_from_slice(&task.to_le_bytes()[..4]);
    bytes[8..].copy_from_slice(&finished_at.to_le_bytes());
    bytes
}

impl ResponseHeader {
    pub fn encode(&self) -> [u8; RESPONSE_HEADER] {
        let mut bytes = [0; RESPONSE_HEADER];
        let kind = self.kind.code() | if self.parcel { PARCEL_RESPONSE } else { 0 };
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.file.to_le_bytes());
        for (at, value) in [self.task, self.finished_at, self.len].into_iter().enumerate() {
            bytes[8 + 8 * at..16 + 8 * at].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// How many bytes it takes in the ring, its body included.
    pub fn size(&self) -> u64 {
        let header = if self.is_short { SHORT_HEADER } else { RESPONSE_HEADER };
        header as u64 + padded(if self.file == 0 { self.len } else { 0 })
    }

    /// The first bytes of a response, if it is a short one; `task` is the one that is expected, which
    /// gives the upper half of the number. `available` is how many bytes lie between the record's
    /// start and what the worker has written.
    pub fn parse_short(
        bytes: &[u8; SHORT_HEADER],
        task: u64,
        available: u64,
    ) -> Result<Option<Parsed<Self>>, Corrupt> {
        let code = half(bytes, 0);
        if code == SKIP {
            return Ok(Some(Parsed::Skip));
        }
        if code & !0xff != SHORT {
            return Ok(None);
        }
        let len = u64::from(code & 0xff);
        let task = task & !0xffff_ffff | u64::from(half(bytes, 4));
        let header = Self {
            kind: ReplyKind::ReturnedPlain,
            task,
            finished_at: word(bytes, 8),
            len,
            parcel: false,
            file: 0,
            is_short: true,
        };
        if header.size() > available {
            return Err(Corrupt(format!("response of {len} bytes where {available} were written")));
        }
        Ok(Some(Parsed::Record(header)))
    }

    /// `available` is as above.
    pub fn parse(bytes: &[u8; RESPONSE_HEADER], available: u64) -> Result<Self, Corrupt> {
        let code = half(bytes, 0);
        let (file, len) = (half(bytes, 4), word(bytes, 24));
        let parcel = code & PARCEL_RESPONSE != 0;
        let kind = ReplyKind::from_code(code & !PARCEL_RESPONSE)
            .filter(|&kind| !parcel || file != 0 && kind.takes_parcel())
            .filter(|&kind| file == 0 || kind.takes_file())
            .ok_or_else(|| Corrupt(format!("response of unknown kind {code:#x}")))?;
        let inline = if file == 0 { len } else { 0 };
        if inline > INLINE_MAX as u64 || RESPONSE_HEADER as u64 + padded(inline) > available {
            return Err(Corrupt(format!("response of {len} bytes where {available} were written")));
        }
        let (task, finished_at) = (word(bytes, 8), word(bytes, 16));
        Ok(Self { kind, task, finished_at, len, parcel, file, is_short: false })
    }
}

/// The mark that sends a reader back to the ring's start.
pub fn skip_mark() -> [u8; 4] {
    SKIP.to_le_bytes()
}

/// Records start at multiples of eight, so that a header never straddles the ring's end by less
/// than the mark needs.
pub const fn padded(len: u64) -> u64 {
    len.div_ceil(8) * 8
}

/// Checks the two positions of a ring before anything between them is read.
pub fn check_positions(read: u64, written: u64) -> Result<u64, Corrupt> {
    let available = written.wrapping_sub(read);
    if available <= RING_LEN as u64 && available.is_multiple_of(8) {
        Ok(available)
    } else {
        Err(Corrupt(format!("ring read to {read} and written to {written}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn requests_come_back_as_they_were(
            task: u64, function: u64, sections in prop::array::uniform3(0u64..5000), plain: bool,
            in_file: [bool; 3], parcels: [bool; 3], file in 1u32.., many in 2u64..1000,
        ) {
            let parcels = [0, 1, 2].map(|at| parcels[at] && in_file[at]);
            let file = if in_file.contains(&true) { file } else { 0 };
            let count = if plain && file == 0 { many } else { 1 };
            let header = RequestHeader { task, function, sections, plain, count, in_file, parcels, file };
            let parsed = RequestHeader::parse(&header.encode(), RING_LEN as u64);
            prop_assert_eq!(Ok(Parsed::Record(header)), parsed);
        }

        #[test]
        fn responses_come_back_as_they_were(
            kind in 0usize..ReplyKind::ALL.len(), task: u64, finished_at: u64, len in 0u64..16_000,
            parcel: bool, file: u32,
        ) {
            let kind = ReplyKind::ALL[kind];
            let file = if kind.takes_file() { file } else { 0 };
            let parcel = parcel && file != 0 && kind.takes_parcel();
            let header = ResponseHeader { kind, task, finished_at, len, parcel, file, is_short: false };
            let parsed = ResponseHeader::parse(&header.encode(), RING_LEN as u64);
            prop_assert_eq!(Ok(header), parsed);
        }

        #[test]
        fn short_responses_come_back_as_they_were(
            task: u64, ahead in 0u64..1000, finished_at: u64, len in 0usize..=SHORT_MAX, available in 0u64..400,
        ) {
            let bytes = short_header(task, finished_at, len);
            let expected = task & !0xffff_ffff | ahead;
            let sound = SHORT_HEADER as u64 + padded(len as u64) <= available;
            match ResponseHeader::parse_short(&bytes, expected, available) {
                Ok(Some(Parsed::Record(header))) => {
                    prop_assert!(sound);
                    prop_assert_eq!((task, finished_at, len as u64), (header.task, header.finished_at, header.len));
                }
                other => prop_assert!(!sound && other.is_err()),
            }
        }

        #[test]
        fn no_response_reaches_past_what_was_written(
            kind in 0usize..ReplyKind::ALL.len(),
            file in 0u32..3,
            len in prop_oneof![0u64..20_000, any::<u64>()],
            available in 0u64..70_000,
        ) {
            let (kind, parcel, is_short) = (ReplyKind::ALL[kind], false, false);
            let header = ResponseHeader { kind, task: 1, finished_at: 2, len, parcel, file, is_short };
            let inline = if file == 0 { u128::from(len) } else { 0 };
            let sound = inline <= INLINE_MAX as u128
                && RESPONSE_HEADER as u128 + inline.div_ceil(8) * 8 <= available.into()
                && (file == 0 || kind.takes_file());
            prop_assert_eq!(sound, ResponseHeader::parse(&header.encode(), available).is_ok());
        }

        #[test]
        fn unknown_kinds_are_refused(bytes: [u8; REQUEST_HEADER], kind: u32) {
            let known = ReplyKind::ALL.iter().any(|known| known.code() == kind & !PARCEL_RESPONSE);
            prop_assume!(!known && kind & !REQUEST_FLAGS != REQUEST && kind != SKIP);
            let mut bytes = bytes;
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            prop_assert!(RequestHeader::parse(&bytes, RING_LEN as u64).is_err());
            let response = bytes[..RESPONSE_HEADER].try_into().expect("it is shorter");
            prop_assert!(ResponseHeader::parse(&response, RING_LEN as u64).is_err());
        }

        #[test]
        fn no_request_reaches_past_the_ring(
            sections in prop::array::uniform3(prop_oneof![0u64..20_000, any::<u64>()]),
            file in 0u32..3,
            room in 0u64..70_000,
        ) {
            let in_file = [file == 2, false, file > 0];
            let header = RequestHeader {
                task: 1, function: 2, sections, plain: true, count: 1, in_file, parcels: [false; 3], file,
            };
            let inline = (0..3).filter(|&at| !in_file[at]).map(|at| u128::from(sections[at])).sum::<u128>();
            let sound =
                inline <= INLINE_MAX as u128 && REQUEST_HEADER as u128 + inline.div_ceil(8) * 8 <= room.into();
            prop_assert_eq!(sound, RequestHeader::parse(&header.encode(), room).is_ok());
        }

        #[test]
        fn positions_are_sound_or_refused(read: u64, ahead in prop_oneof![0u64..70_000, any::<u64>()]) {
            let sound = ahead <= RING_LEN as u64 && ahead % 8 == 0;
            prop_assert_eq!(sound.then_some(ahead), check_positions(read, read.wrapping_add(ahead)).ok());
        }
    }
}
