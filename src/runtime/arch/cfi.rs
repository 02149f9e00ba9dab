//! Call frame information that an asm block may state.

/// Directives for the description of a frame.
#[cfg(not(footbridge_no_unwind_tables))]
macro_rules! describe_frame {
    ($directives:literal) => {
        $directives
    };
}

/// Where functions have no unwind tables the assembler accepts no directives: `build.rs`.
#[cfg(footbridge_no_unwind_tables)]
macro_rules! describe_frame {
    ($directives:literal) => {
        ""
    };
}

pub(super) use describe_frame;
