//! How many workers of one kind to have ready before anybody asks for them.
//!
//! Pure, and the only place where that is decided. A spare is asked for only in the place of a worker
//! that was lost: used up by its last call, killed at its deadline, or dead. So whoever calls warm
//! workers pays for none, and what fails to start is not started again unasked.

use std::time::Duration;

use crate::time::Moment;

/// A call that comes this soon after the loss of a worker comes back to back.
const SOON: Duration = Duration::from_millis(20);
/// Most spares of one kind.
const MOST: usize = 2;
/// Most spares of all kinds together.
pub const MOST_OF_ALL: usize = 8;

/// What a call found when it wanted a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// One that was ready.
    Ready,
    /// One that was still being set up.
    Starting,
    /// None.
    Nothing,
}

/// The recent use of one kind of worker.
#[derive(Debug, Default)]
pub struct Demand {
    lost_at: Option<Moment>,
    /// Whether one spare was too few: calls come faster than workers start.
    hurried: bool,
}

impl Demand {
    /// A worker of this kind was lost. How many spares should there be?
    pub fn lost(&mut self, now: Moment) -> usize {
        self.lost_at = Some(now);
        if self.hurried { MOST } else { 1 }
    }

    /// A call has wanted a worker of this kind.
    pub fn wanted(&mut self, found: Found, now: Moment) {
        let Some(lost_at) = self.lost_at else { return };
        if now.since(lost_at) >= SOON {
            self.hurried = false;
        } else if found != Found::Ready {
            self.hurried = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(1_000_000_000) + Duration::from_millis(millis)
    }

    #[test]
    fn a_call_now_and_then_has_one_spare() {
        let mut demand = Demand::default();
        demand.wanted(Found::Nothing, at(0));
        for second in 1..5 {
            assert_eq!(1, demand.lost(at(second * 1000)));
            demand.wanted(Found::Ready, at(second * 1000 + 100));
        }
        // However long it takes to start one.
        demand.wanted(Found::Starting, at(9000));
        assert_eq!(1, demand.lost(at(9001)));
    }

    #[test]
    fn calls_back_to_back_have_two() {
        let mut demand = Demand::default();
        assert_eq!(1, demand.lost(at(0)));
        demand.wanted(Found::Starting, at(1));
        assert_eq!(2, demand.lost(at(2)));
        // As long as they go on so, though each finds one ready now.
        demand.wanted(Found::Ready, at(3));
        assert_eq!(2, demand.lost(at(4)));
        demand.wanted(Found::Ready, at(1000));
        assert_eq!(1, demand.lost(at(1001)));
    }
}
