#![allow(unsafe_code, reason = "takes part in unwinding")]
//! How a panic passes a frame that keeps what Win64 preserves.
//!
//! Win64 code expects rsi, rdi and xmm6 to xmm15 back from a call, also in its landing pad, and
//! compilers keep values there. The unwinders of Linux restore none of them (libgcc's tables end
//! with column 16), and change the vector registers themselves. So it is of no use to restore them
//! in a landing pad of the stub and to resume the panic: the unwinder runs again before the
//! caller's landing pad does. They must be loaded last. The story, in time order:
//!
//! 1. In the cleanup phase the unwinder calls `win64_personality`, which stops it in the stub's
//!    landing pad (`stubs/adapter/x86_64.rs`, `land`).
//! 2. The landing pad calls `continue_panic`, on the stack of the frame.
//! 3. That walks on from there, with `_Unwind_ForcedUnwind`, which calls `step` for each frame. For
//!    frames of emitted code and for the first native frame, `step` calls the personality routine
//!    as the unwinder itself would, which says where the frame's landing pad is.
//! 4. If the frame has one, `step` notes the registers that it expects and ends the walk.
//!    `continue_panic` returns, and the stub loads the registers, those of Win64 among them, and
//!    jumps there. The unwinder is not involved any more.
//! 5. If not, `continue_panic` resumes the panic as any landing pad does.
//!
//! What that leaves open: registers that a *native* Win64 frame without a landing pad has saved.
//! Its caller does not get them back, with or without this crate.
//!
//! Itanium C++ ABI, exception handling, sections 1.3 (forced unwinding), 1.6 and 2.5.2.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use crate::jit::frame::Landing;
use crate::jit::registry::lookup;

const URC_NO_REASON: c_int = 0;
const URC_NORMAL_STOP: c_int = 4;
const URC_INSTALL_CONTEXT: c_int = 7;
const URC_CONTINUE_UNWIND: c_int = 8;
const UA_CLEANUP_PHASE: c_int = 2;
const UA_HANDLER_FRAME: c_int = 4;
const UA_FORCE_UNWIND: c_int = 8;
const UA_END_OF_STACK: c_int = 16;

/// DWARF numbers of registers: System V psABI x86-64, figure 3.36.
const RAX: c_int = 0;
const RDX: c_int = 1;
const SAVED: [c_int; 5] = [3, 12, 13, 14, 15];

/// What unwinders call for a frame: Itanium C++ ABI, exception handling, section 2.5.2.
type Personality = unsafe extern "C" fn(c_int, c_int, u64, *mut c_void, *mut c_void) -> c_int;

/// `_Unwind_Exception`: section 1.2.1. Languages have more in front of it and after it.
#[repr(C)]
struct Exception {
    class: u64,
    cleanup: usize,
    /// Of the unwinder: 0, or the function of a forced unwinding.
    private_1: usize,
    /// Of the unwinder: the CFA of the frame that catches, below which it is.
    private_2: usize,
}

