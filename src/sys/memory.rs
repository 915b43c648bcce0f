//! Shared memory: segments mapped by both sides, and blobs passed from one side to the other.
//!
//! The peer of a segment may be hostile. On Linux the file is sealed against shrinking and
//! growing, so that touching the mapping can never raise SIGBUS and a write through the file
//! cannot go past its end. Contents are never trusted here: callers copy out, then check.
//!
//! A [`Mapping`] is what a receiver makes of a file that it was sent: its own, to read and to write,
//! and made only of a file that provably cannot shrink.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A shared mapping of a whole file.
#[derive(Debug)]
pub struct Segment {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping lives until drop, and every access goes through atomics or through copies
// of plain bytes; no reference to its contents is ever handed out.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Makes a new zeroed segment of `len` bytes and the file that another process can map.
    pub fn create(len: usize) -> io::Result<(Self, OwnedFd)> {
        let fd = anonymous_file(len as u64)?;
        seal_size(&fd)?;
        let segment = Self::map(fd.as_fd(), len)?;
        Ok((segment, fd))
    }

    /// Maps the segment behind `fd`, which must be `len` bytes long.
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice; it aliases nothing.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { base: base.cast(), len })
    }

    /// The 32-bit word at `offset`, which must be aligned and inside.
    #[expect(clippy::cast_ptr_alignment, reason = "the offset is checked and the base is a page")]
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len, "u32 at {offset}");
        // SAFETY: in bounds and aligned (the base is page-aligned); an atomic may be shared with
        // another process; the lifetime is that of the mapping.
        unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU32>() }
    }

    /// The 64-bit word at `offset`, which must be aligned and inside.
    #[expect(clippy::cast_ptr_alignment, reason = "the offset is checked and the base is a page")]
    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len, "u64 at {offset}");
        // SAFETY: as in `u32`.
        unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU64>() }
    }

    /// Copies bytes out; they may have been written by the peer at any time.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(offset <= self.len && into.len() <= self.len - offset, "read at {offset}");
        // SAFETY: in bounds; source and target cannot overlap, as nobody borrows the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.as_ptr().add(offset), into.as_mut_ptr(), into.len());
        }
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset <= self.len && from.len() <= self.len - offset, "write at {offset}");
        // SAFETY: as in `read`.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.base.as_ptr().add(offset), from.len());
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping: {unmapped:?}");
    }
}

/// Where a segment can be found that lives as long as the process.
#[derive(Debug)]
pub struct LastingSegment(AtomicPtr<Segment>);

impl LastingSegment {
    /// There is none yet.
    pub const fn unset() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// It is this one.
    pub fn set(&self, segment: &'static Segment) {
        self.0.store(std::ptr::from_ref(segment).cast_mut(), Ordering::Release);
    }

    /// Which one it is.
    pub fn get(&self) -> Option<&'static Segment> {
        // SAFETY: what was stored was a reference that lives as long as the process, and is only read.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }
}

/// Bytes too large for a ring, in a file of their own that is passed over a socket.
#[derive(Debug)]
pub struct Blob {
    file: File,
    len: usize,
}

impl Blob {
    /// Writes `parts` one after the other into a new file.
    ///
    /// `write` into a fresh memfd saves the page fault that storing through a mapping takes every
    /// 4 KiB.
    pub fn create(parts: &[&[u8]]) -> io::Result<OwnedFd> {
        let file = File::from(anonymous_file(0)?);
        let mut position = 0;
        for part in parts {
            file.write_all_at(part, position)?;
            position += part.len() as u64;
        }
        Ok(file.into())
    }

    /// Takes over a received file that claims to hold `len` bytes.
    pub fn open(fd: OwnedFd, len: usize) -> io::Result<Self> {
        let file = File::from(fd);
        if file.metadata()?.len() != len as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "blob is not as long as announced"));
        }
        Ok(Self { file, len })
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `into.len()` bytes from `offset`. A file that shrank meanwhile is an error, never
    /// a signal: this reads and does not map.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset as u64)
    }
}

/// A private mapping of a file: what is written to it stays in this process.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// How often this process had forked when it was made.
    forks: u64,
}

// SAFETY: the mapping lives until drop. Its contents are handed out as an address only, to whoever
// keeps the rules of the interpreter's buffers.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file. Refused unless the file has them and cannot lose them:
    /// touching a page that is not there any more would kill this process.
    pub fn of(file: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        check_cannot_shrink(file, len)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let forks = super::fork_count();
        let base = map_for_huge_pages(file, 0, len, protection, MapFlags::MAP_PRIVATE)?;
        Ok(Self { base, len, forks })
    }

    /// Where it begins.
    pub fn address(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether just these bytes are there.
    pub fn holds(&self, bytes: &[u8], offset: usize) -> bool {
        assert!(offset <= self.len && bytes.len() <= self.len - offset, "compared at {offset}");
        // SAFETY: in bounds, and the mapping lives as long as `self`. Callers that compare hand its
        // address to nobody, and its file is sealed against writing.
        let found = unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset), bytes.len()) };
        found == bytes
    }

    /// All that is there now.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn copy(&self) -> Vec<u8> {
        // SAFETY: the whole mapping. The tests that ask for this do not write meanwhile.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }.to_vec()
    }

    /// Whether it has none, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether no other process has a copy of it, because this one has not forked since. (Those that
    /// exec at once, as `posix_spawn` does, have none.)
    pub fn is_sole(&self) -> bool {
        super::fork_count() == self.forks
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and whoever was told its address has to keep `self`.
        let unmapped = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping: {unmapped:?}");
    }
}

