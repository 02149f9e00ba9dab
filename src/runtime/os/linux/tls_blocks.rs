#![allow(unsafe_code, reason = "reads the descriptions of loaded modules")]
//! The thread-local storage of the calling thread: one block for each loaded module that has some.
//!
//! dl_iterate_phdr takes a lock of the dynamic linker: this must not run in a signal handler.

use std::ops::ControlFlow;

/// The block of one module in the calling thread's thread-local storage. It is mapped until the
/// thread ends.
#[derive(Clone, Copy)]
pub(crate) struct TlsBlock {
    /// The dynamic linker's number of the module.
    pub(crate) module: usize,
    pub(crate) start: usize,
    pub(crate) bytes: usize,
}

/// Visits the blocks of the calling thread until `visitor` breaks. Blocks of libraries that
/// dlopen(3) has loaded appear when the thread has used them.
pub(crate) fn visit_blocks(visitor: &mut dyn FnMut(TlsBlock) -> ControlFlow<()>) {
    type Visitor<'a> = &'a mut dyn FnMut(TlsBlock) -> ControlFlow<()>;
    unsafe extern "C" fn visit(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        visitor: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: dl_iterate_phdr passes a valid description, and the pointer that it was given:
        // the address of the visitor below.
        let (info, visitor) = unsafe { (&*info, &mut *visitor.cast::<Visitor<'_>>()) };
        // SAFETY: these are the program headers of a loaded module.
        let headers =
            unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let storage = headers.iter().find(|header| header.p_type == libc::PT_TLS);
        let Some(storage) = storage.filter(|_| !info.dlpi_tls_data.is_null()) else {
            return 0;
        };
        let block = TlsBlock {
            module: info.dlpi_tls_modid,
            start: info.dlpi_tls_data as usize,
            bytes: storage.p_memsz as usize,
        };
        visitor(block).is_break().into()
    }
    let mut visitor: Visitor<'_> = visitor;
    // SAFETY: the callback's contract: it gets the address of the local, which nothing else uses.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut visitor).cast()) };
}
