//! What can go wrong in the supervisor itself.
//!
//! Expected endings of a call (it returned, raised, timed out, died) are not errors but `Ending`s.

use std::fmt;
use std::io;

/// A failure of the supervisor. Each message reads after "failed to".
#[derive(Debug)]
pub enum Error {
    /// The forkserver could not be started or did not answer.
    Forkserver {
        /// The step that failed.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A system call that must work did not.
    System {
        /// What was being done.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: the forkserver step that failed.
    pub fn forkserver(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Forkserver { step, source }
    }

    /// For `map_err`: the system call that failed.
    pub fn system(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { step, source }
    }

    /// The system's reason.
    pub fn source_error(&self) -> &io::Error {
        match self {
            Self::Forkserver { source, .. } | Self::System { source, .. } => source,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forkserver { step, source } => write!(f, "start the forkserver: {step}: {source}"),
            Self::System { step, source } => write!(f, "{step}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.source_error())
    }
}
