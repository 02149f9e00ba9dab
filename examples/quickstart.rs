//! JIT code that calls a Rust function that parks, on a goroutine.
//!
//! It prints `1 + 2 + ... + 10 = 55` to stdout. To stderr it prints what it found on this host, in
//! six lines, and then where the goroutine is when JIT code asks for the first number:
//!
//! ```text
//! code memory:  ...
//! stack guards: ...
//! fences:       ...
//! unwinder:     ...
//! preemption:   ...
//! handlers:     ...
//!
//! goroutine 2 [running]:
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

/// JIT code calls this, and parks here while there is no number. At the end it returns 0.
fn receive(numbers: &Chan<u64>) -> u64 {
    static ASKED: AtomicBool = AtomicBool::new(false);
    if !ASKED.swap(true, Ordering::Relaxed) {
        eprintln!("{}", runtime::traceback());
    }
    numbers.recv().unwrap_or(0)
}

fn main() -> Result<(), JitError> {
    eprintln!("{}", footbridge::environment());
    let jit = Jit::new()?;
    let receive = jit.goroutine_fn(Convention::SystemV, receive)?;
    let receive = receive.address();

    // SAFETY: a standard frame: it starts as one, and changes no callee-saved register.
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
        let handle = runtime::go(move || unsafe { entry.call(&receiver) });
        (1..=10).for_each(|n| numbers.send(n).expect("nobody closes it but this goroutine"));
        numbers.close();
        handle.join().expect("nothing panics in it")
    });
    println!("1 + 2 + ... + 10 = {total}");
    Ok(())
}
