//! What an adapter is to do, and the plan for it.

use crate::abi::{
    Arch, Convention, Gpr, Pinned, Plan, PlanRequest, Reg, RegSet, Signature, Type, Xreg,
};
use crate::jit::error::JitError;
use crate::jit::frame::FrameClass;

/// A word that an adapter passes besides the arguments that it was called with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Bind {
    /// In the register in which the target's convention passes the address of a closure
    /// ([`ConvSpec::context`](crate::abi::ConvSpec::context)): `rdx` in Go's conventions, `r10`,
    /// the static chain, in System V and Win64.
    Closure(u64),
    /// As a first argument, of type `ptr`, before those of the signature.
    FirstArgument(u64),
}

impl Bind {
    /// How the word is passed.
    ///
    /// ```
    /// use footbridge::jit::{Bind, Binding};
    /// assert_eq!(Bind::Closure(7).binding(), Binding::Closure);
    /// ```
    pub const fn binding(self) -> Binding {
        match self {
            Bind::Closure(_) => Binding::Closure,
            Bind::FirstArgument(_) => Binding::FirstArgument,
        }
    }

    /// The word.
    ///
    /// ```
    /// assert_eq!(footbridge::jit::Bind::FirstArgument(7).word(), 7);
    /// ```
    pub const fn word(self) -> u64 {
        match self {
            Bind::Closure(word) | Bind::FirstArgument(word) => word,
        }
    }
}

/// What an adapter passes besides the arguments that it is called with: [`Bind`] without the word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum Binding {
    /// Nothing.
    #[default]
    None,
    /// A word in the target's closure register.
    Closure,
    /// A word as a first argument.
    FirstArgument,
}

/// What an adapter is to do: [`AdapterCode::new`](super::AdapterCode::new) emits it.
#[derive(Clone, Copy, Debug)]
#[must_use = "a description emits nothing by itself"]
pub struct AdapterSpec<'a> {
    /// The types of the call, as the adapter's caller sees them.
    pub(crate) signature: &'a Signature,
    /// How the adapter is entered.
    pub(crate) entry: Convention,
    /// How it calls the target: a convention of the same machine.
    pub(crate) target: Convention,
    /// What it binds.
    pub(crate) binding: Binding,
    /// Where `g` is.
    pub(crate) g_tls_off_bytes: Option<i32>,
}

impl<'a> AdapterSpec<'a> {
    /// An adapter that is entered in the convention `entry` and calls its target in the convention
    /// `target` of the same machine. `signature` has the types of the call as the adapter's caller
    /// sees them. It binds nothing.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::jit::{AdapterCode, AdapterSpec};
    ///
    /// let signature = "fn(i64, f64) -> i64".parse()?;
    /// let spec = AdapterSpec::new(&signature, Convention::Aapcs64, Convention::GoAbi0Aarch64);
    /// assert!(!AdapterCode::new(&spec.g_tls_off_bytes(16))?.is_tail_jump());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn new(signature: &'a Signature, entry: Convention, target: Convention) -> Self {
        Self { signature, entry, target, binding: Binding::None, g_tls_off_bytes: None }
    }

    /// Sets what the adapter passes besides its arguments. The default is nothing.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::jit::{AdapterCode, AdapterSpec, Binding};
    ///
    /// let signature = "fn(i64)".parse()?;
    /// let spec = AdapterSpec::new(&signature, Convention::SystemV, Convention::SystemV);
    /// assert!(AdapterCode::new(&spec)?.context_off_bytes().is_none());
    /// assert!(AdapterCode::new(&spec.binding(Binding::Closure))?.context_off_bytes().is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn binding(mut self, binding: Binding) -> Self {
        self.binding = binding;
        self
    }

    /// Says where the address of the current goroutine's `g` is, in bytes from the thread pointer:
    /// `fs` on amd64, `tpidr_el0` on AArch64, or, in adapters that are entered in Apple's
    /// convention, `tpidrro_el0` without its low three bits. An adapter needs it if it calls a
    /// convention that has a register for `g` and is entered in one that has none.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::jit::{AdapterCode, AdapterSpec};
    ///
    /// let signature = "fn(i64)".parse()?;
    /// let spec = AdapterSpec::new(&signature, Convention::SystemV, Convention::GoAbiInternal);
    /// assert!(AdapterCode::new(&spec).is_err());
    /// assert!(AdapterCode::new(&spec.g_tls_off_bytes(-8)).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn g_tls_off_bytes(mut self, off_bytes: i32) -> Self {
        self.g_tls_off_bytes = Some(off_bytes);
        self
    }
}

/// What an adapter does, without a word about instructions.
pub(super) struct AdapterPlan {
    pub(super) arch: Arch,
    /// How the adapter is entered.
    pub(super) entry: Convention,
    /// How the target is.
    pub(super) target: Convention,
    /// The moves; in place for a tail jump.
    pub(super) plan: Plan,
    /// The contract of the frame.
    pub(super) class: FrameClass,
    /// The registers that the frame keeps, in the order of their places: general-purpose ones
    /// downwards from the frame pointer, then vector ones. After the call they are loaded again.
    pub(super) saved: Vec<Reg>,
    /// Registers that must hold something when the target starts.
    pub(super) set_before: Vec<(Reg, Pinned)>,
    /// A register that must be zero when the adapter returns, and that is not.
    pub(super) zero_after: Option<Reg>,
    /// The register of a closure that is bound.
    pub(super) closure: Option<Reg>,
    pub(super) binding: Binding,
}

