//! The registry: lookups of addresses, from threads and from a signal handler.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use support::child;
use support::code::{caller, push_saved};
use support::patience::Patience;
use support::runs::wait_for;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{
    Code, ForeignRegion, FrameClass, GRANULE_BYTES, Jit, JitError, StubKind, lookup,
};
use footbridge::runtime::{self, Chan, Config, TraceFrame, WaitReason};

/// Code of exactly `len` bytes, which does nothing and returns.
fn filler(jit: &Jit, name: &str, class: FrameClass, len: usize) -> Code {
    let framed = class != FrameClass::Leaf;
    // SAFETY: no code here calls anything, and all of it has the frame of its class.
    unsafe {
        jit.install(name, class, |ops| {
            if framed {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
            }
            if class == FrameClass::Saved {
                push_saved(ops);
            }
            let end = len - if framed { 2 } else { 1 };
            while ops.offset().0 < end {
                dynasm!(ops; .arch x64; nop);
            }
            if framed {
                dynasm!(ops; .arch x64; leave);
            }
            dynasm!(ops; .arch x64; ret);
        })
    }
    .expect("there is room")
}

/// Unused address space. The registry knows foreign code by its addresses only.
fn reserve(bytes: usize) -> usize {
    // SAFETY: a fresh mapping, never unmapped.
    let at = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    at as usize
}

/// A pseudo-random generator with a fixed seed.
struct XorShift(u64);

impl XorShift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

#[test]
fn a_lookup_returns_what_was_given_at_installation() {
    let jit = Jit::new().expect("code memory");
    let classes = [FrameClass::Standard, FrameClass::Saved, FrameClass::Leaf];
    for (class, word) in classes.into_iter().zip(["standard", "saved", "leaf"]) {
        let name = format!("given {word}");
        let code = filler(&jit, &name, class, 200);
        assert_eq!(code.len(), 200);
        assert_eq!(code.address() % GRANULE_BYTES, 0);
        let found = lookup(code.address() + 0x4a).expect("installed");
        assert_eq!(found.name(), name);
        assert_eq!((found.kind(), found.frame_class()), (StubKind::User, class));
        assert_eq!((found.start(), found.len()), (code.address(), 200));
        assert_eq!((found.offset_bytes(), found.user_data()), (0x4a, 0));
        assert_eq!(found.signature(), None);
        assert!(!found.is_retired() && !found.is_empty());
        assert_eq!(found.to_string(), format!("jit given {word}+0x4a"));
        assert_eq!(
            format!("{found:?}"),
            format!("jit given {word}+0x4a (user code, {word} frame)")
        );
        let described = format!("Code({name:?} at {:#x}, 200 bytes)", code.address());
        assert_eq!(format!("{code:?}"), described);

        // Dropping the handle retires the code, which the registry still knows.
        let at = code.address();
        drop(code);
        let found = lookup(at + 199).expect("retired code is recognisable");
        assert!(found.is_retired());
        assert_eq!(found.name(), name);
        assert_eq!((found.kind(), found.frame_class()), (StubKind::User, class));
        assert_eq!((found.start(), found.len(), found.offset_bytes()), (at, 200, 199));
    }
    assert!(lookup(0).is_none() && lookup(usize::MAX).is_none());
    assert!(
        lookup(filler as *const () as usize).is_none(),
        "the program's text is not registered code"
    );
}

#[test]
fn stubs_of_every_kind_are_known_by_kind_name_and_signature() {
    let jit = Jit::new().expect("code memory");
    let go = Convention::GoAbiInternal;
    let function = jit.named_goroutine_fn("double", go, |x: u64| 2 * x).expect("stub");
    let code = filler(&jit, "kinds", FrameClass::Standard, 64);
    // SAFETY: the code ignores its argument and is not called.
    let (entry, spawn) = unsafe {
        let signature = "fn(u64)".parse().expect("a signature");
        (
            code.enter::<fn(u64)>(go).expect("entry"),
            jit.spawn_fn(go, &signature, &code).expect("spawn"),
        )
    };
    let about = |address: usize| {
        let found = lookup(address).expect("installed above");
        let signature = found.signature().map(ToString::to_string);
        (found.kind(), found.frame_class(), found.name(), signature.unwrap_or_default())
    };
    let standard = FrameClass::Standard;
    let expected = (StubKind::GoroutineFn, standard, "double", "fn(u64) -> u64".into());
    assert_eq!(about(function.address()), expected);
    let expected = (StubKind::Enter, FrameClass::Entry, "kinds", "fn(u64)".into());
    assert_eq!(about(entry.address()), expected);
    let expected = (StubKind::Spawn, standard, "kinds", "fn(u64)".into());
    assert_eq!(about(spawn.address()), expected);
    let addresses = [function.address(), entry.address(), spawn.address()];
    // An entry is retired with its code.
    drop((function, entry, spawn, code));
    for address in addresses {
        assert!(lookup(address).expect("recognisable").is_retired());
    }
}

