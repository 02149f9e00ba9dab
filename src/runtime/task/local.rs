#![allow(unsafe_code, reason = "values whose types are erased")]
//! Goroutine-locals: a value of its own for each goroutine, made when it is first used.
//!
//! A key has a number, which it takes at its first use. A goroutine has a table of addresses by
//! these numbers, which it makes when it first uses a key, and a list of what it has made. Only the
//! goroutine itself touches either.
//!
//! The destructors run when the goroutine has run its closure, on its own stack and before its end
//! is published, so that they may park: `lifecycle::end_locals` calls [`Locals::end`].
//!
//! Rejected: a map from keys to values in the goroutine's G. The G has no room for more than a
//! word.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::runtime::gmp::current::getg;
use crate::runtime::gmp::g::{G, LocalsHeader};
use crate::runtime::os::throw;

/// The number of the next key that is used for the first time. 0 is none.
static NEXT_NUMBER: AtomicUsize = AtomicUsize::new(1);

/// The address in the table of a value that was destroyed. No value is there, not even one without
/// a size.
static DESTROYED: u8 = 0;

fn destroyed() -> *mut () {
    ptr::from_ref(&DESTROYED).cast_mut().cast()
}

/// The goroutine-locals of one goroutine.
#[repr(C)]
struct Locals {
    /// It comes first: the G has its address.
    header: LocalsHeader,
    /// By the numbers of keys: null, the address of the value, or [`destroyed`].
    values: Vec<*mut ()>,
    /// What was made and not destroyed, oldest first.
    made: Vec<Made>,
}

struct Made {
    number: usize,
    /// Drops the value, which lies in a box.
    drop: unsafe fn(*mut ()),
}

impl Locals {
    /// The locals of a goroutine, which are made if it has none.
    fn of(g: &G) -> *mut Self {
        if g.locals().is_null() {
            let header = LocalsHeader { end: Self::end };
            let locals = Self { header, values: Vec::new(), made: Vec::new() };
            g.set_locals(Box::into_raw(Box::new(locals)).cast());
        }
        g.locals().cast()
    }

    /// Destroys all locals of a goroutine, the youngest first, and those that destructors make
    /// meanwhile.
    ///
    /// # Safety
    /// 1. The goroutine of `g` calls it.
    /// 2. It has locals.
    unsafe fn end(g: &G) {
        let locals: *mut Self = g.locals().cast();
        // A destructor may use locals: no reference to them is kept while it runs.
        // SAFETY: contract (2): made by `of`, and not freed before the end of this function. Only
        // this goroutine touches them, by contract (1).
        while let Some(made) = unsafe { (*locals).made.pop() } {
            // SAFETY: the same.
            let values = unsafe { &mut (*locals).values };
            // What was made has a place in the table.
            let value = std::mem::replace(&mut values[made.number], destroyed());
            // SAFETY: the value was made with this function, and is destroyed once. No reference is
            // left: the closures of `with` have returned.
            let dropped = panic::catch_unwind(AssertUnwindSafe(|| unsafe { (made.drop)(value) }));
            if dropped.is_err() {
                let id = g.id.load(Ordering::Relaxed);
                throw(format_args!(
                    "a goroutine-local of goroutine {id} panicked while it was dropped"
                ));
            }
        }
        g.set_locals(ptr::null_mut());
        // SAFETY: from `Box::into_raw` in `of`, and not reachable any more.
        drop(unsafe { Box::from_raw(locals) });
    }
}

/// Calls a function with the value of a thread. Returns false if that was destroyed.
type OnThread<T> = fn(&mut dyn FnMut(&T)) -> bool;

/// A goroutine-local, made by [`goroutine_local!`](crate::goroutine_local).
pub struct LocalKey<T: 'static> {
    make: fn() -> T,
    /// For a thread that runs no goroutine.
    on_thread: OnThread<T>,
    /// 0 before the first use.
    number: AtomicUsize,
}

/// What [`LocalKey::try_with`] fails with: the value of this goroutine, or thread, was destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccessError;

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a goroutine-local was used after it was destroyed, in a later destructor")
    }
}

impl std::error::Error for AccessError {}

