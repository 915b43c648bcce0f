//! How long to look for the other side's next word before going to sleep.
//!
//! Waking a process that sleeps on another core takes tens of microseconds, so while the other side
//! is awake and about to answer, looking is cheaper than sleeping. It never takes more than tens of
//! microseconds of a core, and hardly any where it keeps being in vain: a busy machine has better use
//! for it.

use std::sync::OnceLock;
use std::time::Duration;

use crate::sys;

/// Longest look: about what a wake-up costs.
const MOST: Duration = Duration::from_micros(50);
/// Shortest: what the other side takes if it has nothing else to do.
const LEAST: Duration = Duration::from_micros(6);
/// Looks between two readings of the clock.
const LOOKS: u32 = 32;
/// Of so many looks one is a long one, however vain they have been: the other side may have become quick.
const PROBE: u32 = 16;

/// One side's patience with the other.
#[derive(Debug)]
pub struct Spin {
    limit: Duration,
    looks: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Self { limit: MOST, looks: 0 }
    }
}

impl Spin {
    /// Looks until `found`, for a while; whether it was. Where the other side had to be `woken`, it is not
    /// waited for if that was in vain lately: it may need this core.
    pub fn until(&mut self, woken: bool, mut found: impl FnMut() -> bool) -> bool {
        if found() {
            return true;
        }
        self.looks = self.looks.wrapping_add(1);
        let is_probe = self.looks.is_multiple_of(PROBE);
        if !has_cores() || (woken && self.limit == LEAST && !is_probe) {
            return false;
        }
        let limit = if is_probe { MOST } else { self.limit };
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
            if now >= *end.get_or_insert(now + limit) {
                self.limit = (self.limit / 2).max(LEAST);
                return false;
            }
        }
    }
}

/// With one core, the other side cannot answer while we look.
fn has_cores() -> bool {
    static CORES: OnceLock<bool> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_lost_in_vain_and_comes_back() {
        let mut spin = Spin::default();
        if !has_cores() {
            return;
        }
        for _ in 0..PROBE - 1 {
            assert!(!spin.until(true, || false));
        }
        assert_eq!(LEAST, spin.limit);
        for _ in 0..PROBE {
            let mut looks = 0;
            assert!(spin.until(true, || {
                looks += 1;
                looks > 1
            }));
        }
        assert_eq!(MOST, spin.limit);
    }
}