#[test]
fn installs_and_drops_agree_with_a_map() {
    struct Known {
        granules_end: usize,
        name: String,
        class: FrameClass,
        retired: bool,
    }
    let jit = Jit::builder().reserve_bytes(64 << 20).build().expect("an arena");
    let mut random = XorShift(0x9e37_79b9_7f4a_7c15);
    let mut model: BTreeMap<usize, Known> = BTreeMap::new();
    let mut handles: Vec<Code> = Vec::new();
    let classes = [FrameClass::Standard, FrameClass::Saved, FrameClass::Leaf];
    let (mut hits, mut misses) = (0, 0);
    for step in 0..3_000 {
        if random.below(3) < 2 || handles.is_empty() {
            let class = classes[random.below(3)];
            let len = match random.below(10) {
                0 => 16 + random.below(40_000),
                1 => GRANULE_BYTES * (1 + random.below(4)),
                _ => 16 + random.below(400),
            };
            let name = format!("model {step}");
            let code = filler(&jit, &name, class, len);
            // Framed code that ends with its granule is followed by an instruction of its own.
            assert!((len..=len + 1).contains(&code.len()), "{} of {len}", code.len());
            let granules_end = code.address() + code.len().next_multiple_of(GRANULE_BYTES);
            let before = model.range(..granules_end).next_back();
            assert!(before.is_none_or(|(_, k)| k.granules_end <= code.address()), "overlap");
            let known = Known { granules_end, name, class, retired: false };
            model.insert(code.address(), known);
            handles.push(code);
        } else {
            let code = handles.swap_remove(random.below(handles.len()));
            model.get_mut(&code.address()).expect("every handle is in the model").retired = true;
            drop(code);
        }
        let lowest = *model.keys().next().expect("at least one");
        let highest = model.last_key_value().expect("at least one").1.granules_end;
        for _ in 0..40 {
            // Addresses around edges are as frequent as random ones.
            let around = *model
                .range(lowest + random.below(highest - lowest)..)
                .next()
                .map_or(&lowest, |(start, _)| start);
            let pc = match random.below(4) {
                0 => around.wrapping_add(random.below(5)).wrapping_sub(2),
                1 => model[&around].granules_end.wrapping_add(random.below(5)).wrapping_sub(2),
                _ => lowest + random.below(highest - lowest),
            };
            let expected = model.range(..=pc).next_back().filter(|(_, k)| pc < k.granules_end);
            match (expected, lookup(pc)) {
                (None, None) => misses += 1,
                (Some((&start, known)), Some(found)) => {
                    hits += 1;
                    assert_eq!(found.start(), start);
                    assert_eq!(found.offset_bytes(), pc - start);
                    assert_eq!(found.name(), known.name);
                    assert_eq!(found.frame_class(), known.class);
                    assert_eq!(found.is_retired(), known.retired);
                }
                (expected, found) => {
                    panic!(
                        "{pc:#x}: found {found:?}, expected {:?}",
                        expected.map(|(_, k)| &k.name)
                    )
                }
            }
        }
    }
    println!("{hits} hits, {misses} misses");
    assert!(hits > 10_000 && misses > 10_000);
}

#[test]
fn foreign_code_is_found_and_retired_like_our_own() {
    let base = reserve(1 << 20);
    let range = base..base + (1 << 20);
    // SAFETY: the range is never unmapped, and no code runs there.
    let region = unsafe { ForeignRegion::new(range, FrameClass::Saved) }.expect("registered");
    assert!(lookup(base).is_none(), "a region without code");
    // SAFETY: the range has no bytes that could change.
    let code = unsafe { region.publish("theirs", base + 128..base + 328, ()) }.expect("published");
    let found = lookup(base + 128 + 0x77).expect("published");
    assert_eq!((found.kind(), found.frame_class()), (StubKind::Foreign, FrameClass::Saved));
    assert_eq!((found.name(), found.start(), found.len()), ("theirs", base + 128, 200));
    assert_eq!(format!("{found:?}"), "jit theirs+0x77 (foreign code, saved frame)");
    assert!(lookup(base + 127).is_none());
    assert!(lookup(base + 128 + 256).is_none());
    drop(code);
    assert!(lookup(base + 128).expect("recognisable").is_retired());
    assert!(lookup(base + 128 + 199).expect("recognisable").is_retired());
}

