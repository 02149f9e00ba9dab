//! The same adapter, compiled by Cranelift.

use std::time::{Duration, Instant};

use cranelift_codegen::ir::{AbiParam, InstBuilder, Signature, UserFuncName, types};
use cranelift_codegen::isa::CallConv;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Module, default_libcall_names};

fn signature(convention: CallConv) -> Signature {
    let mut signature = Signature::new(convention);
    let (int, float) = (types::I64, types::F64);
    let params = [int, float, types::I32, int, types::F32, int];
    signature.params.extend(params.map(AbiParam::new));
    signature.returns.push(AbiParam::new(int));
    signature
}

/// Compiles `iterations` adapters to code that could be called.
pub fn adapters(iterations: u64) -> Duration {
    let mut flags = settings::builder();
    // The fastest settings of the compiler.
    flags.set("opt_level", "none").expect("a setting");
    flags.set("enable_verifier", "false").expect("a setting");
    let triple = "x86_64-unknown-linux-gnu".parse().expect("a triple");
    let isa = cranelift_codegen::isa::lookup(triple).expect("this machine");
    let isa = isa.finish(settings::Flags::new(flags)).expect("settings");
    let mut module = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
    let mut context = module.make_context();
    let mut builder_context = FunctionBuilderContext::new();
    let target = crate::emit::win64_target as *const () as i64;
    let start = Instant::now();
    let mut last = std::ptr::null();
    for _ in 0..iterations {
        context.func.signature = signature(CallConv::SystemV);
        context.func.name = UserFuncName::user(0, 0);
        let mut builder = FunctionBuilder::new(&mut context.func, &mut builder_context);
        let callee = builder.import_signature(signature(CallConv::WindowsFastcall));
        let block = builder.create_block();
        builder.append_block_params_for_function_params(block);
        builder.switch_to_block(block);
        builder.seal_block(block);
        let arguments = builder.block_params(block).to_vec();
        let address = builder.ins().iconst(types::I64, target);
        let call = builder.ins().call_indirect(callee, address, &arguments);
        let results = builder.inst_results(call).to_vec();
        builder.ins().return_(&results);
        builder.finalize();
        let signature = context.func.signature.clone();
        let id = module.declare_anonymous_function(&signature).expect("declared");
        module.define_function(id, &mut context).expect("compiled");
        module.clear_context(&mut context);
        module.finalize_definitions().expect("executable");
        last = module.get_finalized_function(id);
    }
    let time = start.elapsed();
    assert!(!last.is_null());
    // SAFETY: the code was not called and will not be.
    unsafe { module.free_memory() };
    time
}
