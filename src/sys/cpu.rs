//! Which processor runs this thread, and leaving it to another thread.

/// The processor that runs this thread at the moment, where the platform says.
#[cfg(target_os = "linux")]
pub fn current_cpu() -> Option<u32> {
    nix::sched::sched_getcpu().ok().and_then(|cpu| u32::try_from(cpu).ok())
}

/// The processor that runs this thread at the moment, where the platform says.
#[cfg(not(target_os = "linux"))]
pub fn current_cpu() -> Option<u32> {
    None
}

/// Moves this thread to another processor that it may use, if hardly anything runs on those; whether it did.
/// It may use the same ones afterwards as before.
#[cfg(target_os = "linux")]
pub fn step_aside() -> bool {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    let this = nix::unistd::Pid::from_raw(0);
    let Some(cpu) = current_cpu().and_then(|cpu| usize::try_from(cpu).ok()) else { return false };
    let Ok(allowed) = sched_getaffinity(this) else { return false };
    let is_other = |&at: &usize| at != cpu && allowed.is_set(at).unwrap_or(false);
    let mut others = CpuSet::new();
    let mut count = 0;
    for at in (0..CpuSet::count()).filter(is_other) {
        if others.set(at).is_err() {
            return false;
        }
        count += 1;
    }
    // The kernel takes any of them, so most have to be idle. We run, and so does whom we make room for.
    if count == 0 || running_threads().is_none_or(|running| running > 2 + count / 4) {
        return false;
    }
    let moved = sched_setaffinity(this, &others).is_ok();
    moved && sched_setaffinity(this, &allowed).is_ok()
}

/// Moves this thread to another processor that it may use, if hardly anything runs on those; whether it did.
#[cfg(not(target_os = "linux"))]
pub fn step_aside() -> bool {
    false
}

/// How many threads of this machine run, or wait for nothing but a processor.
#[cfg(target_os = "linux")]
fn running_threads() -> Option<usize> {
    let line = std::fs::read_to_string("/proc/loadavg").ok()?;
    line.split(' ').nth(3)?.split('/').next()?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};

    #[test]
    fn stepping_aside_leaves_all_processors_open() {
        let this = nix::unistd::Pid::from_raw(0);
        let allowed = sched_getaffinity(this).unwrap();
        let before = current_cpu();
        // On a busy machine it stays, and another thread may take it back at once.
        let moved = (0..1000).any(|_| step_aside() && current_cpu() != before);
        assert_eq!(allowed, sched_getaffinity(this).unwrap());
        assert!(running_threads().unwrap() >= 1);
        let mut here = CpuSet::new();
        here.set(usize::try_from(current_cpu().unwrap()).unwrap()).unwrap();
        sched_setaffinity(this, &here).unwrap();
        assert!(!step_aside(), "there is no other one; moved before: {moved}");
        assert_eq!(here, sched_getaffinity(this).unwrap());
    }
}
