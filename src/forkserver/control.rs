//! The messages between host and forkserver, of fixed size.

use std::io;

use crate::sys::ExitStatus;

/// Bytes of a command.
pub const COMMAND_LEN: usize = 32;
/// Bytes of a notice.
pub const NOTICE_LEN: usize = 16;

/// From the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The first message; brings the life socket, and the host's pidfd where there is one.
    Attach,
    /// Fork a worker; brings notice pipe, segment and socket, in this order.
    Fork {
        /// The worker's number, unique in this forkserver.
        worker: u64,
        /// Whether the worker is a fresh interpreter.
        exec: bool,
        /// Most bytes of memory that it and all that it starts may use; zero for no limit.
        max_memory: u64,
    },
    /// Send a signal to a worker.
    Signal {
        /// The worker.
        worker: u64,
        /// The signal's number.
        signal: i32,
    },
    /// Kill a worker and all that descends from it.
    Kill {
        /// The worker.
        worker: u64,
        /// Whether it is asked for its stack first, after which it ends by its own hand.
        dump: bool,
    },
    /// Import modules; brings a file with their names.
    Preload {
        /// The file's length.
        len: u64,
    },
}

/// To the host, about one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It exists.
    Forked {
        /// Its pid.
        pid: i32,
    },
    /// It could not be forked.
    ForkFailed {
        /// The system's error number.
        errno: i32,
    },
    /// It ended and was reaped, and so was all it had started.
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// Its peak resident memory in bytes.
        peak_memory: u64,
    },
    /// It and all it had started use more memory than they may, and are being killed.
    OverMemory {
        /// How many bytes they used.
        used: u64,
    },
    /// It and all it had started were killed and run no more code, but the kernel is still
    /// tearing down their memory.
    Killed,
}

/// What is said on the life socket: by the interpreter that has forked the guard, so that a guard
/// that is stopped at once is known, and by the guard, which knows the forkserver too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// The guard's pid.
    pub guard: i32,
    /// The forkserver's pid, if there is one yet.
    pub server: Option<i32>,
}

impl Introduction {
    /// To bytes.
    pub fn encode(self) -> [u8; NOTICE_LEN] {
        encode(5, self.guard, self.server.map_or(0, |pid| u64::from(pid.unsigned_abs())), 0)
    }

    /// From bytes.
    pub fn decode(bytes: &[u8; NOTICE_LEN]) -> io::Result<Self> {
        match decode(bytes) {
            (5, guard, server, _) => {
                let server = i32::try_from(server).map_err(|_| unknown("pid", 5))?;
                Ok(Self { guard, server: Some(server).filter(|&pid| pid > 0) })
            }
            (kind, ..) => Err(unknown("introduction", kind)),
        }
    }
}

fn encode<const N: usize>(kind: u32, number: i32, value: u64, other: u64) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..16].copy_from_slice(&value.to_le_bytes());
    if let Some(rest) = bytes.get_mut(16..24) {
        rest.copy_from_slice(&other.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> (u32, i32, u64, u64) {
    let half = |at: usize| bytes[at..at + 4].try_into().expect("four bytes");
    let word = |at: usize| bytes.get(at..at + 8).map_or([0; 8], |word| word.try_into().expect("eight bytes"));
    (
        u32::from_le_bytes(half(0)),
        i32::from_le_bytes(half(4)),
        u64::from_le_bytes(word(8)),
        u64::from_le_bytes(word(16)),
    )
}

fn unknown(what: &str, kind: u32) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} of unknown kind {kind}"))
}

impl Command {
    /// To bytes.
    pub fn encode(self) -> [u8; COMMAND_LEN] {
        match self {
            Self::Attach => encode(1, 0, 0, 0),
            Self::Fork { worker, exec, max_memory } => encode(2, i32::from(exec), worker, max_memory),
            Self::Signal { worker, signal } => encode(3, signal, worker, 0),
            Self::Kill { worker, dump } => encode(4, i32::from(dump), worker, 0),
            Self::Preload { len } => encode(5, 0, len, 0),
        }
    }

