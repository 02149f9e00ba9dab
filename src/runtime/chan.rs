#![allow(unsafe_code, reason = "values pass between stacks")]
//! Channels, bounded and rendezvous, and select over several of them.
//!
//! The rules are Go's: a value goes to a waiting receiver directly, else into the buffer, else the
//! sender parks; a closed channel gives what is in its buffer and then `None`. Unlike Go's, a send
//! to a closed channel is an error that gives the value back.
//!
//! Who waits is in a queue of [`Waiter`]s that lie in the stacks of those who wait: stacks do not
//! move, and nobody leaves `send`, `recv` or `select` before its waiters are out of every queue.
//! A waiter of a select stands in several queues; who takes it first wins the `fired` exchange.
//! A channel works from foreign threads too: they block where a goroutine parks.

use std::cell::{Cell, UnsafeCell};
use std::collections::VecDeque;
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::g::WaitReason;
use super::sched::{Parker, current, gopark, goready, may_park, refuse_park};

/// A lock for a few dozen instructions: taken by one exchange, given back by a plain store.
struct SpinLock(AtomicBool);

impl SpinLock {
    #[inline(always)]
    fn lock(&self) {
        if self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.contended();
        }
    }

    #[cold]
    fn contended(&self) {
        let mut spins = 0u32;
        loop {
            while self.0.load(Ordering::Relaxed) {
                // The holder may have lost its processor; it never parks with the lock.
                spins += 1;
                if spins.is_multiple_of(64) {
                    std::thread::yield_now()
                } else {
                    std::hint::spin_loop()
                }
            }
            if !self.0.swap(true, Ordering::Acquire) {
                return;
            }
        }
    }

    #[inline(always)]
    fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What a select shares among its waiters. A plain send or receive is a select of one.
struct Wait {
    parker: Parker,
    /// Index of the case that fired, or `UNFIRED`.
    fired: AtomicUsize,
    /// Whether a value passed (else the channel was closed). Written by who fired it.
    passed: Cell<bool>,
    /// Several cases: to fire is a race.
    shared: bool,
}

const UNFIRED: usize = usize::MAX;

/// One who waits in one queue.
struct Waiter {
    wait: *const Wait,
    case: usize,
    /// Where the value is (senders) or goes (receivers).
    value: *mut (),
    next: Cell<*const Waiter>,
    previous: Cell<*const Waiter>,
    queued: Cell<bool>,
}

impl Waiter {
    fn new(wait: &Wait, case: usize, value: *mut ()) -> Self {
        Self {
            wait,
            case,
            value,
            next: Cell::new(ptr::null()),
            previous: Cell::new(ptr::null()),
            queued: Cell::new(false),
        }
    }
}

/// A queue of waiters, guarded by the channel's lock.
struct Waiters {
    first: Cell<*const Waiter>,
    last: Cell<*const Waiter>,
}

impl Waiters {
    const fn new() -> Self {
        Self { first: Cell::new(ptr::null()), last: Cell::new(ptr::null()) }
    }

    /// # Safety
    /// The lock is held, and the waiter stays where it is until it is out of the queue.
    unsafe fn push(&self, waiter: &Waiter) {
        let last = self.last.replace(waiter);
        waiter.previous.set(last);
        waiter.next.set(ptr::null());
        waiter.queued.set(true);
        if last.is_null() {
            self.first.set(waiter);
        } else {
            // SAFETY: queued waiters are where they were.
            unsafe { (*last).next.set(waiter) };
        }
    }

    /// # Safety
    /// The lock is held.
    unsafe fn remove(&self, waiter: &Waiter) {
        if !waiter.queued.replace(false) {
            return;
        }
        let (previous, next) = (waiter.previous.get(), waiter.next.get());
        // SAFETY: neighbours are queued, so they are where they were.
        unsafe {
            if previous.is_null() {
                self.first.set(next)
            } else {
                (*previous).next.set(next)
            }
            if next.is_null() { self.last.set(previous) } else { (*next).previous.set(previous) }
        }
    }

