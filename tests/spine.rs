//! JIT code, Rust functions and the scheduler on one goroutine, end to end.

use std::sync::Mutex;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Code, FrameClass, Jit};
use footbridge::runtime::{
    self, Chan, Config, GoroutineFn, TraceFrame, Traceback, gosched,
};

/// JIT code that calls `target` in ABIInternal with its own arguments and returns its result.
fn pump(jit: &Jit, name: &str, target: usize) -> Code {
    // SAFETY: a standard frame; ABIInternal keeps r14 and xmm15, and so does the target.
    unsafe {
        jit.install(name, FrameClass::Standard, |ops| {
            dynasm!(ops
                ; .arch x64
                ; push rbp
                ; mov rbp, rsp
                ; call extern target
                ; pop rbp
                ; ret
            );
        })
    }
    .expect("pump installs")
}

/// What a trace looks like, without offsets and lines.
fn shape(traceback: &Traceback) -> Vec<String> {
    traceback
        .frames
        .iter()
        .map(|frame| match frame {
            TraceFrame::Jit { name, kind, .. } => format!("jit {name} ({kind})"),
            TraceFrame::Rust { name, .. } => format!("rust {name}"),
            TraceFrame::C { name } => format!("c {name}"),
            other => format!("{other}"),
        })
        .collect()
}

static PARKED: Mutex<Vec<Traceback>> = Mutex::new(Vec::new());

#[inline(never)]
fn receive_from_jit(channel: *const Chan<u64>) -> u64 {
    // SAFETY: the test passes a channel that outlives the call.
    let channel = unsafe { &*channel };
    PARKED.lock().expect("no panic while it is held").push(runtime::traceback());
    channel.recv().unwrap_or(0)
}

#[inline(never)]
fn enter_pump(entry: &runtime::Entry<fn(*const Chan<u64>) -> u64>, channel: &Chan<u64>) -> u64 {
    // SAFETY: on a goroutine; pump takes the channel and returns the value.
    unsafe { entry.call(channel) }
}

fn config(processors: usize) -> Config {
    Config { processors, ..Config::default() }
}

#[test]
fn a_goroutine_function_parks_under_jit_frames_and_is_woken_from_another_thread() {
    let jit = Jit::new().expect("code memory");
    let receive: GoroutineFn = jit
        .named_goroutine_fn("receive", Convention::GoAbiInternal, receive_from_jit)
        .expect("stub");
    let code = pump(&jit, "pump", receive.address());
    // SAFETY: pump is ABIInternal code of this type.
    let entry = unsafe { code.enter::<fn(*const Chan<u64>) -> u64>(Convention::GoAbiInternal) };
    let entry = entry.expect("entry");
    let outcome = config(2).run(|| {
        let channel = Chan::new(0);
        runtime::scope(|s| {
            let receiver = s.go(|| {
                let thread = std::thread::current().id();
                let value = enter_pump(&entry, &channel);
                assert_eq!(thread, std::thread::current().id(), "it stays on its thread");
                (thread, value)
            });
            let all = loop {
                let all = runtime::traceback_all();
                if all.iter().any(|t| t.wait_reason == runtime::WaitReason::ChanReceive) {
                    break all;
                }
                gosched();
            };
            let sent_from = std::thread::current().id();
            channel.send(0x1234_5678_9abc_def0).expect("open");
            let (received_on, value) = receiver.join().expect("no panic");
            (all, value, sent_from == received_on)
        })
    });
    let (all, value, _same_thread) = outcome.expect("the run starts");
    assert_eq!(value, 0x1234_5678_9abc_def0);
    let from_inside = PARKED.lock().expect("unlocked").pop().expect("one trace");
    let parked = all.iter().find(|t| t.wait_reason == runtime::WaitReason::ChanReceive);
    for trace in [&from_inside, parked.expect("seen above")] {
        let shape = shape(trace);
        let at = |what: &str| {
            shape.iter().position(|frame| frame.contains(what)).unwrap_or_else(|| {
                panic!("no frame {what:?} in\n{trace}");
            })
        };
        let order = [
            at("rust spine::receive_from_jit"),
            at("jit receive (goroutine function)"),
            at("jit pump (user code)"),
            at("jit pump (enter)"),
            at("rust spine::enter_pump"),
            at("jit goroutine entry (goroutine entry)"),
        ];
        assert!(order.is_sorted(), "frames out of order:\n{trace}");
        assert_eq!(order[1] + 1, order[2]);
        assert_eq!(order[2] + 1, order[3]);
        assert_eq!(order[5] + 1, shape.len(), "the entry is the root:\n{trace}");
    }
    println!("{from_inside}");
}
