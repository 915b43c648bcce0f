//! Runs of tasks: those numbered one after the other are one thing for as long as nothing happens to
//! one of them, however many they are.

use std::collections::VecDeque;

use super::events::{Run, TaskId};

impl Run {
    /// A run of one.
    pub const fn one(task: TaskId) -> Self {
        Self { first: task, count: 1 }
    }

    /// The number after the last one.
    const fn end(self) -> u64 {
        self.first.0 + self.count as u64
    }

    /// Whether this is one of them.
    pub fn contains(self, task: TaskId) -> bool {
        self.first <= task && task.0 < self.end()
    }

    /// Whether the last of them are these.
    pub fn ends_with(self, other: Self) -> bool {
        self.first <= other.first && self.end() == other.end()
    }

    /// Its tasks.
    pub fn tasks(self) -> impl DoubleEndedIterator<Item = TaskId> {
        (self.first.0..self.end()).map(TaskId)
    }

    /// The first `count` of them, and the others.
    pub fn split(self, count: usize) -> (Self, Self) {
        let count = count.min(self.count);
        let rest = TaskId(self.first.0 + count as u64);
        (Self { first: self.first, count }, Self { first: rest, count: self.count - count })
    }
}

/// A queue of tasks.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    runs: VecDeque<Run>,
    len: usize,
}

impl Runs {
    /// How many tasks there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All tasks in their order.
    pub fn tasks(&self) -> impl Iterator<Item = TaskId> {
        self.runs.iter().flat_map(|run| run.tasks())
    }

    /// Whether this task is among them.
    pub fn contains(&self, task: TaskId) -> bool {
        self.runs.iter().any(|run| run.contains(task))
    }

    /// Adds some at the back.
    pub fn push_back(&mut self, run: Run) {
        self.len += run.count;
        match self.runs.back_mut() {
            _ if run.count == 0 => {}
            Some(last) if last.end() == run.first.0 => last.count += run.count,
            _ => self.runs.push_back(run),
        }
    }

    /// Adds some at the front.
    pub fn push_front(&mut self, run: Run) {
        self.len += run.count;
        match self.runs.front_mut() {
            _ if run.count == 0 => {}
            Some(next) if run.end() == next.first.0 => {
                next.first = run.first;
                next.count += run.count;
            }
            _ => self.runs.push_front(run),
        }
    }

    /// Takes at most `count` that are numbered one after the other off the front.
    pub fn pop_front(&mut self, count: usize) -> Option<Run> {
        if count == 0 {
            return None;
        }
        let front = self.runs.front_mut()?;
        let (taken, rest) = front.split(count);
        *front = rest;
        if rest.count == 0 {
            self.runs.pop_front();
        }
        self.len -= taken.count;
        Some(taken)
    }

    /// Takes all out that are `wanted`.
    pub fn extract(&mut self, wanted: impl Fn(TaskId) -> bool) -> Vec<TaskId> {
        let (taken, kept): (Vec<_>, Vec<_>) = self.tasks().partition(|&task| wanted(task));
        *self = kept.into_iter().collect();
        taken
    }
}

impl FromIterator<TaskId> for Runs {
    fn from_iter<T: IntoIterator<Item = TaskId>>(tasks: T) -> Self {
        let mut runs = Self::default();
        tasks.into_iter().for_each(|task| runs.push_back(Run::one(task)));
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_queue(steps in prop::collection::vec((0u8..5, 0u64..30, 0usize..4), 1..120)) {
            let (mut runs, mut queue) = (Runs::default(), VecDeque::new());
            for (step, first, count) in steps {
                let run = Run { first: TaskId(first), count };
                match step {
                    0 => {
                        runs.push_back(run);
                        queue.extend(run.tasks());
                    }
                    1 => {
                        runs.push_front(run);
                        run.tasks().rev().for_each(|task| queue.push_front(task));
                    }
                    2 => if let Some(taken) = runs.pop_front(count) {
                        prop_assert!(taken.count <= count);
                        for task in taken.tasks() {
                            prop_assert_eq!(Some(task), queue.pop_front());
                        }
                    } else {
                        prop_assert!(count == 0 || queue.is_empty());
                    },
                    3 => prop_assert_eq!(queue.contains(&TaskId(first)), runs.contains(TaskId(first))),
                    _ => {
                        let odd = |task: TaskId| task.0 % 2 == 1;
                        let taken = runs.extract(odd);
                        prop_assert_eq!(queue.iter().copied().filter(|&task| odd(task)).collect::<Vec<_>>(), taken);
                        queue.retain(|&task| !odd(task));
                    }
                }
                prop_assert_eq!(queue.len(), runs.len());
                prop_assert_eq!(queue.iter().copied().collect::<Vec<_>>(), runs.tasks().collect::<Vec<_>>());
            }
        }
    }
}
