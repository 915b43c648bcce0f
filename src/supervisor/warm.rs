//! The short way of one call: an idle worker that has all it needs, and an answer at once.
//!
//! This is where most calls begin and end that take microseconds. It decides nothing: as soon as
//! there is anything but a value in time, a [`Driver`] takes over, and all is as if it had handed out
//! the task itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// An answer that takes less comes at once: about as long as two threads take to change places.
const QUICK: Duration = Duration::from_micros(20);
/// The same of a worker that had to be woken first.
const QUICK_WHEN_WOKEN: Duration = Duration::from_micros(200);

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

/// What a caller who must not wait has begun.
pub enum Begun {
    /// Nothing.
    Nothing(Batch),
    /// A call that has not ended.
    Pending(Pending),
    /// One that has.
    Ended(Attempt),
}

/// A call that a worker has.
pub struct Pending {
    worker: Box<HostWorker>,
    arguments: Arguments,
    since: Moment,
    /// Whether the worker was woken for it.
    woken: bool,
}

/// Calls of one function, one at a time or many.
pub struct Warm {
    /// For each of them.
    policy: Policy,
    /// Whose workers.
    fleet: Arc<Fleet>,
    /// The function and its surroundings.
    payload: Arc<Payload>,
    /// Whether the last answer came at once.
    is_quick: AtomicBool,
}

impl Warm {
    /// Calls of the function in this payload by workers of this fleet.
    pub fn new(policy: Policy, fleet: Arc<Fleet>, payload: Arc<Payload>) -> Self {
        Self { policy, fleet, payload, is_quick: AtomicBool::new(false) }
    }

    /// Calls the function in an idle worker, if there is one that has it.
    pub fn call(&self, batch: Batch) -> Attempt {
        match self.fleet.roster.lease_knowing(self.fleet.key, &self.payload) {
            Some(worker) => {
                self.hand(worker, batch).map_or_else(|attempt| attempt, |pending| self.finish(pending))
            }
            None => Attempt::Nobody,
        }
    }

    /// The same for a caller whom others wait for: it begins the call only if the answer should come at
    /// once, and looks for that, but sleeps for nobody.
    pub fn begin(&self, batch: Batch) -> Begun {
        if !self.is_quick.load(Ordering::Relaxed) {
            return Begun::Nothing(batch);
        }
        let Some(worker) = self.fleet.roster.try_lease_knowing(self.fleet.key, &self.payload) else {
            return Begun::Nothing(batch);
        };
        match self.hand(worker, batch) {
            Ok(mut pending) => {
                if !pending.woken && pending.worker.channel.spin(pending.since, false) {
                    return Begun::Ended(self.receive(pending));
                }
                Begun::Pending(pending)
            }
            Err(attempt) => Begun::Ended(attempt),
        }
    }

    fn hand(&self, mut worker: Box<HostWorker>, batch: Batch) -> Result<Pending, Attempt> {
        let mut arguments = Arguments::default();
        arguments.push(TASK, batch);
        let since = sys::now();
        if !worker.is_sound()
            || !worker.stage(Run::one(TASK), &self.payload, &arguments).is_ok_and(|left| left.count == 0)
        {
            worker.kill();
            return Err(Attempt::Nobody);
        }
        match worker.publish(since, self.policy.limits()) {
            Ok(Published { handed: Handed::Yes, rung: woken, .. }) => {
                Ok(Pending { worker, arguments, since, woken })
            }
            Ok(_) => {
                // It has retired, or is not fit for use. The long way finds another one.
                worker.kill();
                Err(Attempt::Nobody)
            }
            Err(error) => {
                // It may have begun all the same.
                let problem = Corrupt(format!("doorbell: {error}"));
                let pending = Pending { worker, arguments, since, woken: false };
                Err(self.underway(pending, Some(Err(problem))))
            }
        }
    }

    /// Waits for the answer of what was begun.
    pub fn finish(&self, mut pending: Pending) -> Attempt {
        let Pending { worker, since, woken, .. } = &mut pending;
        if !worker.channel.spin(*since, *woken) {
            let most = self.policy.timeout.map_or(FIRST_SLEEP, |timeout| FIRST_SLEEP.min(timeout / 2));
            if let Err(error) = worker.sleep(*since + most) {
                return self.underway(pending, Some(Err(error)));
            }
        }
        self.receive(pending)
    }

    fn receive(&self, mut pending: Pending) -> Attempt {
        let Pending { worker, since, woken, .. } = &mut pending;
        let quick = if *woken { QUICK_WHEN_WOKEN } else { QUICK };
        let deadline = self.policy.timeout.map(|timeout| *since + timeout);
        let in_time = |stamp| deadline.is_none_or(|deadline| stamp <= deadline);
        let answer = worker.receive();
        match answer {
            Ok(Some(reply))
                if reply.kind.is_value()
                    && reply.task == TASK.0
                    && in_time(Moment::from_nanos(reply.finished_at)) =>
            {
                let took = Moment::from_nanos(reply.finished_at).since(*since);
                self.is_quick.store(took < quick, Ordering::Relaxed);
                let mut worker = pending.worker;
                worker.answered();
                if worker.channel.acknowledge().is_ok() {
                    self.fleet.roster.give_back(self.fleet.key, worker);
                } else {
                    worker.kill();
                }
                Attempt::Returned { plain: reply.kind.is_plain(), body: reply.body }
            }
            answer => self.underway(pending, answer.transpose()),
        }
    }

    fn underway(&self, pending: Pending, answer: Option<Result<Reply, Corrupt>>) -> Attempt {
        self.is_quick.store(false, Ordering::Relaxed);
        let Pending { worker, arguments, since, .. } = pending;
        let (fleet, payload) = (Arc::clone(&self.fleet), Arc::clone(&self.payload));
        let task = (TASK, arguments, since);
        Attempt::Underway(Box::new(Driver::take_over(self.policy, fleet, payload, task, worker, answer)))
    }
}
