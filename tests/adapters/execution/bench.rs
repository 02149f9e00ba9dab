//! A call, and the caller and the callee that make it.

#![allow(unsafe_code, reason = "calls emitted code")]

use footbridge::abi::model::{Machine, Xorshift};
use footbridge::abi::{
    Assignment, Convention, Gpr, Plan, PlanError, PlanRequest, RegSet, Signature, Type, ValueIndex,
    Xmm,
};
use footbridge::jit::{Bind, Code, Jit, JitError};
use footbridge::runtime::{Adapter, Config};

use crate::carry::{
    Arrived, Call, Callee, Caller, Change, Expected, Returned, closure_register, current_g,
    random_values, report_faults, with_case,
};

/// A call: both sides, and the values.
pub(super) struct Case {
    pub(super) signature: Signature,
    pub(super) entry: Assignment,
    pub(super) target: Assignment,
    pub(super) bind: Option<Bind>,
    pub(super) args: Vec<Vec<u8>>,
    pub(super) results: Vec<Vec<u8>>,
    pub(super) seed: u64,
    /// See [`Call::room`].
    pub(super) room: Option<bool>,
    /// A description for failure messages.
    pub(super) what: String,
}

impl Case {
    /// `None` if one of the conventions does not support a value.
    pub(super) fn new(
        signature: &Signature,
        [from, to]: [Convention; 2],
        bind: Option<Bind>,
        seed: u64,
    ) -> Option<Case> {
        let target_signature = match bind {
            Some(Bind::FirstArgument(_)) => signature.with_first_param(Type::Ptr),
            _ => signature.clone(),
        };
        let (entry, target) = (from.assign(signature).ok()?, to.assign(&target_signature).ok()?);
        let mut rng = Xorshift::new(seed);
        let args = random_values(entry.params(), &mut rng);
        let results = random_values(entry.results(), &mut rng);
        let what = format!(
            "{from} -> {to}, {bind:?}, seed {seed:#x}, FOOTBRIDGE_SEED={}\n{signature}\n\
             entry:  {entry}\ntarget: {target}\n",
            super::seed()
        );
        let signature = signature.clone();
        Some(Case { signature, entry, target, bind, args, results, seed, room: None, what })
    }

    pub(super) fn conventions(&self) -> [Convention; 2] {
        [&self.entry, &self.target]
            .map(|side| side.convention().expect("an assignment of a convention"))
    }

    /// The values of the target's parameters.
    pub(super) fn target_args(&self) -> Vec<Vec<u8>> {
        let mut args = self.args.clone();
        if let Some(Bind::FirstArgument(word)) = self.bind {
            args.insert(0, word.to_le_bytes().to_vec());
        }
        args
    }

    /// The plans of an adapter: one with a frame, and that of a tail jump, if there is one.
    /// Registers that hold no argument or result are available as scratch registers.
    pub(super) fn plans(&self) -> Result<Vec<Plan>, PlanError> {
        let [from, to] = self.conventions().map(Convention::spec);
        let request = |scratch| PlanRequest {
            entry: &self.entry,
            target: &self.target,
            bound_param: matches!(self.bind, Some(Bind::FirstArgument(_))).then_some(0),
            arg_scratch: scratch,
            result_scratch: scratch,
        };
        let saved = RegSet::of_gprs(&[Gpr::R12]).with(Xmm::XMM15);
        let volatile = from.volatile().intersection(to.volatile());
        let closure = to.context.into_iter().collect();
        let mut plans = vec![Plan::new(&request(saved))?];
        plans.extend(Plan::tail(&request(volatile.minus(closure))));
        Ok(plans)
    }

    /// The values that the model machine passes: the arguments that arrive, and the results that
    /// return.
    pub(super) fn model(&self, plan: &Plan) -> [Vec<Vec<u8>>; 2] {
        let fault = |fault| -> ! { panic!("{fault}\n{}\n{plan}", self.what) };
        let mut machine = Machine::new(&self.entry, &self.target, plan, self.seed);
        if let Some(Bind::FirstArgument(word)) = self.bind {
            machine.set_context(word);
        }
        machine.enter(&self.args);
        machine.run(&plan.args).unwrap_or_else(|e| fault(e));
        let arrived = machine.arrived().unwrap_or_else(|e| fault(e));
        machine.leave(&self.results);
        machine.run(&plan.results).unwrap_or_else(|e| fault(e));
        let returned = machine.returned().unwrap_or_else(|e| fault(e));
        [arrived, returned]
    }
}

