//! The one reader of the clock.

use nix::time::{ClockId, clock_gettime};

use crate::time::Moment;

/// The present moment on `CLOCK_MONOTONIC`.
pub fn now() -> Moment {
    let spec = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("POSIX requires CLOCK_MONOTONIC");
    #[expect(clippy::cast_sign_loss, reason = "the monotonic clock starts at zero")]
    Moment::from_nanos(spec.tv_sec() as u64 * 1_000_000_000 + spec.tv_nsec() as u64)
}
