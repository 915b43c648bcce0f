//! The short way of one call: an idle worker that has all it needs, and an answer at once.
//!
//! This is where most calls begin and end that take microseconds. It decides nothing: as soon as
//! there is anything but a value in time, a [`Driver`] takes over, and all is as if it had handed out
//! the task itself.

use std::sync::Arc;
use std::time::Duration;

use super::arguments::{Arguments, Batch};
use super::driver::Driver;
use super::events::{Run, TaskId};
use super::job::Policy;
use super::roster::{Fleet, HostWorker, Payload, Published};
use crate::sys;
use crate::time::Moment;
use crate::transport::{Body, Corrupt, Handed, Reply};

const TASK: TaskId = TaskId(0);

/// How long the answer is waited for here. A call that takes longer has no use for the short way, and there
/// is more to look after by then.
const FIRST_SLEEP: Duration = Duration::from_millis(5);

/// What came of the short way.
pub enum Attempt {
    /// There is no worker for it. Nothing has been started.
    Nobody,
    /// The function returned this value.
    Returned {
        /// As bytes.
        body: Body,
        /// Whether it is plain.
        plain: bool,
    },
    /// It goes on.
    Underway(Box<Driver>),
}

/// Calls of one function, one at a time or many.
pub struct Warm {
    /// For each of them.
    pub policy: Policy,
    /// Whose workers.
    pub fleet: Arc<Fleet>,
    /// The function and its surroundings.
    pub payload: Arc<Payload>,
}

impl Warm {
    /// Calls the function in an idle worker, if there is one that has it.
    pub fn call(&self, batch: Batch) -> Attempt {
        let roster = &self.fleet.roster;
        let Some(mut worker) = roster.lease_knowing(self.fleet.key, &self.payload) else {
            return Attempt::Nobody;
        };
        let mut arguments = Arguments::default();
        arguments.push(TASK, batch);
        let since = sys::now();
        if !worker.stage(Run::one(TASK), &self.payload, &arguments).is_ok_and(|left| left.count == 0) {
            worker.kill();
            return Attempt::Nobody;
        }
        match worker.publish() {
            Ok(Published { handed: Handed::Yes, rung, .. }) => {
                // A worker that slept takes its time. This core is of more use to it than to us.
                if rung || !worker.channel.spin() {
                    let most =
                        self.policy.timeout.map_or(FIRST_SLEEP, |timeout| FIRST_SLEEP.min(timeout / 2));
                    if let Err(error) = worker.sleep(since + most) {
                        return self.underway(worker, arguments, since, Some(Err(error)));
                    }
                }
            }
            Ok(_) => {
                // It has retired, or is not fit for use. The long way finds another one.
                worker.kill();
                return Attempt::Nobody;
            }
            Err(error) => {
                // It may have begun all the same.
                let problem = Corrupt(format!("doorbell: {error}"));
                return self.underway(worker, arguments, since, Some(Err(problem)));
            }
        }
        let deadline = self.policy.timeout.map(|timeout| since + timeout);
        let in_time = |stamp| deadline.is_none_or(|deadline| Moment::from_nanos(stamp) <= deadline);
        match worker.receive() {
            Ok(Some(reply))
                if reply.kind.is_value() && reply.task == TASK.0 && in_time(reply.finished_at) =>
            {
                worker.answered();
                if worker.channel.acknowledge().is_ok() {
                    roster.give_back(self.fleet.key, worker);
                } else {
                    worker.kill();
                }
                Attempt::Returned { plain: reply.kind.is_plain(), body: reply.body }
            }
            answer => self.underway(worker, arguments, since, answer.transpose()),
        }
    }

    fn underway(
        &self,
        worker: Box<HostWorker>,
        arguments: Arguments,
        since: Moment,
        answer: Option<Result<Reply, Corrupt>>,
    ) -> Attempt {
        let (fleet, payload) = (Arc::clone(&self.fleet), Arc::clone(&self.payload));
        let task = (TASK, arguments, since);
        Attempt::Underway(Box::new(Driver::take_over(self.policy, fleet, payload, task, worker, answer)))
    }
}