/// The rule that a refused range breaks.
fn rule(error: JitError) -> String {
    let text = error.to_string();
    let JitError::ForeignRange { range, rule } = error else { panic!("{text}") };
    let expected =
        format!("foreign code {:#x}..{:#x} cannot be registered: {rule}", range.start, range.end);
    assert_eq!(text, expected);
    rule.into()
}

#[test]
fn foreign_ranges_that_break_a_rule_are_refused_with_the_rule() {
    let base = reserve(1 << 20);
    let region = |range: Range<usize>, class| {
        // SAFETY: never unmapped, and no code runs there.
        unsafe { ForeignRegion::new(range, class) }
    };
    let standard = FrameClass::Standard;
    let refused = |range, class| rule(region(range, class).expect_err("refused"));
    let both_ends = "both ends must be multiples of 64 bytes";
    let user_space = "the range must not be empty, and lie in user space";
    let own = "entry, root and win64 frames are made by the crate's own stubs only";
    assert_eq!(refused(base + 1..base + 4096, standard), both_ends);
    assert_eq!(refused(base..base + 4095, standard), both_ends);
    assert_eq!(refused(base..base, standard), user_space);
    assert_eq!(refused(base + 64..base, standard), user_space);
    assert_eq!(refused(base..usize::MAX & !63, standard), user_space);
    assert_eq!(refused(base..base + 4096, FrameClass::Entry), own);
    assert_eq!(refused(base..base + 4096, FrameClass::Root), own);

    let middle = base + 0x4000..base + 0x8000;
    let known = region(middle.clone(), standard).expect("registered");
    let overlap = "it overlaps a region that is registered already";
    for (start, end) in
        [(0x4000, 0x8000), (0x3000, 0x4040), (0x7fc0, 0x9000), (0x5000, 0x6000), (0, 0x10000)]
    {
        assert_eq!(refused(base + start..base + end, standard), overlap);
    }
    // Adjacent ranges do not overlap.
    region(base + 0x3000..base + 0x4000, standard).expect("adjacent, below");
    region(base + 0x8000..base + 0x9000, standard).expect("adjacent, above");
    // The crate's own code memory cannot be registered as foreign code either.
    let jit = Jit::new().expect("code memory");
    let code = filler(&jit, "ours", FrameClass::Leaf, 64);
    assert_eq!(refused(code.address()..code.address() + 64, standard), overlap);

    // SAFETY: the range has no bytes that could change.
    let publish = |range: Range<usize>| unsafe { known.publish("piece", range, ()) };
    let refused = |range| rule(publish(range).expect_err("refused"));
    let start = middle.start;
    let aligned = "it must start at a multiple of 64 bytes and not be empty";
    let leaves = "it leaves the region it is published in";
    let shared = "it shares a granule of 64 bytes with code published before";
    assert_eq!(refused(start + 32..start + 64), aligned);
    assert_eq!(refused(start + 64..start + 64), aligned);
    assert_eq!(refused(start - 64..start), leaves);
    assert_eq!(refused(start - 64..start + 64), leaves);
    assert_eq!(refused(middle.end - 64..middle.end + 1), leaves);
    assert_eq!(refused(middle.end..middle.end + 64), leaves);
    let _piece = publish(start + 64..start + 140).expect("granules 1 and 2");
    assert_eq!(refused(start + 64..start + 65), shared);
    assert_eq!(refused(start + 128..start + 192), shared);
    assert_eq!(refused(start..start + 65), shared);
    let _front = publish(start..start + 64).expect("granule 0");
    let _rest = publish(start + 192..middle.end).expect("granule 3 to the end");
    // Refused ranges had no effect.
    assert_eq!(lookup(start + 150).expect("granule 2").start(), start + 64);
}

