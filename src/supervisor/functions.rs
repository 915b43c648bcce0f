//! Which functions a worker has.
//!
//! A function comes with the first call of it and is kept for the next one. Its number stands for its
//! bytes, so that a function whose closure or globals change is another one each time, another version of
//! it: what is kept has to have an end. What a version holds in the worker may be far more than its bytes
//! (a data base, an open file), so few are kept of each function. Host and worker count in the same way, so
//! nothing has to be told: when one is sent, both let go of the oldest.

use std::collections::{HashMap, HashSet, VecDeque};

/// How many large functions are kept. Each may be a large array in an older version.
pub const LARGE_MAX: usize = 2;
/// How many versions of any other one.
pub const VERSIONS_MAX: usize = 16;
/// How many of those in all.
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
    /// The same ones by the function that they are versions of.
    versions: HashMap<u64, VecDeque<u64>>,
}

/// Which function a number is a version of.
fn function_of(number: u64) -> u64 {
    number >> 32
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
            let versions = self.versions.entry(function_of(number)).or_default();
            versions.push_back(number);
            if versions.len() > VERSIONS_MAX {
                let oldest = versions[0];
                gone.push(oldest);
                self.remove(oldest);
            }
            while self.is_too_much()
                && let Some(&(oldest, _)) = self.small.front()
            {
                gone.push(oldest);
                self.remove(oldest);
            }
        } else {
            self.large.push_back(number);
            if self.large.len() > LARGE_MAX {
                let oldest = self.large[0];
                gone.push(oldest);
                self.remove(oldest);
            }
        }
        gone
    }

    fn is_too_much(&self) -> bool {
        self.small.len() > 1 && (self.small.len() > SMALL_MAX || self.bytes > SMALL_BYTES_MAX)
    }

    /// This one is not there after all.
    pub fn remove(&mut self, number: u64) {
        if !self.all.remove(&number) {
            return;
        }
        self.large.retain(|&large| large != number);
        // Mostly the oldest one, or the newest.
        let at = match self.small.front() {
            Some(&(oldest, _)) if oldest == number => Some(0),
            _ => self.small.iter().rposition(|&(small, _)| small == number),
        };
        let Some((_, bytes)) = at.and_then(|at| self.small.remove(at)) else { return };
        self.bytes -= bytes;
        let function = function_of(number);
        if let Some(versions) = self.versions.get_mut(&function) {
            versions.retain(|&version| version != number);
            if versions.is_empty() {
                self.versions.remove(&function);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The only version of a function.
    fn only(function: u64) -> u64 {
        function << 32 | 1
    }

    #[test]
    fn the_oldest_go() {
        let mut functions = Functions::default();
        for function in 0..SMALL_MAX as u64 {
            assert!(functions.insert(only(function), Some(1)).is_empty());
        }
        let (first, second, new) = (only(0), only(1), only(SMALL_MAX as u64));
        assert_eq!(functions.insert(new, Some(1)), [first]);
        assert!(!functions.contains(first) && functions.contains(second) && functions.contains(new));
        assert_eq!(functions.insert(first, Some(SMALL_BYTES_MAX)).len(), SMALL_MAX);
        // One that is too big by itself is kept as long as it is the newest.
        assert_eq!(functions.insert(second, Some(2 * SMALL_BYTES_MAX)), [first]);
        assert!(functions.contains(second));
        assert_eq!(functions.insert(new, Some(0)), [second]);
        assert_eq!((functions.bytes, functions.versions.len()), (0, 1));
    }

    #[test]
    fn a_function_has_few_versions() {
        let mut functions = Functions::default();
        let most = VERSIONS_MAX as u64;
        functions.insert(only(7), Some(1));
        for version in 0..most {
            assert!(functions.insert(8 << 32 | version, Some(1)).is_empty());
        }
        for version in most..3 * most {
            assert_eq!(functions.insert(8 << 32 | version, Some(1)), [8 << 32 | (version - most)]);
        }
        assert!(functions.contains(only(7)));
        assert_eq!(functions.all.len(), VERSIONS_MAX + 1);
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
            (0..9usize).prop_map(Some),
            (0..SMALL_BYTES_MAX / 2).prop_map(Some),
            (SMALL_BYTES_MAX / 3..2 * SMALL_BYTES_MAX).prop_map(Some),
        ];
        let number = prop_oneof![(0..8u64).prop_map(|function| function << 32), 0..40u64];
        proptest::collection::vec((number, size, prop::bool::weighted(0.3)), 1..120)
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
