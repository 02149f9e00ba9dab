//! Lookups of addresses, and walks of JIT frames, which do one lookup for each frame.
//!
//! The stubs are real: leaves that `Jit::install` emitted one after the other. The peers hold the
//! address ranges of the first `count` of them. All structures receive the same queries: random
//! addresses within random stubs. A query returns the start of the stub, which is checked. Queries
//! are independent of each other, except where the name of the subject says otherwise.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::{OnceLock, RwLock};
use std::time::{Duration, Instant};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Code, FrameClass, Jit, lookup};
use footbridge::runtime::{Config, Entry, GoroutineFn, WalkEnd, jit_frames};

use crate::meter::Subject;

const MILLION: usize = 1_000_000;
/// The number of addresses that are queried cyclically. Their list is small compared with the
/// tables.
const QUERIES: usize = 1 << 18;
/// The number of nested JIT frames.
const DEPTH: u64 = 100;

const VEC_1M: &str = "sorted Vec, 1M stubs";
const BTREE_1M: &str = "RwLock<BTreeMap>, 1M stubs";
const CHAIN: &str = "bare chain of frame pointers, per frame";

/// The group.
pub fn subjects() -> Vec<Subject> {
    let of = |count: usize, kind: Kind| move |n: u64| time_queries(Population::of(count), kind, n);
    vec![
        Subject::new("lookup, 1 stub", of(1, Kind::Lookup)).against("sorted Vec, 1 stub"),
        Subject::new("sorted Vec, 1 stub", of(1, Kind::SortedVec)),
        Subject::new("lookup, 1k stubs", of(1000, Kind::Lookup)).against("sorted Vec, 1k stubs"),
        Subject::new("sorted Vec, 1k stubs", of(1000, Kind::SortedVec)),
        Subject::new("lookup, 1M stubs", of(MILLION, Kind::Lookup))
            .at_most(5.0)
            .faster_than(VEC_1M, 50.0)
            .against(BTREE_1M),
        Subject::new("lookup, 1M stubs, each waits for the last", of(MILLION, Kind::Chained)),
        Subject::new("lookup and length, 1M stubs", of(MILLION, Kind::Length)),
        Subject::new("lookup of no stub, 1M stubs", of(MILLION, Kind::Miss)),
        Subject::new(VEC_1M, of(MILLION, Kind::SortedVec)),
        Subject::new(BTREE_1M, of(MILLION, Kind::BTree)),
        Subject::new(CHAIN, |n| walk(n, true)),
        Subject::new("jit_frames, per frame of 100", |n| walk(n, false))
            .at_most(2.0)
            .against(CHAIN),
    ]
}

/// The query, and the structure that answers it.
#[derive(Clone, Copy)]
enum Kind {
    Lookup,
    Chained,
    Length,
    Miss,
    SortedVec,
    BTree,
}

/// The stubs of a group of queries, in every structure.
struct Population {
    /// The starts, ascending, with their ends.
    sorted: Vec<(usize, usize)>,
    /// The ends, with their starts: the structure that wasmtime uses.
    tree: RwLock<BTreeMap<usize, usize>>,
    /// The addresses to look up.
    queries: Vec<usize>,
    /// The sum of all results.
    sum: usize,
}

/// The ranges of the first `count` stubs. Emits those that are missing.
fn ranges(count: usize) -> Vec<(usize, usize)> {
    static MADE: RwLock<Vec<(usize, usize)>> = RwLock::new(Vec::new());
    let mut made = MADE.write().expect("no panic while it is locked");
    let jit = Jit::new().expect("code memory");
    while made.len() < count {
        // SAFETY: a leaf that changes rax only.
        let code = unsafe {
            jit.install("leaf", FrameClass::Leaf, |ops| {
                dynasm!(ops; .arch x64; lea rax, [rdi + rsi * 8 + 8]; ret);
            })
        };
        let code = code.expect("the leaf installs");
        made.push((code.address(), code.address() + code.len()));
        // Never dropped: a handle that is dropped retires its stub, and this bench looks up live
        // ones.
        std::mem::forget(code);
    }
    made[..count].to_vec()
}

impl Population {
    /// The first `count` stubs, created at the first use.
    fn of(count: usize) -> &'static Self {
        static ONE: OnceLock<Population> = OnceLock::new();
        static THOUSAND: OnceLock<Population> = OnceLock::new();
        static ALL: OnceLock<Population> = OnceLock::new();
        let cell = match count {
            1 => &ONE,
            1000 => &THOUSAND,
            _ => &ALL,
        };
        cell.get_or_init(|| Self::new(count))
    }

    fn new(count: usize) -> Self {
        let mut sorted = ranges(count);
        sorted.sort_unstable();
        let tree = sorted.iter().map(|&(start, end)| (end, start)).collect();
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |bound: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 33) as usize % bound
        };
        let mut sum = 0_usize;
        let queries = (0..QUERIES)
            .map(|_| {
                let (start, end) = sorted[random(sorted.len())];
                sum = sum.wrapping_add(start);
                start + random(end - start)
            })
            .collect();
        Self { sorted, tree: RwLock::new(tree), queries, sum }
    }

    fn in_sorted(&self, pc: usize) -> Option<usize> {
        let after = self.sorted.partition_point(|&(start, _)| start <= pc);
        let &(start, end) = self.sorted.get(after.checked_sub(1)?)?;
        (pc < end).then_some(start)
    }

    fn in_tree(&self, pc: usize) -> Option<usize> {
        let tree = self.tree.read().expect("no panic while it is locked");
        let (_, &start) = tree.range(pc + 1..).next()?;
        (start <= pc).then_some(start)
    }
}

