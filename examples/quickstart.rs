//! JIT code on a goroutine calls a Rust function, which parks.
//!
//! The example prints `1 + 2 + ... + 10 = 55` to stdout. To stderr it prints what the crate found
//! on this host, in six lines, and a traceback of the goroutine, taken where JIT code requests the
//! first number:
//!
//! ```text
//! code memory:  ...
//! stack guards: ...
//! stack memory: ...
//! fences:       ...
//! unwinder:     ...
//! preemption:   ...
//! panic state:  ...
//! handlers:     ...
//!
//! goroutine 2 "adder" [running]:
//!     rust quickstart::receive at ...
//!     ...
//!     jit quickstart::receive+0x.. (goroutine function)
//!     jit sum+0x..
//!     jit sum+0x.. (enter)
//!     ...
//!     jit goroutine entry+0x.. (goroutine entry)
//! ```

use std::sync::atomic::{AtomicBool, Ordering};

use footbridge::abi::Convention;
use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::jit::{FrameClass, Jit, JitError};
use footbridge::runtime::{self, Chan, Entry};

/// JIT code calls this. It parks while the channel is empty, and returns 0 when it is closed.
fn receive(numbers: &Chan<u64>) -> u64 {
    static HAS_PRINTED: AtomicBool = AtomicBool::new(false);
    if !HAS_PRINTED.swap(true, Ordering::Relaxed) {
        eprintln!("{}", runtime::traceback());
    }
    numbers.recv().unwrap_or(0)
}

fn main() -> Result<(), JitError> {
    eprintln!("{}", footbridge::environment());
    let jit = Jit::new()?;
    let receive = jit.goroutine_fn(Convention::SystemV, receive)?;
    let receive = receive.address();

    // SAFETY: the code has a standard frame, and changes no callee-saved register but rbp.
    let sum = unsafe {
        jit.install("sum", FrameClass::Standard, |code| {
            dynasm!(code
                ; .arch x64
                ; push rbp
                ; mov rbp, rsp
                ; push rdi              // rbp-8: the channel
                ; push 0                // rbp-16: the sum
                ; next:
                ; mov rdi, [rbp - 8]
                ; call extern receive
                ; add [rbp - 16], rax
                ; test rax, rax
                ; jnz <next
                ; mov rax, [rbp - 16]
                ; leave
                ; ret
            );
        })?
    };
    // SAFETY: `sum` is System V code of this type.
    let entry: Entry<fn(*const Chan<u64>) -> u64> = unsafe { sum.enter(Convention::SystemV)? };

    let total = runtime::run(|| {
        let numbers = Chan::new(2);
        let receiver = numbers.clone();
        // SAFETY: this is a goroutine, and the channel outlives the call.
        let adder =
            runtime::Builder::new().name("adder").go(move || unsafe { entry.call(&receiver) });
        let adder = adder.expect("memory for a stack");
        (1..=10).for_each(|n| numbers.send(n).expect("only this goroutine closes it"));
        numbers.close();
        adder.join().expect("the goroutine does not panic")
    });
    println!("1 + 2 + ... + 10 = {total}");
    Ok(())
}