    /// Takes the first waiter that can still be fired, and fires it.
    ///
    /// # Safety
    /// The lock is held. The caller passes the value or not, says so in `passed`, and readies.
    unsafe fn take<'a>(&self) -> Option<&'a Waiter> {
        loop {
            // SAFETY: queued waiters are where they were; one that was fired stays until it is
            // readied, which is the caller's next act.
            let waiter = unsafe { self.first.get().as_ref()? };
            // SAFETY: the lock is held.
            unsafe { self.remove(waiter) };
            // SAFETY: it lives as long as its waiters.
            let wait = unsafe { &*waiter.wait };
            if wait.parker.is_abandoned() {
                continue;
            }
            if !wait.shared {
                wait.fired.store(waiter.case, Ordering::Relaxed);
                return Some(waiter);
            }
            let fire = wait.fired.compare_exchange(
                UNFIRED,
                waiter.case,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if fire.is_ok() {
                return Some(waiter);
            }
        }
    }
}

/// Readies a waiter that was taken, after its value passed or the channel closed.
///
/// # Safety
/// The waiter was taken by the caller, who does not use it afterwards.
unsafe fn fire(waiter: &Waiter, passed: bool) {
    // SAFETY: alive until readied.
    unsafe {
        (*waiter.wait).passed.set(passed);
        let parker = (*waiter.wait).parker;
        goready(parker);
    }
}

struct State<T> {
    buffer: VecDeque<T>,
    closed: bool,
    senders: Waiters,
    receivers: Waiters,
}

struct Inner<T> {
    lock: SpinLock,
    capacity: usize,
    state: UnsafeCell<State<T>>,
}

// SAFETY: the state is touched under the lock only; values go from thread to thread.
unsafe impl<T: Send> Send for Inner<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Inner<T> {}

/// A channel. Clones are the same channel.
pub struct Chan<T>(Arc<Inner<T>>);

impl<T> Clone for Chan<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The channel is closed; the value that was to be sent comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendError<T>(pub T);

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("send on a closed channel")
    }
}

impl<T: fmt::Debug> std::error::Error for SendError<T> {}

/// Why `try_send` did not send; the value comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// No receiver waits and the buffer is full.
    Full(T),
    /// The channel is closed.
    Closed(T),
}

/// Why `try_recv` received nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryRecvError {
    /// No sender waits and the buffer is empty.
    Empty,
    /// The channel is closed and the buffer is empty.
    Closed,
}

/// What an attempt under the lock came to. The lock is given back except for `WouldBlock`.
enum Attempt {
    Passed,
    Closed,
    WouldBlock,
}

impl<T> Inner<T> {
    /// Tries to take the value at `value`. The lock is held on entry.
    ///
    /// # Safety
    /// `value` holds a T, which is moved out if the result is `Passed`.
    #[inline(always)]
    unsafe fn send_locked(&self, value: *mut T) -> Attempt {
        // SAFETY: the lock is held.
        let state = unsafe { &mut *self.state.get() };
        if state.closed {
            self.lock.unlock();
            return Attempt::Closed;
        }
        // SAFETY: the lock is held; a receiver that was taken waits for its value at `value`.
        if let Some(receiver) = unsafe { state.receivers.take() } {
            // SAFETY: both sides hold room for a T, and the receiver is parked until fired.
            unsafe {
                ptr::copy_nonoverlapping(value, receiver.value.cast::<T>(), 1);
                self.lock.unlock();
                fire(receiver, true);
            }
            return Attempt::Passed;
        }
        if state.buffer.len() < self.capacity {
            // SAFETY: the caller's T moves into the buffer.
            state.buffer.push_back(unsafe { value.read() });
            self.lock.unlock();
            return Attempt::Passed;
        }
        Attempt::WouldBlock
    }

    /// Tries to leave a value at `value`. The lock is held on entry.
    ///
    /// # Safety
    /// `value` is room for a T, which holds one if the result is `Passed`.
    #[inline(always)]
    unsafe fn recv_locked(&self, value: *mut T) -> Attempt {
        // SAFETY: the lock is held.
        let state = unsafe { &mut *self.state.get() };
        if let Some(first) = state.buffer.pop_front() {
            // SAFETY: the caller's room.
            unsafe { value.write(first) };
            // A sender that waits for room moves up.
            // SAFETY: the lock is held.
            if let Some(sender) = unsafe { state.senders.take() } {
                // SAFETY: the sender is parked until fired, and holds a T.
                unsafe {
                    state.buffer.push_back(sender.value.cast::<T>().read());
                    self.lock.unlock();
                    fire(sender, true);
                }
            } else {
                self.lock.unlock();
            }
            return Attempt::Passed;
        }
        // SAFETY: the lock is held.
        if let Some(sender) = unsafe { state.senders.take() } {
            // SAFETY: as above; without a buffer the value goes straight over.
            unsafe {
                ptr::copy_nonoverlapping(sender.value.cast::<T>(), value, 1);
                self.lock.unlock();
                fire(sender, true);
            }
            return Attempt::Passed;
        }
        if state.closed {
            self.lock.unlock();
            return Attempt::Closed;
        }
        Attempt::WouldBlock
    }

