//! What to do, and when.
//!
//! [`Job`] is pure: events and the time go in, actions come out. [`Driver`] performs them with
//! the processes of `forkserver` and the channels of `transport`, and feeds back what happens.
//! [`Roster`] keeps idle workers between jobs.

mod driver;
mod events;
mod job;
mod roster;
#[cfg(test)]
mod simulation;

mod worker;

pub use driver::{Driver, Outcome, Payload, StartError, Wait};
pub use events::{Ending, TaskId};
pub use job::Policy;
pub use roster::{Exit, Fleet, Launch, Roster, SETUP};
