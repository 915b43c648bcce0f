//! What to do, and when.
//!
//! [`Job`] is pure: events and the time go in, actions come out. [`Driver`] performs them with
//! the processes of `forkserver` and the channels of `transport`, and feeds back what happens.
//! [`Roster`] keeps idle workers between jobs.

mod arguments;
mod driver;
mod events;
mod functions;
mod job;
mod roster;
mod runs;
#[cfg(test)]
mod simulation;
mod spares;
mod warm;
mod worker;

pub use arguments::Batch;
pub use driver::{Driver, Outcome, Partial, StartError, Trouble, Wait, wait_any};
pub use events::{Ending, TaskId};
pub use functions::{Functions, LARGE_MAX as LARGE_FUNCTIONS_MAX};
pub use job::Policy;
pub use roster::{Exit, Fleet, HostWorker, Launch, Payload, Roster, SETUP};
pub use warm::{Attempt, Begun, Warm};
