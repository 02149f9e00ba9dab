//! Executes AArch64 adapters under qemu: random signatures between all pairs of conventions. The
//! caller and the target (`harness.c`, `harness.s`) know only their own assignment.
//!
//! The caller fills every register. It places the argument area below an unmapped page, and its
//! copies of values at the ends of pages. The target reads its arguments and overwrites everything
//! that its convention allows.

use footbridge::abi::model::Xorshift;
use footbridge::abi::{
    AssignError, Assignment, ConvSpec, Convention, Extend, Language, Narrow, Passing, Pinned,
    Place, PlanError, Reg, RegClass, RegSet, ResultPointer, Signature, Type, Value,
};
use footbridge::jit::{AdapterCode, AdapterSpec, Binding, JitError};

use super::c::{data, random_bytes, random_signature};
use super::cross::{self, Folder};
use super::go;

const HARNESS_C: &str = include_str!("harness.c");
const HARNESS_S: &str = include_str!("harness.s");

const PAGE_BYTES: u64 = 4096;

/// The memory of the cases, at addresses that are not used otherwise.
const STACK_TOP: u64 = 0x10_0010_0000;
const STACK_BYTES: u64 = 1 << 16;
/// One page for each value that is passed by reference, each followed by an unmapped page.
const COPIES: u64 = 0x10_0100_0000;
/// The same for a result.
const RESULT: u64 = 0x10_0200_0000;
/// The address that holds `g`, in thread-local storage. Under this emulator Apple's thread pointer
/// is 0, so the slot must be in reach of address 0.
const G_SLOT: u64 = 0x3000_0008;
const SLOTS: u64 = 20;

const ALL: [Convention; 4] = [
    Convention::Aapcs64,
    Convention::AppleAarch64,
    Convention::GoAbi0Aarch64,
    Convention::GoAbiInternalAarch64,
];

/// General-purpose and vector registers.
#[derive(Clone)]
struct Machine {
    x: [u64; 31],
    v: [[u8; 16]; 32],
}

impl Machine {
    fn random(rng: &mut Xorshift) -> Machine {
        let mut v = [[0; 16]; 32];
        for byte in v.iter_mut().flatten() {
            *byte = (rng.bits() >> 40) as u8;
        }
        Machine { x: std::array::from_fn(|_| rng.bits()), v }
    }

    /// Stores bytes in the low end of a register.
    fn put(&mut self, register: Reg, bytes: &[u8]) {
        match register {
            Reg::Xreg(x) => {
                let x = &mut self.x[usize::from(x.index())];
                let mut whole = x.to_le_bytes();
                whole[..bytes.len()].copy_from_slice(bytes);
                *x = u64::from_le_bytes(whole);
            }
            Reg::Vreg(v) => {
                self.v[usize::from(v.index())][..bytes.len()].copy_from_slice(bytes);
            }
            other => unreachable!("{other} is not an AArch64 register"),
        }
    }

    fn bytes(&self, register: Reg) -> Vec<u8> {
        match register {
            Reg::Xreg(x) => self.x[usize::from(x.index())].to_le_bytes().to_vec(),
            Reg::Vreg(v) => self.v[usize::from(v.index())].to_vec(),
            other => unreachable!("{other} is not an AArch64 register"),
        }
    }

    fn word(&self, register: Reg) -> u64 {
        u64::from_le_bytes(self.bytes(register)[..8].try_into().expect("eight bytes"))
    }
}

/// The input of the harness: words and byte strings.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn word(&mut self, word: u64) {
        self.0.extend(word.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
    }

    fn machine(&mut self, machine: &Machine) {
        machine.x.iter().for_each(|x| self.word(*x));
        machine.v.iter().for_each(|v| self.bytes(v));
    }
}

