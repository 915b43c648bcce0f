//! The one reader of the clock.

use nix::time::{ClockId, clock_gettime};

use crate::time::Moment;

/// The present moment on `CLOCK_MONOTONIC`.
pub fn now() -> Moment {
    read(ClockId::CLOCK_MONOTONIC)
}

/// How much time this process has had a CPU for: what its own work costs, however busy the machine.
pub fn cpu_time() -> Moment {
    read(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

fn read(clock: ClockId) -> Moment {
    let spec = clock_gettime(clock).expect("POSIX requires both clocks");
    #[expect(clippy::cast_sign_loss, reason = "both clocks start at zero")]
    Moment::from_nanos(spec.tv_sec() as u64 * 1_000_000_000 + spec.tv_nsec() as u64)
}
