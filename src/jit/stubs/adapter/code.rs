//! The bytes of an adapter.

use crate::jit::frame::{FrameClass, FrameReport};

/// The code of an adapter as bytes that run at any address, for any machine this crate knows,
/// whatever the host is.
///
/// Two words of it are to be filled in: the cells of the target's address and of the bound word.
///
/// ```
/// use footbridge::abi::Convention;
/// use footbridge::jit::{AdapterCode, AdapterSpec, Binding, FrameClass};
///
/// let signature = "fn(i64, f64) -> i64".parse()?;
/// let spec = AdapterSpec::new(&signature, Convention::SystemV, Convention::SystemV);
/// let code = AdapterCode::new(&spec.binding(Binding::FirstArgument))?;
/// assert!(code.is_tail_jump());
/// assert_eq!(code.frame_class(), FrameClass::Leaf);
/// let (target, bound) = (code.target_off_bytes(), code.context_off_bytes());
/// let bound = bound.expect("it binds a word");
/// assert_eq!(code.bytes()[target..][..8], [0; 8]);
/// let bytes = code.with(0x1000, 0x2000);
/// assert_eq!((&bytes[target..][..2], &bytes[bound..][..2]), (&[0, 0x10][..], &[0, 0x20][..]));
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
        self.fill(&mut bytes, target, context);
        bytes
    }

    #[cfg(feature = "runtime")]
    /// Calls `copy` with the code, its cells filled in. Unlike [`Self::with`] this allocates
    /// nothing for adapters of usual size, whose copies take a quarter of a microsecond.
    pub(crate) fn with_copy<R>(
        &self,
        target: u64,
        context: u64,
        copy: impl FnOnce(&[u8]) -> R,
    ) -> R {
        let mut usual = [0; 256];
        match usual.get_mut(..self.bytes.len()) {
            Some(bytes) => {
                bytes.copy_from_slice(&self.bytes);
                self.fill(bytes, target, context);
                copy(bytes)
            }
            None => copy(&self.with(target, context)),
        }
    }

    fn fill(&self, bytes: &mut [u8], target: u64, context: u64) {
        let mut fill = |off: usize, word: u64| {
            bytes[off..off + 8].copy_from_slice(&word.to_le_bytes());
        };
        fill(self.target_off, target);
        if let Some(off) = self.context_off {
            fill(off, context);
        }
    }
}
