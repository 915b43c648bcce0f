//! Values whose large buffers travel beside the pickled stream, all in one file.
//!
//! ```text
//! | magic | flags | length of the stream | number of buffers | length of each buffer ...
//! | stream | buffer | buffer ...            (each number 8 bytes, each buffer on pages of its own)
//! ```
//!
//! Where each part begins follows from the lengths, so parts cannot overlap. The sender writes each
//! byte once; the receiver copies the numbers out, checks them, and maps the rest. What a mapped
//! buffer holds is the affair of whoever reads it: no number in there is ever used here.
//!
//! A parcel is lent, and then its file is sealed against all writing and may go to many; or given
//! for good to one receiver, and then its file may be used again, see [`pool`].

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pool;
use crate::sys::{self, HUGE_PAGE, Mapping};

/// How a parcel begins.
pub(super) const MAGIC: u64 = 0x0031_4c43_5241_504b;
const GIVEN: u64 = 1;
const HEAD: usize = 32;
/// Most buffers of one parcel.
pub const BUFFERS_MAX: usize = 1 << 16;
/// A cache line, and what arrays like to begin at.
const ALIGNMENT: usize = 64;
const PAGE: usize = 4096;
/// Shorter files are read: two system calls, and a fault for every few pages, take longer.
const MAPPED_MIN: usize = 128 * 1024;
/// Most mappings at a time. The kernel allows a process 65,530 and breaks it when there are more.
const MAPPINGS_MAX: usize = 8192;
/// Most descriptors that are kept open beside mappings, for the sake of using their files again.
const KEPT_MAX: usize = 16;
/// Bytes that are compared at a time: they stay in the processor's cache.
const CHUNK: usize = 64 * 1024;

/// How much is put on huge pages at a time. The kernel waits for all processors each time; a memory watch
/// may see so much twice.
const PREPARED: usize = 8 * HUGE_PAGE;

static MAPPINGS: AtomicUsize = AtomicUsize::new(0);
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Where the parts of a parcel are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The pickled stream.
    pub stream: Range<usize>,
    /// The buffers, in their order.
    pub buffers: Vec<Range<usize>>,
}

impl Layout {
    /// `None` if that is more than there can be.
    fn new(stream: usize, buffers: impl ExactSizeIterator<Item = usize>) -> Option<Self> {
        if buffers.len() > BUFFERS_MAX {
            return None;
        }
        let mut end = HEAD + 8 * buffers.len();
        let mut place = |len: usize| {
            let alignment = if len < PAGE { ALIGNMENT } else { PAGE };
            let start = end.checked_next_multiple_of(alignment)?;
            end = start.checked_add(len).filter(|&end| isize::try_from(end).is_ok())?;
            Some(start..end)
        };
        let stream = place(stream)?;
        let buffers = buffers.map(place).collect::<Option<_>>()?;
        Some(Self { stream, buffers })
    }

    fn end(&self) -> usize {
        self.buffers.last().map_or(self.stream.end, |last| last.end)
    }

