#![allow(unsafe_code, reason = "reads the tables of loaded modules")]
//! The loaded modules of the process, and their unwind tables, as framehop takes them.
//!
//! dl_iterate_phdr takes a lock of the dynamic linker: this must not run in a signal handler.
//!
//! A module may be unloaded while another thread walks by its tables. To compare the counters first
//! does not help, as it may be unloaded right after that; and a walk that must take no lock cannot
//! compare them. So the tables are copied, under the linker's lock. Those of the program itself are
//! not, which are the largest: it is never unloaded.

use std::borrow::Cow;
use std::ops::Range;

use framehop::{ExplicitModuleSectionInfo, Module};

/// The modules that are loaded, and how to tell whether that is still so.
#[derive(Default)]
pub(crate) struct Modules {
    /// Those that have unwind tables.
    pub(crate) modules: Vec<Module<Cow<'static, [u8]>>>,
    /// How many modules were ever loaded, and unloaded.
    pub(crate) counters: (u64, u64),
    /// How many modules were visited.
    visited: usize,
}

/// The modules that are loaded now.
pub(crate) fn loaded_modules() -> Modules {
    unsafe extern "C" fn visit(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        modules: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: dl_iterate_phdr passes a valid description, and the pointer that it was given:
        // the address of the local below.
        let (info, modules) = unsafe { (&*info, &mut *modules.cast::<Modules>()) };
        modules.counters = (info.dlpi_adds, info.dlpi_subs);
        // The program is the first: dl_iterate_phdr(3).
        let is_program = modules.visited == 0;
        modules.visited += 1;
        // SAFETY: 1. the description is of a loaded module, and 2. the lock is held here.
        modules.modules.extend(unsafe { module(info, is_program) });
        0
    }
    let mut modules = Modules::default();
    // SAFETY: the callback's contract: it gets the address of the local, which nothing else uses.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut modules).cast()) };
    modules
}

/// How many modules were ever loaded, and unloaded.
pub(crate) fn load_counters() -> (u64, u64) {
    unsafe extern "C" fn visit(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        counters: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: dl_iterate_phdr passes a valid description, and the pointer that it was given:
        // the address of the local below.
        unsafe { *counters.cast::<(u64, u64)>() = ((*info).dlpi_adds, (*info).dlpi_subs) };
        1 // The counters are the same for each module.
    }
    let mut counters = (0, 0);
    // SAFETY: the callback's contract: it gets the address of the local, which nothing else uses.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut counters).cast()) };
    counters
}

/// What framehop must know of a module: its addresses and its unwind tables. Those of the program
/// are read where they are loaded. `None`: it has no tables.
///
/// # Safety
/// 1. The description is one that dl_iterate_phdr passes.
/// 2. It is called by the callback, so that no module is unloaded meanwhile.
unsafe fn module(
    info: &libc::dl_phdr_info,
    is_program: bool,
) -> Option<Module<Cow<'static, [u8]>>> {
    let base = info.dlpi_addr;
    // SAFETY: by 1., these are the program headers of a loaded module.
    let headers =
        unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let loads = || headers.iter().filter(|h| h.p_type == libc::PT_LOAD);
    let segment = |address: u64| {
        loads().map(|h| h.p_vaddr..h.p_vaddr + h.p_memsz).find(|s| s.contains(&address))
    };
    let hdr = headers.iter().find(|h| h.p_type == libc::PT_GNU_EH_FRAME)?;
    let start = loads().map(|h| h.p_vaddr).min()?;
    let end = loads().map(|h| h.p_vaddr + h.p_memsz).max()?;
    let text = loads().find(|h| h.p_flags & libc::PF_X != 0)?;
    // SAFETY: the ranges are in segments that are loaded and readable, by 2. until this function
    // returns. Only slices of the program, which is never unloaded, are kept for longer.
    let bytes = |range: &Range<u64>| unsafe {
        let len = (range.end - range.start) as usize;
        std::slice::from_raw_parts((base + range.start) as *const u8, len)
    };
    let hdr_range = hdr.p_vaddr..hdr.p_vaddr + hdr.p_memsz;
    let hdr_bytes = bytes(&hdr_range);
    // LSB Core 5.0, section 10.6.2: the fifth byte on is eh_frame_ptr, usually pcrel sdata4.
    if hdr_bytes.len() < 8 || hdr_bytes[1] != 0x1b {
        return None;
    }
    let offset = i32::from_le_bytes(hdr_bytes[4..8].try_into().ok()?);
    let eh_frame = (hdr.p_vaddr + 4).checked_add_signed(i64::from(offset))?;
    // The section ends somewhere before its segment does; a zero word ends the table.
    let eh_frame_range = eh_frame..segment(eh_frame)?.end;
    let table = |range: &Range<u64>| match is_program {
        true => Cow::Borrowed(bytes(range)),
        false => Cow::Owned(bytes(range).to_vec()),
    };
    let sections = ExplicitModuleSectionInfo {
        base_svma: 0,
        text_svma: Some(text.p_vaddr..text.p_vaddr + text.p_memsz),
        eh_frame_svma: Some(eh_frame_range.clone()),
        eh_frame: Some(table(&eh_frame_range)),
        eh_frame_hdr: Some(table(&hdr_range)),
        eh_frame_hdr_svma: Some(hdr_range),
        ..Default::default()
    };
    Some(Module::new(String::new(), base + start..base + end, base, sections))
}