    /// Parks in one of the queues. The lock is held on entry.
    ///
    /// # Safety
    /// As for `send_locked` or `recv_locked`, whichever queue it is.
    #[inline(always)]
    unsafe fn park_locked(&self, value: *mut T, reason: WaitReason, sending: bool) -> bool {
        if !may_park() {
            self.lock.unlock();
            if sending {
                // SAFETY: a sender's value, which nobody else will take.
                unsafe { value.drop_in_place() };
            }
            refuse_park();
        }
        let wait = Wait {
            parker: current(),
            fired: AtomicUsize::new(UNFIRED),
            passed: Cell::new(false),
            shared: false,
        };
        let waiter = Waiter::new(&wait, 0, value.cast());
        // SAFETY: the lock is held; this frame stays until the waiter was taken and fired, which
        // happens once; what is unlocked is what makes it visible.
        unsafe {
            let state = &*self.state.get();
            let queue = if sending { &state.senders } else { &state.receivers };
            queue.push(&waiter);
            gopark(reason, || self.lock.unlock());
        }
        wait.passed.get()
    }
}

impl<T> Drop for Inner<T> {
    fn drop(&mut self) {
        // Whoever waits holds the channel, so nobody waits; abandoned goroutines hold it for ever.
        debug_assert!(self.state.get_mut().senders.first.get().is_null());
    }
}

impl<T: Send> Chan<T> {
    /// A channel that holds up to `capacity` values; with 0, sender and receiver meet.
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Inner {
            lock: SpinLock(AtomicBool::new(false)),
            capacity,
            state: UnsafeCell::new(State {
                // What may never be used is not reserved at once.
                buffer: VecDeque::with_capacity(capacity.min(1024)),
                closed: false,
                senders: Waiters::new(),
                receivers: Waiters::new(),
            }),
        }))
    }

    /// Sends a value; parks until there is room or a receiver.
    ///
    /// # Errors
    /// The channel is or becomes closed; the value comes back.
    #[inline(always)]
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        let mut value = MaybeUninit::new(value);
        self.0.lock.lock();
        // SAFETY: the slot holds a T, and is not read again if it was moved out.
        unsafe {
            let passed = match self.0.send_locked(value.as_mut_ptr()) {
                Attempt::Passed => true,
                Attempt::Closed => false,
                Attempt::WouldBlock => {
                    self.0.park_locked(value.as_mut_ptr(), WaitReason::ChanSend, true)
                }
            };
            if passed { Ok(()) } else { Err(SendError(value.assume_init())) }
        }
    }

    /// Receives a value; parks until there is one. `None`: the channel is closed and empty.
    #[inline(always)]
    pub fn recv(&self) -> Option<T> {
        let mut value = MaybeUninit::uninit();
        self.0.lock.lock();
        // SAFETY: the slot is room for a T, and is read only if one was left there.
        unsafe {
            let passed = match self.0.recv_locked(value.as_mut_ptr()) {
                Attempt::Passed => true,
                Attempt::Closed => false,
                Attempt::WouldBlock => {
                    self.0.park_locked(value.as_mut_ptr(), WaitReason::ChanReceive, false)
                }
            };
            passed.then(|| value.assume_init())
        }
    }

    /// Sends a value if that needs no waiting.
    ///
    /// # Errors
    /// It does, or the channel is closed; the value comes back.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let mut value = MaybeUninit::new(value);
        self.0.lock.lock();
        // SAFETY: as in `send`.
        unsafe {
            match self.0.send_locked(value.as_mut_ptr()) {
                Attempt::Passed => Ok(()),
                Attempt::Closed => Err(TrySendError::Closed(value.assume_init())),
                Attempt::WouldBlock => {
                    self.0.lock.unlock();
                    Err(TrySendError::Full(value.assume_init()))
                }
            }
        }
    }

    /// Receives a value if that needs no waiting.
    ///
    /// # Errors
    /// It does, or the channel is closed and empty.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let mut value = MaybeUninit::uninit();
        self.0.lock.lock();
        // SAFETY: as in `recv`.
        unsafe {
            match self.0.recv_locked(value.as_mut_ptr()) {
                Attempt::Passed => Ok(value.assume_init()),
                Attempt::Closed => Err(TryRecvError::Closed),
                Attempt::WouldBlock => {
                    self.0.lock.unlock();
                    Err(TryRecvError::Empty)
                }
            }
        }
    }

    /// Closes the channel: who waits in `send` gets its value back, who waits in `recv` gets
    /// `None`. Returns whether it was open.
    pub fn close(&self) -> bool {
        self.0.lock.lock();
        // SAFETY: the lock is held.
        let state = unsafe { &mut *self.0.state.get() };
        let was_open = !std::mem::replace(&mut state.closed, true);
        let mut taken: Vec<&Waiter> = Vec::new();
        // SAFETY: the lock is held; each waiter is fired once below.
        unsafe {
            while let Some(waiter) = state.receivers.take() {
                taken.push(waiter);
            }
            while let Some(waiter) = state.senders.take() {
                taken.push(waiter);
            }
        }
        self.0.lock.unlock();
        for waiter in taken {
            // SAFETY: taken above, alive until readied.
            unsafe { fire(waiter, false) };
        }
        was_open
    }

    /// Values in the buffer now.
    pub fn len(&self) -> usize {
        self.0.lock.lock();
        // SAFETY: the lock is held.
        let len = unsafe { (*self.0.state.get()).buffer.len() };
        self.0.lock.unlock();
        len
    }

    /// Whether the buffer is empty now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values that the buffer holds at most.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Receives until the channel is closed and empty.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter(self)
    }
}

