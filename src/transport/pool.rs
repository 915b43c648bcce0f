//! Files of memory that were used and may be used again.
//!
//! What takes long about a large value is not the copy but the first touch of fresh pages. So a file
//! has one owner at a time: who sends it for good has no more to do with it, and the receiver sends
//! its own next value in it once nothing of the old one is in use. Pages go back and forth like that
//! and are never fresh.
//!
//! This module decides which files are kept, and for how long; that nobody else looks at them any
//! more is for those to know who put them here.

use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Duration;

use crate::sys;
use crate::time::Moment;

/// Most files: as many as go back and forth between a host and two workers.
const FILES_MAX: usize = 4;
/// Smaller ones are made as quickly as they are found.
pub const LEN_MIN: usize = 256 * 1024;
/// How long a file waits at most, as far as somebody looks.
const AGE_MAX: Duration = Duration::from_secs(10);
/// Most bytes that are kept, until somebody says what is right for this machine.
const LIMIT: usize = 64 << 20;

#[derive(Debug)]
struct Free {
    file: OwnedFd,
    len: usize,
    since: Moment,
}

#[derive(Debug)]
struct Pool {
    /// The longest waiting one first.
    files: Vec<Free>,
    limit: usize,
    /// Which process this is. A forked copy has no right to what its parent keeps.
    generation: u64,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { files: Vec::new(), limit: LIMIT, generation: 0 });

/// Runs this with the pool unless another thread has it, or had it when this process was forked: then
/// there is no waiting for it.
fn with<T>(run: impl FnOnce(&mut Pool) -> T) -> Option<T> {
    let mut pool = POOL.try_lock().ok()?;
    let generation = sys::fork_generation();
    if pool.generation != generation {
        pool.generation = generation;
        pool.files.clear();
    }
    Some(run(&mut pool))
}

impl Pool {
    fn trim(&mut self, now: Moment, room: usize) {
        let mut bytes: usize = self.files.iter().map(|free| free.len).sum();
        let (limit, mut count) = (self.limit, self.files.len());
        self.files.retain(|free| {
            let kept = bytes.saturating_add(room) <= limit
                && count + usize::from(room > 0) <= FILES_MAX
                && now.since(free.since) < AGE_MAX;
            if !kept {
                bytes -= free.len;
                count -= 1;
            }
            kept
        });
    }

    fn take(&mut self, need: usize, now: Moment) -> Option<(OwnedFd, usize)> {
        self.trim(now, 0);
        // One that is much too large stays for a value of its size.
        let fits = |free: &Free| free.len >= need && free.len / 4 <= need;
        let fitting = (0..self.files.len()).filter(|&at| fits(&self.files[at]));
        let best = fitting.min_by_key(|&at| self.files[at].len).or_else(|| {
            let shorter = (0..self.files.len()).filter(|&at| self.files[at].len < need);
            shorter.max_by_key(|&at| self.files[at].len)
        })?;
        let free = self.files.remove(best);
        Some((free.file, free.len))
    }

    fn put(&mut self, file: OwnedFd, len: usize, now: Moment) {
        if len <= self.limit {
            self.trim(now, len);
            self.files.push(Free { file, len, since: now });
        }
    }
}

/// A file for `need` bytes, and how long it is: it may have to grow.
pub fn take(need: usize) -> Option<(OwnedFd, usize)> {
    if need < LEN_MIN {
        return None;
    }
    with(|pool| pool.take(need, sys::now())).flatten()
}

/// Keeps a file that nobody looks at any more.
pub fn put(file: OwnedFd, len: usize) {
    if len >= LEN_MIN {
        with(|pool| pool.put(file, len, sys::now()));
    }
}

/// Keeps no more bytes than this from now on.
pub fn set_limit(bytes: usize) {
    with(|pool| {
        pool.limit = bytes;
        pool.trim(sys::now(), 0);
    });
}

/// Lets go of all that is kept; whether there was anything.
pub fn clear() -> bool {
    // Closed after the lock is free: that may take a while.
    with(|pool| std::mem::take(&mut pool.files)).is_some_and(|files| !files.is_empty())
}

/// Whether anything is kept.
pub fn is_empty() -> bool {
    with(|pool| pool.files.is_empty()).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(lens: &[usize]) -> Pool {
        let mut pool = Pool { files: Vec::new(), limit: 1000, generation: 0 };
        for &len in lens {
            pool.put(sys::lasting_file().unwrap(), len, Moment::from_nanos(0));
        }
        pool
    }

    fn lens(pool: &Pool) -> Vec<usize> {
        pool.files.iter().map(|free| free.len).collect()
    }

    #[test]
    fn the_one_that_fits_best_is_taken() {
        let mut pool = pool(&[100, 300, 200]);
        let now = Moment::from_nanos(0);
        assert_eq!(200, pool.take(150, now).unwrap().1);
        assert_eq!(300, pool.take(400, now).unwrap().1, "it has to grow");
        assert!(pool.take(20, now).is_none(), "much too large");
        assert_eq!(100, pool.take(25, now).unwrap().1);
        assert!(pool.take(25, now).is_none());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        assert_eq!(vec![400, 500], lens(&pool(&[300, 1001, 400, 500])));
        assert_eq!(vec![2, 3, 4, 5], lens(&pool(&[1, 2, 3, 4, 5])));
        let mut pool = pool(&[1, 2]);
        pool.trim(Moment::from_nanos(0) + AGE_MAX, 0);
        assert_eq!(Vec::<usize>::new(), lens(&pool));
    }
}