/// The output of the harness.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes(&mut self, bytes: usize) -> Vec<u8> {
        let (here, rest) = self.0.split_at(bytes.next_multiple_of(8));
        self.0 = rest;
        here[..bytes].to_vec()
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().expect("eight bytes"))
    }

    /// A machine, sp and fpcr.
    fn machine(&mut self) -> (Machine, u64, u64) {
        let x = std::array::from_fn(|_| self.word());
        let (sp, fpcr) = (self.word(), self.word());
        let v = std::array::from_fn(|_| self.bytes(16).try_into().expect("sixteen bytes"));
        (Machine { x, v }, sp, fpcr)
    }
}

/// One call through one adapter.
struct Case {
    signature: Signature,
    entry: Assignment,
    target: Assignment,
    code: AdapterCode,
    binding: Binding,
    context: u64,
    args: Vec<Vec<u8>>,
    results: Vec<Vec<u8>>,
    g: u64,
    g_tls_off: i32,
    /// The caller's state at the call.
    caller: Machine,
    sp: u64,
    fpcr: u64,
    /// The caller's memory before the call, by address.
    writes: Vec<(u64, Vec<u8>)>,
    /// Memory that is compared after the call: parts of the caller's memory that must not change,
    /// or that receive results.
    watched: Vec<(u64, Vec<u8>)>,
    /// The address of the caller's memory for the result, if it is returned in memory.
    result_at: Option<u64>,
    /// The target's registers at its return, except those that it preserves.
    answer: Machine,
}

fn spec(side: &Assignment) -> &'static ConvSpec {
    side.convention().expect("a convention").spec()
}

fn is_extended(side: &Assignment, value: &Value) -> bool {
    let size = value.layout().size_bytes;
    spec(side).narrow == Narrow::ExtendedTo32 && value.ty().is_word() && size < 4
}

/// The low 32 bits of a narrow integer that was extended.
fn extended(ty: &Type, bytes: &[u8]) -> [u8; 4] {
    let fill = match Extend::of(ty) {
        Extend::Sign if bytes[bytes.len() - 1] >= 0x80 => 0xff,
        _ => 0,
    };
    let mut whole = [fill; 4];
    whole[..bytes.len()].copy_from_slice(bytes);
    whole
}

/// The address of a value that ends where an unmapped page begins.
fn at_page_end(page: u64, size: u32, align: u32) -> u64 {
    (page + PAGE_BYTES - u64::from(size)) & !(u64::from(align) - 1)
}

/// Whether an adapter is refused by design. Any other error is a defect.
pub fn is_expected(error: &JitError) -> bool {
    matches!(
        error,
        JitError::Assign(
            AssignError::Unsupported { .. }
                | AssignError::OneResult { .. }
                | AssignError::NoVariadics { .. }
                | AssignError::AreaTooLarge { .. }
        ) | JitError::Plan(PlanError::LayoutDiffers { .. } | PlanError::FrameTooLarge { .. })
    )
}

