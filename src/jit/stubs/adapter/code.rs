//! The bytes of an adapter.

use crate::jit::frame::{FrameClass, FrameReport};

/// The code of an adapter as bytes that run at any address, for any machine this crate knows,
/// whatever the host is.
///
/// Two words of it are to be filled in: the cells of the target's address and of the bound word.
///
/// ```
/// use footbridge::abi::Convention;
/// use footbridge::jit::{AdapterCode, AdapterSpec, Binding};
///
/// let code = AdapterCode::new(&AdapterSpec {
///     signature: &"fn(i64, f64) -> i64".parse()?,
///     entry: Convention::SystemV,
///     target: Convention::SystemV,
///     binding: Binding::FirstArgument,
///     g_tls_off_bytes: None,
/// })?;
/// assert!(code.is_tail_jump());
/// let bytes = code.with(0x1000, 0x2000);
/// assert_eq!(bytes[code.context_off_bytes().expect("it binds a word")..][..2], [0x00, 0x20]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdapterCode {
    pub(super) bytes: Vec<u8>,
    pub(super) target_off: usize,
    pub(super) context_off: Option<usize>,
    /// Where the frame is complete, and where it is dropped.
    pub(crate) report: FrameReport,
    pub(super) class: FrameClass,
    pub(super) is_tail_jump: bool,
}

impl AdapterCode {
    /// The code, with zeros in its cells. It belongs at a multiple of 8 bytes (16 for good
    /// measure).
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where in the bytes the cell of the target's address is: 8 bytes, little-endian.
    pub fn target_off_bytes(&self) -> usize {
        self.target_off
    }

    /// Where in the bytes the cell of the bound word is, if one is bound: 8 bytes, little-endian.
    pub fn context_off_bytes(&self) -> Option<usize> {
        self.context_off
    }

    /// Whether it has no frame, so that the target returns to the adapter's caller.
    pub fn is_tail_jump(&self) -> bool {
        self.is_tail_jump
    }

    /// The contract that its frame keeps on amd64. Frames of AArch64 have no classes: there it says
    /// only whether there is one.
    pub fn frame_class(&self) -> FrameClass {
        self.class
    }

    /// The code with its cells filled in. `context` is the bound word; of no effect where none is
    /// bound.
    pub fn with(&self, target: u64, context: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let mut fill = |off: usize, word: u64| {
            bytes[off..off + 8].copy_from_slice(&word.to_le_bytes());
        };
        fill(self.target_off, target);
        if let Some(off) = self.context_off {
            fill(off, context);
        }
        bytes
    }
}
