//! Unix sockets and pipes: small messages, doorbells, end of file, and descriptors in passing.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

/// Most descriptors that we send with one message.
const MAX_FDS: usize = 4;
/// The same in bytes.
const FDS_LEN: u32 = 16;

#[cfg(target_os = "linux")]
const SEND_FLAGS: MsgFlags = MsgFlags::MSG_NOSIGNAL.union(MsgFlags::MSG_DONTWAIT);
#[cfg(not(target_os = "linux"))]
const SEND_FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT;

#[cfg(target_os = "linux")]
const RECEIVE_FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_CMSG_CLOEXEC);
#[cfg(not(target_os = "linux"))]
const RECEIVE_FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT;

/// What one receive brought.
#[derive(Debug)]
pub struct Received {
    /// How many bytes; zero only at end of file.
    pub bytes: usize,
    /// The descriptors that came along, already owned and close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// Whether there were more than may travel together, or than this process may still open.
    pub cut: bool,
}

/// A connected pair of stream sockets, both close-on-exec.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    // std makes them close-on-exec on every platform, atomically where the platform can.
    let (a, b) = std::os::unix::net::UnixStream::pair()?;
    Ok((a.into(), b.into()))
}

/// A pipe (reader, writer), both close-on-exec, the writer never blocking.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (reader, writer) = io::pipe()?;
    let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer))
}

/// Sends `bytes` (whole or not at all) and `fds` without waiting.
///
/// Messages are small, and a stream socket queues a small message whole; a short send would tear
/// the stream apart, so it is an error.
pub fn send_message(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let sent =
        retry(|| sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, SEND_FLAGS, None))?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::WriteZero, "message was cut short"))
    }
}

/// Receives what there is, without waiting: `None` if there is nothing yet.
pub fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Option<Received>> {
    match retry(|| receive_message(socket, into)) {
        Ok(received) => Ok(Some(received)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            Ok(Some(Received { bytes: 0, fds: Vec::new(), cut: false }))
        }
        Err(error) => Err(error),
    }
}

/// One `recvmsg`.
///
/// nix hides the descriptors that arrived if others were cut off, and so they stay open for good:
/// a worker could use up those of its host.
fn receive_message(socket: BorrowedFd<'_>, into: &mut [u8]) -> nix::Result<Received> {
    // Words, because the kernel writes headers of words into it.
    let mut control = [0u64; 8];
    let mut slice = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: plain numbers and pointers, for all of which zeroes are a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the function only computes. MAX_FDS descriptors fit into eight words.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(FDS_LEN) } as _;
    debug_assert!(message.msg_controllen as usize <= size_of_val(&control));
    // SAFETY: all that `message` points to is ours, alive and as long as it says.
    let bytes = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, RECEIVE_FLAGS.bits()) };
    let bytes = usize::try_from(nix::Error::result(bytes)?).expect("not negative");
    let mut fds = Vec::new();
    // SAFETY: the kernel filled `control` with whole headers, each as long as it says; at most
    // MAX_FDS descriptors lie behind one, and they were made for us: nobody else has them.
    unsafe {
        let mut part = libc::CMSG_FIRSTHDR(&raw const message);
        while !part.is_null() {
            if (*part).cmsg_level == libc::SOL_SOCKET && (*part).cmsg_type == libc::SCM_RIGHTS {
                let len = ((*part).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                let count = (len / size_of::<RawFd>()).min(MAX_FDS);
                let data = libc::CMSG_DATA(part).cast::<[u8; size_of::<RawFd>()]>();
                for at in 0..count {
                    fds.push(OwnedFd::from_raw_fd(RawFd::from_ne_bytes(data.add(at).read())));
                }
            }
            part = libc::CMSG_NXTHDR(&raw const message, part);
        }
    }
    Ok(Received { bytes, fds, cut: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Writes all of `bytes` to a pipe; a pipe that is full is an error.
pub fn send_all(pipe: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let written = retry(|| nix::unistd::write(pipe.as_fd(), bytes))?;
    if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Reads what there is in a pipe that does not block: `None` if there is nothing yet, zero at the
/// end of file.
pub fn read_pipe(pipe: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Option<usize>> {
    match retry(|| nix::unistd::read(pipe, into)) {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tells the peer that nothing more will be sent, for all who hold this end.
pub fn half_close(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Write)?)
}

/// Repeats a call that a signal interrupted; these calls never wait, so this ends.
pub(super) fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(nix::Error::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_travel_with_a_message() {
        let (a, b) = socket_pair().unwrap();
        let (reader, writer) = pipe().unwrap();
        send_message(a.as_fd(), b"f", &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut bytes = [0; 8];
        let received = receive(b.as_fd(), &mut bytes).unwrap().unwrap();
        assert_eq!((1, 1), (received.bytes, received.fds.len()));
        send_all(received.fds[0].as_fd(), b"through").unwrap();
        assert_eq!(7, nix::unistd::read(&reader, &mut bytes).unwrap());
    }

    #[test]
    fn too_many_descriptors_are_noticed_and_closed() {
        let (a, b) = socket_pair().unwrap();
        let (reader, writer) = pipe().unwrap();
        send_message(a.as_fd(), b"f", &[writer.as_fd(); MAX_FDS]).unwrap();
        send_message(a.as_fd(), b"f", &[writer.as_fd(); MAX_FDS + 8]).unwrap();
        drop(writer);
        let mut bytes = [0; 8];
        assert_eq!(MAX_FDS, receive(b.as_fd(), &mut bytes).unwrap().unwrap().fds.len());
        let received = receive(b.as_fd(), &mut bytes).unwrap().unwrap();
        assert_eq!((MAX_FDS, true), (received.fds.len(), received.cut));
        drop(received);
        // End of file: no copy of the writer is open anywhere.
        assert_eq!(Some(0), read_pipe(reader.as_fd(), &mut bytes).unwrap());
    }

    #[test]
    fn nothing_yet_differs_from_the_end() {
        let (a, b) = socket_pair().unwrap();
        let mut bytes = [0; 8];
        assert!(receive(b.as_fd(), &mut bytes).unwrap().is_none());
        drop(a);
        assert_eq!(0, receive(b.as_fd(), &mut bytes).unwrap().unwrap().bytes);
        assert!(send_message(b.as_fd(), b"x", &[]).is_err());
    }
}
