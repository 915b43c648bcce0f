//! The end of the interpreter, for threads that it ends.
//!
//! Before version 3.14, `CPython` ends a daemon thread that wants the interpreter back by unwinding its stack.
//! When that comes to where a panic would be caught, the process aborts. So such a thread stops where Python
//! was called, and what it holds is let go by nobody: with the interpreter ends the process.

use std::time::Duration;

/// Calls Python code, which may give up the interpreter and not get it back.
pub fn call_out<T>(call: impl FnOnce() -> T) -> T {
    let stays = Stays;
    let value = call();
    std::mem::forget(stays);
    value
}

struct Stays;

impl Drop for Stays {
    fn drop(&mut self) {
        // It is dropped only where the stack is unwound, and by a panic that is ours to catch.
        while !std::thread::panicking() {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
}
