//! Which functions a worker has.
//!
//! A function comes with the first call of it and is kept for the next one. Its number stands for its
//! bytes, so that a function whose closure or globals change is another one each time: what is kept has
//! to have an end. Host and worker count in the same way, so nothing has to be told: when one is sent,
//! both let go of the oldest.

use std::collections::{HashSet, VecDeque};

/// How many large functions are kept. Each may be a large array in an older version.
pub const LARGE_MAX: usize = 2;
/// How many others.
const SMALL_MAX: usize = 16_384;
/// How many bytes those may have, as they travelled. In a worker's memory they take a few times as much.
const SMALL_BYTES_MAX: usize = 8 << 20;

/// The numbers of functions, oldest first.
#[derive(Debug, Default)]
pub struct Functions {
    all: HashSet<u64>,
    large: VecDeque<u64>,
    small: VecDeque<(u64, usize)>,
    /// What those have.
    bytes: usize,
}

impl Functions {
    /// Whether this one is there.
    pub fn contains(&self, number: u64) -> bool {
        self.all.contains(&number)
    }

    /// Takes one that has so many bytes, or is large; returns those that have to go for it.
    pub fn insert(&mut self, number: u64, bytes: Option<usize>) -> Vec<u64> {
        // One that the host took back counts as gone there, but what had to go for it does too.
        self.remove(number);
        self.all.insert(number);
        let mut gone = Vec::new();
        if let Some(bytes) = bytes {
            self.small.push_back((number, bytes));
            self.bytes += bytes;
            while self.small.len() > 1
                && (self.small.len() > SMALL_MAX || self.bytes > SMALL_BYTES_MAX)
                && let Some((oldest, bytes)) = self.small.pop_front()
            {
                self.bytes -= bytes;
                gone.push(oldest);
            }
        } else {
            self.large.push_back(number);
            if self.large.len() > LARGE_MAX {
                gone.extend(self.large.pop_front());
            }
        }
        for number in &gone {
            self.all.remove(number);
        }
        gone
    }

    /// This one is not there after all.
    pub fn remove(&mut self, number: u64) {
        if !self.all.remove(&number) {
            return;
        }
        self.large.retain(|&large| large != number);
        if let Some(at) = self.small.iter().rposition(|&(small, _)| small == number) {
            self.bytes -= self.small.remove(at).map_or(0, |(_, bytes)| bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_oldest_go() {
        let mut functions = Functions::default();
        for number in 0..SMALL_MAX as u64 {
            assert!(functions.insert(number, Some(1)).is_empty());
        }
        assert_eq!(functions.insert(u64::MAX, Some(1)), [0]);
        assert!(!functions.contains(0) && functions.contains(1) && functions.contains(u64::MAX));
        assert_eq!(functions.insert(0, Some(SMALL_BYTES_MAX)).len(), SMALL_MAX);
        // One that is too big by itself is kept as long as it is the newest.
        assert_eq!(functions.insert(1, Some(2 * SMALL_BYTES_MAX)), [0]);
        assert!(functions.contains(1));
        assert_eq!(functions.insert(2, Some(0)), [1]);
        assert_eq!(functions.bytes, 0);
    }

    #[test]
    fn large_ones_are_counted_by_themselves() {
        let mut functions = Functions::default();
        functions.insert(1, Some(10));
        for number in 2..2 + LARGE_MAX as u64 {
            assert!(functions.insert(number, None).is_empty());
        }
        assert_eq!(functions.insert(100, None), [2]);
        assert!(functions.contains(1) && functions.contains(100));
    }

    /// What is sent, and whether it is taken back before it arrives.
    fn sendings() -> impl Strategy<Value = Vec<(u64, Option<usize>, bool)>> {
        let size = prop_oneof![
            Just(None),
            (0..SMALL_BYTES_MAX / 2).prop_map(Some),
            (SMALL_BYTES_MAX / 3..2 * SMALL_BYTES_MAX).prop_map(Some),
        ];
        proptest::collection::vec((0..8u64, size, prop::bool::weighted(0.3)), 1..60)
    }

    proptest! {
        /// What the host goes by: the worker has all that the host believes it to have.
        #[test]
        fn the_worker_has_what_the_host_believes(sendings in sendings()) {
            let (mut host, mut worker) = (Functions::default(), Functions::default());
            // The same number is always the same bytes.
            let mut sizes = std::collections::HashMap::new();
            for (number, size, taken_back) in sendings {
                let size = *sizes.entry(number).or_insert(size);
                if host.contains(number) {
                    continue;
                }
                host.insert(number, size);
                if taken_back {
                    host.remove(number);
                } else {
                    worker.insert(number, size);
                }
                prop_assert!(host.all.iter().all(|&number| worker.contains(number)));
                prop_assert_eq!(host.bytes, host.small.iter().map(|&(_, bytes)| bytes).sum::<usize>());
            }
        }
    }
}
