#![allow(unsafe_code, reason = "reads the tables of loaded modules")]
//! The loaded modules of the process, and their unwind tables, as framehop takes them.
//!
//! dl_iterate_phdr takes a lock of the dynamic linker: this must not run in a signal handler.

use std::ops::Range;

use framehop::{ExplicitModuleSectionInfo, Module};

/// The modules that are loaded, and how to tell whether that is still so.
#[derive(Default)]
pub(crate) struct Modules {
    /// Those that have unwind tables.
    ///
    /// Invariant: the tables are read as `'static` slices, and may be read only while `counters`
    /// is what dl_iterate_phdr says: a module that is unloaded changes it.
    pub(crate) modules: Vec<Module<&'static [u8]>>,
    /// How many modules were ever loaded, and unloaded.
    pub(crate) counters: (u64, u64),
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
        // SAFETY: the description is of a loaded module.
        modules.modules.extend(unsafe { module(info) });
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

/// What framehop must know of a module: its addresses and its unwind tables, read where they are
/// loaded. `None`: it has no tables.
///
/// # Safety
/// 1. The description is one that dl_iterate_phdr passes.
unsafe fn module(info: &libc::dl_phdr_info) -> Option<Module<&'static [u8]>> {
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
    // SAFETY: the ranges are in segments that are loaded and readable. A module that is unloaded
    // later changes the counters, and its tables are not read again.
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
    let sections = ExplicitModuleSectionInfo {
        base_svma: 0,
        text_svma: Some(text.p_vaddr..text.p_vaddr + text.p_memsz),
        eh_frame_svma: Some(eh_frame_range.clone()),
        eh_frame: Some(bytes(&eh_frame_range)),
        eh_frame_hdr_svma: Some(hdr_range),
        eh_frame_hdr: Some(hdr_bytes),
        ..Default::default()
    };
    Some(Module::new(String::new(), base + start..base + end, base, sections))
}
