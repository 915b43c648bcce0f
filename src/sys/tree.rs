//! Who descends from whom.
//!
//! On Linux every process of ours that has children is a child subreaper, so a process whose
//! parent ended is handed up to the next of ours and never leaves the tree, whatever session it
//! moved to.

use std::collections::HashSet;
use std::path::Path;

#[cfg(target_os = "linux")]
use std::{
    collections::BTreeMap,
    fs::File,
    sync::{Mutex, PoisonError},
};

/// The direct children of `pid` as they were at some point during the call.
///
/// `/proc/PID/task/TID/children` names them in one read a thread, whatever else the machine runs.
/// The kernel may skip one that is being forked or reaped meanwhile, so callers repeat until
/// nothing is left.
#[cfg(target_os = "linux")]
pub fn children(pid: i32) -> Vec<i32> {
    with_reserve(|| read_children(pid))
}

/// Gives the reserve to a look at `/proc`.
#[cfg(target_os = "linux")]
pub(super) fn with_reserve<T>(look: impl FnOnce() -> T) -> T {
    let mut reserve = RESERVE.lock().unwrap_or_else(PoisonError::into_inner);
    let size = reserve.len();
    reserve.clear();
    let found = look();
    fill(&mut reserve, size);
    found
}

/// Descriptors set aside for reading `/proc`: one for a directory, one for a file in it.
#[cfg(target_os = "linux")]
static RESERVE: Mutex<Vec<File>> = Mutex::new(Vec::new());

#[cfg(target_os = "linux")]
fn fill(reserve: &mut Vec<File>, size: usize) {
    while reserve.len() < size
        && let Ok(file) = File::open("/dev/null")
    {
        reserve.push(file);
    }
}

/// Sets aside what it takes to find descendants, so that this process can do so even when it has no
/// descriptors left: a tree that cannot be seen cannot be killed.
#[cfg(target_os = "linux")]
pub fn keep_reserve() {
    fill(&mut RESERVE.lock().unwrap_or_else(PoisonError::into_inner), 2);
}

/// Gives it back, in a forked child that does not look for descendants.
#[cfg(target_os = "linux")]
pub fn release_reserve() {
    RESERVE.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Nothing is read here.
#[cfg(not(target_os = "linux"))]
pub fn keep_reserve() {}

/// See above.
#[cfg(not(target_os = "linux"))]
pub fn release_reserve() {}

#[cfg(target_os = "linux")]
fn read_children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for task in tasks.flatten() {
        match std::fs::read_to_string(task.path().join("children")) {
            Ok(list) => found.extend(list.split_ascii_whitespace().filter_map(|id| id.parse::<i32>().ok())),
            // A kernel without CONFIG_PROC_CHILDREN has the directory but not the file.
            Err(_)
                if !Path::new("/proc/self/task")
                    .join(std::process::id().to_string())
                    .join("children")
                    .exists() =>
            {
                return children_by_parent(pid);
            }
            // The thread ended between the two reads; its children moved to a sibling.
            Err(_) => {}
        }
    }
    found
}

/// The same by reading every process's parent.
#[cfg(target_os = "linux")]
fn children_by_parent(pid: i32) -> Vec<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&candidate| {
            // "pid (name) state ppid ...", and the name may hold anything, parentheses too.
            std::fs::read_to_string(format!("/proc/{candidate}/stat"))
                .ok()
                .and_then(|stat| stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok())
                == Some(pid)
        })
        .collect()
}

/// The children of this process itself, for whoever looks often: with one thread there is one list of
/// them, which is kept open.
#[cfg(target_os = "linux")]
#[derive(Debug, Default)]
pub struct OwnChildren {
    /// The directory of this process's threads, and the list of the main thread's children.
    kept: Option<(File, File)>,
}

#[cfg(target_os = "linux")]
impl OwnChildren {
    /// As [`children`].
    pub fn look(&mut self) -> Vec<i32> {
        if self.kept.is_none() {
            let open = |path: &str| File::open(path).ok();
            let list = format!("/proc/self/task/{}/children", std::process::id());
            self.kept = open("/proc/self/task").zip(open(&list));
        }
        self.kept
            .as_ref()
            .and_then(|(tasks, list)| only_list(tasks, list))
            .unwrap_or_else(|| children(super::pid()))
    }
}