impl<T: 'static> LocalKey<T> {
    /// For [`goroutine_local!`](crate::goroutine_local).
    #[doc(hidden)]
    pub const fn new(make: fn() -> T, on_thread: OnThread<T>) -> Self {
        Self { make, on_thread, number: AtomicUsize::new(0) }
    }

    /// Calls `f` with the value of this goroutine, which is made first if it was not used before.
    /// `f` may park.
    ///
    /// ```
    /// use std::cell::Cell;
    /// use footbridge::goroutine_local;
    /// use footbridge::runtime::{self, go, gosched};
    ///
    /// goroutine_local! {
    ///     static STEPS: Cell<u32> = const { Cell::new(0) };
    /// }
    ///
    /// runtime::run(|| {
    ///     let count = |n| {
    ///         move || {
    ///             for _ in 0..n {
    ///                 STEPS.with(|steps| {
    ///                     steps.set(steps.get() + 1);
    ///                     gosched();
    ///                 });
    ///             }
    ///             STEPS.get()
    ///         }
    ///     };
    ///     let handles = [go(count(2)), go(count(3))];
    ///     assert_eq!(handles.map(|handle| handle.join().expect("no panic")), [2, 3]);
    /// });
    /// ```
    ///
    /// # Panics
    /// In a destructor of a goroutine-local, if the value was destroyed. (A destructor that panics
    /// ends the process.)
    #[track_caller]
    pub fn with<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        match self.try_with(f) {
            Ok(result) => result,
            Err(error) => panic!("{error}"),
        }
    }

    /// As [`Self::with`], where the value may have been destroyed.
    ///
    /// ```
    /// footbridge::goroutine_local! {
    ///     static NAME: String = String::from("unnamed");
    /// }
    /// assert_eq!(NAME.try_with(String::len), Ok(7));
    /// ```
    ///
    /// # Errors
    /// The value was destroyed: this is a destructor that runs later.
    pub fn try_with<R>(&'static self, f: impl FnOnce(&T) -> R) -> Result<R, AccessError> {
        // SAFETY: null, or a G, which is never freed.
        let Some(g) = (unsafe { getg().as_ref() }) else {
            let (mut f, mut result) = (Some(f), None);
            (self.on_thread)(&mut |value| result = f.take().map(|f| f(value)));
            return result.ok_or(AccessError);
        };
        let value = self.value(g)?;
        // SAFETY: the value stays where it is until the goroutine has run its closure, or until the
        // destructor of the value runs, and then the table has it no longer. Only this goroutine
        // has references to it.
        Ok(f(unsafe { &*value }))
    }

    /// The value of the calling goroutine, which is `g`.
    #[inline]
    fn value(&'static self, g: &G) -> Result<*const T, AccessError> {
        let number = self.number.load(Ordering::Relaxed);
        let locals: *const Locals = g.locals().cast();
        if !locals.is_null() {
            // SAFETY: only this goroutine touches its locals, and nothing runs meanwhile.
            let values = unsafe { &(*locals).values };
            if let Some(&value) = values.get(number)
                && !value.is_null()
            {
                return if value == destroyed() { Err(AccessError) } else { Ok(value.cast()) };
            }
        }
        self.make_value(g)
    }

    #[cold]
    #[inline(never)]
    fn make_value(&'static self, g: &G) -> Result<*const T, AccessError> {
        unsafe fn drop_value<T>(value: *mut ()) {
            // SAFETY: from `Box::into_raw` below, and called once.
            drop(unsafe { Box::from_raw(value.cast::<T>()) });
        }
        let number = self.take_number();
        // This may use locals, and may park: no reference to them is kept over it.
        let value = Box::new((self.make)());
        let locals = Locals::of(g);
        // SAFETY: only this goroutine touches its locals, and nothing runs meanwhile.
        let Locals { values, made, .. } = unsafe { &mut *locals };
        if values.len() <= number {
            values.resize(number + 1, ptr::null_mut());
        }
        let place = &mut values[number];
        if !place.is_null() {
            // `make` has used the key itself. The first value stays: it may be borrowed.
            let place = *place;
            drop(value);
            return if place == destroyed() { Err(AccessError) } else { Ok(place.cast()) };
        }
        let value = Box::into_raw(value);
        *place = value.cast();
        made.push(Made { number, drop: drop_value::<T> });
        Ok(value)
    }

    fn take_number(&self) -> usize {
        let number = self.number.load(Ordering::Relaxed);
        if number != 0 {
            return number;
        }
        let new = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        // Another thread may have come first. Then the new number stays unused.
        match self.number.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => new,
            Err(number) => number,
        }
    }
}

