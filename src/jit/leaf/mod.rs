//! A check at installation: code of frame class `Leaf` makes no call. Its frames have no place for
//! another return address, so that walks and panics would go wrong from what it calls.
//!
//! The check follows the direct jumps from the first instruction on. So it sees no data that lies
//! between instructions, and it does not see what only an indirect jump reaches: it may miss a
//! call, but it never refuses a leaf that makes none.

mod aarch64;
mod decoded;
mod x86_64;

use decoded::{Decoded, Flow};

use crate::abi::Arch;

/// Where the code makes a call, in bytes from its start.
pub(crate) fn call_in(machine: Arch, code: &[u8]) -> Option<usize> {
    let decode: fn(&[u8], usize) -> Option<Decoded> = match machine {
        Arch::Amd64 => x86_64::decode,
        _ => aarch64::decode,
    };
    let mut seen = vec![false; code.len()];
    let mut pending = vec![0];
    let mut calls = Vec::new();
    while let Some(mut at) = pending.pop() {
        while let Some(seen) = seen.get_mut(at).filter(|seen| !**seen) {
            *seen = true;
            let Some(Decoded { len, flow }) = decode(code, at) else {
                break;
            };
            match flow {
                Flow::Next => {}
                Flow::Jump { to, may_fall_through } => {
                    pending.extend(usize::try_from(to).ok());
                    if !may_fall_through {
                        break;
                    }
                }
                Flow::Call => {
                    calls.push(at);
                    break;
                }
                Flow::End => break,
            }
            at += len;
        }
    }
    calls.into_iter().min()
}
