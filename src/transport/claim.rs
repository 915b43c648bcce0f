//! The claim word: which requests the worker may start, which it has started, and whether it
//! still takes any.
//!
//! One word, so that "the worker starts the next one" and "the host takes back what has not been
//! started" cannot both happen to the same request: that is what makes handing requests ahead of
//! time compatible with "an item runs at most once". Both counts wrap around at 2^31; only their
//! difference matters, and it is bounded by the ring.
//!
//! The function may have written anything here. So each side keeps its own count to itself as well, and
//! has nothing more to do with the other when the word says something else: a worker that believed a
//! number that is none of its own would run an old request again, or one that was taken back.

use std::sync::atomic::{AtomicU64, Ordering};

const MASK: u64 = (1 << 31) - 1;
const RETIRED: u64 = 1 << 63;

/// Counts as they stood at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Requests that the host has handed out so far, modulo 2^31.
    pub handed: u32,
    /// Requests that the worker has started so far, modulo 2^31.
    pub claimed: u32,
    /// The worker has ended by itself and takes nothing more.
    pub retired: bool,
}

impl Claim {
    fn unpack(word: u64) -> Self {
        Self {
            handed: ((word >> 31) & MASK) as u32,
            claimed: (word & MASK) as u32,
            retired: word & RETIRED != 0,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.claimed) | u64::from(self.handed) << 31 | if self.retired { RETIRED } else { 0 }
    }

    /// How many are handed out and not started.
    pub fn unclaimed(self) -> u32 {
        self.handed.wrapping_sub(self.claimed) & 0x7fff_ffff
    }
}

/// What the word has of a count.
pub fn low(count: u64) -> u32 {
    (count & MASK) as u32
}

/// Adds `count` to a count of 31 bits.
pub fn more(to: u32, count: u32) -> u32 {
    to.wrapping_add(count) & 0x7fff_ffff
}

/// Reads the word.
pub fn load(word: &AtomicU64) -> Claim {
    Claim::unpack(word.load(Ordering::Acquire))
}

/// Host: `count` more requests may be started. False if the worker has retired.
#[must_use]
pub fn hand(word: &AtomicU64, count: u32) -> bool {
    update(word, |claim| (!claim.retired).then(|| Claim { handed: more(claim.handed, count), ..claim }))
        .is_some()
}

/// Host: takes back all that has not been started, and tells how many that were.
pub fn revoke(word: &AtomicU64) -> u32 {
    update(word, |claim| Some(Claim { handed: claim.claimed, ..claim })).map_or(0, Claim::unclaimed)
}

/// Worker: starts the next request, if there is one.
#[must_use]
pub fn claim(word: &AtomicU64) -> bool {
    update(word, |claim| (claim.unclaimed() > 0).then(|| Claim { claimed: more(claim.claimed, 1), ..claim }))
        .is_some()
}

/// Worker: takes no more, unless something has just been handed out.
#[must_use]
pub fn retire(word: &AtomicU64) -> bool {
    update(word, |claim| (claim.unclaimed() == 0).then_some(Claim { retired: true, ..claim })).is_some()
}

/// Swaps until it holds; returns what was there before, or `None` if `change` declined.
fn update(word: &AtomicU64, change: impl Fn(Claim) -> Option<Claim>) -> Option<Claim> {
    word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |value| {
        change(Claim::unpack(value)).map(Claim::pack)
    })
    .ok()
    .map(Claim::unpack)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_request_is_either_started_or_taken_back() {
        let word = AtomicU64::new(0);
        let (started, taken_back, handed) = (AtomicUsize::new(0), AtomicUsize::new(0), 200_000);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !retire(&word) || !load(&word).retired {
                    if claim(&word) {
                        started.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            scope.spawn(|| {
                let mut sent = 0;
                while sent < handed && hand(&word, 1) {
                    sent += 1;
                    if sent % 3 == 0 {
                        taken_back.fetch_add(revoke(&word) as usize, Ordering::Relaxed);
                    }
                }
                started.fetch_add(handed - sent, Ordering::Relaxed);
            });
        });
        assert_eq!(handed, started.into_inner() + taken_back.into_inner());
    }

    #[test]
    fn counts_wrap_around() {
        let start = Claim { handed: 0x7fff_ffff, claimed: 0x7fff_ffff, retired: false };
        let word = AtomicU64::new(start.pack());
        assert!(!claim(&word));
        assert!(hand(&word, 1) && hand(&word, 1));
        assert_eq!(2, load(&word).unclaimed());
        assert!(claim(&word));
        assert_eq!(Claim { handed: 1, claimed: 0, retired: false }, load(&word));
        assert_eq!(1, revoke(&word));
        assert!(retire(&word) && !hand(&word, 1));
    }
}