impl AdapterPlan {
    /// `is_for_host`: it runs in this process, and finds out if there is no goroutine.
    pub(super) fn new(spec: &AdapterSpec<'_>, is_for_host: bool) -> Result<AdapterPlan, JitError> {
        let AdapterSpec { signature, binding, .. } = *spec;
        let entry = spec.entry.assign(signature)?;
        let (target, bound_param) = match binding {
            Binding::FirstArgument => {
                (spec.target.assign(&signature.with_first_param(Type::Ptr))?, Some(0))
            }
            Binding::None | Binding::Closure => (spec.target.assign(signature)?, None),
        };
        let (from, to) = (spec.entry.spec(), spec.target.spec());
        let closure = match (binding, to.context) {
            (Binding::Closure, None) => {
                let rule = "the target's convention has no register for a closure; bind the word \
                            as a first argument";
                return Err(JitError::Signature { stub: "adapter", rule });
            }
            (Binding::Closure, register) => register,
            _ => None,
        };

        let changed = to.volatile().union(to.pinned.iter().map(|(r, _)| *r).collect());
        let scratch = scratch(spec, changed);
        let request = PlanRequest {
            entry: &entry,
            target: &target,
            bound_param,
            arg_scratch: scratch,
            result_scratch: scratch,
        };
        // Where there is no goroutine, a System V function is called that says so: that takes a
        // frame, since rsp may not be aligned for it.
        let loads_goroutine =
            to.pinned.iter().any(|pin| pin.1 == Pinned::Goroutine && !from.pinned.contains(pin));
        let may_jump = !(is_for_host && loads_goroutine);
        let plan = match Plan::tail(&request).filter(|_| may_jump) {
            Some(plan) => plan,
            None => Plan::new(&request)?,
        };

        let kept = |register: Reg| !changed.contains(register) || pins(to.pinned, register);
        let set_before = to
            .pinned
            .iter()
            .copied()
            .filter(|pin| !from.pinned.contains(pin) || plan.writes.contains(pin.0));
        let lost = |what: Pinned| {
            let pinned = from.pinned.iter().find(|(_, pinned)| *pinned == what);
            let register = pinned.map(|(register, _)| *register);
            register.filter(|r| !kept(*r) || plan.writes.contains(*r))
        };
        let must_save = plan.must_save(&entry, &target);
        let (class, saved) = frame(from.arch, must_save, lost(Pinned::Goroutine));
        Ok(AdapterPlan {
            arch: from.arch,
            entry: spec.entry,
            target: spec.target,
            class: if plan.in_place { FrameClass::Leaf } else { class },
            saved,
            set_before: set_before.collect(),
            zero_after: lost(Pinned::Zero),
            closure,
            binding,
            plan,
        })
    }
}

fn pins(pinned: &[(Reg, Pinned)], register: Reg) -> bool {
    pinned.iter().any(|(other, _)| *other == register)
}

/// The registers that moves may go through: those that the entry's caller does not expect back,
/// those that the frame saves anyway, and one that is zero and is made so again. Not those that
/// the adapter itself uses, nor one that passes through it.
fn scratch(spec: &AdapterSpec<'_>, changed: RegSet) -> RegSet {
    let (from, to) = (spec.entry.spec(), spec.target.spec());
    let pinned_to = |what, pinned: &[(Reg, Pinned)]| -> RegSet {
        pinned.iter().filter(|(_, pinned)| *pinned == what).map(|(r, _)| *r).collect()
    };
    let closure = match spec.binding == Binding::Closure || from.context == to.context {
        true => to.context.into_iter().collect(),
        false => RegSet::EMPTY,
    };
    from.volatile()
        .union(from.preserved.intersection(changed))
        .union(pinned_to(Pinned::Zero, from.pinned))
        .minus(own(from.arch))
        .minus(pinned_to(Pinned::Goroutine, from.pinned))
        .minus(pinned_to(Pinned::Goroutine, to.pinned))
        .minus(closure)
}

/// The registers that an adapter itself uses: frame and return address, and on AArch64 one for the
/// target and one for addresses that no instruction reaches.
fn own(arch: Arch) -> RegSet {
    match arch {
        Arch::Amd64 => RegSet::of_gprs(&[Gpr::RSP, Gpr::RBP]),
        _ => [Xreg::X16, Xreg::X17, Xreg::X29, Xreg::X30].into_iter().collect(),
    }
}

/// What a frame keeps, and which class that makes: `must_save` are registers that the entry's
/// convention preserves, `goroutine` is one that it pins.
fn frame(arch: Arch, must_save: RegSet, goroutine: Option<Reg>) -> (FrameClass, Vec<Reg>) {
    /// What an unwinder restores, in the order of their places.
    const UNWOUND: [Gpr; 5] = [Gpr::RBX, Gpr::R12, Gpr::R13, Gpr::R14, Gpr::R15];
    /// What Win64 preserves besides, and System V does not.
    const WIN64: [Gpr; 2] = [Gpr::RSI, Gpr::RDI];
    let unwound = UNWOUND.map(Reg::Gpr);
    if must_save.is_empty() || arch != Arch::Amd64 {
        return (FrameClass::Standard, must_save.iter().chain(goroutine).collect());
    }
    if must_save.minus(RegSet::of(&unwound)).is_empty() {
        return (FrameClass::Saved, unwound.to_vec());
    }
    // All of it, so that each has its place.
    let vectors = Convention::Win64.spec().preserved.xmms().map(Reg::Xmm);
    let saved: Vec<_> = unwound.into_iter().chain(WIN64.map(Reg::Gpr)).chain(vectors).collect();
    debug_assert!(must_save.minus(saved.iter().copied().collect()).is_empty());
    (FrameClass::Win64, saved)
}
