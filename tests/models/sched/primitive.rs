//! The primitives of the protocols, made of loom's. Each operation is as strong as the source says,
//! but for the one that a mutant names by file, function and text: that one is weakened. So the
//! code under test has no parameter for it, and a name that fits no operation is a failure.
//!
//! loom's own limits: SeqCst accesses are no stronger than AcqRel ones (fences are what they should
//! be); a load is never delayed past a later store of its thread, as Relaxed would let it be.

use std::cell::{Cell, RefCell};
use std::panic::Location;

pub(crate) use loom::sync::atomic::Ordering;

/// The texts in which operations are found.
const SOURCES: [(&str, &str); 20] = [
    ("runq.rs", include_str!("../../../src/runtime/sync/runq.rs")),
    ("inbox.rs", include_str!("../../../src/runtime/sync/inbox.rs")),
    ("idle.rs", include_str!("../../../src/runtime/sync/idle.rs")),
    ("park.rs", include_str!("../../../src/runtime/sync/park.rs")),
    ("status.rs", include_str!("../../../src/runtime/sync/status.rs")),
    ("suspend.rs", include_str!("../../../src/runtime/sync/suspend.rs")),
    ("preempt_request.rs", include_str!("../../../src/runtime/sync/preempt_request.rs")),
    ("sysmon_sleep.rs", include_str!("../../../src/runtime/sync/sysmon_sleep.rs")),
    ("latch.rs", include_str!("../../../src/runtime/sync/latch.rs")),
    ("claim.rs", include_str!("../../../src/runtime/sync/claim.rs")),
    ("mutex_word.rs", include_str!("../../../src/runtime/sync/mutex_word.rs")),
    ("rwlock_word.rs", include_str!("../../../src/runtime/sync/rwlock_word.rs")),
    ("limits.rs", include_str!("limits.rs")),
    ("locking.rs", include_str!("locking.rs")),
    ("gmp.rs", include_str!("gmp.rs")),
    ("parking.rs", include_str!("parking.rs")),
    ("waking.rs", include_str!("waking.rs")),
    ("suspending.rs", include_str!("suspending.rs")),
    ("requests.rs", include_str!("requests.rs")),
    ("ending.rs", include_str!("ending.rs")),
];

/// In which way an operation is weakened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum How {
    /// All its orders are Relaxed.
    Relaxed,
    /// A read-modify-write is a load and a store.
    Torn,
    /// It is not there: a fence or a store. Of a read-modify-write the load is left.
    Missing,
}

/// One operation of one source: the only one of that text in the function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Weak {
    pub(crate) file: &'static str,
    pub(crate) function: &'static str,
    /// Where it is in `self` and the method, as in `tail.store`, or the function.
    pub(crate) operation: &'static str,
    pub(crate) how: How,
}

/// Where the operation stands that this thread's models weaken.
#[derive(Clone, Copy)]
struct Site {
    file: &'static str,
    line: u32,
    column: u32,
    how: How,
}

std::thread_local! {
    // All threads of a model are coroutines of one real thread.
    static WEAK: RefCell<Vec<Site>> = const { RefCell::new(Vec::new()) };
    static HITS: Cell<usize> = const { Cell::new(0) };
}

/// Weakens this operation in the models that this thread explores from now on.
pub(crate) fn weaken(weak: Weak) {
    WEAK.with_borrow_mut(|weaknesses| weaknesses.push(site(weak)));
}

/// How often weakened operations were executed.
pub(crate) fn hits() -> usize {
    HITS.get()
}

fn site(weak: Weak) -> Site {
    let Weak { file, function, operation, how } = weak;
    let found = operations(file)
        .filter(|found| found.function == function && found.text == operation)
        .collect::<Vec<_>>();
    assert!(found.len() == 1, "{weak:?} is {} operations", found.len());
    Site { file, line: found[0].line, column: found[0].column, how }
}

/// An operation as it stands in a source.
pub(crate) struct Operation {
    pub(crate) function: String,
    pub(crate) text: String,
    pub(crate) arguments: String,
    line: u32,
    column: u32,
}

const METHODS: [&str; 7] = [
    "load",
    "store",
    "swap",
    "compare_exchange",
    "compare_exchange_weak",
    "fetch_add",
    "fetch_sub",
];
const FUNCTIONS: [&str; 3] = ["fence", "light_fence", "heavy_fence"];

