//! Who descends from whom.
//!
//! On Linux every process of ours that has children is a child subreaper, so a process whose
//! parent ended is handed up to the next of ours and never leaves the tree, whatever session it
//! moved to.

use std::collections::HashSet;
use std::path::Path;

#[cfg(target_os = "linux")]
use std::{
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
    let mut reserve = RESERVE.lock().unwrap_or_else(PoisonError::into_inner);
    let size = reserve.len();
    reserve.clear();
    let found = read_children(pid);
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
    let below = descendants(pid);
    for target in std::iter::once(pid).chain(below) {
        let _ = super::send(target, super::KILL_SIGNAL);
    }
}

/// Kills `pid` and its process group.
#[cfg(not(target_os = "linux"))]
pub fn kill_tree(pid: i32) {
    use nix::sys::signal::{Signal, killpg};
    let _ = killpg(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
    let _ = super::send(pid, super::KILL_SIGNAL);
}
