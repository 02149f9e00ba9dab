#![allow(unsafe_code, reason = "reads code that others own")]
//! Code memory that the crate does not own, known to walks and signal handlers.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::kind::{Flags, StubKind};
use super::region::{CODE_LIMIT_BYTES, Publication, Region, StubId};
use crate::instrument;
use crate::jit::annotations::Annotations;
use crate::jit::error::JitError;
use crate::jit::frame::{FrameClass, FrameReport, GRANULE_BYTES};
use crate::jit::unwind::{self, Covered};

/// Code memory that the program owns, known to walks and signal handlers.
///
/// The region lives for ever: its addresses must not come to mean other code.
#[derive(Debug)]
pub struct ForeignRegion {
    region: &'static Region,
    class: FrameClass,
    published: Mutex<Vec<Range<usize>>>,
}

impl ForeignRegion {
    /// Registers the range, and one unwind rule for all of it. [`Self::publish`] makes the code in
    /// it known.
    ///
    /// ```
    /// use footbridge::jit::{ForeignRegion, FrameClass, JitError, lookup};
    ///
    /// #[repr(align(64))]
    /// struct Code([u8; 128]);
    ///
    /// static CODE: Code = Code([0xcc; 128]);
    ///
    /// let start = CODE.0.as_ptr() as usize;
    /// // SAFETY: a static stays, and there is no code in it.
    /// let region = unsafe { ForeignRegion::new(start..start + 128, FrameClass::Standard)? };
    /// assert!(lookup(start).is_none(), "nothing is published");
    /// // SAFETY: the same.
    /// let refused = unsafe { ForeignRegion::new(start..start + 64, FrameClass::Standard) };
    /// assert!(matches!(refused, Err(JitError::ForeignRange { .. })), "it is registered");
    /// # drop(region);
    /// # Ok::<(), JitError>(())
    /// ```
    ///
    /// # Errors
    /// The range is empty, not aligned to 64 bytes, overlaps a region that is known, the class is
    /// one that only this crate's stubs have, or there is no memory for the tables.
    ///
    /// # Safety
    /// 1. The range stays reserved for code of the caller for the rest of the process.
    /// 2. All code in it keeps the contract of `class`. A call is followed by an instruction of the
    ///    same code: it is not the last one where the code ends at a multiple of 64 bytes, and no
    ///    data follows it. Of code that is not published, unwinders do not know the prologue.
    pub unsafe fn new(range: Range<usize>, class: FrameClass) -> Result<Self, JitError> {
        let refuse = |rule| JitError::ForeignRange { range: range.clone(), rule };
        if range.is_empty() || range.end > isize::MAX as usize {
            return Err(refuse("the range must not be empty, and lie in user space"));
        }
        if !range.start.is_multiple_of(GRANULE_BYTES) || !range.end.is_multiple_of(GRANULE_BYTES) {
            return Err(refuse("both ends must be multiples of 64 bytes"));
        }
        if class.is_internal() {
            return Err(refuse(
                "entry, root and win64 frames are made by the crate's own stubs only",
            ));
        }
        let region = Region::add(range.start, range.len())?;
        let words = region.words_at(range.start);
        unwind::register(&[Covered { range, class, words, personality: None }]);
        Ok(Self { region, class, published: Mutex::new(Vec::new()) })
    }

    /// Publishes one function (or any other piece) of the region. `annotations`: what is known of
    /// it, `()` for nothing.
    ///
    /// ```
    /// use footbridge::jit::{Annotations, ForeignRegion, FrameClass, StubKind, lookup};
    ///
    /// #[repr(align(64))]
    /// struct Code([u8; 64]);
    ///
    /// // mov eax, 42; ret. (It is not executable here, which the registry does not need.)
    /// static CODE: Code = Code({
    ///     let mut bytes = [0xcc; 64];
    ///     (bytes[0], bytes[1], bytes[5]) = (0xb8, 42, 0xc3);
    ///     bytes
    /// });
    ///
    /// let start = CODE.0.as_ptr() as usize;
    /// // SAFETY: a static stays, and holds a leaf.
    /// let region = unsafe { ForeignRegion::new(start..start + 64, FrameClass::Leaf)? };
    /// // SAFETY: the bytes do not change, and each instruction is as good as another.
    /// let code = unsafe {
    ///     region.publish("answer", start..start + 6, Annotations::preemptible())?
    /// };
    /// let found = lookup(start + 5).expect("published");
    /// assert_eq!((found.name(), found.kind()), ("answer", StubKind::Foreign));
    /// drop(code);
    /// assert!(lookup(start + 5).expect("it stays known").is_retired());
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// # Errors
    /// The range leaves the region, is empty, does not start at a multiple of 64 bytes, or shares a
    /// granule of 64 bytes with one that was published before ([`JitError::ForeignRange`]). What
    /// the annotations say is refused, or they say anything and the code does not start with the
    /// prologue of its frame class.
    ///
    /// # Safety
    /// 1. The bytes of the code are in place and do not change any more.
    /// 2. The code keeps the promises that [`Jit::install`](crate::jit::Jit::install) lists for
    ///    each annotation.
    pub unsafe fn publish(
        &self,
        name: &str,
        range: Range<usize>,
        annotations: impl Into<Annotations>,
    ) -> Result<ForeignCode, JitError> {
        let annotations = annotations.into();
        let refuse = |rule| JitError::ForeignRange { range: range.clone(), rule };
        if range.is_empty() || !range.start.is_multiple_of(GRANULE_BYTES) {
            return Err(refuse("it must start at a multiple of 64 bytes and not be empty"));
        }
        if range.len() >= CODE_LIMIT_BYTES {
            return Err(refuse("one piece of code is shorter than 4 GiB"));
        }
        let end = self.region.base + self.region.size;
        if range.start < self.region.base || range.end > end {
            return Err(refuse("it leaves the region it is published in"));
        }
        let taken = range.start..range.end.next_multiple_of(GRANULE_BYTES);
        if annotations != Annotations::default() {
            // SAFETY: the bytes are in place, by the caller's promise.
            let code = unsafe { std::slice::from_raw_parts(range.start as *const u8, range.len()) };
            self.class.check(name, code)?;
        }
        let annotations = annotations.check(name, self.class, range.len())?;
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if published.iter().any(|p| p.start < taken.end && taken.start < p.end) {
            return Err(refuse("it shares a granule of 64 bytes with code published before"));
        }
        // The program may have executed other code at these addresses.
        instrument::new_code(range.start, range.len());
        let publication = Publication {
            start: range.start,
            len: range.len(),
            report: FrameReport::NONE,
            flags: Flags::new(StubKind::Foreign, self.class),
            name: String::from(name).leak(),
            signature: None,
            user_data: 0,
        };
        let id = self.region.publish(&publication, annotations)?;
        published.push(taken);
        Ok(ForeignCode { id })
    }
}

/// One published piece of foreign code. Dropping it retires the code.
#[derive(Debug)]
#[must_use = "the code is retired when its handle is dropped"]
pub struct ForeignCode {
    id: StubId,
}

impl Drop for ForeignCode {
    fn drop(&mut self) {
        self.id.retire();
    }
}