/// `None` if there are other threads, which may have children of their own, or too many children.
#[cfg(target_os = "linux")]
fn only_list(tasks: &File, list: &File) -> Option<Vec<i32>> {
    use std::os::unix::fs::{FileExt, MetadataExt};
    /// The directory's own links, and one for each thread.
    const LINKS: u64 = 3;
    if tasks.metadata().ok()?.nlink() != LINKS {
        return None;
    }
    let mut bytes = [0; 4096];
    let len = list.read_at(&mut bytes, 0).ok().filter(|&len| len < bytes.len())?;
    let text = std::str::from_utf8(&bytes[..len]).ok()?;
    Some(text.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect())
}

/// Nothing is kept here.
#[cfg(not(target_os = "linux"))]
#[derive(Debug, Default)]
pub struct OwnChildren;

#[cfg(not(target_os = "linux"))]
impl OwnChildren {
    /// As [`children`].
    pub fn look(&mut self) -> Vec<i32> {
        children(super::pid())
    }
}

/// Elsewhere the process group is all there is; see `sys::send`.
#[cfg(not(target_os = "linux"))]
pub fn children(_pid: i32) -> Vec<i32> {
    let _ = Path::new("/");
    Vec::new()
}

/// All descendants of `pid`, parents before their children.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut found = children(pid);
    let mut seen: HashSet<i32> = found.iter().copied().collect();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        for child in children(parent) {
            // A pid seen twice would be one that was reused meanwhile; once is enough.
            if seen.insert(child) {
                found.push(child);
            }
        }
    }
    found
}

/// Kills `pid`, which the caller has not reaped, and all that descends from it now. Repeat until
/// nothing is left: who forks meanwhile is found by the next walk.
///
/// A descendant that may not be signalled (a set-uid program) is passed over.
#[cfg(target_os = "linux")]
pub fn kill_tree(pid: i32) {
    // It first: it ends while we look for the others, which are found wherever they are by then.
    let _ = super::send(pid, super::KILL_SIGNAL);
    for target in descendants(pid) {
        let _ = super::send(target, super::KILL_SIGNAL);
    }
}

/// Kills and reaps all that descends from this process, until nothing of it is left but what may not be
/// signalled (a set-uid program). Whoever else waits for a child of this process loses it.
///
/// This process has to be a subreaper: then whoever loses its parent comes up to it, and its own list of
/// children, from which nobody else takes one, is empty only when nothing is left.
pub fn end_descendants() {
    /// About as long as the kernel takes for a small process.
    const PAUSE: std::time::Duration = std::time::Duration::from_micros(200);
    loop {
        let mut may_end = false;
        for target in descendants(super::pid()) {
            may_end |= super::send(target, super::KILL_SIGNAL).is_ok();
        }
        while let Ok(Some(_)) = super::try_reap_any() {}
        if !may_end {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whether the whole tree of `pid`, which must not have ended, was killed: none of it runs any code of its
/// own again, though the kernel may still have it. False if that is not certain: kill and ask again.
///
/// Certain means that
/// 1. two walks in a row have found the same processes with the same threads;
/// 2. SIGKILL was pending in each of them, or it was on its way out, before its children were read: such a
///    process cannot fork any more, the kernel checks for it with the lock held that a birth takes;
/// 3. none of their threads has ended meanwhile. It is the end of a thread or a process that moves its
///    children to another list, which may have been read already, and an end in the middle of a list for
///    which the kernel may leave one out.
#[cfg(target_os = "linux")]
pub fn is_killed(pid: i32) -> bool {
    let Some(first) = census(pid) else { return false };
    // What a root that has ended had started is not below it any more.
    let root_lives = first.get(&pid).is_some_and(|tasks| !tasks.iter().all(|task| task.ended));
    root_lives
        && census(pid).is_some_and(|second| second == first)
        && first.iter().all(|(&pid, before)| tasks(pid).is_some_and(|now| now == *before))
}

/// Elsewhere nobody can tell.
#[cfg(not(target_os = "linux"))]
pub fn is_killed(_pid: i32) -> bool {
    true
}

/// The tree of `root`; `None` if one of it was not killed, or is gone already.
#[cfg(target_os = "linux")]
fn census(root: i32) -> Option<BTreeMap<i32, Vec<Task>>> {
    /// Asks for permission only.
    const NO_SIGNAL: i32 = 0;
    let mut found = BTreeMap::new();
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        let tasks = tasks(pid)?;
        // Who may not be signalled (a set-uid program) is passed over.
        if !is_doomed(pid, &tasks) && super::send(pid, NO_SIGNAL).is_ok() {
            return None;
        }
        next.extend(children(pid));
        found.insert(pid, tasks);
    }
    Some(found)
}

/// A thread of a process.
#[cfg(target_os = "linux")]
#[derive(Debug, PartialEq, Eq)]
struct Task {
    id: i32,
    /// When it started: the same number may be another thread's later.
    started: u64,
    /// Whether it has ended, from which moment on its children are others'.
    ended: bool,
}

/// The threads of `pid`; `None` if it is gone.
#[cfg(target_os = "linux")]
fn tasks(pid: i32) -> Option<Vec<Task>> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let id = entry.file_name().to_str()?.parse().ok()?;
        let stat = Stat::read(&entry.path())?;
        Some(Task { id, started: stat.started, ended: stat.ended() })
    };
    with_reserve(|| std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.map(read).collect())
}

