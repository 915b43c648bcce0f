//! How long to look for the other side's next word before going to sleep.
//!
//! Waking a process that sleeps on another core takes tens of microseconds, so while the other side
//! is awake and about to answer, looking is cheaper than sleeping. It never takes more than tens of
//! microseconds of a core, and hardly any where it keeps being in vain: a busy machine has better use
//! for it.
//!
//! The kernel often wakes the other side on the core of who woke it, and there it could not answer while
//! we look. So each side says on which processor it is. Where that is the same one they take turns, which
//! is the cheapest way for a few calls; after more of them one side moves to an idle core, for which both
//! have to wait once, and then they need not even take turns.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use super::layout::{MOVING, NO_CPU};
use crate::sys;
use crate::time::Moment;

/// Longest look: about what a wake-up costs.
const MOST: Duration = Duration::from_micros(50);
/// Shortest: what the other side takes if it has nothing else to do.
const LEAST: Duration = Duration::from_micros(6);
/// The look of a caller in a hurry at one that it has woken: as long as waking may take.
const WAKE: Duration = Duration::from_micros(100);
/// How long the other side is waited for at most while it moves.
const MOVE: Duration = Duration::from_micros(300);
/// Looks between two readings of the clock.
const LOOKS: u32 = 32;
/// Whoever has to wait so long for its core again has given it to somebody else than the other side.
const LONG: Duration = Duration::from_micros(200);
/// For so many looks it keeps its core then.
const KEPT: u32 = 64;
/// Calls that follow each other like this are made in a hurry.
const HURRY: Duration = Duration::from_micros(200);
/// After so many turns it is time to move: who has called so often goes on, mostly.
const TURNS: u32 = 10;
/// To move takes about as much longer as so many calls apart are quicker than turns.
const WORTH: u32 = 32;
/// Most turns before a move, if moving keeps being in vain.
const TURNS_MAX: u32 = 1 << 14;

/// Where each side says it is.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// This one.
    pub ours: &'a AtomicU32,
    /// The other one.
    pub theirs: &'a AtomicU32,
}

/// One side's patience with the other.
#[derive(Debug)]
pub struct Spin {
    limit: Duration,
    /// How many looks go on without offering the core to others.
    kept: u32,
    /// On which processor we have said to be.
    cpu: u32,
    /// How many looks in a row found something on the other side's core.
    turns: u32,
    /// How many of those are worth a move.
    turns_max: u32,
    /// How many looks have found something on another core since the last move.
    apart: u32,
    /// Whether a move was tried since the last look that was in vain.
    has_tried: bool,
    /// When the last call was made.
    last_call: Option<Moment>,
    /// Whether a look was in vain since the last pause.
    was_vain: bool,
}

impl Default for Spin {
    fn default() -> Self {
        Self {
            limit: MOST,
            kept: 0,
            cpu: NO_CPU,
            turns: 0,
            turns_max: TURNS,
            apart: 0,
            has_tried: false,
            last_call: None,
            was_vain: false,
        }
    }
}

impl Spin {
    /// Says where we are; whether the other side is there, too.
    pub fn is_beside(&mut self, places: Places<'_>) -> bool {
        let cpu = sys::current_cpu().map_or(NO_CPU, |cpu| cpu + 1);
        if cpu != self.cpu {
            self.cpu = cpu;
            places.ours.store(cpu, Ordering::Relaxed);
        }
        cpu != NO_CPU && places.theirs.load(Ordering::Relaxed) == cpu
    }

    /// Whether to look after a call at `since`, for which the other side was woken or not.
    ///
    /// One that was woken takes its time, and this core is of more use to it than to us. But who calls again
    /// and again wants to find it awake the next time: that takes one call for which nobody sleeps.
    pub fn pays(&mut self, since: Moment, woken: bool) -> bool {
        let in_hurry = self.last_call.replace(since).is_some_and(|last| since.since(last) < HURRY);
        let pays = in_hurry && !self.was_vain;
        if woken && pays {
            self.limit = WAKE;
        }
        self.was_vain &= in_hurry;
        !woken || pays
    }

    /// Moves to another core if sharing one has gone on for long.
    pub fn make_room(&mut self, places: Places<'_>) {
        if self.turns < self.turns_max || !self.is_beside(places) {
            return;
        }
        (self.turns, self.has_tried) = (0, true);
        places.ours.store(MOVING, Ordering::Relaxed);
        if sys::step_aside() {
            self.note_move();
        }
        self.cpu = MOVING;
        self.is_beside(places);
    }

    /// What the last move was good for tells when the next one is.
    fn note_move(&mut self) {
        self.turns_max = if self.apart < WORTH { (2 * self.turns_max).min(TURNS_MAX) } else { TURNS };
        self.apart = 0;
    }

