//! What an author says of a piece of code when it is installed, besides its name and frame class.

use std::ops::Range;

use super::error::JitError;
use super::frame::FrameClass;
use super::safe_point::{self, UnsafePointRange, WhenUnsafe};
use super::stack_map::{LiveAt, StackMap};

/// What is known of a piece of code besides its name and frame class: what the body of
/// [`Jit::install`](super::Jit::install) returns, whose documentation says what each annotation
/// promises.
///
/// `()` is the annotation that says nothing: the code is not preempted, and where its pointers are
/// is unknown.
///
/// ```
/// use footbridge::abi::Gpr;
/// use footbridge::jit::{Annotations, LiveAt, LiveSlot, WhenUnsafe};
///
/// let annotations = Annotations::preemptible()
///     .unsafe_points(8..16, WhenUnsafe::Skip)
///     .stack_map([LiveAt { bytes: 0..8, slots: vec![LiveSlot::Register(Gpr::RDI)] }]);
/// assert_ne!(annotations, Annotations::from(()));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "annotations say nothing until they are returned"]
pub struct Annotations {
    is_preemptible: bool,
    unsafe_points: Vec<UnsafePointRange>,
    stack_map: Option<Vec<LiveAt>>,
}

/// Annotations that make sense for their code.
#[derive(Default)]
pub(crate) struct Checked {
    /// Sorted. `None`: the code is not preemptible.
    pub(crate) preemptible: Option<Vec<UnsafePointRange>>,
    pub(crate) stack_map: Option<StackMap>,
}

impl From<()> for Annotations {
    fn from((): ()) -> Self {
        Self::new()
    }
}

impl Annotations {
    /// No annotations.
    ///
    /// ```
    /// use footbridge::jit::Annotations;
    ///
    /// assert_eq!(Annotations::new(), Annotations::from(()));
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// The code may be preempted: a goroutine may be descheduled at any of its instructions, but at
    /// unsafe points.
    ///
    /// ```
    /// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::jit::{Annotations, FrameClass, Jit};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf that changes rax only, and is as good anywhere.
    /// let count = unsafe {
    ///     jit.install("count", FrameClass::Leaf, |ops| {
    ///         dynasm!(ops; .arch x64; xor eax, eax; again: ; inc rax);
    ///         dynasm!(ops; .arch x64; cmp rax, rdi; jb <again; ret);
    ///         Annotations::preemptible()
    ///     })?
    /// };
    /// let found = footbridge::jit::lookup(count.address()).expect("installed");
    /// assert!(found.is_preemptible());
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn preemptible() -> Self {
        Self { is_preemptible: true, ..Self::default() }
    }

    /// Points of preemptible code at which it must not simply be descheduled and resumed: those of
    /// the instructions in this range of bytes, counted from the start of the code.
    /// `ops.offset().0` is the offset of the next instruction while code is emitted. Ranges do not
    /// overlap.
    ///
    /// ```
    /// use footbridge::dynasm::{DynasmApi, dynasm};
    /// use footbridge::jit::{Annotations, FrameClass, Jit, WhenUnsafe};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf; from each instruction of its range it may begin the range again.
    /// let swap = unsafe {
    ///     jit.install("load and store", FrameClass::Leaf, |ops| {
    ///         let start = ops.offset().0;
    ///         dynasm!(ops; .arch x64; mov rax, [rdi]; inc rax; mov [rdi], rax);
    ///         let points = start..ops.offset().0;
    ///         dynasm!(ops; .arch x64; ret);
    ///         Annotations::preemptible().unsafe_points(points, WhenUnsafe::Restart)
    ///     })?
    /// };
    /// assert!(footbridge::jit::lookup(swap.address()).expect("installed").is_preemptible());
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn unsafe_points(mut self, bytes: Range<usize>, when: WhenUnsafe) -> Self {
        self.unsafe_points.push(UnsafePointRange { bytes, when });
        self
    }

    /// Where the code has live pointers: all entries of its stack map. An empty map says that it
    /// never has one. [`LiveAt`] says which entry counts when, and [`StackMap`] is what a walk
    /// finds.
    ///
    /// ```
    /// use footbridge::abi::Gpr;
    /// use footbridge::dynasm::{DynasmApi, dynasm};
    /// use footbridge::jit::{Annotations, FrameClass, Jit, LiveAt, LiveSlot};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf that changes rax only, and is as good anywhere.
    /// let second = unsafe {
    ///     jit.install("second", FrameClass::Leaf, |ops| {
    ///         dynasm!(ops; .arch x64; mov rax, [rdi + 8]);
    ///         let loaded = ops.offset().0;
    ///         dynasm!(ops; .arch x64; ret);
    ///         let (argument, result) = (Gpr::RDI, Gpr::RAX);
    ///         Annotations::preemptible().stack_map([
    ///             LiveAt { bytes: 0..loaded, slots: vec![LiveSlot::Register(argument)] },
    ///             LiveAt { bytes: loaded..loaded + 1, slots: vec![LiveSlot::Register(result)] },
    ///         ])
    ///     })?
    /// };
    /// let found = footbridge::jit::lookup(second.address()).expect("installed");
    /// let map = found.stack_map().expect("it has one");
    /// assert_eq!(map.live_at(0), [LiveSlot::Register(Gpr::RDI)]);
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn stack_map(mut self, entries: impl IntoIterator<Item = LiveAt>) -> Self {
        self.stack_map.get_or_insert_default().extend(entries);
        self
    }

    /// Refuses what makes no sense for code of this length.
    pub(crate) fn check(
        self,
        name: &str,
        class: FrameClass,
        code_bytes: usize,
    ) -> Result<Checked, JitError> {
        let Self { is_preemptible, unsafe_points, stack_map } = self;
        if !is_preemptible && let Some(UnsafePointRange { bytes, .. }) = unsafe_points.first() {
            let rule = "the code is not preemptible, so that all of its points are unsafe; begin \
                        with Annotations::preemptible()";
            return Err(JitError::UnsafePointRange {
                name: name.into(),
                range: bytes.clone(),
                rule,
            });
        }
        let preemptible = is_preemptible
            .then(|| safe_point::check(name, code_bytes, class.prologue_bytes(), unsafe_points));
        let stack_map = stack_map.map(|entries| StackMap::check(name, class, code_bytes, entries));
        Ok(Checked { preemptible: preemptible.transpose()?, stack_map: stack_map.transpose()? })
    }
}
