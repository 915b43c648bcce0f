//! The watch over a worker's memory: what counts, and when to look again.
//!
//! The kernel's own limit (`sys::limit_memory`) binds each process, at once. This watch binds the
//! whole tree, and what the kernel does not count: shared memory.

use std::time::Duration;

use crate::sys;
use crate::time::Moment;

/// Fastest that two busy cores touch fresh memory, in bytes a nanosecond: 5.9 were measured for one
/// with huge pages.
const FASTEST: u64 = 12;
/// How often to look at least and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// Looking takes no more than this part of a core.
const SHARE: u32 = 10;
/// How far beyond the limit the kernel lets a process allocate: room for what is reserved and not
/// touched, such as stacks of threads.
const SLACK: u64 = 64 << 20;
/// Room to tell of a failed allocation.
pub const RESERVE: u64 = 16 << 20;
/// How long a worker over its limit has to dump its stack.
pub const DUMP_LIMIT: Duration = Duration::from_millis(3);

/// Where the kernel refuses: at most 10 % or 64 MiB over the limit.
pub fn kernel_limit(limit: u64) -> u64 {
    limit.saturating_add(SLACK.max(limit / 10))
}

/// The watch over one worker.
#[derive(Clone, Copy, Debug)]
pub struct MemoryWatch {
    /// Most bytes that the worker and all that it started may use together.
    limit: u64,
    /// When to look again.
    pub look_at: Moment,
    /// How much was used when it was too much.
    pub over: Option<u64>,
}

impl MemoryWatch {
    /// Over a worker that was just forked.
    pub fn new(limit: u64, now: Moment) -> Self {
        Self { limit, look_at: now + LOOK.0, over: None }
    }

    /// Looks at the tree of worker `pid`, whose forkserver is `server`. True if it is over the limit.
    pub fn look(&mut self, pid: i32, server: i32) -> bool {
        let begin = sys::cpu_time();
        let used = used(pid, server, self.limit);
        let cost = sys::cpu_time().since(begin);
        let now = sys::now();
        if used > self.limit {
            self.over = Some(used);
            self.look_at = now + DUMP_LIMIT;
            return true;
        }
        self.look_at = now + pause(self.limit - used, cost);
        false
    }
}

/// How much the tree of `pid` uses beyond what it has in common with the forkserver.
fn used(pid: i32, server: i32, limit: u64) -> u64 {
    let tree: Vec<i32> = std::iter::once(pid).chain(sys::descendants(pid)).collect();
    let resident = sum(&tree, server, sys::resident_memory);
    if tree.len() == 1 || resident <= limit {
        return resident;
    }
    // Forked processes share pages, which were counted once for each of them.
    sum(&tree, server, sys::proportional_memory)
}

/// Adds up what each process uses. Of those that were forked and have not execed, what came from the
/// forkserver does not count: it is about what the forkserver itself uses by the same measure.
fn sum(tree: &[i32], server: i32, used: fn(i32) -> Option<u64>) -> u64 {
    let image = sys::image(server);
    let common = used(server).unwrap_or(0);
    tree.iter()
        .map(|&pid| {
            let inherited = if sys::image(pid) == image { common } else { 0 };
            used(pid).unwrap_or(0).saturating_sub(inherited)
        })
        .sum()
}

/// How long until the next look: half of what it takes to use up the headroom.
fn pause(headroom: u64, cost: Duration) -> Duration {
    let reach = Duration::from_nanos(headroom / FASTEST / 2);
    reach.clamp(LOOK.0, LOOK.1).max(cost * SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_the_limit_the_oftener_it_looks() {
        assert_eq!(LOOK.1, pause(64 << 30, Duration::ZERO));
        assert_eq!(LOOK.0, pause(1 << 20, Duration::ZERO));
        let between = pause(512 << 20, Duration::ZERO);
        assert!(LOOK.0 < between && between < LOOK.1, "{between:?}");
        assert_eq!(Duration::from_millis(100), pause(1 << 20, Duration::from_millis(10)));
    }

    #[test]
    fn the_kernel_refuses_at_a_tenth_or_64_mib() {
        assert_eq!((100 << 20) + SLACK, kernel_limit(100 << 20));
        assert_eq!(11 << 30, kernel_limit(10 << 30));
    }
}