impl<T: 'static> LocalKey<Cell<T>> {
    /// A copy of the value.
    ///
    /// ```
    /// use std::cell::Cell;
    /// footbridge::goroutine_local! {
    ///     static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// }
    /// DEPTH.set(DEPTH.get() + 1);
    /// assert_eq!(DEPTH.get(), 1);
    /// ```
    ///
    /// # Panics
    /// As [`Self::with`].
    pub fn get(&'static self) -> T
    where
        T: Copy,
    {
        self.with(Cell::get)
    }

    /// Sets the value. [`Self::get`] has an example.
    ///
    /// # Panics
    /// As [`Self::with`].
    pub fn set(&'static self, value: T) {
        self.with(|cell| cell.set(value));
    }

    /// Sets the value and returns the one before.
    ///
    /// ```
    /// use std::cell::Cell;
    /// footbridge::goroutine_local! {
    ///     static NAME: Cell<Option<String>> = Cell::new(None);
    /// }
    /// assert_eq!(NAME.replace(Some("pump".into())), None);
    /// assert_eq!(NAME.replace(None).as_deref(), Some("pump"));
    /// ```
    ///
    /// # Panics
    /// As [`Self::with`].
    pub fn replace(&'static self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }
}

impl<T: 'static> LocalKey<RefCell<T>> {
    /// Calls `f` with the value. A borrow that lives over a park is this goroutine's alone.
    ///
    /// ```
    /// use std::cell::RefCell;
    /// footbridge::goroutine_local! {
    ///     static WORDS: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    /// }
    /// WORDS.with_borrow_mut(|words| words.push("one"));
    /// assert_eq!(WORDS.with_borrow(Vec::len), 1);
    /// ```
    ///
    /// # Panics
    /// As [`Self::with`]; if the value is borrowed exclusively.
    #[track_caller]
    pub fn with_borrow<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        self.with(|cell| f(&cell.borrow()))
    }

    /// Calls `f` with the value, to change it. [`Self::with_borrow`] has an example.
    ///
    /// # Panics
    /// As [`Self::with`]; if the value is borrowed.
    #[track_caller]
    pub fn with_borrow_mut<R>(&'static self, f: impl FnOnce(&mut T) -> R) -> R {
        self.with(|cell| f(&mut cell.borrow_mut()))
    }
}

impl<T: 'static> fmt::Debug for LocalKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").finish_non_exhaustive()
    }
}

/// Declares goroutine-locals, in the shape of [`std::thread_local!`]: statics of which each
/// goroutine has a value of its own.
///
/// A `thread_local!` belongs to the *thread*: all goroutines of the thread share it, and what one
/// leaves there over a park another one finds. What is to follow the goroutine belongs into a
/// goroutine-local. Its methods: [`LocalKey`](crate::runtime::LocalKey).
///
/// ```
/// use std::cell::{Cell, RefCell};
/// use footbridge::runtime::{self, go};
///
/// footbridge::goroutine_local! {
///     /// The request that this goroutine serves.
///     pub static REQUEST: Cell<u64> = const { Cell::new(0) };
///     static LOG: RefCell<Vec<String>> = RefCell::new(Vec::new());
/// }
///
/// runtime::run(|| {
///     REQUEST.set(1);
///     let other = go(|| {
///         REQUEST.set(2);
///         LOG.with_borrow_mut(|log| log.push(format!("request {}", REQUEST.get())));
///         LOG.with_borrow(Vec::len)
///     });
///     assert_eq!(other.join().expect("no panic"), 1);
///     assert_eq!(REQUEST.get(), 1);
/// });
/// ```
///
/// * A value is made when its goroutine first uses it. It need not be `Send`, unless the goroutine
///   may migrate ([`Builder::go_migratable`](crate::runtime::Builder::go_migratable)).
/// * The values of a goroutine are destroyed when its closure has returned or panicked, the
///   youngest first, before a join returns. Destructors may park, and may use other
///   goroutine-locals: one that was destroyed already is an
///   [`AccessError`](crate::runtime::AccessError). The destructor of the goroutine's result, where
///   that is dropped without a join, may find new values.
/// * A destructor that panics ends the process, as that of a thread-local does.
/// * Values of an abandoned goroutine are never destroyed.
/// * On a thread that runs no goroutine it is a thread-local.
#[macro_export]
macro_rules! goroutine_local {
    () => {};
    (
        $(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty = $value:expr;
        $($rest:tt)*
    ) => {
        $crate::goroutine_local! { $(#[$attribute])* $visibility static $name: $type = $value }
        $crate::goroutine_local! { $($rest)* }
    };
    ($(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty = $value:expr) => {
        $(#[$attribute])*
        $visibility static $name: $crate::runtime::LocalKey<$type> = {
            fn __footbridge_make() -> $type {
                $value
            }
            ::std::thread_local! {
                static __FOOTBRIDGE_ON_THREAD: $type = __footbridge_make();
            }
            $crate::runtime::LocalKey::new(__footbridge_make, |f| {
                __FOOTBRIDGE_ON_THREAD.try_with(|value| f(value)).is_ok()
            })
        };
    };
}
