//! Faults on demand: a process dies, stops or stalls at a given step of the protocol.
//!
//! Only with the feature `fault-injection`; without it [`reach`] is nothing. The environment says
//! what is to happen, `KILLERCALL_FAULT=<step>:<die|stop|stall>:<token file>`, and the token file
//! when: whichever process first reaches the step while the file exists renames it to
//! `<token file>.fired` and has the fault. So it strikes once among all processes, and who arms it
//! by making the file chooses the moment.

macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Where a fault can strike.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Step {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Step {
            /// All of them, by name, in the order of their numbers.
            pub const NAMES: &[&str] = &[$(stringify!($name)),+];
        }
    };
}

steps! {
    /// The host is about to start the forkserver's interpreter.
    HostLaunches,
    /// The host is about to ask for a worker.
    HostAsks,
    /// The host has asked for a worker and not handed it its setup.
    HostAsked,
    /// The host has sent a file whose request is not written.
    HostFileSent,
    /// The host has written the header of a request, not its body.
    HostHeaderWritten,
    /// The host has written a request and not handed it out.
    HostRequestWritten,
    /// The host has handed out a request and not rung.
    HostHanded,
    /// The host has copied an answer and not marked it as read.
    HostAnswerSeen,
    /// The host is about to ask for a kill.
    HostKills,
    /// The host has asked for a kill.
    HostKilled,
    /// The host has closed its half of the life socket and not waited.
    HostHalfClosed,
    /// The interpreter has the life socket and has not forked the guard.
    GuardUnborn,
    /// The interpreter has forked the guard and not left.
    GuardBorn,
    /// The guard exists, the forkserver does not.
    GuardForked,
    /// The guard has forked the forkserver and told nobody.
    GuardUnknown,
    /// The guard has told the pids and does not wait yet.
    GuardIntroduced,
    /// The guard is about to kill all that is left.
    GuardSweeps,
    /// The forkserver exists and has read no command.
    ServerUp,
    /// The forkserver has read a command and not begun it.
    ServerCommanded,
    /// The forkserver is about to fork a worker.
    ServerForks,
    /// The forkserver has forked a worker and told nobody.
    ServerForked,
    /// The forkserver has told of a new worker.
    ServerTold,
    /// The forkserver is about to kill a worker.
    ServerKills,
    /// The forkserver has killed a worker and not reaped it.
    ServerKilled,
    /// The forkserver has reaped a worker and told nobody.
    ServerReaped,
    /// The forkserver is about to kill all that is left.
    ServerSweeps,
    /// The worker has just been forked.
    WorkerForked,
    /// The worker leads its session, and its life is not tied to its parent's.
    WorkerLeads,
    /// The worker is about to open its channel.
    WorkerOpens,
    /// The worker has claimed its setup and not begun it.
    WorkerSetupClaimed,
    /// The worker is set up and has not said so.
    WorkerSetUp,
    /// The worker has claimed a request and not run it.
    WorkerClaimed,
    /// The worker has run a request and not answered.
    WorkerRan,
    /// The worker has sent a file whose answer is not written.
    WorkerFileSent,
    /// The worker has written half of the header of an answer.
    WorkerHeaderHalf,
    /// The worker has written the header of an answer and half of its body.
    WorkerBodyHalf,
    /// The worker has written an answer and not published it.
    WorkerAnswerWritten,
    /// The worker has published an answer and not rung.
    WorkerPublished,
    /// The worker has answered and is about to look for the next request.
    WorkerAnswered,
    /// The worker has asked to be rung and is about to sleep.
    WorkerSleeps,
    /// The worker has dumped its stack and not marked it as complete; in the signal handler.
    WorkerDumps,
    /// The worker has been idle for long and has not retired.
    WorkerIdle,
    /// The worker has retired and not left.
    WorkerRetired,
}

/// Whether faults are possible at all.
pub const POSSIBLE: bool = cfg!(feature = "fault-injection");

/// A step has been reached.
#[cfg(not(feature = "fault-injection"))]
#[inline]
pub const fn reach(_step: Step) {}

#[cfg(feature = "fault-injection")]
pub use injection::{arm, reach};

#[cfg(feature = "fault-injection")]
mod injection {
    use std::ffi::{CString, OsStr};
    use std::os::unix::ffi::OsStrExt;
    use std::sync::OnceLock;
    use std::time::Duration;

    use super::Step;

    /// Longer than any wait for a forkserver that does not answer, shorter than the timeouts of
    /// the tests.
    const STALL: Duration = Duration::from_secs(1);

    #[derive(Clone, Copy, Debug)]
    enum Action {
        Die,
        Stop,
        Stall,
    }

    #[derive(Debug)]
    struct Fault {
        step: usize,
        action: Action,
        token: CString,
        fired: CString,
    }

    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();

    /// Reads from the environment what is to happen; copies of this process inherit it.
    pub fn arm() {
        let wanted = std::env::var_os("KILLERCALL_FAULT");
        let _ =
            FAULT.set(wanted.map(|wanted| parse(&wanted).expect("KILLERCALL_FAULT=<step>:<action>:<file>")));
    }

    fn parse(wanted: &OsStr) -> Option<Fault> {
        let mut parts = wanted.as_bytes().splitn(3, |&byte| byte == b':');
        let (step, action, token) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Fault {
            step: Step::NAMES.iter().position(|name| name.as_bytes() == step)?,
            action: match action {
                b"die" => Action::Die,
                b"stop" => Action::Stop,
                b"stall" => Action::Stall,
                _ => return None,
            },
            token: CString::new(token).ok()?,
            fired: CString::new([token, b".fired"].concat()).ok()?,
        })
    }

    /// A step has been reached. Async-signal-safe: signal handlers come here as well.
    pub fn reach(step: Step) {
        let Some(Some(fault)) = FAULT.get() else { return };
        if fault.step != step as usize {
            return;
        }
        // SAFETY: rename, kill and poll are async-signal-safe; both paths end in a zero byte and
        // live as long as the process; poll is given no descriptors.
        unsafe {
            if libc::rename(fault.token.as_ptr(), fault.fired.as_ptr()) != 0 {
                return;
            }
            match fault.action {
                Action::Die => {
                    libc::kill(libc::getpid(), libc::SIGKILL);
                }
                Action::Stop => {
                    libc::kill(libc::getpid(), libc::SIGSTOP);
                }
                Action::Stall => {
                    let until = super::super::now() + STALL;
                    loop {
                        let left = until.since(super::super::now());
                        if left.is_zero() {
                            break;
                        }
                        let millis = i32::try_from(left.as_millis()).expect("at most STALL");
                        libc::poll(std::ptr::null_mut(), 0, millis.max(1));
                    }
                }
            }
        }
    }
}
