//! Unix sockets and pipes: small messages, doorbells, end of file, and descriptors in passing.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

/// Most descriptors that travel with one message.
const MAX_FDS: usize = 4;

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
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let received = retry(|| {
        let mut slices = [IoSliceMut::new(into)];
        let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut space), RECEIVE_FLAGS)?;
        let mut fds = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = part {
                // SAFETY: the kernel has just made these descriptors for us; nobody else has them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        Ok(Received { bytes: message.bytes, fds })
    });
    match received {
        Ok(received) => Ok(Some(received)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            Ok(Some(Received { bytes: 0, fds: Vec::new() }))
        }
        Err(error) => Err(error),
    }
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
    fn nothing_yet_differs_from_the_end() {
        let (a, b) = socket_pair().unwrap();
        let mut bytes = [0; 8];
        assert!(receive(b.as_fd(), &mut bytes).unwrap().is_none());
        drop(a);
        assert_eq!(0, receive(b.as_fd(), &mut bytes).unwrap().unwrap().bytes);
        assert!(send_message(b.as_fd(), b"x", &[]).is_err());
    }
}
