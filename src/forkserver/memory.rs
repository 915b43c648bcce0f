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
#[derive(Debug)]
pub struct MemoryWatch {
    /// Most bytes that the worker and all that it started may use together.
    limit: u64,
    /// When to look again.
    pub look_at: Moment,
    /// How much was used when it was too much.
    pub over: Option<u64>,
    /// The closer look that is under way.
    audit: Option<Audit>,
}

/// Counts shared pages once, process by process: each takes up to tens of milliseconds, between which
/// the forkserver has kills to attend to.
///
/// So the shares are of different moments. A process counted with a fifth of what it shares with four
/// others may be gone when the last of them is counted, with all of it: the sum would be more than there
/// ever was. See [`Share::still`].
#[derive(Debug)]
struct Audit {
    left: Vec<i32>,
    counted: Vec<Share>,
    cost: Duration,
}

/// What one process had when it was counted.
#[derive(Debug)]
struct Share {
    pid: i32,
    image: Option<u64>,
    resident: u64,
    /// Its part of the sum, in which a page that several processes share is divided among them.
    bytes: u64,
}

impl Share {
    fn of(pid: i32, server: i32) -> Self {
        let (image, resident) = (sys::image(pid), sys::resident_memory(pid).unwrap_or(0));
        Self { pid, image, resident, bytes: own(pid, server, sys::proportional_memory) }
    }

    /// What of it counts beside shares that were taken since: a process that has ended, or runs another
    /// program, has left its pages to those who shared them, and so has one that has freed some.
    ///
    /// What is left was all mapped for the whole time, so that the sum is no more than what is in use.
    fn still(&self) -> u64 {
        if sys::image(self.pid) != self.image {
            return 0;
        }
        let freed = self.resident.saturating_sub(sys::resident_memory(self.pid).unwrap_or(0));
        self.bytes.saturating_sub(freed)
    }
}

impl MemoryWatch {
    /// Over a worker that was just forked.
    pub fn new(limit: u64, now: Moment) -> Self {
        Self { limit, look_at: now + LOOK.0, over: None, audit: None }
    }

    /// Looks at the tree of worker `pid`, whose forkserver is `server`. True if it is over the limit.
    pub fn look(&mut self, pid: i32, server: i32) -> bool {
        let begin = sys::cpu_time();
        let audit = self.audit.take();
        let (used, before) = match audit {
            None => {
                let tree: Vec<i32> = std::iter::once(pid).chain(sys::descendants(pid)).collect();
                let used = tree.iter().map(|&pid| own(pid, server, sys::resident_memory)).sum();
                if tree.len() > 1 && used > self.limit {
                    // Forked processes share pages, which were counted once for each of them.
                    let left = address_spaces(&tree);
                    let cost = sys::cpu_time().since(begin);
                    self.audit = Some(Audit { left, counted: Vec::new(), cost });
                    self.look_at = sys::now();
                    return false;
                }
                (used, Duration::ZERO)
            }
            Some(mut audit) => {
                if let Some(next) = audit.left.pop() {
                    audit.counted.push(Share::of(next, server));
                }
                let sum = |of: fn(&Share) -> u64| audit.counted.iter().map(of).sum::<u64>();
                let mut used = sum(|share| share.bytes);
                if used > self.limit {
                    used = sum(Share::still);
                }
                if used <= self.limit && !audit.left.is_empty() {
                    audit.cost += sys::cpu_time().since(begin);
                    self.look_at = sys::now();
                    self.audit = Some(audit);
                    return false;
                }
                (used, audit.cost)
            }
        };
        let cost = before + sys::cpu_time().since(begin);
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

/// What `pid` uses. If it was forked and has not execed, what came from the forkserver does not count:
/// that is about what the forkserver itself uses by the same measure.
fn own(pid: i32, server: i32, used: fn(i32) -> Option<u64>) -> u64 {
    let inherited = if sys::image(pid) == sys::image(server) { used(server).unwrap_or(0) } else { 0 };
    used(pid).unwrap_or(0).saturating_sub(inherited)
}

/// One process for each address space: between `vfork` and exec a child has that of its parent.
fn address_spaces(tree: &[i32]) -> Vec<i32> {
    tree.iter().copied().filter(|&pid| !sys::shares_memory_with_parent(pid)).collect()
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

    #[cfg(target_os = "linux")]
    #[test]
    fn who_has_ended_or_runs_another_program_has_left_its_share_to_others() {
        use std::io::{Read, Write};
        use std::process::{Command, Stdio};

        let ends = ["echo; read line", "echo; read line; exec sh -c 'echo; read line'"];
        for program in ends {
            let mut shell = Command::new("sh")
                .args(["-c", program])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (mut orders, mut answers) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
            let pid = i32::try_from(shell.id()).unwrap();
            answers.read_exact(&mut [0]).unwrap();
            let share = Share::of(pid, sys::pid());
            assert!(share.bytes > 0);
            assert_eq!(share.bytes, share.still());
            orders.write_all(b"on\n").unwrap();
            // Either its end or the first word of the other program.
            let _ = answers.read(&mut [0]).unwrap();
            if program == ends[0] {
                shell.wait().unwrap();
            }
            assert_eq!(0, share.still(), "{program}");
            drop(orders);
            shell.wait().unwrap();
        }
    }

    #[test]
    fn the_kernel_refuses_at_a_tenth_or_64_mib() {
        assert_eq!((100 << 20) + SLACK, kernel_limit(100 << 20));
        assert_eq!(11 << 30, kernel_limit(10 << 30));
    }
}
