//! Has the unwinder of the system used, also where zig links.

use std::path::Path;
use std::process::Command;

/// When Python ends, it ends each thread that asks for the interpreter by unwinding that thread's stack with
/// the system's unwinder, that of GCC. What it meets there has to be of the same kind. Zig links one of its
/// own into all it builds, and a process with a daemon thread in a call died of that mixture; if there is a
/// definition before that one, it is left out.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if !(is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu")) {
        return;
    }
    let Ok(said) = Command::new("cc").arg("-print-file-name=libgcc_s.so.1").output() else { return };
    let found = String::from_utf8_lossy(&said.stdout);
    let found = Path::new(found.trim());
    if let Some(folder) = found.parent().filter(|_| found.is_absolute()) {
        println!("cargo::rustc-link-search=native={}", folder.display());
        println!("cargo::rustc-link-lib=dylib:+verbatim=libgcc_s.so.1");
    }
}