impl<T> fmt::Debug for Chan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chan({:p}, capacity {})", Arc::as_ptr(&self.0), self.0.capacity)
    }
}

/// Receives from a channel until it is closed and empty.
pub struct Iter<'a, T>(&'a Chan<T>);

impl<T: Send> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.recv()
    }
}

impl<'a, T: Send> IntoIterator for &'a Chan<T> {
    type Item = T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

/// One case of a [`select`]: a send or a receive that may happen.
pub struct Case<'a> {
    channel: &'a dyn Channel,
    sending: bool,
    /// `*mut Option<T>` of the caller.
    slot: *mut (),
    /// The borrow of the slot.
    borrow: std::marker::PhantomData<&'a mut ()>,
}

impl<'a> Case<'a> {
    /// Receives from `channel` into `slot`. When the case is chosen, the slot holds the value, or
    /// `None` if the channel is closed.
    pub fn recv<T: Send>(channel: &'a Chan<T>, slot: &'a mut Option<T>) -> Self {
        *slot = None;
        let slot = ptr::from_mut(slot).cast();
        Self { channel: &*channel.0, sending: false, slot, borrow: std::marker::PhantomData }
    }

    /// Sends what is in `slot` to `channel`. When the case is chosen, the slot is `None`, or still
    /// holds the value if the channel is closed. An empty slot makes a case that never happens.
    pub fn send<T: Send>(channel: &'a Chan<T>, slot: &'a mut Option<T>) -> Self {
        let slot = ptr::from_mut(slot).cast();
        Self { channel: &*channel.0, sending: true, slot, borrow: std::marker::PhantomData }
    }
}

/// A channel whose type of values is forgotten. The slots are `*mut Option<T>`.
trait Channel {
    fn spin_lock(&self) -> &SpinLock;
    /// Empties a slot.
    ///
    /// # Safety
    /// The slot is of this channel's type.
    unsafe fn reset(&self, slot: *mut ());
    /// Whether the case can ever happen.
    ///
    /// # Safety
    /// The slot is of this channel's type.
    unsafe fn is_enabled(&self, sending: bool, slot: *mut ()) -> bool;
    /// Tries the case under the lock, which is given back unless it would block.
    ///
    /// # Safety
    /// The lock is held; the slot is of this channel's type.
    unsafe fn attempt(&self, sending: bool, slot: *mut ()) -> Attempt;
    /// Where the value of a waiter is or goes: in the slot.
    ///
    /// # Safety
    /// The slot is of this channel's type.
    unsafe fn prepare(&self, sending: bool, slot: *mut (), staging: &mut Staging);
    /// Moves the value between staging and slot after the wait.
    ///
    /// # Safety
    /// As `prepare`, which was called before with the same staging.
    unsafe fn finish(&self, sending: bool, slot: *mut (), staging: &mut Staging, passed: bool);
    /// # Safety
    /// The lock is held.
    unsafe fn queue(&self, sending: bool) -> &Waiters;
}