/// A random case; `None` where the signature does not exist on one of the sides.
fn random_case(rng: &mut Xorshift, from: Convention, to: Convention) -> Option<Case> {
    let is_c = [from, to].iter().all(|c| c.spec().language == Language::C);
    let is_go = [from, to].iter().all(|c| c.spec().language == Language::Go);
    let signature = match is_c {
        true => random_signature(rng, true),
        false => go::random_signature(rng, is_go),
    };
    let binding = [Binding::None, Binding::None, Binding::Closure, Binding::FirstArgument];
    let mut binding = binding[rng.below(4)];
    if binding == Binding::Closure && to.spec().context.is_none() {
        binding = Binding::FirstArgument;
    }
    let g_tls_off = [16, 0x7ff8, 0x8000, 0x123458, -8, -0x1000, -0x1234_5678, i32::MAX - 7];
    let g_tls_off = match from {
        Convention::AppleAarch64 => G_SLOT as i32,
        _ => g_tls_off[rng.below(g_tls_off.len())],
    };
    let spec = AdapterSpec::new(&signature, from, to).binding(binding).g_tls_off_bytes(g_tls_off);
    let code = match AdapterCode::new(&spec) {
        Ok(code) => code,
        Err(error) if is_expected(&error) => return None,
        Err(error) => panic!("{from} to {to}, {signature}: {error}"),
    };
    let entry = from.assign(&signature).expect("the adapter was made of it");
    let target = match binding {
        Binding::FirstArgument => to.assign(&signature.with_first_param(Type::Ptr)),
        _ => to.assign(&signature),
    };
    let target = target.expect("the adapter was made of it");
    let mut values = |types: &[Type]| -> Vec<Vec<u8>> {
        types.iter().map(|ty| random_bytes(rng, ty, entry.language())).collect()
    };
    let (args, results) = (values(signature.params()), values(signature.results()));
    let mut case = Case {
        context: rng.bits(),
        g: rng.bits(),
        caller: Machine::random(rng),
        answer: Machine::random(rng),
        sp: 0,
        // Go code runs with FPCR 0. C code keeps the FPCR: here, rounding towards zero.
        fpcr: if is_c { 3 << 22 } else { 0 },
        writes: Vec::new(),
        watched: Vec::new(),
        result_at: None,
        signature,
        entry,
        target,
        code,
        binding,
        args,
        results,
        g_tls_off,
    };
    case.prepare_caller(rng);
    case.prepare_answer();
    Some(case)
}

impl Case {
    /// Stores the arguments where the caller's convention has them.
    fn prepare_caller(&mut self, rng: &mut Xorshift) {
        let entry = self.entry.clone();
        let spec = spec(&entry);
        let base_off = u64::from(spec.base_off_bytes);
        let area_bytes = u64::from(entry.total_bytes());
        self.sp = (STACK_TOP - area_bytes - base_off) & !15;
        let base = self.sp + base_off;
        let mut random =
            |bytes: u64| -> Vec<u8> { (0..bytes).map(|_| (rng.bits() >> 40) as u8).collect() };
        let mut area = random(area_bytes);
        let above = random(STACK_TOP - base - area_bytes);
        let mut copies = Vec::new();
        for (i, (value, bytes)) in entry.params().iter().zip(&self.args).enumerate() {
            match *value.passing() {
                Passing::Nothing => {}
                Passing::Area(offset) => {
                    area[offset as usize..][..bytes.len()].copy_from_slice(bytes);
                }
                Passing::Reference(place) => {
                    // AAPCS64 6.8.2, B.6: a copy needs no alignment above 16 bytes.
                    let align = spec.copy_align_bytes.max(value.layout().align_bytes.min(16));
                    let page = COPIES + 2 * PAGE_BYTES * i as u64;
                    let address = at_page_end(page, value.layout().size_bytes, align);
                    copies.push((address, bytes.clone()));
                    self.caller.put_word(place, address, &mut area);
                }
                Passing::Parts(ref parts) => {
                    for part in parts {
                        let register = part.place.reg().expect("AArch64 has no x87");
                        let piece = &bytes[part.off as usize..][..part.size as usize];
                        self.caller.put(register, piece);
                        if is_extended(&entry, value) {
                            self.caller.put(register, &extended(value.ty(), piece));
                        }
                    }
                }
                ref other => unreachable!("{other:?}"),
            }
        }
        if let (Some(ResultPointer { place, .. }), [result]) =
            (entry.result_pointer(), entry.results())
        {
            let layout = result.layout();
            let address = at_page_end(RESULT, layout.size_bytes, layout.align_bytes);
            self.result_at = Some(address);
            self.caller.put_word(place, address, &mut area);
            let start = RESULT;
            self.watched.push((start, random(RESULT + PAGE_BYTES - start)));
        }
        for (register, what) in spec.pinned {
            assert_eq!(*what, Pinned::Goroutine);
            self.caller.put(*register, &self.g.to_le_bytes());
        }
        self.watched.push((base, area));
        self.watched.push((base + area_bytes, above));
        // The caller's bytes between its area and its stack pointer, and below the stack pointer.
        let below = u64::from(spec.caller_below_bytes);
        self.watched.push((self.sp - below, random(below + base_off)));
        self.writes = self.watched.clone();
        self.writes.extend(copies);
        self.writes.push((G_SLOT, self.g.to_le_bytes().to_vec()));
    }