unsafe extern "C-unwind" {
    fn _Unwind_ForcedUnwind(
        exception: *mut Exception,
        stop: unsafe extern "C" fn(
            c_int,
            c_int,
            u64,
            *mut Exception,
            *mut c_void,
            *mut c_void,
        ) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_Resume(exception: *mut Exception) -> !;
}

unsafe extern "C" {
    fn _Unwind_GetGR(context: *mut c_void, register: c_int) -> usize;
    fn _Unwind_SetGR(context: *mut c_void, register: c_int, value: usize);
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn _Unwind_SetIP(context: *mut c_void, value: usize);
    fn _Unwind_GetCFA(context: *mut c_void) -> usize;
    fn _Unwind_Find_FDE(pc: *const c_void, bases: *mut [usize; 3]) -> *const c_void;
}

/// Stops the panic in the stub.
pub(super) unsafe extern "C" fn win64_personality(
    _version: c_int,
    actions: c_int,
    _exception_class: u64,
    exception: *mut c_void,
    context: *mut c_void,
) -> c_int {
    // Forced: a thread that ends, where nothing lands, or the walk below.
    if actions & UA_CLEANUP_PHASE == 0 || actions & UA_FORCE_UNWIND != 0 {
        return URC_CONTINUE_UNWIND;
    }
    // SAFETY: the unwinder's own context, in which a landing pad finds rax and rdx.
    unsafe {
        let pc = _Unwind_GetIP(context);
        match lookup(pc.wrapping_sub(1)).and_then(|stub| stub.landing()) {
            Some(landing) if pc <= landing => {
                _Unwind_SetGR(context, RAX, exception as usize);
                _Unwind_SetGR(context, RDX, 0);
                _Unwind_SetIP(context, landing);
                URC_INSTALL_CONTEXT
            }
            _ => URC_CONTINUE_UNWIND,
        }
    }
}

/// The walk to the frame where the panic lands.
struct Search<'a> {
    /// rsp in the caller of the frame that was stopped in.
    caller_sp: usize,
    /// That caller was reached.
    is_past: bool,
    /// What the unwinder has in the exception.
    private: [usize; 2],
    landing: &'a mut Landing,
    has_landed: bool,
}

/// Continues a panic that was stopped in a frame of class Win64. It returns if the panic is to land
/// in a caller, and says where.
///
/// # Safety
/// 1. `exception` is being thrown, and a landing pad has got it.
/// 2. `fp` is the frame pointer of the landing pad's frame, which calls this.
pub(crate) unsafe extern "C-unwind" fn continue_panic(
    exception: *mut c_void,
    fp: usize,
    landing: &mut Landing,
) {
    let exception = exception.cast::<Exception>();
    // SAFETY: 1. The fields belong to the unwinder, which is not running.
    let private = unsafe { [(*exception).private_1, (*exception).private_2] };
    let mut search =
        Search { caller_sp: fp + 16, is_past: false, private, landing, has_landed: false };
    // SAFETY: 1. The walk changes the two fields, and ends where `step` says, at the latest at the
    // first native frame: no frame is left. Younger frames have no landing pad.
    unsafe {
        _Unwind_ForcedUnwind(exception, step, ptr::from_mut(&mut search).cast());
        [(*exception).private_1, (*exception).private_2] = search.private;
    }
    if !search.has_landed {
        // SAFETY: 1., and its fields are as the landing pad has got them.
        unsafe { _Unwind_Resume(exception) };
    }
}

