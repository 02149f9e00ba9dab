//! The caller of a native frame whose unwind rule needs a frame pointer that is not known.
//!
//! The kernel tells the pc and the stack pointer of a blocked thread, and nothing else. Functions
//! that keep a frame pointer (those of Rust's library do) begin with `push rbp; mov rbp, rsp`, so
//! their return address follows the caller's frame pointer in the stack. It is searched for: a word
//! that comes after a call of this very function, or after an indirect call whose frame pointer
//! leads on. Words of frames that are long gone may look like that too. So what is found is for
//! people to read, and only once in a walk: the frames further out are found by exact rules again.
//!
//! It takes no lock and allocates nothing.

use crate::runtime::arch::Registers;
use crate::runtime::arch::native_frames::{CALL_BYTES, Call, call_before};
use crate::runtime::os::fault::read_memory;
use crate::runtime::os::symbols::with_symbol;
use crate::runtime::walk::exact::Bounds;

/// How far the search goes: most frames are smaller.
const SEARCHED_WORDS: usize = 1024;

/// The registers in the caller of the function that `callee` is in.
pub(in crate::runtime::walk) fn caller_by_search(
    callee: Registers,
    bounds: &Bounds,
) -> Option<Registers> {
    let start =
        with_symbol(callee.pc, |symbol, _| symbol.map(|s| callee.pc - s.offset_bytes as usize))?;
    let caller_at = |at: usize, is_wanted: &dyn Fn(Call, usize) -> bool| {
        let (fp, pc) = (bounds.read(at)?, bounds.read(at + 8)?);
        let mut before = [0; CALL_BYTES];
        let code = pc.checked_sub(CALL_BYTES)?;
        if read_memory(code, &mut before) != CALL_BYTES {
            return None;
        }
        let call = call_before(pc, before, read_word)?;
        is_wanted(call, fp).then_some(Registers { pc, sp: at + 16, fp })
    };
    let words = || (0..SEARCHED_WORDS).map(|i| callee.sp + 8 * i);
    let calls_it = |call, _fp| call == Call::Known(start);
    let found = words().find_map(|at| caller_at(at, &calls_it));
    found.or_else(|| {
        words().find_map(|at| {
            let leads_on = |call, fp| call == Call::Unknown && fp > at && bounds.holds(fp);
            caller_at(at, &leads_on)
        })
    })
}

fn read_word(at: usize) -> Option<usize> {
    let mut word = [0; size_of::<usize>()];
    (read_memory(at, &mut word) == word.len()).then(|| usize::from_ne_bytes(word))
}