#[test]
fn a_process_has_64_regions() {
    child::run("a_process_has_64_regions", || {
        let base = reserve(1 << 20);
        let mut regions = Vec::new();
        let error = loop {
            let at = base + regions.len() * 64;
            // SAFETY: never unmapped, and no code runs there.
            match unsafe { ForeignRegion::new(at..at + 64, FrameClass::Leaf) } {
                Ok(region) => regions.push(region),
                Err(error) => break error,
            }
        };
        assert_eq!(regions.len(), 64);
        let text = "the registry holds 64 arenas and foreign regions at most; share one Jit";
        assert_eq!(error.to_string(), text);
        assert_eq!(error, JitError::TooManyRegions { limit: 64 });
        assert_eq!(Jit::new().expect_err("no region is left").to_string(), text);
        for (i, region) in regions.iter().enumerate() {
            let at = base + i * 64;
            // SAFETY: the range has no bytes that could change.
            let _code = unsafe { region.publish("one", at..at + 1, ()) }.expect("published");
            assert_eq!(lookup(at + 5).expect("published").start(), at);
        }
    })
    .assert_success();
}

#[test]
fn one_of_concurrent_registrations_of_a_range_succeeds() {
    child::run("one_of_concurrent_registrations_of_a_range_succeeds", || {
        const ROUNDS: usize = 60;
        const THREADS: usize = 4;
        let base = reserve(ROUNDS * (1 << 20));
        for round in 0..ROUNDS {
            let at = base + round * (1 << 20);
            let barrier = std::sync::Barrier::new(THREADS);
            let register = || {
                barrier.wait();
                // SAFETY: never unmapped, and no code runs there.
                unsafe { ForeignRegion::new(at..at + (1 << 20), FrameClass::Leaf) }
            };
            let results = std::thread::scope(|s| {
                [(); THREADS].map(|()| s.spawn(register)).map(|t| t.join().expect("no panic"))
            });
            let registered = results.iter().filter(|result| result.is_ok()).count();
            assert_eq!(registered, 1, "in round {round}");
        }
    })
    .assert_success();
}

#[test]
fn code_longer_than_a_registry_word_can_count_back_is_found() {
    const LEN: usize = 3 << 20;
    /// The largest distance, in granules, that a registry word can hold.
    const BACK_MAX: usize = (1 << 14) - 1;
    let base = reserve(2 * LEN);
    // SAFETY: never unmapped, and no code runs there.
    let region = unsafe { ForeignRegion::new(base..base + 2 * LEN, FrameClass::Standard) };
    let region = region.expect("registered");
    let start = base + 4096;
    // SAFETY: the range has no bytes that could change.
    let code = unsafe { region.publish("long", start..start + LEN, ()) }.expect("published");
    let check = |offset: usize, retired: bool| {
        let found = lookup(start + offset).expect("inside");
        assert_eq!((found.start(), found.offset_bytes(), found.len()), (start, offset, LEN));
        assert_eq!((found.name(), found.is_retired()), ("long", retired));
    };
    let mut random = XorShift(77);
    let edges = (0..=LEN / GRANULE_BYTES / BACK_MAX).map(|i| i * BACK_MAX * GRANULE_BYTES);
    let offsets: Vec<usize> = edges
        .flat_map(|edge| [edge, edge + 1, edge + 63, edge + 64, edge + 65, edge.saturating_sub(1)])
        .chain([LEN - 1, LEN - 64, LEN - 65])
        .chain((0..20_000).map(|_| random.below(LEN)))
        .filter(|&offset| offset < LEN)
        .collect();
    for &offset in &offsets {
        check(offset, false);
    }
    assert!(lookup(start - 1).is_none() && lookup(start + LEN).is_none());
    drop(code);
    for &offset in &offsets {
        check(offset, true);
    }
}