/// A caller and a callee, on one thread.
pub(super) struct Bench {
    pub(super) jit: Jit,
    pub(super) caller: Caller,
    pub(super) callee: Callee,
    pub(super) g: u64,
}

/// Runs `f` on a goroutine if a side has ABIInternal, and otherwise on a plain thread.
pub(super) fn with_bench<R>(conventions: &[Convention], f: impl FnOnce(&mut Bench) -> R) -> R {
    let jit = Jit::new().expect("code memory");
    let bench = |g| {
        report_faults();
        let caller = Caller::new(&jit);
        let callee = Callee::new(&jit, &caller);
        f(&mut Bench { jit, caller, callee, g })
    };
    if conventions.contains(&Convention::GoAbiInternal) {
        let config = Config::new().processors(1);
        config.run(|| bench(current_g(&jit))).expect("the run starts")
    } else {
        bench(0)
    }
}

impl Bench {
    /// An adapter that calls `target`, code of the target's convention and signature.
    pub(super) fn adapter(&self, case: &Case, target: usize) -> Result<Adapter, JitError> {
        let [from, to] = case.conventions();
        // SAFETY: the callee expects any call that it was prepared for. `call` calls the stub with
        // this signature, and on a goroutine if required.
        unsafe {
            match case.bind {
                None => self.jit.adapter(&case.signature, from, to, target),
                Some(bind) => self.jit.bound_adapter(&case.signature, from, to, target, bind),
            }
        }
    }

    /// Prepares the callee for a case. Returns the closure that the caller has to pass.
    pub(super) fn expect(&mut self, case: &Case) -> Option<u64> {
        let args = case.target_args();
        let [from, to] = case.conventions();
        // A stub that binds nothing preserves the closure register, if both sides use the same one.
        let passes = case.bind.is_none() && closure_register(from) == closure_register(to);
        let passed = passes.then_some(case.seed.rotate_left(17));
        let bound = match case.bind {
            Some(Bind::Closure(word)) => Some(word),
            _ => passed,
        };
        self.callee.expect(&Expected {
            target: &case.target,
            args: &args,
            results: &case.results,
            closure: bound,
            g: self.g,
            alike: from == to,
            seed: case.seed ^ 0x7a26,
        });
        passed
    }

    /// Calls the code at `address` with the values of a case. `back` runs first after the return.
    ///
    /// # Safety
    /// 1. The code has the entry's convention and signature, and its target may be called with any
    ///    values.
    pub(super) unsafe fn call_only(
        &mut self,
        case: &Case,
        address: usize,
        closure: Option<u64>,
        back: Option<&Code>,
    ) -> Returned {
        let [from, to] = case.conventions();
        let call = Call {
            entry: &case.entry,
            args: &case.args,
            g: self.g,
            alike: from == to,
            closure,
            target: address,
            back: back.map(Code::address),
            room: case.room,
        };
        let mut rng = Xorshift::new(case.seed ^ 0xca11);
        // SAFETY: the caller guarantees 1. `back` ends with a jump to `Caller::resume`.
        let mut returned = with_case(&case.what, || unsafe { self.caller.call(&call, &mut rng) });
        for (i, (found, expected)) in returned.values.iter().zip(&case.results).enumerate() {
            if found != expected {
                returned.wrong.push(Change::Value(ValueIndex::Result(i)));
            }
        }
        returned
    }

    /// Calls the code at `address`, which leads to the callee, with the values of a case.
    pub(super) fn call(
        &mut self,
        case: &Case,
        address: usize,
        back: Option<&Code>,
    ) -> (Arrived, Returned) {
        let closure = self.expect(case);
        // SAFETY: the adapter was created for the case, and the callee accepts any values.
        let returned = unsafe { self.call_only(case, address, closure, back) };
        (self.callee.arrived(), returned)
    }
}
