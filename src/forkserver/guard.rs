//! The guard: sees to it that nothing survives the host or the forkserver.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::sys::fault::{Step, reach};
use crate::sys::{self, ChildSignal, Interest, KILL_SIGNAL};

/// How often a sweep looks again even if no child's end woke it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits for the end of the host (any of `life`) or of the forkserver, then kills all that descends from here.
pub fn stand(life: &[OwnedFd], server: &OwnedFd) -> ! {
    loop {
        let ends = life.iter().chain(std::iter::once(server));
        let mut interests: Vec<Interest<'_>> = ends.map(|end| Interest::new(end.as_fd())).collect();
        // An hour's slice only bounds one system call; nothing depends on its length.
        let outcome = sys::wait(&mut interests, None, Duration::from_secs(3600));
        if outcome.is_err() || interests.iter().any(|interest| interest.ready) {
            break;
        }
    }
    reach(Step::GuardSweeps);
    sweep();
    sys::exit_now(0)
}

/// Kills and reaps all descendants until none is left. New ones may be born meanwhile: each round
/// kills those that exist, and an orphan of a killed parent comes up as a child of ours.
pub fn sweep() {
    let signal = ChildSignal::install();
    loop {
        for pid in sys::descendants(sys::pid()) {
            // A process of another user (a set-uid program) cannot be killed; see gotchas.md.
            let _ = sys::send(pid, KILL_SIGNAL);
        }
        loop {
            match sys::try_reap_any() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                // ECHILD: nobody is left.
                Err(_) => return,
            }
        }
        match &signal {
            Ok(signal) => {
                let _ = sys::wait_readable(signal.fd(), LOOK_AGAIN);
                signal.clear();
            }
            Err(_) => std::thread::sleep(LOOK_AGAIN),
        }
    }
}
