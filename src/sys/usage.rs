//! How much memory processes use, and the kernel's own limit on it.
//!
//! Memory means what only this process keeps from being free: anonymous pages, shared memory and
//! swap; not the pages of files, which the kernel can drop.

use std::io;

#[cfg(target_os = "linux")]
use super::tree::with_reserve;

/// Sums up the given fields, which are in kB, of one of the kernel's tables on a process.
#[cfg(target_os = "linux")]
fn sum_of(table: &str, pid: i32, fields: &[&str]) -> Option<u64> {
    let text = with_reserve(|| std::fs::read_to_string(format!("/proc/{pid}/{table}")).ok())?;
    let kilobytes: u64 = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| fields.contains(name))
        .filter_map(|(_, value)| value.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .sum();
    Some(kilobytes * 1024)
}

/// The bytes that `pid` has in memory or swap, shared ones included. `None` if it is gone.
#[cfg(target_os = "linux")]
pub fn resident_memory(pid: i32) -> Option<u64> {
    sum_of("status", pid, &["RssAnon", "RssShmem", "VmSwap"])
}

/// The same, with each shared page counted in equal parts to those who share it. Walks the page
/// tables: some 10 ms a gigabyte of small pages.
#[cfg(target_os = "linux")]
pub fn proportional_memory(pid: i32) -> Option<u64> {
    sum_of("smaps_rollup", pid, &["Pss_Anon", "Pss_Shmem", "SwapPss"])
}

/// A number from the kernel's line on a process, counted as proc(5) does.
#[cfg(target_os = "linux")]
fn stat_field<T: std::str::FromStr>(pid: i32, number: usize) -> Option<T> {
    let stat = with_reserve(|| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok())?;
    // "pid (name) state ...", and the name may hold anything; the state is the third field.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

/// What `pid` does, in the kernel's letters: `R` runs or waits for a core.
///
/// For the host: without the lock of the reserve, which a copy of it might find locked for good.
#[cfg(target_os = "linux")]
pub fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// There is no such table here.
#[cfg(not(target_os = "linux"))]
pub fn state(_pid: i32) -> Option<char> {
    None
}

/// What tells one program from another: processes of the same image were forked from each other, or
/// from a common ancestor, since the last exec. (The kernel draws the place of the stack at exec.)
#[cfg(target_os = "linux")]
pub fn image(pid: i32) -> Option<u64> {
    stat_field(pid, 28)
}

/// Whether `pid` has the address space of its parent, as between `vfork` and exec. If the kernel does not
/// tell, it has not.
#[cfg(target_os = "linux")]
pub fn shares_memory_with_parent(pid: i32) -> bool {
    /// The kernel's name for address spaces.
    const KCMP_VM: i32 = 1;
    let Some(parent) = stat_field::<i32>(pid, 4) else { return false };
    // SAFETY: the call only compares; nix has no wrapper for it.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, parent, KCMP_VM, 0, 0) == 0 }
}

/// There is no such call here.
#[cfg(not(target_os = "linux"))]
pub fn shares_memory_with_parent(_pid: i32) -> bool {
    false
}

/// There is no such table here.
#[cfg(not(target_os = "linux"))]
pub fn image(_pid: i32) -> Option<u64> {
    None
}

/// There is no such table here.
#[cfg(not(target_os = "linux"))]
pub fn resident_memory(_pid: i32) -> Option<u64> {
    None
}

/// See above.
#[cfg(not(target_os = "linux"))]
pub fn proportional_memory(_pid: i32) -> Option<u64> {
    None
}

/// Lets this process, and each that it starts, allocate at most `bytes` more of private memory than
/// it has now; a process that execs another program starts from nothing. `reserve` bytes on top
/// can be had with [`ease_memory_limit`].
///
/// Elsewhere than on Linux the kernel takes note of the limit and does not enforce it.
pub fn limit_memory(bytes: u64, reserve: u64, execs: bool) -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    #[cfg(target_os = "linux")]
    let has = sum_of("status", super::pid(), &["VmData"]).filter(|_| !execs).unwrap_or(0);
    #[cfg(not(target_os = "linux"))]
    let has = if execs { 0 } else { 0 };
    let (_, most) = getrlimit(Resource::RLIMIT_DATA)?;
    let soft = has.saturating_add(bytes).min(most);
    setrlimit(Resource::RLIMIT_DATA, soft, soft.saturating_add(reserve).min(most))?;
    Ok(())
}

/// Gives this process the reserve of its memory limit, to tell that it met the limit.
pub fn ease_memory_limit() -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_DATA)?;
    setrlimit(Resource::RLIMIT_DATA, most, most)?;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_does_is_seen() {
        for (program, letter) in [("while :; do :; done", 'R'), ("exec sleep 60", 'S')] {
            let mut child = std::process::Command::new("sh").args(["-c", program]).spawn().unwrap();
            let pid = i32::try_from(child.id()).unwrap();
            while state(pid) != Some(letter) {}
            child.kill().unwrap();
            while state(pid) != Some('Z') {}
            child.wait().unwrap();
            assert_eq!(None, state(pid));
        }
    }

    #[test]
    fn memory_that_is_touched_is_counted() {
        let before = resident_memory(super::super::pid()).unwrap();
        let touched = vec![1u8; 32 << 20];
        let after = resident_memory(super::super::pid()).unwrap();
        assert!(after - before > 24 << 20, "{before} {after}");
        assert!(proportional_memory(super::super::pid()).unwrap() > 24 << 20);
        drop(touched);
        assert_eq!(None, resident_memory(i32::MAX));
    }
}
