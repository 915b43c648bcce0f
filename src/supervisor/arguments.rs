//! The arguments of tasks that have not ended, in the batches in which they came.

use std::collections::VecDeque;
use std::sync::Arc;

use super::events::{Run, TaskId};
use crate::transport::parcel::Parcel;
use crate::transport::{Section, Small};

/// The arguments of tasks that are numbered one after the other.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Small,
    /// Where those of each task end.
    ends: Ends,
    /// Whether they are plain, and not the serializer's.
    pub plain: bool,
    /// Those of one task, if they are large; then there are no bytes.
    parcel: Option<Arc<Parcel>>,
}

#[derive(Debug, Default)]
enum Ends {
    /// There is one task.
    #[default]
    One,
    Many(Vec<usize>),
}

impl Batch {
    /// For one task.
    pub fn one(bytes: Small, plain: bool) -> Self {
        Self { bytes, ends: Ends::One, plain, parcel: None }
    }

    /// For several, whose plain arguments follow each other and end at these places.
    pub fn many(bytes: Small, ends: Vec<usize>) -> Self {
        Self { bytes, ends: Ends::Many(ends), plain: true, parcel: None }
    }

    /// For one task, of large arguments.
    pub fn packed(parcel: Arc<Parcel>) -> Self {
        Self { parcel: Some(parcel), ..Self::default() }
    }

    /// Whether they are large.
    pub fn is_packed(&self) -> bool {
        self.parcel.is_some()
    }

    /// How many bytes they have, unless they are large.
    pub fn small_len(&self) -> Option<usize> {
        (!self.is_packed()).then(|| self.bytes.len())
    }

    /// The same arguments as `slice`, as they travel.
    pub fn section(&self, from: usize, to: usize) -> Section<'_> {
        match &self.parcel {
            Some(parcel) => Section::Parcel(parcel),
            None => Section::Bytes(self.slice(from, to)),
        }
    }

    /// How many tasks.
    pub fn count(&self) -> usize {
        match &self.ends {
            Ends::One => 1,
            Ends::Many(ends) => ends.len(),
        }
    }

    fn start(&self, at: usize) -> usize {
        match &self.ends {
            Ends::Many(ends) if at > 0 => ends[at - 1],
            _ => 0,
        }
    }

    /// The arguments of the tasks from one place to before another.
    pub fn slice(&self, from: usize, to: usize) -> &[u8] {
        let end = match &self.ends {
            Ends::One => self.bytes.len(),
            Ends::Many(_) => self.start(to),
        };
        &self.bytes[self.start(from)..end]
    }

    /// How many from this place on have no more than `most` bytes, at least one.
    pub fn fitting(&self, from: usize, most: usize) -> usize {
        match &self.ends {
            Ends::One => 1,
            Ends::Many(ends) => {
                let start = self.start(from);
                ends[from..].partition_point(|end| end - start <= most).max(1)
            }
        }
    }
}

#[derive(Debug)]
struct Entry {
    first: u64,
    /// How many of its tasks have not ended.
    left: usize,
    batch: Batch,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Arguments {
    /// By the numbers of their tasks.
    entries: VecDeque<Entry>,
    len: usize,
    /// How many of them are large.
    packed: usize,
}

impl Arguments {
    /// How many tasks have not ended.
    pub fn len(&self) -> usize {
        self.len
    }

    /// How many of those have large arguments.
    pub fn packed(&self) -> usize {
        self.packed
    }

    /// Adds a batch, whose numbers must be greater than all before.
    pub fn push(&mut self, first: TaskId, batch: Batch) {
        let after = self.entries.back().map_or(0, |entry| entry.first + entry.batch.count() as u64);
        assert!(first.0 >= after, "{first:?} comes after {after}");
        self.len += batch.count();
        self.packed += usize::from(batch.is_packed());
        self.entries.push_back(Entry { first: first.0, left: batch.count(), batch });
    }

    fn entry(&self, task: TaskId) -> Option<usize> {
        self.entries.partition_point(|entry| entry.first <= task.0).checked_sub(1)
    }

    /// The batch of a task, and its place in it.
    pub fn get(&self, task: TaskId) -> Option<(&Batch, usize)> {
        let entry = &self.entries[self.entry(task)?];
        let place = usize::try_from(task.0 - entry.first).ok()?;
        (place < entry.batch.count()).then_some((&entry.batch, place))
    }

    /// Forgets those that have ended.
    pub fn remove(&mut self, mut run: Run) {
        while run.count > 0
            && let Some(at) = self.entry(run.first)
        {
            let entry = &mut self.entries[at];
            let rest = entry.first + entry.batch.count() as u64 - run.first.0;
            let (here, next) = run.split(usize::try_from(rest).unwrap_or(usize::MAX));
            entry.left -= here.count;
            self.len -= here.count;
            // Others that came before it may take long yet.
            if entry.left == 0 && entry.batch.parcel.take().is_some() {
                self.packed -= 1;
            }
            run = next;
        }
        while self.entries.front().is_some_and(|entry| entry.left == 0) {
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(texts: &[&str]) -> Batch {
        let mut ends = Vec::new();
        let mut bytes = Small::new();
        for text in texts {
            bytes.extend_from_slice(text.as_bytes());
            ends.push(bytes.len());
        }
        Batch::many(bytes, ends)
    }

    #[test]
    fn arguments_are_found_until_their_task_has_ended() {
        let mut arguments = Arguments::default();
        arguments.push(TaskId(3), batch(&["a", "", "bcd"]));
        arguments.push(TaskId(6), Batch::one(b"whole"[..].into(), false));
        arguments.push(TaskId(9), batch(&["e"]));
        assert_eq!(5, arguments.len());
        let slice = |arguments: &Arguments, task: u64| {
            let (batch, place) = arguments.get(TaskId(task)).unwrap();
            String::from_utf8(batch.slice(place, place + 1).to_vec()).unwrap()
        };
        let found: Vec<_> = [3, 4, 5, 6, 9].map(|task| slice(&arguments, task)).to_vec();
        assert_eq!(["a", "", "bcd", "whole", "e"], found[..]);
        assert!(arguments.get(TaskId(7)).is_none() && arguments.get(TaskId(2)).is_none());
        arguments.remove(Run { first: TaskId(4), count: 3 });
        assert_eq!((2, "e"), (arguments.len(), slice(&arguments, 9).as_str()));
        arguments.remove(Run { first: TaskId(3), count: 1 });
        arguments.remove(Run { first: TaskId(9), count: 1 });
        assert_eq!((0, 0), (arguments.len(), arguments.entries.len()));
    }

    #[test]
    fn as_many_are_taken_as_fit() {
        let batch = batch(&["aa", "bb", "", "cccc"]);
        assert_eq!([3, 1, 4], [(0, 4), (0, 1), (0, 8)].map(|(from, most)| batch.fitting(from, most)));
        assert_eq!(b"bb", batch.slice(1, 3));
    }
}