#[test]
fn stubs_whose_handles_are_dropped_keep_running_for_goroutines_inside() {
    let jit = Jit::new().expect("code memory");
    let go = Convention::GoAbiInternal;
    let sum = Config::new().processors(2).run(move || {
        let (channel, done) = (Chan::<u64>::new(0), Chan::<u64>::new(0));
        let receiver = channel.clone();
        let receive = move || receiver.recv().unwrap_or(0);
        let function = jit.named_goroutine_fn("dropped receive", go, receive).expect("stub");
        let code = caller("dropped caller", function.address());
        // SAFETY: ABIInternal code of this type.
        let entry = unsafe { code.enter::<fn() -> u64>(go) }.expect("entry");
        let addresses = [function.address(), code.address(), entry.address()];
        const INSIDE: usize = 20;
        for i in 0..INSIDE as u64 {
            // SAFETY: `Entry::address` documents that an entry stub is a C function of F's types.
            // The code is never freed.
            let call: extern "C-unwind" fn() -> u64 =
                unsafe { std::mem::transmute(entry.address()) };
            let done = done.clone();
            drop(runtime::go(move || done.send(call() + i).expect("open")));
        }
        let waiting = || {
            let all = runtime::traceback_all();
            all.into_iter().filter(|t| t.wait_reason == WaitReason::ChanReceive).collect::<Vec<_>>()
        };
        wait_for("all wait", || waiting().len() == INSIDE);
        drop((function, code, entry));
        for address in addresses {
            assert!(lookup(address).expect("recognisable").is_retired());
        }
        for traceback in waiting() {
            let names: Vec<_> = traceback
                .frames
                .iter()
                .filter_map(|frame| match frame {
                    TraceFrame::Jit { name, .. } => Some(name.as_str()),
                    _ => None,
                })
                .collect();
            let expected =
                ["dropped receive", "dropped caller", "dropped caller", "goroutine entry"];
            assert_eq!(names, expected, "{traceback}");
        }
        for _ in 0..INSIDE {
            channel.send(1000).expect("open");
        }
        (0..INSIDE).map(|_| done.recv().expect("open")).sum::<u64>()
    });
    assert_eq!(sum.expect("the run starts"), 20 * 1000 + (0..20).sum::<u64>());
}

/// Lookups in a signal handler.
mod in_a_handler {
    use super::*;

    /// The capacity of `KNOWN`.
    const PIECES: usize = 1 << 16;
    const WORKERS: usize = 3;
    /// The least duration.
    const DURATION: Duration = Duration::from_secs(2);

    /// What a lookup in the handler must return for a piece of code. Written by the worker that
    /// installed the piece.
    struct Piece {
        /// 0 until the piece is published.
        start: AtomicUsize,
        len: AtomicUsize,
        retired: AtomicBool,
    }

    static KNOWN: [Piece; PIECES] = [const {
        Piece {
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
        }
    }; PIECES];
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    /// "piece 0", "piece 1", ..., formatted before the handler runs.
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();

    static RUNS: AtomicU64 = AtomicU64::new(0);
    static FOUND: AtomicU64 = AtomicU64::new(0);
    static FOUND_RETIRED: AtomicU64 = AtomicU64::new(0);
    static OWN_PC_IN_CODE: AtomicU64 = AtomicU64::new(0);
    static MISMATCHES: AtomicU64 = AtomicU64::new(0);
    static RANDOM: AtomicU64 = AtomicU64::new(0);

