//! Goroutine stacks.
//!
//! Constants, and the test that fails when each is changed. Each was seen to fail.
//!
//! | constant | test |
//! | --- | --- |
//! | `slots::KEPT_BYTES` | `reuse::the_stack_of_a_deep_goroutine_is_decommitted_when_it_ends` |
//! | `size_class::GUARD_BYTES` | `overflow::a_large_frame_of_c_code_does_not_step_over_the_guard` |

mod check;
mod classes;
mod overflow;
mod reuse;
mod shortage;

use std::hint::black_box;

use footbridge::abi::Convention;
use footbridge::runtime::stack_usage;

const GO: Convention = Convention::GoAbiInternal;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const CLASSES: [usize; 5] = [16 * KIB, 64 * KIB, 256 * KIB, MIB, 8 * MIB];
const PAGE: usize = 4096;

/// The number of stacks of a class that goroutines use.
fn in_use(stack_bytes: usize) -> usize {
    let all = stack_usage();
    let usage = all.iter().find(|usage| usage.stack_bytes == stack_bytes).expect("a class");
    usage.made - usage.pooled - usage.decommitted
}

/// The number of stacks of a class that were allocated.
fn made(stack_bytes: usize) -> usize {
    let all = stack_usage();
    all.iter().find(|usage| usage.stack_bytes == stack_bytes).expect("a class").made
}

/// Uses `bytes` of the stack in frames of about 1 KiB, calls `bottom` with the lowest address, and
/// returns its result.
#[inline(never)]
fn descend<R>(bytes: usize, bottom: &mut dyn FnMut(usize) -> R) -> R {
    let here = black_box([bytes as u64; 100]);
    let result = match bytes.checked_sub(KIB) {
        Some(rest) => descend(rest, bottom),
        None => bottom(here.as_ptr() as usize),
    };
    // If the stack is too small, another stack's frames overwrite these words.
    assert!(black_box(&here).iter().all(|&word| word == bytes as u64));
    result
}

/// The most stack that [`descend`] uses, as a multiple of the requested bytes.
const DESCEND_FACTOR: usize = if cfg!(debug_assertions) { 2 } else { 1 };

/// The lowest address of a stack of the class, from an address near its top.
fn lowest(near_top: usize, class: usize) -> usize {
    near_top.next_multiple_of(PAGE) - class
}