    /// Stores the results in the registers where the target's convention has them.
    fn prepare_answer(&mut self) {
        for (value, bytes) in self.target.results().iter().zip(&self.results) {
            for part in value.parts() {
                let register = part.place.reg().expect("AArch64 has no x87");
                let piece = &bytes[part.off as usize..][..part.size as usize];
                self.answer.put(register, piece);
            }
        }
    }

    /// The places of the addresses that the target receives, and the sizes of the values there.
    fn indirect(&self) -> Vec<(Place, u32, Option<&[u8]>)> {
        let mut indirect = Vec::new();
        for value in self.target.params() {
            if let Passing::Reference(place) = *value.passing() {
                indirect.push((place, value.layout().size_bytes, None));
            }
        }
        if let (Some(pointer), [result], [bytes]) =
            (self.target.result_pointer(), self.target.results(), &self.results[..])
        {
            indirect.push((pointer.place, result.layout().size_bytes, Some(&bytes[..])));
        }
        indirect
    }

    fn write(&self, rng: &mut Xorshift, to: &mut Writer) {
        let code = self.code.with(0, self.context);
        to.word(code.len() as u64);
        to.word(self.code.target_off_bytes() as u64);
        to.bytes(&code);
        to.machine(&self.caller);
        to.word(self.sp);
        to.word(self.fpcr);
        // TPIDR_EL0. An adapter that is entered from Apple's convention must use TPIDRRO_EL0
        // instead, so this one gets a wrong value.
        to.word(match self.entry.convention() {
            Some(Convention::AppleAarch64) => !G_SLOT,
            _ => G_SLOT.wrapping_sub(i64::from(self.g_tls_off) as u64),
        });
        to.word(self.writes.len() as u64);
        for (address, bytes) in &self.writes {
            to.word(*address);
            to.word(bytes.len() as u64);
            to.bytes(bytes);
        }
        to.word(self.watched.len() as u64);
        for (address, bytes) in &self.watched {
            to.word(*address);
            to.word(bytes.len() as u64);
        }

        let spec = spec(&self.target);
        to.word(spec.base_off_bytes.into());
        to.word(self.target.total_bytes().into());
        to.word(spec.caller_below_bytes.next_multiple_of(16).into());
        let indirect = self.indirect();
        to.word(indirect.len() as u64);
        for (place, size, _) in &indirect {
            match *place {
                Place::Reg(Reg::Xreg(x)) => {
                    to.word(1);
                    to.word(x.index().into());
                }
                Place::Area(offset) => {
                    to.word(0);
                    to.word(offset.into());
                }
                other => unreachable!("an address cannot be in {other}"),
            }
            to.word((*size).into());
        }
        let mut garbage =
            |bytes: u32| -> Vec<u8> { (0..bytes).map(|_| (rng.bits() >> 40) as u8).collect() };
        for (_, size, result) in &indirect {
            to.word(1);
            match result {
                Some(bytes) => to.bytes(bytes),
                None => to.bytes(&garbage(*size)),
            }
        }
        let mut area = garbage(self.target.total_bytes());
        for (value, bytes) in self.target.results().iter().zip(&self.results) {
            if let Passing::Area(offset) = *value.passing() {
                area[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
        }
        to.bytes(&area);
        let kept = spec.preserved.union(spec.reserved);
        let kept = kept.union(spec.pinned.iter().map(|(register, _)| *register).collect());
        let mask = |set: RegSet, class| {
            set.of_class(class).fold(0, |mask, register| match register {
                Reg::Xreg(x) => mask | 1 << x.index(),
                Reg::Vreg(v) => mask | 1 << v.index(),
                other => unreachable!("{other} is not an AArch64 register"),
            })
        };
        assert_eq!(mask(kept, RegClass::Vector), 0, "only low halves are preserved");
        to.word(mask(kept, RegClass::General));
        to.word(mask(spec.preserved_low64, RegClass::Vector));
        to.machine(&self.answer);
    }

    /// Reads the captured state of this case and compares it.
    fn check(&self, seen: &mut Reader<'_>) -> Result<(), String> {
        let (arrived, sp, fpcr) = seen.machine();
        let area = seen.bytes(self.target.total_bytes() as usize);
        let watched: Vec<Vec<u8>> =
            self.watched.iter().map(|(_, bytes)| seen.bytes(bytes.len())).collect();
        let indirect: Vec<(u64, Vec<u8>)> = self
            .indirect()
            .iter()
            .map(|(_, size, _)| (seen.word(), seen.bytes(*size as usize)))
            .collect();
        self.check_arrival(&arrived, sp, fpcr, &area, &indirect)?;
        self.check_memory(&watched, false)?;

        let (returned, sp, fpcr) = seen.machine();
        let watched: Vec<Vec<u8>> =
            self.watched.iter().map(|(_, bytes)| seen.bytes(bytes.len())).collect();
        same("sp after the call", sp, self.sp)?;
        same("fpcr after the call", fpcr, self.fpcr)?;
        self.check_memory(&watched, true)?;
        self.check_return(&returned, &watched)
    }

    fn check_arrival(
        &self,
        arrived: &Machine,
        sp: u64,
        fpcr: u64,
        area: &[u8],
        indirect: &[(u64, Vec<u8>)],
    ) -> Result<(), String> {
        let spec = spec(&self.target);
        same("sp modulo 16", sp % 16, 0)?;
        same("fpcr", fpcr, self.fpcr)?;
        if self.code.is_tail_jump() {
            same("sp of a tail jump", sp, self.sp)?;
            same("x29 of a tail jump is the caller's", arrived.x[29], self.caller.x[29])?;
        }
        for register in spec.reserved.iter() {
            same(register, arrived.word(register), self.caller.word(register))?;
        }
        for (register, _) in spec.pinned {
            same(format!("{register}, which is g"), arrived.word(*register), self.g)?;
        }
        if self.binding == Binding::Closure {
            let register = spec.context.expect("it was accepted");
            same(format!("{register}, the closure"), arrived.word(register), self.context)?;
        }
        let bound = self.context.to_le_bytes().to_vec();
        let first = (self.binding == Binding::FirstArgument).then_some(&bound);
        let mut indirect = indirect.iter();
        for (value, bytes) in self.target.params().iter().zip(first.into_iter().chain(&self.args)) {
            let what = |place: &dyn std::fmt::Display| format!("{} at {place}", value.ty());
            match *value.passing() {
                Passing::Nothing => {}
                Passing::Area(offset) => {
                    let found = &area[offset as usize..][..bytes.len()];
                    same_data(what(&format!("area+{offset}")), value, 0, found, bytes)?;
                }
                Passing::Reference(place) => {
                    let (address, found) = indirect.next().expect("one for each");
                    let align = spec.copy_align_bytes.max(value.layout().align_bytes.min(16));
                    let off = address % u64::from(align);
                    same(format!("alignment of {} at {place}", value.ty()), off, 0)?;
                    same_data(what(&place), value, 0, found, bytes)?;
                }
                Passing::Parts(ref parts) => {
                    for part in parts {
                        let register = part.place.reg().expect("AArch64 has no x87");
                        let found = &arrived.bytes(register)[..part.size as usize];
                        same_data(what(part), value, part.off, found, bytes)?;
                        if is_extended(&self.target, value) {
                            let found = &arrived.bytes(register)[..4];
                            same(what(part), found, &extended(value.ty(), bytes)[..])?;
                        }
                    }
                }
                ref other => unreachable!("{other:?}"),
            }
        }
        if let (Some((address, _)), [result]) = (indirect.next(), self.target.results()) {
            let off = address % u64::from(result.layout().align_bytes);
            same("alignment of the result's memory", off, 0)?;
        }
        Ok(())
    }

    /// Checks the caller's memory: only results may change it.
    fn check_memory(&self, watched: &[Vec<u8>], after: bool) -> Result<(), String> {
        for ((address, before), now) in self.watched.iter().zip(watched) {
            let bytes = (*address..).zip(before.iter().zip(now));
            for (address, (before, now)) in bytes {
                if before != now && !(after && self.may_change(address)) {
                    let off = address.wrapping_sub(self.sp).cast_signed();
                    return Err(format!("the caller's byte at {address:#x}, sp+{off}, changed"));
                }
            }
        }
        Ok(())
    }

    /// Whether the callee may change this byte: it belongs to the argument area, or to the memory
    /// for the result.
    fn may_change(&self, address: u64) -> bool {
        let base = self.sp + u64::from(spec(&self.entry).base_off_bytes);
        let area = base..base + u64::from(self.entry.total_bytes());
        let result = self.result_at.map(|at| {
            let size = self.entry.results()[0].layout().size_bytes;
            at..at + u64::from(size)
        });
        area.contains(&address) || result.is_some_and(|result| result.contains(&address))
    }

    fn check_return(&self, returned: &Machine, watched: &[Vec<u8>]) -> Result<(), String> {
        let spec = spec(&self.entry);
        let pinned: RegSet = spec.pinned.iter().map(|(register, _)| *register).collect();
        for register in spec.preserved.union(spec.reserved).union(pinned).iter() {
            let what = format!("{register} after the call");
            same(what, returned.word(register), self.caller.word(register))?;
        }
        for register in spec.preserved_low64.iter() {
            let what = format!("the low half of {register} after the call");
            same(what, returned.word(register), self.caller.word(register))?;
        }
        let memory = |address: u64, size: usize| {
            let mut pieces = self.watched.iter().zip(watched);
            let found = pieces.find_map(|((start, _), bytes)| {
                let off = usize::try_from(address.checked_sub(*start)?).ok()?;
                bytes.get(off..off + size)
            });
            found.expect("results are watched").to_vec()
        };
        for (value, bytes) in self.entry.results().iter().zip(&self.results) {
            let what = |place: &dyn std::fmt::Display| format!("result {} at {place}", value.ty());
            match *value.passing() {
                Passing::Nothing => {}
                Passing::Area(offset) => {
                    let base = self.sp + u64::from(spec.base_off_bytes);
                    let found = memory(base + u64::from(offset), bytes.len());
                    same_data(what(&format!("area+{offset}")), value, 0, &found, bytes)?;
                }
                Passing::Reference(place) => {
                    let at = self.result_at.expect("the caller has memory for it");
                    same_data(what(&place), value, 0, &memory(at, bytes.len()), bytes)?;
                }
                Passing::Parts(ref parts) => {
                    for part in parts {
                        let register = part.place.reg().expect("AArch64 has no x87");
                        let found = &returned.bytes(register)[..part.size as usize];
                        same_data(what(part), value, part.off, found, bytes)?;
                        // Between two sides of the same convention, the register is passed through
                        // unchanged.
                        let alike = self.entry.convention() == self.target.convention();
                        if is_extended(&self.entry, value) && !alike {
                            let found = &returned.bytes(register)[..4];
                            same(what(part), found, &extended(value.ty(), bytes)[..])?;
                        }
                    }
                }
                ref other => unreachable!("{other:?}"),
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let (from, to) = (self.entry.convention(), self.target.convention());
        let (from, to) = (from.expect("a convention"), to.expect("a convention"));
        let words = self.code.bytes().chunks_exact(4);
        let code: String = words
            .map(|word| {
                let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
                format!("{word:08x} ")
            })
            .collect();
        format!(
            "{from} to {to}, {:?}: {}\nentry:  {}\ntarget: {}\ncode: {code}",
            self.binding, self.signature, self.entry, self.target
        )
    }
}

impl Machine {
    fn put_word(&mut self, place: Place, word: u64, area: &mut [u8]) {
        match place {
            Place::Reg(register) => self.put(register, &word.to_le_bytes()),
            Place::Area(offset) => {
                area[offset as usize..][..8].copy_from_slice(&word.to_le_bytes());
            }
            other => unreachable!("an address cannot be in {other}"),
        }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(
    what: impl std::fmt::Display,
    found: T,
    expected: T,
) -> Result<(), String> {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{what}: {found:x?} instead of {expected:x?}")),
    }
}

/// The bytes of a value from `off` on, without padding.
fn same_data(
    what: String,
    value: &Value,
    off: u32,
    found: &[u8],
    bytes: &[u8],
) -> Result<(), String> {
    let data = data(value.ty(), value.language());
    for (i, found) in (off as usize..).zip(found) {
        if data[i] && *found != bytes[i] {
            return Err(format!("{what}: byte {i} is {found:#x} instead of {:#x}", bytes[i]));
        }
    }
    Ok(())
}

fn random_cases(seed: u64, count: usize) -> Vec<Case> {
    let mut rng = Xorshift::new(seed);
    let mut cases = Vec::new();
    let mut tails = 0;
    'pairs: for pair in 0.. {
        let (from, to) = (ALL[pair % 4], ALL[pair / 4 % 4]);
        for attempt in 0.. {
            assert!(attempt < 200, "{from} to {to}: no random signature is accepted");
            if let Some(case) = random_case(&mut rng, from, to) {
                tails += usize::from(case.code.is_tail_jump());
                cases.push(case);
                break;
            }
        }
        if cases.len() == count {
            break 'pairs;
        }
    }
    assert!(tails > 0 && tails < cases.len(), "{tails} of {count} have no frame");
    cases
}

#[test]
fn calls_arrive_and_return() {
    if !cross::is_available() {
        return;
    }
    let count = cross::cases();
    let seed = cross::seed();
    let cases = random_cases(seed, count.max(16));

    let mut file = Writer::default();
    let mut garbage = Xorshift::new(seed + 1);
    file.word(cases.len() as u64);
    file.word(3 + SLOTS);
    file.word(STACK_TOP - STACK_BYTES);
    file.word(STACK_BYTES);
    for page in (0..SLOTS).map(|i| COPIES + 2 * PAGE_BYTES * i).chain([RESULT, G_SLOT & !0xfff]) {
        file.word(page);
        file.word(PAGE_BYTES);
    }
    for case in &cases {
        case.write(&mut garbage, &mut file);
    }
    let folder = Folder::new("a64-adapters");
    let program = folder.path("harness");
    let sources = [folder.write("harness.c", HARNESS_C), folder.write("harness.s", HARNESS_S)];
    cross::compile(&program, &[&sources[0], &sources[1]]);
    let run = cross::output(&program, &[&folder.write("cases", &file.0)]);
    if !run.status.success() {
        let said = String::from_utf8_lossy(&run.stderr);
        let number = said.strip_prefix("case ").and_then(|rest| rest.split(':').next());
        let number = number.and_then(|number| number.parse::<usize>().ok());
        let case = number.map_or("?".to_owned(), |number| cases[number].describe());
        panic!("{}: {said}seed {seed}, {case}", run.status);
    }
    let mut seen = Reader(&run.stdout);
    for (number, case) in cases.iter().enumerate() {
        if let Err(error) = case.check(&mut seen) {
            panic!("seed {seed}, case {number}: {error}\n{}", case.describe());
        }
    }
    assert!(seen.0.is_empty(), "{} surplus bytes in the output", seen.0.len());
}