    fn random() -> u64 {
        // SplitMix64.
        let mut x = RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn expect(holds: bool) {
        if !holds {
            MISMATCHES.fetch_add(1, Ordering::Relaxed);
        }
    }

    extern "C" fn on_signal(
        _signal: libc::c_int,
        _info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        RUNS.fetch_add(1, Ordering::Relaxed);
        let published = NEXT.load(Ordering::Acquire).min(PIECES);
        for _ in 0..if published == 0 { 0 } else { 8 } {
            let i = random() as usize % published;
            let piece = &KNOWN[i];
            let start = piece.start.load(Ordering::Acquire);
            if start == 0 {
                continue;
            }
            let (len, retired) =
                (piece.len.load(Ordering::Relaxed), piece.retired.load(Ordering::Acquire));
            let pc = start + random() as usize % len;
            let Some(found) = lookup(pc) else {
                expect(false);
                continue;
            };
            FOUND.fetch_add(1, Ordering::Relaxed);
            FOUND_RETIRED.fetch_add(found.is_retired().into(), Ordering::Relaxed);
            expect(found.start() == start && found.len() == len);
            expect(found.offset_bytes() == pc - start);
            expect(found.kind() == StubKind::User && found.frame_class() == FrameClass::Leaf);
            expect(!retired || found.is_retired());
            expect(NAMES.get().is_some_and(|names| names[i] == found.name()));
        }
        // SAFETY: the kernel passes a valid context.
        let interrupted = unsafe { &*context.cast::<libc::ucontext_t>() };
        let pc = interrupted.uc_mcontext.gregs[libc::REG_RIP as usize] as usize;
        if let Some(found) = lookup(pc) {
            OWN_PC_IN_CODE.fetch_add(1, Ordering::Relaxed);
            expect(found.start() <= pc && pc < found.start() + found.len());
            expect(found.offset_bytes() == pc - found.start());
            expect(found.name().starts_with("piece "));
        }
    }

    /// Sends SIGPROF to the calling thread every 50 microseconds, until dropped.
    struct Timer(libc::timer_t);

    impl Timer {
        fn start() -> Self {
            // SAFETY: the structures are local. The signal goes to this thread.
            unsafe {
                let mut event: libc::sigevent = std::mem::zeroed();
                event.sigev_notify = libc::SIGEV_THREAD_ID;
                event.sigev_signo = libc::SIGPROF;
                event.sigev_notify_thread_id = libc::gettid();
                let mut timer = std::mem::zeroed();
                let made =
                    libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
                assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
                let every = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
                let setting = libc::itimerspec { it_interval: every, it_value: every };
                libc::timer_settime(timer, 0, &raw const setting, std::ptr::null_mut());
                Self(timer)
            }
        }
    }

    impl Drop for Timer {
        fn drop(&mut self) {
            // SAFETY: created in `start`.
            unsafe { libc::timer_delete(self.0) };
        }
    }

    /// Code that counts down from 3000. Padding varies the lengths of the pieces.
    fn install(jit: &Jit, name: &str, padding: usize) -> Code {
        // SAFETY: a leaf that changes only ecx.
        unsafe {
            jit.install(name, FrameClass::Leaf, |ops| {
                dynasm!(ops; .arch x64; mov ecx, 3000; again:; dec ecx; jnz <again; ret);
                for _ in 0..padding {
                    dynasm!(ops; .arch x64; int3);
                }
            })
        }
        .expect("there is room")
    }

    fn count(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// Whether the handler has seen enough.
    fn is_enough() -> bool {
        count(&RUNS) > 2_000
            && count(&FOUND) > 10_000
            && count(&FOUND_RETIRED) > 1_000
            && count(&OWN_PC_IN_CODE) > 200
            && NEXT.load(Ordering::Relaxed) > 1_000
    }

    fn work(jit: &Jit, patience: Patience) {
        let timer = Timer::start();
        let names = NAMES.get().expect("set before the workers start");
        let mut held: Vec<(usize, Code)> = Vec::new();
        let call = |code: &Code| {
            // SAFETY: a leaf without arguments.
            let f: extern "C" fn() = unsafe { std::mem::transmute(code.address()) };
            f();
        };
        while patience.elapsed() < DURATION || !(is_enough() || patience.is_over()) {
            let i = NEXT.fetch_add(1, Ordering::AcqRel);
            if i < PIECES {
                let code = install(jit, &names[i], random() as usize % 300);
                KNOWN[i].len.store(code.len(), Ordering::Relaxed);
                KNOWN[i].start.store(code.address(), Ordering::Release);
                call(&code);
                held.push((i, code));
            }
            for _ in 0..20 {
                call(&held[random() as usize % held.len()].1);
            }
            if held.len() > 100 {
                let (i, code) = held.swap_remove(random() as usize % held.len());
                drop(code);
                KNOWN[i].retired.store(true, Ordering::Release);
            }
        }
        drop(timer);
    }

    #[test]
    fn lookups_answer_while_other_threads_publish_and_retire() {
        NAMES.get_or_init(|| (0..PIECES).map(|i| format!("piece {i}")).collect());
        let jit = Jit::builder().reserve_bytes(512 << 20).build().expect("an arena");
        // SAFETY: the handler only uses functions that are allowed in a signal handler.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            assert_eq!(libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut()), 0);
        }
        let patience = Patience::new();
        std::thread::scope(|s| {
            for _ in 0..WORKERS {
                s.spawn(|| work(&jit, patience));
            }
        });
        let published = NEXT.load(Ordering::Relaxed).min(PIECES);
        println!(
            "{} runs of the handler, {} lookups with a result, {} of them retired, {} own pcs in \
             code, {published} pieces published",
            count(&RUNS),
            count(&FOUND),
            count(&FOUND_RETIRED),
            count(&OWN_PC_IN_CODE),
        );
        assert_eq!(count(&MISMATCHES), 0);
        assert!(is_enough(), "it has not seen enough");
    }
}
