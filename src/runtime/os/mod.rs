//! The operating system: one facade, and a folder for each system.
//!
//! `libc::` stands in this room only. The room deals in addresses, words and numbers of threads: it
//! knows no G, no M and no policy. Only `throw` decides anything: that the process ends.
//!
//! # A new system
//!
//! To port the runtime to a new system, add a folder with the files below, and its name to this
//! file, which is the only one to edit. What each item promises is documented in `linux/`; the
//! other rooms rely on no more than that. (Code memory is a room of its own, `jit/mem`, which needs
//! a file for the new system too.)
//!
//! | file | what it must provide |
//! | --- | --- |
//! | `futex` | `wait`, `wake`, `wake_all`: sleep on a word while it has a value (WaitOnAddress, ulock). `probe_fences`, `light_fence`, `heavy_fence`: a fence whose cost is on one side (FlushProcessWriteBuffers), or full fences on both |
//! | `memory` | `reserve_stacks`: address space. `commit_stacks`: it becomes usable, and is committed where it is touched. `decommit`, `probe_decommit`. `install_guard_markers`, `forbid_access`: two ways to make a guard. `answers_impossible_advice`, `is_guarded`: whether the first one works |
//! | `signals` | `install`, `Signal`, `Handler`: handlers in front of the program's own, for `SEGMENT`, `BUS`, `ILLEGAL`, `ARITHMETIC`, `TRAP` and the signal that preempts: `URGENT`, or one of `real_time_signals`. `action_of`, `can_preempt`, `is_fatal_by_default`, `is_blocked`: what a signal is used for. `send_to_thread`, `can_signal`. `AltStack`: room for a handler where a goroutine has none. `unblock`, `block_as_before`, `block_all`, `SignalMask`. `handlers_without_alternate_stack` for `environment()`, `without_alternate_stack` and `max_frame_bytes` for signals that cannot be delivered. A system without signals provides the faults by its exception handlers, and refuses to preempt by a signal |
//! | `threads` | `current_tid`, `count`, `stack_bounds`; `ThreadStatus` and `cpu_time` of another thread, which may be unknown. `blocked`: where a thread is blocked in the kernel, and whether by a lock |
//! | `errno` | `get`, `set`: the error code of the calling thread (GetLastError) |
//! | `tls_blocks` | `visit_blocks`: the thread-local storage of the calling thread. With none, goroutines share std's panic state |
//! | `fault` | `Signal` in words for reports of faults: names, the address, all registers. `read_memory` of what may not be readable. `alternate_stack_room` of a handler. `has_default_action`, `handles_signals`: what the program does about signals |
//! | `stderr` | `RawStderr`: standard error without a lock or an allocation, line by line |
//! | `modules` | `loaded_modules`: the loaded modules and their unwind tables, for framehop. Feature `traceback` |
//! | `symbols` | `with_symbol`: the name of a native function, callable in a signal handler. Feature `traceback` |
//!
//! A folder also has `context`, which reads and writes the registers of an interrupted thread. It
//! is private to the folder's `signals`, and is the one file that depends on the architecture too.
//!
//! Linux is the only system. On others the runtime is not compiled (`on_executing_host!` in
//! `lib.rs`). A folder `windows` has no signals; and a switch of stacks there also exchanges the
//! stack bounds in the thread's information block, which belongs to `arch`.

mod linux;
mod throw;

pub(crate) use linux::{errno, fault, futex, memory, signals, stderr, threads, tls_blocks};
#[cfg(feature = "traceback")]
pub(crate) use linux::{modules, symbols};
pub(crate) use throw::{exit_now, throw};