/// Whether `pid` will never run code of its own again.
///
/// A SIGKILL stays pending until the process is reaped; one that was on its way out before it came drops
/// it.
#[cfg(target_os = "linux")]
fn is_doomed(pid: i32, tasks: &[Task]) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let read = |name: &str| with_reserve(|| std::fs::read_to_string(process.join(name)).ok());
    let is_pending = || {
        let status = read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"))?;
        let signals = u64::from_str_radix(line.trim(), 16).ok()?;
        Some(signals & (1 << (super::KILL_SIGNAL - 1)) != 0)
    };
    let is_exiting = |task: &Task| {
        let path = process.join("task").join(task.id.to_string());
        with_reserve(|| Stat::read(&path)).is_none_or(|stat| stat.is_exiting())
    };
    is_pending() == Some(true) || tasks.iter().all(is_exiting)
}

/// What the kernel says of a thread in one line.
#[cfg(target_os = "linux")]
struct Stat {
    state: char,
    flags: u64,
    started: u64,
}

#[cfg(target_os = "linux")]
impl Stat {
    /// Of the thread with this directory.
    fn read(task: &Path) -> Option<Self> {
        let stat = std::fs::read_to_string(task.join("stat")).ok()?;
        // "pid (name) state ...", and the name may hold anything; the state is the third field.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse().ok();
        Some(Self { state: fields.first()?.chars().next()?, flags: number(9)?, started: number(22)? })
    }

    fn ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    fn is_exiting(&self) -> bool {
        /// The kernel's flag of a thread that does not come back from its exit.
        const PF_EXITING: u64 = 0x4;
        self.ended() || self.flags & PF_EXITING != 0
    }
}

/// Kills `pid` and its process group.
#[cfg(not(target_os = "linux"))]
pub fn kill_tree(pid: i32) {
    use nix::sys::signal::{Signal, killpg};
    let _ = killpg(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
    let _ = super::send(pid, super::KILL_SIGNAL);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    const STOP_SIGNAL: i32 = 19;

    /// A program that leads a tree of three, and has much memory for the kernel to tear down.
    const LARGE: &str = "
import os
large = bytearray(1 << 29)
for _ in range(2):
    if os.fork() == 0:
        os.read(os.pipe()[0], 1)
os.write(1, b'.')
os.read(os.pipe()[0], 1)
";

    #[test]
    fn a_tree_is_killed_when_all_of_it_is() {
        let mut child = Command::new("python3").args(["-c", LARGE]).stdout(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let below = descendants(pid);
        assert_eq!(2, below.len());

        assert!(!is_killed(pid));
        super::super::send(pid, STOP_SIGNAL).unwrap();
        super::super::send(below[0], super::super::KILL_SIGNAL).unwrap();
        assert!(!is_killed(pid), "two of three live");
        kill_tree(pid);
        // The kernel is quicker now and then: then this says nothing, for its root has ended.
        let said = is_killed(pid);
        let ended = tasks(pid).is_none_or(|tasks| tasks[0].ended);
        child.wait().unwrap();
        assert!(said || ended);
        assert!(!is_killed(pid), "nobody is there to ask");
        for pid in below {
            assert!(tasks(pid).is_none_or(|tasks| is_doomed(pid, &tasks)));
        }
    }

    #[test]
    fn a_stopped_tree_is_seen_as_it_is() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        super::super::send(pid, STOP_SIGNAL).unwrap();
        let before = loop {
            let tasks = tasks(pid).unwrap();
            if Stat::read(Path::new(&format!("/proc/{pid}"))).unwrap().state == 'T' {
                break tasks;
            }
        };
        assert!(!is_doomed(pid, &before));
        assert!(!before[0].ended);
        child.kill().unwrap();
        assert!(is_doomed(pid, &before));
        child.wait().unwrap();
        assert_eq!(None, tasks(pid));
    }
}