    fn head(&self, flags: u64) -> Vec<u8> {
        let lengths = [&self.stream].into_iter().chain(&self.buffers).map(|part| part.len() as u64);
        let mut words = vec![MAGIC, flags];
        words.extend(lengths);
        words.insert(3, self.buffers.len() as u64);
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

/// A parcel to be sent.
#[derive(Debug)]
pub struct Parcel {
    file: File,
    len: usize,
    layout: Layout,
    is_lent: bool,
}

impl Parcel {
    /// Packs the parts of a stream, one after the other, and buffers.
    pub fn pack(stream: &[&[u8]], buffers: &[&[u8]], given: bool) -> io::Result<Self> {
        let len = stream.iter().map(|part| part.len()).sum();
        let layout = Layout::new(len, buffers.iter().map(|buffer| buffer.len()));
        let layout = layout.ok_or(io::ErrorKind::InvalidInput)?;
        // A file that comes from who knows where may refuse, and then a new one does it.
        let used = if given { pool::take(layout.end()) } else { None };
        let used = used.and_then(|(file, len)| Self::write(file, len, &layout, stream, buffers, GIVEN).ok());
        if let Some(parcel) = used {
            return Ok(parcel);
        }
        let flags = if given { GIVEN } else { 0 };
        let parcel = Self::write(sys::lasting_file()?, 0, &layout, stream, buffers, flags)?;
        if !given {
            sys::seal_contents(parcel.file.as_fd())?;
        }
        Ok(parcel)
    }

    fn write(
        file: OwnedFd,
        len: usize,
        layout: &Layout,
        stream: &[&[u8]],
        buffers: &[&[u8]],
        flags: u64,
    ) -> io::Result<Self> {
        let file = File::from(file);
        let end = layout.end();
        if len < end {
            file.set_len(end as u64)?;
        }
        let mut writer = Writer::new(&file, len, end);
        let mut front = layout.head(flags);
        front.resize(layout.stream.start, 0);
        writer.write(&front, 0)?;
        let mut at = layout.stream.start;
        for part in stream {
            writer.write(part, at)?;
            at += part.len();
        }
        for (buffer, place) in buffers.iter().zip(&layout.buffers) {
            writer.write(buffer, place.start)?;
        }
        Ok(Self { file, len: len.max(end), layout: layout.clone(), is_lent: flags & GIVEN == 0 })
    }

    /// The file to be sent.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How long that is.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether just this was packed.
    pub fn holds(&self, stream: &[&[u8]], buffers: &[&[u8]]) -> io::Result<bool> {
        let len = stream.iter().map(|part| part.len()).sum();
        if Layout::new(len, buffers.iter().map(|buffer| buffer.len())).as_ref() != Some(&self.layout) {
            return Ok(false);
        }
        // Its seals see to it that the mapping holds what was written, and nothing else ever.
        let mapping = (self.is_lent && self.len >= MAPPED_MIN)
            .then(|| Mapping::of(self.file.as_fd(), self.len).ok())
            .flatten();
        let mut chunk = vec![0; if mapping.is_some() { 0 } else { CHUNK }];
        let mut same = |part: &[u8], start: usize| {
            if let Some(mapping) = &mapping {
                return Ok(mapping.holds(part, start));
            }
            let mut at = start as u64;
            for expected in part.chunks(CHUNK) {
                let found = &mut chunk[..expected.len()];
                self.file.read_exact_at(found, at)?;
                if found != expected {
                    return Ok(false);
                }
                at += expected.len() as u64;
            }
            io::Result::Ok(true)
        };
        let mut start = self.layout.stream.start;
        for part in stream {
            if !same(part, start)? {
                return Ok(false);
            }
            start += part.len();
        }
        for (buffer, place) in buffers.iter().zip(&self.layout.buffers) {
            if !same(buffer, place.start)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Writes a file from its beginning to its end, on huge pages where it holds nothing yet.
struct Writer<'a> {
    file: &'a File,
    /// Where the next huge page can begin, and where the last one has to end.
    next: usize,
    end: usize,
}

impl<'a> Writer<'a> {
    /// For a file that was `len` bytes long and now has `end` or more.
    fn new(file: &'a File, len: usize, end: usize) -> Self {
        let next = len.checked_next_multiple_of(HUGE_PAGE).unwrap_or(usize::MAX);
        Self { file, next, end: end / HUGE_PAGE * HUGE_PAGE }
    }

    fn write(&mut self, mut bytes: &[u8], mut at: usize) -> io::Result<()> {
        while !bytes.is_empty() {
            if at >= self.next && at < self.end {
                self.next = self.prepare(at / HUGE_PAGE * HUGE_PAGE);
            }
            // As far as that goes, while it is in the processor's cache; or to where it begins.
            let stop = if at < self.end && at < self.next { self.next } else { usize::MAX };
            let (now, rest) = bytes.split_at(bytes.len().min(stop - at));
            self.file.write_all_at(now, at as u64)?;
            at += now.len();
            bytes = rest;
        }
        Ok(())
    }

    /// Makes some huge pages, and returns where the next one is to begin.
    fn prepare(&self, start: usize) -> usize {
        let end = self.end.min(start.saturating_add(PREPARED));
        match sys::make_huge(self.file.as_fd(), start..end) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => self.end,
            _ => end,
        }
    }
}

/// A parcel that has arrived, its numbers checked.
#[derive(Debug)]
pub struct Arrived {
    file: File,
    len: usize,
    layout: Layout,
    given: bool,
}

impl Arrived {
    /// Takes over a received file that claims to be `len` bytes long.
    pub fn open(fd: OwnedFd, len: usize) -> io::Result<Self> {
        let nonsense = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        let file = File::from(fd);
        if file.metadata()?.len() != len as u64 {
            return Err(nonsense("parcel is not as long as announced"));
        }
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0)?;
        let [magic, flags, stream, count] = std::array::from_fn(|at| word(&head[8 * at..]));
        if magic != MAGIC || flags & !GIVEN != 0 || count > BUFFERS_MAX as u64 {
            return Err(nonsense("parcel with a strange head"));
        }
        let count = usize::try_from(count).map_err(|_| nonsense("parcel with too many buffers"))?;
        let mut lengths = vec![0; 8 * count];
        file.read_exact_at(&mut lengths, HEAD as u64)?;
        let lengths = lengths.chunks_exact(8).map(|bytes| usize::try_from(word(bytes)).unwrap_or(usize::MAX));
        let layout = Layout::new(usize::try_from(stream).unwrap_or(usize::MAX), lengths)
            .filter(|layout| layout.end() <= len)
            .ok_or_else(|| nonsense("parcel with more in it than it is long"))?;
        Ok(Self { file, len, layout, given: flags & GIVEN != 0 })
    }

    /// How long the file is.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes of the file.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset as u64)
    }

    /// Where the parts are, and the memory that they are in.
    pub fn unpack(self) -> io::Result<(Layout, Memory)> {
        let end = self.layout.end();
        let place = (end >= MAPPED_MIN).then(|| Place::take(&MAPPINGS, MAPPINGS_MAX)).flatten();
        let mapped = place.and_then(|place| Some((Mapping::of(self.file.as_fd(), end).ok()?, place)));
        let Some((mapping, place)) = mapped else {
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(end).map_err(|_| io::ErrorKind::OutOfMemory)?;
            bytes.resize(end, 0);
            self.file.read_exact_at(&mut bytes, 0)?;
            return Ok((self.layout, Memory::Read(bytes)));
        };
        let kept = (self.given && self.len >= pool::LEN_MIN).then(|| Place::take(&KEPT, KEPT_MAX)).flatten();
        let kept = kept.map(|place| (self.file.into(), self.len, place));
        Ok((self.layout, Memory::Mapped(Mapped { mapping: Some(mapping), kept, _place: place })))
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes make a word"))
}

/// One of a limited number of places.
#[derive(Debug)]
struct Place(&'static AtomicUsize);

impl Place {
    fn take(count: &'static AtomicUsize, most: usize) -> Option<Self> {
        let place = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What was in a parcel, for the receiver alone.
#[derive(Debug)]
pub enum Memory {
    /// Pages of the file, copied only when they are written to.
    Mapped(Mapped),
    /// A copy.
    Read(Vec<u8>),
}

/// Pages of a file, which may be used again when they are in use no more.
#[derive(Debug)]
pub struct Mapped {
    mapping: Option<Mapping>,
    kept: Option<(OwnedFd, usize, Place)>,
    _place: Place,
}

impl Memory {
    /// Where it begins, for whoever keeps `self` as long as that is in use.
    pub fn address(&mut self) -> *mut u8 {
        match self {
            Self::Mapped(mapped) => mapped.mapping.as_ref().map_or(std::ptr::null_mut(), Mapping::address),
            Self::Read(bytes) => bytes.as_mut_ptr(),
        }
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        match self {
            Self::Mapped(mapped) => mapped.mapping.as_ref().map_or(0, Mapping::len),
            Self::Read(bytes) => bytes.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All that is there now.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn copy(&self) -> Vec<u8> {
        match self {
            Self::Mapped(mapped) => mapped.mapping.as_ref().map_or_else(Vec::new, Mapping::copy),
            Self::Read(bytes) => bytes.clone(),
        }
    }
}

impl Drop for Mapped {
    /// A forked copy of this process may still look at the pages that it has not written to: then they
    /// must stay as they are.
    fn drop(&mut self) {
        let is_sole = self.mapping.as_ref().is_some_and(Mapping::is_sole);
        self.mapping = None;
        if let Some((file, len, _)) = self.kept.take()
            && is_sole
        {
            pool::put(file, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contents(memory: &Memory, part: &Range<usize>) -> Vec<u8> {
        memory.copy()[part.clone()].to_vec()
    }

    fn deliver(parcel: &Parcel) -> Arrived {
        Arrived::open(parcel.file().try_clone_to_owned().unwrap(), parcel.len()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn parts_arrive_as_they_were_sent(
            stream in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
            lens in prop::collection::vec(prop_oneof![0usize..300, 4000usize..9000, Just(200_000)], 0..5),
            given: bool,
        ) {
            let stream: Vec<&[u8]> = stream.iter().map(|part| &part[..]).collect();
            let buffers: Vec<Vec<u8>> =
                lens.iter().zip(1u8..).map(|(&len, fill)| vec![fill; len]).collect();
            let buffers: Vec<&[u8]> = buffers.iter().map(|buffer| &buffer[..]).collect();
            let parcel = Parcel::pack(&stream, &buffers, given).unwrap();
            prop_assert!(parcel.holds(&stream, &buffers).unwrap());
            let (layout, memory) = deliver(&parcel).unpack().unwrap();
            prop_assert_eq!(stream.concat(), contents(&memory, &layout.stream));
            prop_assert_eq!(buffers.len(), layout.buffers.len());
            for (buffer, place) in buffers.iter().zip(&layout.buffers) {
                prop_assert_eq!(*buffer, &contents(&memory, place)[..]);
                prop_assert!(buffer.len() < PAGE || place.start % PAGE == 0);
            }
        }
    }

    #[test]
    fn a_file_with_huge_pages_grows() {
        let bytes: Vec<u8> = (0..9 << 20).map(|at: u32| (at / 511).to_le_bytes()[0]).collect();
        let file = sys::lasting_file().unwrap();
        let mut before = 0;
        for len in [100, 3 << 20, (4 << 20) + 1, 4 << 20, bytes.len()] {
            let buffers = [&bytes[..70_000], &bytes[..len]];
            let layout = Layout::new(6, buffers.iter().map(|buffer| buffer.len())).unwrap();
            let used = file.try_clone().unwrap();
            let parcel = Parcel::write(used, before, &layout, &[b"stream"], &buffers, GIVEN).unwrap();
            before = parcel.len();
            assert!(parcel.holds(&[b"stream"], &buffers).unwrap());
            let (layout, memory) = deliver(&parcel).unpack().unwrap();
            assert_eq!(b"stream", &contents(&memory, &layout.stream)[..]);
            assert!(contents(&memory, &layout.buffers[1]) == bytes[..len], "{len} bytes");
        }
    }

    #[test]
    fn a_byte_makes_a_difference() {
        let mut bytes = vec![7; 300_000];
        let parcel = Parcel::pack(&[b"stream"], &[&bytes], false).unwrap();
        assert!(parcel.holds(&[b"str", b"eam"], &[&bytes]).unwrap());
        assert!(!parcel.holds(&[b"Stream"], &[&bytes]).unwrap());
        assert!(!parcel.holds(&[b"stream"], &[&bytes[1..]]).unwrap());
        bytes[299_999] = 8;
        assert!(!parcel.holds(&[b"stream"], &[&bytes]).unwrap());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_lent_cannot_be_written_to() {
        let bytes = vec![7; 300_000];
        let parcel = Parcel::pack(&[b"stream"], &[&bytes], false).unwrap();
        assert!(parcel.file.write_at(b"x", 0).is_err());
        assert!(parcel.file.set_len(1 << 20).is_err());
        assert!(matches!(deliver(&parcel).unpack().unwrap().1, Memory::Mapped(_)));
    }

    #[test]
    fn nonsense_is_refused() {
        let bytes = vec![7; 5000];
        let parcel = Parcel::pack(&[b"stream"], &[&bytes], true).unwrap();
        let open = || Arrived::open(parcel.file().try_clone_to_owned().unwrap(), parcel.len());
        assert!(open().is_ok());
        for (at, value) in [(0, 1), (8, 2), (16, u64::MAX), (16, 6000), (24, 2), (24, u64::MAX), (32, 5001)] {
            let mut before = [0; 8];
            parcel.file.read_exact_at(&mut before, at).unwrap();
            parcel.file.write_all_at(&value.to_le_bytes(), at).unwrap();
            assert!(open().is_err(), "{value} at {at}");
            parcel.file.write_all_at(&before, at).unwrap();
        }
        assert!(open().is_ok());
        let fd = parcel.file().try_clone_to_owned().unwrap();
        assert!(Arrived::open(fd, parcel.len() + 1).is_err());
    }
}