/// The operations on primitives of a source.
pub(crate) fn operations(file: &str) -> impl Iterator<Item = Operation> {
    let (_, source) = SOURCES.iter().find(|(name, _)| *name == file).expect("a known source");
    let mut function = String::new();
    let mut found = Vec::new();
    for (at, line) in source.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if let Some((_, after)) = code.split_once("fn ") {
            function = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            continue;
        }
        for (open, _) in code.match_indices('(') {
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let name = &code[code[..open].rfind(|c| !is_name(c)).map_or(0, |i| i + 1)..open];
            let before = &code[..open - name.len()];
            let text = match before.strip_suffix('.') {
                Some(receiver) if METHODS.contains(&name) => {
                    let is_path = |c: char| is_name(c) || c == '.';
                    let field = receiver.rfind(|c| !is_path(c)).map_or(0, |i| i + 1);
                    format!("{}.{name}", receiver[field..].trim_start_matches("self."))
                }
                None if FUNCTIONS.contains(&name) => name.to_string(),
                _ => continue,
            };
            let rest = source.lines().skip(at).take(3).collect::<Vec<_>>().join(" ");
            let mut depth = 0;
            let is_inside = |c: &char| {
                depth += i32::from(*c == '(') - i32::from(*c == ')');
                depth > 0
            };
            let arguments = rest[open..].chars().take_while(is_inside).collect();
            let (line, column) = (at as u32 + 1, before.len() as u32 + 1);
            found.push(Operation { function: function.clone(), text, arguments, line, column });
        }
    }
    found.into_iter()
}

#[track_caller]
fn weakness() -> Option<How> {
    let here = Location::caller();
    let is_it = |site: &&Site| {
        (here.line(), here.column()) == (site.line, site.column) && here.file().ends_with(site.file)
    };
    let found = WEAK.with_borrow(|weaknesses| weaknesses.iter().find(is_it).copied());
    found.map(|site| {
        HITS.set(HITS.get() + 1);
        site.how
    })
}

fn weakened(how: Option<How>, order: Ordering) -> Ordering {
    if how == Some(How::Relaxed) { Ordering::Relaxed } else { order }
}

macro_rules! atomic {
    ($name:ident $(<$parameter:ident>)?, $value:ty) => {
        pub(crate) struct $name $(<$parameter>)? (loom::sync::atomic::$name $(<$parameter>)?);

        impl $(<$parameter>)? $name $(<$parameter>)? {
            pub(crate) fn new(value: $value) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            #[track_caller]
            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.0.load(weakened(weakness(), order))
            }

            #[track_caller]
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                match weakness() {
                    Some(How::Missing) => {}
                    how => self.0.store(value, weakened(how, order)),
                }
            }

            #[track_caller]
            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                match weakness() {
                    Some(How::Torn) => {
                        let before = self.0.load(order);
                        self.0.store(value, order);
                        before
                    }
                    how => self.0.swap(value, weakened(how, order)),
                }
            }
        }
    };
}

macro_rules! exchange {
    ($name:ident $(<$parameter:ident>)?, $value:ty) => {
        impl $(<$parameter>)? $name $(<$parameter>)? {
            #[track_caller]
            pub(crate) fn compare_exchange(
                &self,
                expected: $value,
                value: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                match weakness() {
                    Some(How::Torn) => {
                        let before = self.0.load(failure);
                        if before != expected {
                            return Err(before);
                        }
                        self.0.store(value, success);
                        Ok(before)
                    }
                    how => self.0.compare_exchange(
                        expected,
                        value,
                        weakened(how, success),
                        weakened(how, failure),
                    ),
                }
            }
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicU32, u32);
atomic!(AtomicUsize, usize);
atomic!(AtomicPtr<T>, *mut T);
exchange!(AtomicU32, u32);
exchange!(AtomicUsize, usize);
exchange!(AtomicPtr<T>, *mut T);

impl AtomicU32 {
    #[track_caller]
    pub(crate) fn compare_exchange_weak(
        &self,
        expected: u32,
        value: u32,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u32, u32> {
        self.compare_exchange(expected, value, success, failure)
    }
}

impl<T> AtomicPtr<T> {
    #[track_caller]
    pub(crate) fn compare_exchange_weak(
        &self,
        expected: *mut T,
        value: *mut T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<*mut T, *mut T> {
        self.compare_exchange(expected, value, success, failure)
    }
}

macro_rules! arithmetic {
    ($name:ident, $value:ty, $($method:ident $operator:tt),*) => {
        impl $name {
            $(
                #[track_caller]
                pub(crate) fn $method(&self, by: $value, order: Ordering) -> $value {
                    match weakness() {
                        Some(How::Torn) => {
                            let before = self.0.load(order);
                            self.0.store(before $operator by, order);
                            before
                        }
                        Some(How::Missing) => self.0.load(order),
                        how => self.0.$method(by, weakened(how, order)),
                    }
                }
            )*
        }
    };
}

arithmetic!(AtomicUsize, usize, fetch_add +, fetch_sub -);
arithmetic!(AtomicU32, u32, fetch_sub -);

#[track_caller]
pub(crate) fn fence(order: Ordering) {
    if weakness().is_none() {
        loom::sync::atomic::fence(order);
    }
}

/// A full fence, as where there is no membarrier(2). Where there is, the pair of both fences does
/// what two full ones do.
#[track_caller]
pub(crate) fn light_fence() {
    fence(Ordering::SeqCst);
}

#[track_caller]
pub(crate) fn heavy_fence() {
    fence(Ordering::SeqCst);
}
