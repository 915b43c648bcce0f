//! How long to look for the other side's next word before going to sleep.
//!
//! Waking a process that sleeps on another core takes tens of microseconds, so while the other side
//! is awake and about to answer, looking is cheaper than sleeping. It never takes more than tens of
//! microseconds of a core, and hardly any where it keeps being in vain: a busy machine has better use
//! for it.

use std::thread;
use std::time::Duration;

use crate::sys;

/// Longest look: about what a wake-up costs.
const MOST: Duration = Duration::from_micros(50);
/// Shortest: what the other side takes if it has nothing else to do.
const LEAST: Duration = Duration::from_micros(6);
/// Looks between two readings of the clock.
const LOOKS: u32 = 32;
/// Whoever has to wait so long for its core again has given it to somebody else than the other side.
const LONG: Duration = Duration::from_micros(200);
/// For so many looks it keeps its core then.
const KEPT: u32 = 64;

/// One side's patience with the other.
#[derive(Debug)]
pub struct Spin {
    limit: Duration,
    /// How many looks go on without offering the core to others.
    kept: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Self { limit: MOST, kept: 0 }
    }
}

impl Spin {
    /// Looks until `found`, for a while; whether it was.
    ///
    /// Between looks it offers its core: the kernel often wakes the other side on the core of who woke it,
    /// where it could not answer while we look. They take turns then, until the kernel moves one of them.
    pub fn until(&mut self, mut found: impl FnMut() -> bool) -> bool {
        if found() {
            return true;
        }
        self.kept = self.kept.saturating_sub(1);
        // Reading the clock takes as long as a few looks: not before it matters.
        let mut end = None;
        loop {
            for _ in 0..LOOKS {
                if found() {
                    self.limit = MOST;
                    return true;
                }
                std::hint::spin_loop();
            }
            let now = sys::now();
            if now >= *end.get_or_insert(now + self.limit) {
                self.limit = (self.limit / 2).max(LEAST);
                return false;
            }
            if self.kept == 0 {
                thread::yield_now();
                if sys::now().since(now) > LONG {
                    self.kept = KEPT;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_lost_in_vain_and_comes_back() {
        let mut spin = Spin::default();
        for _ in 0..10 {
            assert!(!spin.until(|| false));
        }
        assert_eq!(LEAST, spin.limit);
        for _ in 0..10 {
            let mut looks = 0;
            assert!(spin.until(|| {
                looks += 1;
                looks > 1
            }));
        }
        assert_eq!(MOST, spin.limit);
    }
}