    /// Looks until `found`, for a while; whether it was.
    pub fn until(&mut self, places: Places<'_>, found: impl FnMut() -> bool) -> bool {
        let found = self.look(places, found);
        if !found {
            if !std::mem::take(&mut self.has_tried) {
                // Calls have stopped before it was worth a move. It may be, the next time.
                self.turns_max = (self.turns_max / 2).max(TURNS);
            }
            self.turns = 0;
            self.was_vain = true;
            self.limit = (self.limit / 2).max(LEAST);
            return false;
        }
        self.limit = MOST;
        self.was_vain = false;
        if self.is_beside(places) {
            self.turns += 1;
        } else {
            self.turns = 0;
            self.apart = self.apart.saturating_add(1);
        }
        true
    }

    fn look(&mut self, places: Places<'_>, mut found: impl FnMut() -> bool) -> bool {
        if found() {
            return true;
        }
        self.kept = self.kept.saturating_sub(1);
        // Reading the clock takes as long as a few looks: not before it matters.
        let (mut end, mut moved_by) = (None, None);
        loop {
            // On the same core it cannot have said anything meanwhile.
            let looks = if self.kept == 0 && self.is_beside(places) { 1 } else { LOOKS };
            for _ in 0..looks {
                if found() {
                    return true;
                }
                std::hint::spin_loop();
            }
            let now = sys::now();
            if places.theirs.load(Ordering::Relaxed) == MOVING && now < *moved_by.get_or_insert(now + MOVE) {
                end = Some(now + MOST);
            }
            if now >= *end.get_or_insert(now + self.limit) {
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
        let places = Places { ours: &AtomicU32::new(NO_CPU), theirs: &AtomicU32::new(NO_CPU) };
        let mut spin = Spin::default();
        for _ in 0..10 {
            assert!(!spin.until(places, || false));
        }
        assert_eq!(LEAST, spin.limit);
        for _ in 0..10 {
            let mut looks = 0;
            assert!(spin.until(places, || {
                looks += 1;
                looks > 1
            }));
        }
        assert_eq!(MOST, spin.limit);
    }

    #[test]
    fn a_woken_one_is_looked_for_by_who_is_in_a_hurry() {
        let mut spin = Spin::default();
        let at = |micros: u64| Moment::from_nanos(micros * 1000);
        assert!(!spin.pays(at(1000), true), "the first call");
        assert!(!spin.pays(at(2000), true), "a millisecond after the last one");
        assert!(spin.pays(at(2050), true));
        assert!(spin.pays(at(9000), false), "it is awake");
        let places = Places { ours: &AtomicU32::new(NO_CPU), theirs: &AtomicU32::new(NO_CPU) };
        assert!(!spin.until(places, || false));
        assert!(!spin.pays(at(9150), true), "its answers take longer than we look");
        assert!(!spin.pays(at(10_000), true));
        assert!(spin.pays(at(10_050), true));
    }

    #[test]
    fn a_move_that_was_in_vain_is_not_made_again_soon() {
        let places = Places { ours: &AtomicU32::new(NO_CPU), theirs: &AtomicU32::new(NO_CPU) };
        let mut spin = Spin::default();
        spin.note_move();
        assert_eq!(2 * TURNS, spin.turns_max, "nothing came of it yet");
        spin.note_move();
        assert_eq!(4 * TURNS, spin.turns_max);
        (0..WORTH).for_each(|_| assert!(spin.until(places, || true)));
        spin.note_move();
        assert_eq!(TURNS, spin.turns_max, "the last one was worth it");
        spin.note_move();
        assert!(!spin.until(places, || false));
        assert_eq!(TURNS, spin.turns_max, "the calls have stopped");
    }

    #[test]
    fn who_shares_a_core_for_long_moves() {
        let (ours, theirs) = (AtomicU32::new(NO_CPU), AtomicU32::new(NO_CPU));
        let places = Places { ours: &ours, theirs: &theirs };
        let mut spin = Spin { turns: TURNS - 1, ..Spin::default() };
        spin.make_room(places);
        assert_eq!(TURNS - 1, spin.turns, "not yet");
        spin.turns = TURNS;
        spin.make_room(places);
        assert_eq!(TURNS, spin.turns, "nobody is here");
        // Wherever this thread is by now.
        for cpu in 1..=u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap() {
            theirs.store(cpu, Ordering::Relaxed);
            spin.make_room(places);
        }
        if sys::current_cpu().is_some() {
            assert_ne!(MOVING, ours.load(Ordering::Relaxed), "it says where it is afterwards");
        }
    }
}