/// Room for a value while a select waits, boxed since its size is forgotten.
struct Staging(*mut ());

impl<T> Channel for Inner<T> {
    fn spin_lock(&self) -> &SpinLock {
        &self.lock
    }

    unsafe fn reset(&self, slot: *mut ()) {
        // SAFETY: of this channel's type.
        unsafe { *slot.cast::<Option<T>>() = None };
    }

    unsafe fn is_enabled(&self, sending: bool, slot: *mut ()) -> bool {
        // SAFETY: of this channel's type.
        !sending || unsafe { (*slot.cast::<Option<T>>()).is_some() }
    }

    unsafe fn attempt(&self, sending: bool, slot: *mut ()) -> Attempt {
        // SAFETY: of this channel's type.
        let slot = unsafe { &mut *slot.cast::<Option<T>>() };
        if sending {
            let mut value = MaybeUninit::new(slot.take().expect("an enabled case has a value"));
            // SAFETY: the lock is held; the value is put back unless it was moved out.
            let attempt = unsafe { self.send_locked(value.as_mut_ptr()) };
            if !matches!(attempt, Attempt::Passed) {
                // SAFETY: not moved out.
                *slot = Some(unsafe { value.assume_init() });
            }
            attempt
        } else {
            let mut value = MaybeUninit::uninit();
            // SAFETY: the lock is held; the value is read if one was left.
            unsafe {
                let attempt = self.recv_locked(value.as_mut_ptr());
                if matches!(attempt, Attempt::Passed) {
                    *slot = Some(value.assume_init());
                }
                attempt
            }
        }
    }

    unsafe fn prepare(&self, sending: bool, slot: *mut (), staging: &mut Staging) {
        let mut room = Box::new(MaybeUninit::<T>::uninit());
        if sending {
            // SAFETY: of this channel's type.
            let slot = unsafe { &mut *slot.cast::<Option<T>>() };
            room.write(slot.take().expect("an enabled case has a value"));
        }
        staging.0 = Box::into_raw(room).cast();
    }

    unsafe fn finish(&self, sending: bool, slot: *mut (), staging: &mut Staging, passed: bool) {
        // SAFETY: made by `prepare`. A sender's value is still there unless it passed, a
        // receiver's is there if it did.
        unsafe {
            let room = Box::from_raw(staging.0.cast::<MaybeUninit<T>>());
            if passed != sending {
                *slot.cast::<Option<T>>() = Some(*room.assume_init());
            }
        }
    }

    unsafe fn queue(&self, sending: bool) -> &Waiters {
        // SAFETY: the lock is held.
        let state = unsafe { &*self.state.get() };
        if sending { &state.senders } else { &state.receivers }
    }
}

