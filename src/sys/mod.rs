//! How things are done: the only room that names `nix` or `libc`, and the only `unsafe` code.
//!
//! Each file owns one kernel facility and shows a safe interface; nothing here decides when to
//! use it. What exists only on Linux has a fallback beside it, so that macOS compiles.

mod clock;
mod cpu;
pub mod fault;
mod memory;
mod process;
mod signal;
mod socket;
mod tree;
mod usage;
mod wait;

pub use clock::{cpu_time, now};
pub use cpu::{current_cpu, step_aside};
pub use memory::{Blob, HUGE_PAGE, LastingSegment, Mapping, Segment, lasting_file, make_huge, seal_contents};
pub use process::{
    ExitStatus, OUT_OF_DESCRIPTORS, Process, Reaped, become_leader, become_subreaper, close_all_but,
    current_directory, die_with_parent, exit_now, fork_count, fork_generation, handle, is_current_directory,
    is_single_threaded, keep_across_exec, move_high, null_device, null_stdin, own, parent_pid, pid, reap,
    spawn_interpreter, take_stdin, try_reap_any,
};
pub use signal::{
    CONTINUE_SIGNAL, ChildSignal, DUMP_SIGNAL, KILL_SIGNAL, TERMINATE_SIGNAL, install_dump_mark, send,
};
pub use socket::{Received, half_close, pipe, read_pipe, receive, send_all, send_message, socket_pair};
pub use tree::{
    OwnChildren, children, descendants, end_descendants, is_killed, keep_reserve, kill_tree, release_reserve,
};
pub use usage::{
    ease_memory_limit, image, limit_memory, proportional_memory, resident_memory, shares_memory_with_parent,
    state,
};
pub use wait::{Interest, Woken, wait, wait_readable};