/// The length and the alignment of the kernel's huge pages. Where they are longer, there are none here.
pub const HUGE_PAGE: usize = 2 << 20;

/// Maps a file such that its huge pages can be mapped as such. Newer kernels choose an address like
/// that themselves; with others it may be lost to another thread, and then small ones have to do.
fn map_for_huge_pages(
    file: BorrowedFd<'_>,
    offset: i64,
    len: usize,
    protection: ProtFlags,
    flags: MapFlags,
) -> io::Result<NonNull<u8>> {
    let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a fresh mapping at an address of the kernel's choice; it aliases nothing.
    let map = |hint| unsafe { mmap(hint, length, protection, flags, file, offset) };
    let base = map(None)?;
    if len < HUGE_PAGE || base.addr().get().is_multiple_of(HUGE_PAGE) {
        return Ok(base.cast());
    }
    // SAFETY: the mapping was made just now, and nobody has been told of it.
    unsafe { munmap(base, len) }?;
    Ok(map(room_for_huge_pages(len))?.cast())
}

/// An address where there is room for that, at the beginning of a huge page.
fn room_for_huge_pages(len: usize) -> Option<NonZeroUsize> {
    let length = NonZeroUsize::new(len.checked_add(HUGE_PAGE)?)?;
    // SAFETY: a fresh mapping that takes no memory and is gone at once.
    let room = unsafe {
        let room = mmap_anonymous(None, length, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE).ok()?;
        munmap(room, length.get()).ok()?;
        room
    };
    NonZeroUsize::new(room.addr().get().next_multiple_of(HUGE_PAGE))
}

/// Has the kernel take huge pages for a part of a file that holds nothing yet: one such page is had, and
/// later mapped, in a fraction of the time that 512 small ones take. `WouldBlock` if some of them were
/// not to be had just now.
///
/// Asked for like this the kernel does so whatever its settings for shared memory say, which mostly
/// exclude it. That needs something to be there already, and a mapping, which is gone at once.
#[cfg(target_os = "linux")]
pub fn make_huge(file: BorrowedFd<'_>, part: Range<usize>) -> io::Result<()> {
    let offset = |at: usize| i64::try_from(at).map_err(|_| io::ErrorKind::InvalidInput);
    for at in part.clone().step_by(HUGE_PAGE) {
        nix::sys::uio::pwrite(file, &[0], offset(at)?)?;
    }
    let (start, len) = (offset(part.start)?, part.len());
    let base = map_for_huge_pages(file, start, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED)?.cast();
    // SAFETY: the mapping was made just now, nobody looks at it, and what it holds stays the same.
    unsafe {
        let made = nix::errno::Errno::result(libc::madvise(base.as_ptr(), len, MADV_COLLAPSE));
        munmap(base, len)?;
        made?;
    }
    Ok(())
}

/// The bindings have it for some C libraries only.
#[cfg(target_os = "linux")]
const MADV_COLLAPSE: libc::c_int = 25;

/// There are none here.
#[cfg(not(target_os = "linux"))]
pub fn make_huge(_file: BorrowedFd<'_>, _part: Range<usize>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A new file of memory that may grow but never shrink.
#[cfg(target_os = "linux")]
pub fn lasting_file() -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let fd = anonymous_file(0)?;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    Ok(fd)
}

/// See above; there are no seals here, and who receives it has to read it.
#[cfg(not(target_os = "linux"))]
pub fn lasting_file() -> io::Result<OwnedFd> {
    anonymous_file(0)
}