/// The time of `iterations` queries.
fn time_queries(population: &Population, kind: Kind, iterations: u64) -> Duration {
    match kind {
        Kind::Lookup => {
            time_lookups(population, iterations, |pc| lookup(pc).map_or(0, |stub| stub.start()))
        }
        Kind::SortedVec => {
            time_lookups(population, iterations, |pc| population.in_sorted(pc).unwrap_or(0))
        }
        Kind::BTree => {
            time_lookups(population, iterations, |pc| population.in_tree(pc).unwrap_or(0))
        }
        Kind::Chained => {
            let (none, mut last) = (black_box(0), 0);
            time_lookups(population, iterations, |pc| {
                // The same pc, but not before the previous result is known.
                let stub = lookup(pc + (last & none));
                let start = stub.map_or(0, |stub| stub.start());
                last = start;
                start
            })
        }
        Kind::Length => {
            let mut longest = 0;
            let time = time_lookups(population, iterations, |pc| {
                lookup(pc).map_or(0, |stub| {
                    longest = longest.max(stub.len());
                    stub.start()
                })
            });
            assert!(black_box(longest) > 0);
            time
        }
        Kind::Miss => {
            let far = population as *const Population as usize;
            let mut missed = 0;
            let start = Instant::now();
            for n in 0..iterations {
                missed += u64::from(lookup(black_box(far + n as usize % 64)).is_none());
            }
            let time = start.elapsed();
            assert_eq!(missed, iterations);
            time
        }
    }
}

/// The time of `iterations` queries. The results are added up, and the sum over a whole cycle is
/// checked.
fn time_lookups(
    population: &Population,
    iterations: u64,
    mut find: impl FnMut(usize) -> usize,
) -> Duration {
    let mut left = iterations as usize;
    let mut time = Duration::ZERO;
    while left > 0 {
        let queries = &population.queries[..left.min(QUERIES)];
        let start = Instant::now();
        let mut sum = 0_usize;
        for &pc in queries {
            sum = sum.wrapping_add(find(pc));
        }
        time += start.elapsed();
        let sum = black_box(sum);
        if queries.len() == QUERIES {
            assert_eq!(sum, population.sum);
        }
        left -= queries.len();
    }
    time
}

/// Emitted code that calls itself to a given depth, and then calls a Rust function.
struct Nest {
    entry: Entry<fn(u64, u64, u64) -> u64>,
    _code: Code,
    _bottom: GoroutineFn,
}

/// The nest whose innermost frame calls [`at_the_bottom`].
fn nest() -> &'static Nest {
    static NEST: OnceLock<Nest> = OnceLock::new();
    NEST.get_or_init(|| {
        let convention = Convention::SystemV;
        let jit = Jit::new().expect("code memory");
        let bottom = jit.named_goroutine_fn("bottom", convention, at_the_bottom);
        let bottom = bottom.expect("the stub");
        let target = bottom.address();
        // SAFETY: standard frames; rsp is 16-byte aligned at each call. In nest(depth, walks,
        // bare), depth counts down in rdi, and the other arguments are passed on.
        let code = unsafe {
            jit.install("nest", FrameClass::Standard, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; self_:
                    ; push rbp
                    ; mov rbp, rsp
                    ; sub rdi, 1
                    ; jz >last
                    ; call <self_
                    ; pop rbp
                    ; ret
                    ; last:
                    ; call extern target
                    ; pop rbp
                    ; ret
                );
            })
        };
        let code = code.expect("the nest installs");
        // SAFETY: a System V function of that type.
        let entry = unsafe { code.enter(convention) }.expect("the entry stub");
        Nest { entry, _code: code, _bottom: bottom }
    })
}

/// Walks the JIT frames `walks` times and returns the nanoseconds.
fn at_the_bottom(_depth: u64, walks: u64, bare: u64) -> u64 {
    let mut innermost = 0;
    let end = jit_frames(|frame| {
        innermost = frame.fp;
        ControlFlow::Break(())
    });
    assert_eq!(end, WalkEnd::Stopped);
    let start = Instant::now();
    let mut frames = 0;
    for _ in 0..walks {
        if bare == 1 {
            frames += chain(black_box(innermost));
        } else {
            let end = jit_frames(|frame| {
                frames += u64::from(frame.fp != 0);
                ControlFlow::Continue(())
            });
            assert_eq!(end, WalkEnd::Complete);
        }
    }
    let time = start.elapsed();
    assert_eq!(frames, walks * FRAMES);
    time.as_nanos() as u64
}

/// The frames of the nest, the stub that its innermost frame calls, and the stub that entered it.
const FRAMES: u64 = DEPTH + 2;

/// Follows the saved frame pointers without any check, and adds up the return addresses.
#[inline(never)]
fn chain(mut fp: usize) -> u64 {
    let (mut frames, mut pcs) = (0, 0_usize);
    while frames < FRAMES {
        // SAFETY: that many frames are on the stack, and all keep the chain.
        let (caller, pc) =
            unsafe { ((fp as *const usize).read(), (fp as *const usize).add(1).read()) };
        pcs = pcs.wrapping_add(pc);
        fp = caller;
        frames += 1;
    }
    black_box(pcs);
    frames
}

/// The time of walking `iterations` frames.
fn walk(iterations: u64, bare: bool) -> Duration {
    let walks = iterations.div_ceil(FRAMES);
    let config = Config::new().processors(1);
    // SAFETY: on a goroutine; the nest takes a depth that is not 0.
    let ns = config.run(|| unsafe { nest().entry.call(DEPTH, walks, u64::from(bare)) });
    let time = Duration::from_nanos(ns.expect("the run starts"));
    time.mul_f64(iterations as f64 / (walks * FRAMES) as f64)
}