/// One frame of the walk.
unsafe extern "C" fn step(
    version: c_int,
    actions: c_int,
    exception_class: u64,
    exception: *mut Exception,
    context: *mut c_void,
    search: *mut c_void,
) -> c_int {
    // SAFETY: `continue_panic` passes it.
    let search = unsafe { &mut *search.cast::<Search<'_>>() };
    // SAFETY: the unwinder's own context.
    let (pc, sp) = unsafe { (_Unwind_GetIP(context), _Unwind_GetCFA(context)) };
    if actions & UA_END_OF_STACK != 0 {
        return URC_NORMAL_STOP;
    }
    search.is_past |= sp == search.caller_sp;
    if !search.is_past {
        return URC_NO_REASON;
    }
    let is_emitted = lookup(pc.wrapping_sub(1)).is_some();
    let Some(personality) = personality_at(pc) else {
        return if is_emitted { URC_NO_REASON } else { URC_NORMAL_STOP };
    };
    let is_handler = if search.private[1] == sp { UA_HANDLER_FRAME } else { 0 };
    // SAFETY: as the unwinder itself calls it for this frame: with the exception as it left it, and
    // with the frame's context.
    let answer = unsafe {
        let forced = [(*exception).private_1, (*exception).private_2];
        [(*exception).private_1, (*exception).private_2] = search.private;
        let actions = UA_CLEANUP_PHASE | is_handler;
        let answer = personality(version, actions, exception_class, exception.cast(), context);
        [(*exception).private_1, (*exception).private_2] = forced;
        answer
    };
    if answer != URC_INSTALL_CONTEXT {
        return if is_emitted { URC_NO_REASON } else { URC_NORMAL_STOP };
    }
    // SAFETY: the unwinder's own context: of the frame, with what the routine has set.
    unsafe {
        let register = |number| _Unwind_GetGR(context, number);
        *search.landing = Landing {
            pc: _Unwind_GetIP(context),
            sp,
            rax: register(RAX),
            rdx: register(RDX),
            saved: SAVED.map(register),
            padding: 0,
        };
    }
    search.has_landed = true;
    URC_NORMAL_STOP
}

/// The personality routine of the code that returns to `pc`: LSB Core 5.0, section 10.6.1.
fn personality_at(pc: usize) -> Option<Personality> {
    let mut bases = [0; 3];
    // SAFETY: the unwinder's own function, which writes three words.
    let fde = unsafe { _Unwind_Find_FDE(pc.wrapping_sub(1) as *const c_void, &raw mut bases) };
    let fde = fde.cast::<u8>();
    if fde.is_null() {
        return None;
    }
    // SAFETY: the unwinder uses this FDE: it is well-formed, as is the CIE that it points back to.
    unsafe {
        let mut at = Cursor(fde.add(4));
        let cie = at.0.sub(at.u32() as usize);
        at = Cursor(cie.add(8));
        let version = at.u8();
        let augmentation = CStr::from_ptr(at.0.cast()).to_bytes();
        at.0 = at.0.add(augmentation.len() + 1);
        let rest = augmentation.strip_prefix(b"z")?;
        at.leb128();
        at.leb128();
        if version == 1 {
            at.u8();
        } else {
            at.leb128();
        }
        at.leb128();
        for letter in rest {
            match letter {
                b'P' => return at.pointer(),
                b'L' | b'R' => _ = at.u8(),
                b'S' | b'B' => {}
                _ => return None,
            }
        }
    }
    None
}

/// Reads unwind tables.
struct Cursor(*const u8);

impl Cursor {
    /// # Safety
    /// 1. The table has these bytes.
    unsafe fn take<T: Copy>(&mut self) -> T {
        // SAFETY: the caller's promise.
        unsafe {
            let value = self.0.cast::<T>().read_unaligned();
            self.0 = self.0.add(size_of::<T>());
            value
        }
    }

    /// # Safety
    /// 1. As for `take`.
    unsafe fn u8(&mut self) -> u8 {
        // SAFETY: the caller's promise.
        unsafe { self.take() }
    }

    /// # Safety
    /// 1. As for `take`.
    unsafe fn u32(&mut self) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { self.take() }
    }

    /// Skips a number.
    ///
    /// # Safety
    /// 1. As for `take`.
    unsafe fn leb128(&mut self) {
        // SAFETY: the caller's promise.
        while unsafe { self.u8() } & 0x80 != 0 {}
    }

    /// An encoded pointer to a personality routine: LSB Core 5.0, section 10.5.1.
    ///
    /// # Safety
    /// 1. As for `take`.
    unsafe fn pointer(&mut self) -> Option<Personality> {
        const INDIRECT: u8 = 0x80;
        // SAFETY: the caller's promise; an indirect pointer leads to a pointer.
        unsafe {
            let encoding = self.u8();
            let at = self.0 as usize;
            let value = match encoding & 0x0f {
                0x00 | 0x04 | 0x0c => self.take::<usize>(),
                0x03 => self.take::<u32>() as usize,
                0x0b => self.take::<i32>() as usize,
                _ => return None,
            };
            let base = match encoding & 0x70 {
                0x00 => 0,
                0x10 => at,
                _ => return None,
            };
            let mut address = base.wrapping_add(value);
            if encoding & INDIRECT != 0 {
                address = *(address as *const usize);
            }
            // The address is that of such a function, or 0.
            std::mem::transmute::<usize, Option<Personality>>(address)
        }
    }
}
