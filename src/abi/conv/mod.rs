//! Calling conventions: data, and one classifier for each.
//!
//! A convention is a [`ConvSpec`], which says registers, alignments and what both sides may rely
//! on, and a classifier, which assigns places. Each has its own file, headed by worked examples. To
//! add one: write the file, add the variant to [`Convention`], and give the row in
//! `Convention::row` that the compiler then requires.
//!
//! A convention is never a flag in the classifier of another one.

mod aapcs64;
mod go_abi0;
mod go_abi_internal;
pub(super) mod spec;
mod sysv;
mod win64;

use std::fmt;

use self::spec::ConvSpec;
use super::assign::{AssignError, Assignment};
use super::types::{Language, Signature, Type, ValueIndex};

/// A calling convention, of one machine.
///
/// ```
/// use footbridge::abi::Convention;
///
/// for convention in Convention::ALL {
///     let assignment = convention.assign(&"fn(i32, f64) -> u8".parse()?)?;
///     println!("{convention} on {}: {assignment}", convention.spec().arch);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Convention {
    /// C on amd64, everywhere but on Windows: System V ABI, AMD64 Architecture Processor
    /// Supplement, chapter 3.
    SystemV,
    /// C on amd64 Windows: Microsoft, "x64 calling convention", and where that says nothing, GNU C
    /// (`__attribute__((ms_abi))`).
    Win64,
    /// Go assembly functions on amd64: `cmd/compile/abi-internal.md` and "A Quick Guide to Go's
    /// Assembler". Stable.
    GoAbi0,
    /// Compiled Go on amd64: `cmd/compile/abi-internal.md` of the Go toolchain. Go declares it
    /// unstable; this is that of Go 1.27.
    GoAbiInternal,
    /// C on AArch64: Procedure Call Standard for the Arm 64-bit Architecture.
    Aapcs64,
    /// C on AArch64 of Apple: "Writing ARM64 code for Apple platforms".
    AppleAarch64,
    /// [`Convention::GoAbi0`] on AArch64.
    GoAbi0Aarch64,
    /// [`Convention::GoAbiInternal`] on AArch64.
    GoAbiInternalAarch64,
}

impl Convention {
    /// Every convention.
    pub const ALL: [Convention; 8] = [
        Convention::SystemV,
        Convention::Win64,
        Convention::GoAbi0,
        Convention::GoAbiInternal,
        Convention::Aapcs64,
        Convention::AppleAarch64,
        Convention::GoAbi0Aarch64,
        Convention::GoAbiInternalAarch64,
    ];

    /// The specification and the classifier of each convention.
    const fn row(self) -> (&'static ConvSpec, Classify) {
        match self {
            Convention::SystemV => (&sysv::SPEC, sysv::classify),
            Convention::Win64 => (&win64::SPEC, win64::classify),
            Convention::GoAbi0 => (&go_abi0::AMD64, go_abi0::classify),
            Convention::GoAbiInternal => (&go_abi_internal::AMD64, go_abi_internal::classify),
            Convention::Aapcs64 => (&aapcs64::STANDARD, aapcs64::classify),
            Convention::AppleAarch64 => (&aapcs64::APPLE, aapcs64::classify_apple),
            Convention::GoAbi0Aarch64 => (&go_abi0::AARCH64, go_abi0::classify),
            Convention::GoAbiInternalAarch64 => {
                (&go_abi_internal::AARCH64, go_abi_internal::classify)
            }
        }
    }

    /// The facts of the convention.
    ///
    /// ```
    /// use footbridge::abi::{Convention, Gpr, Pinned, Reg};
    ///
    /// let spec = Convention::GoAbiInternal.spec();
    /// assert_eq!(spec.pinned[0], (Reg::Gpr(Gpr::R14), Pinned::Goroutine));
    /// ```
    pub const fn spec(self) -> &'static ConvSpec {
        self.row().0
    }

    /// The place of every parameter and result of a function with this signature.
    ///
    /// # Errors
    ///
    /// The convention has no place or no rule for a value, or the values on the stack take more
    /// than [`MAX_AREA_BYTES`](super::MAX_AREA_BYTES).
    ///
    /// ```
    /// use footbridge::abi::Convention;
    ///
    /// let signature = "fn(i64, f32, i8) -> f64".parse()?;
    /// let assignment = Convention::Win64.assign(&signature)?;
    /// assert_eq!(assignment.to_string(), "p0: rcx  p1: xmm1  p2: r8  r0: xmm0");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn assign(self, signature: &Signature) -> Result<Assignment, AssignError> {
        let (spec, classify) = self.row();
        let params = (0..).map(ValueIndex::Param).zip(signature.params());
        let results = (0..).map(ValueIndex::Result).zip(signature.results());
        for (value, ty) in params.chain(results) {
            let refuse = |rule| Err(AssignError::unsupported(spec, value, ty, rule));
            if !ty.exists_in(spec.language) {
                return refuse(
                    "Go has no 128-bit integers, long doubles, vectors, unions, and no packed or \
                     aligned structs",
                );
            }
            let unnamed = matches!(value, ValueIndex::Param(i) if signature.is_unnamed(i));
            if unnamed && is_promoted(ty) {
                return refuse(
                    "C promotes it in the place of `...`: integers narrower than 32 bits to i32, \
                     f32 to f64",
                );
            }
        }
        match (spec.language, signature.named_params(), signature.results()) {
            (Language::Go, Some(_), _) => Err(AssignError::NoVariadics { convention: spec }),
            (Language::C, _, [_, ty, ..]) => {
                Err(AssignError::OneResult { convention: spec, index: 1, ty: ty.clone() })
            }
            _ => classify(spec, signature),
        }
    }
}

impl From<&ConvSpec> for Convention {
    fn from(spec: &ConvSpec) -> Convention {
        let mut all = Convention::ALL.into_iter();
        all.find(|convention| convention.spec() == spec).expect("each spec belongs to a variant")
    }
}

impl Assignment {
    /// The convention; `None` for [`Assignment::packed`].
    pub fn convention(&self) -> Option<Convention> {
        self.spec().map(Convention::from)
    }
}

/// Assigns the places of a signature that the language of the convention has.
type Classify = fn(&'static ConvSpec, &Signature) -> Result<Assignment, AssignError>;

/// Whether C's default argument promotions (C11 6.5.2.2) turn this type into another one.
fn is_promoted(ty: &Type) -> bool {
    *ty == Type::F32 || ty.is_word() && ty.layout(Language::C).size_bytes < 4
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.spec().name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_belongs_to_one_convention() {
        for convention in Convention::ALL {
            assert_eq!(Convention::from(convention.spec()), convention);
            assert_eq!(convention.to_string(), format!("{convention:?}"));
        }
    }
}