    /// From bytes.
    pub fn decode(bytes: &[u8; COMMAND_LEN]) -> io::Result<Self> {
        match decode(bytes) {
            (1, ..) => Ok(Self::Attach),
            (2, exec, worker, max_memory) => Ok(Self::Fork { worker, exec: exec != 0, max_memory }),
            (3, signal, worker, _) => Ok(Self::Signal { worker, signal }),
            (4, dump, worker, _) => Ok(Self::Kill { worker, dump: dump != 0 }),
            (5, _, len, _) => Ok(Self::Preload { len }),
            (kind, ..) => Err(unknown("command", kind)),
        }
    }
}

impl Notice {
    /// To bytes.
    pub fn encode(self) -> [u8; NOTICE_LEN] {
        match self {
            Self::Forked { pid } => encode(1, pid, 0, 0),
            Self::ForkFailed { errno } => encode(2, errno, 0, 0),
            Self::Exited { status, peak_memory } => encode(3, status.0, peak_memory, 0),
            Self::Killed => encode(4, 0, 0, 0),
            Self::OverMemory { used } => encode(6, 0, used, 0),
        }
    }

    /// From bytes.
    pub fn decode(bytes: &[u8; NOTICE_LEN]) -> io::Result<Self> {
        match decode(bytes) {
            (1, pid, ..) => Ok(Self::Forked { pid }),
            (2, errno, ..) => Ok(Self::ForkFailed { errno }),
            (3, status, peak_memory, _) => Ok(Self::Exited { status: ExitStatus(status), peak_memory }),
            (4, ..) => Ok(Self::Killed),
            (6, _, used, _) => Ok(Self::OverMemory { used }),
            (kind, ..) => Err(unknown("notice", kind)),
        }
    }
}

/// A target of fuzzing, see `crate::fuzzing`: what can be decoded says all that the bytes said.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz_messages(bytes: &[u8]) {
    let mut command = [0; COMMAND_LEN];
    let len = bytes.len().min(COMMAND_LEN);
    command[..len].copy_from_slice(&bytes[..len]);
    let notice = command[..NOTICE_LEN].try_into().expect("it is shorter");
    if let Ok(command) = Command::decode(&command) {
        assert_eq!(command, Command::decode(&command.encode()).expect("our own bytes"));
    }
    if let Ok(notice) = Notice::decode(notice) {
        assert_eq!(notice, Notice::decode(&notice.encode()).expect("our own bytes"));
    }
    if let Ok(introduction) = Introduction::decode(notice) {
        assert_eq!(introduction, Introduction::decode(&introduction.encode()).expect("our own bytes"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn commands() -> impl Strategy<Value = Command> {
        prop_oneof![
            Just(Command::Attach),
            any::<(u64, bool, u64)>().prop_map(|(worker, exec, max_memory)| Command::Fork {
                worker,
                exec,
                max_memory
            }),
            any::<(u64, i32)>().prop_map(|(worker, signal)| Command::Signal { worker, signal }),
            any::<(u64, bool)>().prop_map(|(worker, dump)| Command::Kill { worker, dump }),
            any::<u64>().prop_map(|len| Command::Preload { len }),
        ]
    }

    fn notices() -> impl Strategy<Value = Notice> {
        prop_oneof![
            any::<i32>().prop_map(|pid| Notice::Forked { pid }),
            any::<i32>().prop_map(|errno| Notice::ForkFailed { errno }),
            any::<(i32, u64)>()
                .prop_map(|(status, peak_memory)| Notice::Exited { status: ExitStatus(status), peak_memory }),
            Just(Notice::Killed),
            any::<u64>().prop_map(|used| Notice::OverMemory { used }),
        ]
    }

    proptest! {
        #[test]
        fn messages_come_back_as_they_were(command in commands(), notice in notices(), guard: i32, server in prop::option::of(1..i32::MAX)) {
            prop_assert_eq!(command, Command::decode(&command.encode()).unwrap());
            prop_assert_eq!(notice, Notice::decode(&notice.encode()).unwrap());
            let pids = Introduction { guard, server };
            prop_assert_eq!(pids, Introduction::decode(&pids.encode()).unwrap());
        }

        #[test]
        fn unknown_kinds_are_refused(bytes: [u8; COMMAND_LEN], kind in 7u32..) {
            let mut bytes = bytes;
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            let notice = bytes[..NOTICE_LEN].try_into().unwrap();
            prop_assert!(Command::decode(&bytes).is_err());
            prop_assert!(Notice::decode(notice).is_err());
            prop_assert!(Introduction::decode(notice).is_err());
        }
    }
}