/// Nobody can write to this file any more, whoever has it.
#[cfg(target_os = "linux")]
pub fn seal_contents(file: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(file, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    Ok(())
}

/// There are no seals here.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "the Linux twin can fail")]
pub fn seal_contents(_file: BorrowedFd<'_>) -> io::Result<()> {
    Ok(())
}

/// The seal first: what the length is after that, it stays. A file on another file system may have
/// pages that cannot be had when they are touched, such as huge ones.
#[cfg(target_os = "linux")]
fn check_cannot_shrink(file: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
    let seals = SealFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GET_SEALS)?);
    let sound = seals.contains(SealFlag::F_SEAL_SHRINK)
        && fstatfs(file)?.filesystem_type() == TMPFS_MAGIC
        && u64::try_from(nix::sys::stat::fstat(file)?.st_size).is_ok_and(|size| size >= len as u64);
    sound.then_some(()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// There are no seals here.
#[cfg(not(target_os = "linux"))]
fn check_cannot_shrink(_file: BorrowedFd<'_>, _len: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn anonymous_file(len: u64) -> io::Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let fd = memfd_create(c"killercall", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    set_len(fd, len)
}

#[cfg(not(target_os = "linux"))]
fn anonymous_file(len: u64) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use nix::sys::mman::{shm_open, shm_unlink};
    use nix::sys::stat::Mode;
    use std::sync::atomic::{AtomicU64, Ordering};

    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("/kc.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
    let fd = shm_open(name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    shm_unlink(name.as_str())?;
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    set_len(fd, len)
}

fn set_len(fd: OwnedFd, len: u64) -> io::Result<OwnedFd> {
    let file = File::from(fd);
    file.set_len(len)?;
    Ok(file.into())
}

#[cfg(target_os = "linux")]
fn seal_size(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "the Linux twin can fail")]
fn seal_size(_fd: &OwnedFd) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_segment_is_one_memory_for_both_who_map_it() {
        let (ours, fd) = Segment::create(4096).unwrap();
        let theirs = Segment::map(fd.as_fd(), 4096).unwrap();
        ours.u64(8).store(7, Ordering::Relaxed);
        ours.write(100, b"hello");
        let mut copy = [0; 5];
        theirs.read(100, &mut copy);
        assert_eq!((7, b"hello"), (theirs.u64(8).load(Ordering::Relaxed), &copy));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peer_can_neither_shrink_nor_grow_a_segment() {
        let (_segment, fd) = Segment::create(4096).unwrap();
        let file = File::from(fd);
        assert!(file.set_len(0).is_err());
        assert!(file.write_at(b"x", 4096).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_what_cannot_shrink_is_mapped() {
        let lasting = lasting_file().unwrap();
        File::from(lasting.try_clone().unwrap()).set_len(5000).unwrap();
        let mapping = Mapping::of(lasting.as_fd(), 5000).unwrap();
        assert_eq!(5000, mapping.len());
        assert!(Mapping::of(lasting.as_fd(), 5001).is_err());
        assert!(File::from(lasting).set_len(4999).is_err());
        let unsealed = Blob::create(&[&[1; 5000]]).unwrap();
        assert!(Mapping::of(unsealed.as_fd(), 5000).is_err());
        let (pipe, _writer) = io::pipe().unwrap();
        assert!(Mapping::of(pipe.as_fd(), 1).is_err());
        let on_disk = File::open("/proc/self/exe").unwrap();
        assert!(Mapping::of(on_disk.as_fd(), 1).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_huge_page_holds_what_is_written_around_it() {
        let file = File::from(lasting_file().unwrap());
        file.set_len(3 * HUGE_PAGE as u64).unwrap();
        file.write_all_at(b"before", HUGE_PAGE as u64 - 6).unwrap();
        // A kernel without it refuses, and then nothing has changed either.
        let made = make_huge(file.as_fd(), HUGE_PAGE..2 * HUGE_PAGE);
        file.write_all_at(b"in it", HUGE_PAGE as u64 + 4000).unwrap();
        let mapping = Mapping::of(file.as_fd(), 3 * HUGE_PAGE).unwrap();
        assert!(mapping.holds(b"before\0\0", HUGE_PAGE - 6), "{made:?}");
        assert!(mapping.holds(b"in it\0", HUGE_PAGE + 4000), "{made:?}");
        assert!(!mapping.holds(b"in it\0", HUGE_PAGE + 4001));
        assert!(mapping.holds(&vec![0; HUGE_PAGE - 4005], HUGE_PAGE + 4005));
        assert!(mapping.base.addr().get().is_multiple_of(HUGE_PAGE) || made.is_err());
        assert!(make_huge(file.as_fd(), 4 * HUGE_PAGE..6 * HUGE_PAGE).is_ok() || made.is_err(), "it grows");
    }

    #[test]
    fn there_is_room_at_the_beginning_of_a_huge_page() {
        let room = room_for_huge_pages(5 * HUGE_PAGE + 1).unwrap();
        assert!(room.get().is_multiple_of(HUGE_PAGE));
        assert!(room_for_huge_pages(usize::MAX).is_none());
        assert!(room_for_huge_pages(usize::MAX / 2).is_none());
    }

    #[test]
    fn a_blob_of_another_length_is_refused() {
        let fd = Blob::create(&[b"ab", b"", b"cd"]).unwrap();
        assert!(Blob::open(fd.try_clone().unwrap(), 3).is_err());
        let blob = Blob::open(fd, 4).unwrap();
        let mut tail = [0; 3];
        blob.read(1, &mut tail).unwrap();
        assert_eq!(b"bcd", &tail);
        assert!(blob.read(2, &mut tail).is_err());
    }
}