/// Waits until one of the cases can happen, makes it happen, and returns its index. Where several
/// can, one is chosen by chance. Without cases this parks for ever.
///
/// ```
/// use footbridge::runtime::{self, Case, Chan, select};
/// runtime::run(|| {
///     let (a, b) = (Chan::new(1), Chan::<u8>::new(1));
///     a.send("hello").unwrap();
///     let (mut from_a, mut from_b) = (None, None);
///     let chosen = select(&mut [Case::recv(&a, &mut from_a), Case::recv(&b, &mut from_b)]);
///     assert_eq!((chosen, from_a, from_b), (0, Some("hello"), None));
/// });
/// ```
pub fn select(cases: &mut [Case<'_>]) -> usize {
    reset(cases);
    match poll(cases, true) {
        Some(chosen) => chosen,
        None => wait(cases),
    }
}

/// As [`select`], but `None` if no case can happen now.
pub fn try_select(cases: &mut [Case<'_>]) -> Option<usize> {
    reset(cases);
    poll(cases, false)
}

/// Empties the slots of receives: cases may be used twice, and what is in a slot may do anything
/// when it is dropped, so not under a lock.
fn reset(cases: &mut [Case<'_>]) {
    for case in cases.iter().filter(|case| !case.sending) {
        // SAFETY: a case's slot is of its channel's type.
        unsafe { case.channel.reset(case.slot) };
    }
}

/// Tries every case once, from a random one on. With `keep` and no success, all locks stay held.
fn poll(cases: &mut [Case<'_>], keep: bool) -> Option<usize> {
    let locks = lock_order(cases);
    for lock in &locks {
        lock.lock();
    }
    let start = random(cases.len());
    for i in 0..cases.len() {
        let at = (start + i) % cases.len();
        let case = &cases[at];
        // SAFETY: a case's slot is of its channel's type; all locks are held.
        unsafe {
            if !case.channel.is_enabled(case.sending, case.slot) {
                continue;
            }
            match case.channel.attempt(case.sending, case.slot) {
                Attempt::WouldBlock => {}
                Attempt::Passed | Attempt::Closed => {
                    // This channel's lock is given back already.
                    let own = ptr::from_ref(case.channel.spin_lock());
                    locks.iter().filter(|l| !ptr::eq(**l, own)).for_each(|l| l.unlock());
                    return Some(at);
                }
            }
        }
    }
    if !keep {
        locks.iter().for_each(|lock| lock.unlock());
    }
    None
}

/// The locks of all channels, each once, by address: everybody takes them in the same order.
fn lock_order<'a>(cases: &[Case<'a>]) -> Vec<&'a SpinLock> {
    let mut locks: Vec<&SpinLock> = cases.iter().map(|case| case.channel.spin_lock()).collect();
    locks.sort_by_key(|lock| ptr::from_ref(*lock));
    locks.dedup_by_key(|lock| ptr::from_ref(*lock));
    locks
}

/// Parks in the queues of all cases. All locks are held on entry.
fn wait(cases: &mut [Case<'_>]) -> usize {
    let shared = Wait {
        parker: current(),
        fired: AtomicUsize::new(UNFIRED),
        passed: Cell::new(false),
        shared: true,
    };
    let locks = lock_order(cases);
    if !may_park() {
        locks.iter().for_each(|lock| lock.unlock());
        refuse_park();
    }
    let mut waiters: Vec<Option<(Waiter, Staging)>> = Vec::with_capacity(cases.len());
    for (at, case) in cases.iter().enumerate() {
        // SAFETY: slots are of their channels' types; all locks are held.
        unsafe {
            if !case.channel.is_enabled(case.sending, case.slot) {
                waiters.push(None);
                continue;
            }
            let mut staging = Staging(ptr::null_mut());
            case.channel.prepare(case.sending, case.slot, &mut staging);
            waiters.push(Some((Waiter::new(&shared, at, staging.0), staging)));
        }
    }
    for (case, waiter) in cases.iter().zip(&waiters) {
        if let Some((waiter, _)) = waiter {
            // SAFETY: the locks are held; the vector does not grow any more.
            unsafe { case.channel.queue(case.sending).push(waiter) };
        }
    }
    let reason = if cases.is_empty() { WaitReason::SelectNoCases } else { WaitReason::Select };
    // SAFETY: one who takes a waiter wins the exchange, and readies once.
    unsafe { gopark(reason, || locks.iter().for_each(|lock| lock.unlock())) };
    for lock in &locks {
        lock.lock();
    }
    for (case, waiter) in cases.iter().zip(&waiters) {
        if let Some((waiter, _)) = waiter {
            // SAFETY: the locks are held.
            unsafe { case.channel.queue(case.sending).remove(waiter) };
        }
    }
    locks.iter().for_each(|lock| lock.unlock());
    let chosen = shared.fired.load(Ordering::Acquire);
    for (at, (case, waiter)) in cases.iter().zip(&mut waiters).enumerate() {
        if let Some((_, staging)) = waiter {
            let passed = at == chosen && shared.passed.get();
            // SAFETY: out of every queue, so nobody else touches the staging.
            unsafe { case.channel.finish(case.sending, case.slot, staging, passed) };
        }
    }
    chosen
}

/// A number below `bound`, by chance; 0 for 0.
fn random(bound: usize) -> usize {
    thread_local! {
        static SEED: Cell<u64> = const { Cell::new(0x9e37_79b9_7f4a_7c15) };
    }
    // The access is over before anything can park.
    let seed = SEED.with(|seed| {
        let mut x = seed.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        seed.set(x);
        x
    });
    (seed >> 33) as usize % bound.max(1)
}
