#![allow(unsafe_code, reason = "values pass between stacks")]
//! The channel: sends and receives, and how values pass.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use super::waiters::fire;
use crate::runtime::chan::error::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use crate::runtime::chan::waiters::{SpinLock, Wait, Waiter, Waiters};
use crate::runtime::gmp::status::WaitReason;
use crate::runtime::sched::park::{gopark, may_park, refuse_park};
use crate::runtime::sync::Claim;
use crate::runtime::task::Limit;

/// When a channel is dropped its queues may have waiters, all of abandoned goroutines: a goroutine
/// borrows the channel while it waits, and one that is abandoned never returns that borrow. (The
/// channel of a thread-local is dropped with its thread all the same.) Nothing reads such waiters
/// any more, and what their senders wanted to send is leaked with their stacks.
struct State<T> {
    buffer: VecDeque<T>,
    closed: bool,
    senders: Waiters,
    receivers: Waiters,
}

pub(crate) struct Inner<T> {
    pub(super) lock: SpinLock,
    capacity: usize,
    state: UnsafeCell<State<T>>,
}

// SAFETY: the state is touched under the lock only; values go from thread to thread.
unsafe impl<T: Send> Send for Inner<T> {}

// SAFETY: the same holds through a shared reference.
unsafe impl<T: Send> Sync for Inner<T> {}

/// A channel: any number of goroutines and threads send and receive. Clones are the same channel.
///
/// It has no ends: a channel stays open until [`Self::close`] is called, however many clones there
/// are. The end of a run closes no channel, either: a thread that waits for a value from goroutines
/// that the run has abandoned waits for ever, or as long as [`Self::recv_timeout`] lets it.
///
/// ```
/// use footbridge::runtime::{self, Chan, go};
///
/// let squares: Vec<u64> = runtime::run(|| {
///     let channel = Chan::new(2);
///     let sender = channel.clone();
///     go(move || {
///         for n in 1..=4 {
///             sender.send(n * n).expect("only this goroutine closes it");
///         }
///         sender.close();
///     });
///     channel.into_iter().collect()
/// });
/// assert_eq!(squares, [1, 4, 9, 16]);
/// ```
pub struct Chan<T>(pub(super) Arc<Inner<T>>);

impl<T> Clone for Chan<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What an attempt under the lock came to. The lock is released except for `WouldBlock`.
pub(crate) enum Attempt {
    Passed,
    Closed,
    WouldBlock,
}

/// How a wait with a limit of time ended.
pub(crate) enum Ended {
    Passed,
    Closed,
    TimedOut,
}

impl<T> Inner<T> {
    /// Tries to take the value at `value`. The lock is held on entry.
    ///
    /// # Safety
    /// `value` holds a T, which is moved out if the result is `Passed`.
    #[inline(always)]
    pub(super) unsafe fn send_locked(&self, value: *mut T) -> Attempt {
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
    pub(super) unsafe fn recv_locked(&self, value: *mut T) -> Attempt {
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
            // SAFETY: the sender is parked until fired, and holds a T. Without a buffer the value
            // goes straight over.
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

    /// [`Self::send_locked`] or [`Self::recv_locked`].
    ///
    /// # Safety
    /// As for the one of them that `sending` says; the lock is held.
    unsafe fn attempt_locked(&self, value: *mut T, sending: bool) -> Attempt {
        // SAFETY: the caller's promise.
        unsafe { if sending { self.send_locked(value) } else { self.recv_locked(value) } }
    }

    /// # Safety
    /// The lock is held as long as the queue is used.
    pub(super) unsafe fn queue(&self, sending: bool) -> &Waiters {
        // SAFETY: the lock is held.
        let state = unsafe { &*self.state.get() };
        if sending { &state.senders } else { &state.receivers }
    }

    /// Parks in one of the queues. The lock is held on entry. Returns whether the value passed.
    ///
    /// # Safety
    /// As for [`Self::send_locked`] or [`Self::recv_locked`], as `sending` says.
    #[inline(always)]
    #[track_caller]
    unsafe fn park_locked(&self, value: *mut T, reason: WaitReason, sending: bool) -> bool {
        if !may_park() {
            self.lock.unlock();
            if sending {
                // SAFETY: a sender's value, which no peer has taken.
                unsafe { value.drop_in_place() };
            }
            refuse_park();
        }
        let wait = Wait::alone();
        let waiter = Waiter::new(&wait, 0, value.cast());
        // SAFETY: the lock is held; this frame stays until the waiter was taken and fired, which
        // happens once; what is unlocked is what makes it visible.
        unsafe {
            self.queue(sending).push(&waiter);
            gopark(reason, || self.lock.unlock());
        }
        wait.passed()
    }

    /// Sends from or receives into `value`, and parks for `timeout` at most. The lock is not held.
    ///
    /// # Safety
    /// As for [`Self::send_locked`] or [`Self::recv_locked`], as `sending` says.
    #[track_caller]
    unsafe fn within(&self, value: *mut T, sending: bool, timeout: Duration) -> Ended {
        let attempt = || {
            self.lock.lock();
            // SAFETY: the lock is held; the caller's promise.
            match unsafe { self.attempt_locked(value, sending) } {
                Attempt::Passed => Some(Ended::Passed),
                Attempt::Closed => Some(Ended::Closed),
                Attempt::WouldBlock => None,
            }
        };
        if let Some(ended) = attempt() {
            return ended;
        }
        self.lock.unlock();
        if timeout.is_zero() {
            return Ended::TimedOut;
        }
        if !may_park() {
            if sending {
                // SAFETY: a sender's value, which no peer has taken.
                unsafe { value.drop_in_place() };
            }
            refuse_park();
        }
        let wait = Wait::limited();
        // The timer before the lock: see `Claim`.
        // SAFETY: dropped at the latest when this function returns; made by `Wait::limited`.
        let limit = unsafe { Limit::set(&wait.park, timeout) };
        if let Some(ended) = attempt() {
            return ended;
        }
        let reason = if sending { WaitReason::ChanSend } else { WaitReason::ChanReceive };
        let waiter = Waiter::new(&wait, 0, value.cast());
        // SAFETY: the lock is held; this frame stays until the waiter is out of its queue, and what
        // is unlocked is what makes it visible. `Waiters::take` claims the wait, and `fire`
        // readies.
        unsafe {
            self.queue(sending).push(&waiter);
            limit.park(reason, || self.lock.unlock());
        }
        match wait.park.claim.outcome() {
            Claim::TIMED_OUT => {
                self.lock.lock();
                // SAFETY: the lock is held; no peer has claimed the wait, so the value is where it
                // was.
                unsafe { self.queue(sending).remove(&waiter) };
                self.lock.unlock();
                Ended::TimedOut
            }
            _ if wait.passed() => Ended::Passed,
            _ => Ended::Closed,
        }
    }
}

impl<T: Send> Chan<T> {
    /// A channel that holds up to `capacity` values; with 0, sender and receiver meet.
    ///
    /// ```
    /// let channel = footbridge::runtime::Chan::<u64>::new(4);
    /// assert_eq!((channel.len(), channel.capacity()), (0, 4));
    /// ```
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Inner {
            lock: SpinLock::new(),
            capacity,
            state: UnsafeCell::new(State {
                // Room that may never be used is not reserved at once.
                buffer: VecDeque::with_capacity(capacity.min(1024)),
                closed: false,
                senders: Waiters::new(),
                receivers: Waiters::new(),
            }),
        }))
    }

    /// Sends a value; parks until there is room or a receiver.
    ///
    /// ```
    /// let channel = footbridge::runtime::Chan::new(1);
    /// channel.send("hello")?;
    /// assert_eq!(channel.recv(), Ok("hello"));
    /// # Ok::<(), footbridge::runtime::SendError<&str>>(())
    /// ```
    ///
    /// # Errors
    /// The channel is or becomes closed; the error contains the value.
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack); the value is
    /// dropped.
    #[inline(always)]
    #[track_caller]
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

    /// Receives a value; parks until there is one.
    ///
    /// ```
    /// use footbridge::runtime::{Chan, RecvError};
    /// let channel = Chan::new(1);
    /// channel.send(7).expect("open");
    /// channel.close();
    /// assert_eq!(channel.recv(), Ok(7));
    /// assert_eq!(channel.recv(), Err(RecvError));
    /// ```
    ///
    /// # Errors
    /// The channel is closed and empty.
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
    #[inline(always)]
    #[track_caller]
    pub fn recv(&self) -> Result<T, RecvError> {
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
            if passed { Ok(value.assume_init()) } else { Err(RecvError) }
        }
    }

    /// Sends a value if that is possible without waiting.
    ///
    /// ```
    /// use footbridge::runtime::{Chan, TrySendError};
    /// let channel = Chan::new(1);
    /// assert_eq!(channel.try_send(1), Ok(()));
    /// assert_eq!(channel.try_send(2), Err(TrySendError::Full(2)));
    /// ```
    ///
    /// # Errors
    /// No receiver waits and the buffer is full, or the channel is closed; the error contains the
    /// value.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let mut value = MaybeUninit::new(value);
        self.0.lock.lock();
        // SAFETY: the slot holds a T, and is not read again if it was moved out.
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

    /// Receives a value if that is possible without waiting.
    ///
    /// ```
    /// use footbridge::runtime::{Chan, TryRecvError};
    /// let channel = Chan::new(1);
    /// assert_eq!(channel.try_recv(), Err(TryRecvError::Empty));
    /// channel.send(1).expect("open");
    /// assert_eq!(channel.try_recv(), Ok(1));
    /// ```
    ///
    /// # Errors
    /// There is no value, or there is none and the channel is closed.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let mut value = MaybeUninit::uninit();
        self.0.lock.lock();
        // SAFETY: the slot is room for a T, and is read only if one was left there.
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

    /// Sends a value; parks until there is room or a receiver, for `timeout` at most.
    ///
    /// The value is received, or in the buffer, or in the error. A timeout of zero is
    /// [`Self::try_send`] with another error.
    ///
    /// ```
    /// use std::time::Duration;
    /// use footbridge::runtime::{Chan, SendTimeoutError};
    /// let channel = Chan::new(0);
    /// let sent = channel.send_timeout("value", Duration::from_millis(1));
    /// assert_eq!(sent, Err(SendTimeoutError::Timeout("value")));
    /// ```
    ///
    /// # Errors
    /// The time is over, or the channel is or becomes closed; the error contains the value.
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack); the value is
    /// dropped.
    #[track_caller]
    pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        let mut value = MaybeUninit::new(value);
        // SAFETY: the slot holds a T, and is not read again if it was moved out.
        unsafe {
            match self.0.within(value.as_mut_ptr(), true, timeout) {
                Ended::Passed => Ok(()),
                Ended::Closed => Err(SendTimeoutError::Closed(value.assume_init())),
                Ended::TimedOut => Err(SendTimeoutError::Timeout(value.assume_init())),
            }
        }
    }

    /// Receives a value; parks until there is one, for `timeout` at most.
    ///
    /// A value that comes too late stays with its sender or in the buffer. A timeout of zero is
    /// [`Self::try_recv`] with another error.
    ///
    /// ```
    /// use std::time::Duration;
    /// use footbridge::runtime::{Chan, RecvTimeoutError};
    /// let channel = Chan::<u64>::new(0);
    /// let received = channel.recv_timeout(Duration::from_millis(1));
    /// assert_eq!(received, Err(RecvTimeoutError::Timeout));
    /// ```
    ///
    /// # Errors
    /// The time is over, or the channel is closed and empty.
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
    #[track_caller]
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        let mut value = MaybeUninit::uninit();
        // SAFETY: the slot is room for a T, and is read only if one was left there.
        unsafe {
            match self.0.within(value.as_mut_ptr(), false, timeout) {
                Ended::Passed => Ok(value.assume_init()),
                Ended::Closed => Err(RecvTimeoutError::Closed),
                Ended::TimedOut => Err(RecvTimeoutError::Timeout),
            }
        }
    }

    /// Closes the channel. Sends that wait fail and return their values; receives that wait fail.
    /// Returns whether the channel was open.
    ///
    /// ```
    /// let channel = footbridge::runtime::Chan::new(1);
    /// channel.send("kept")?;
    /// assert!(channel.close());
    /// assert!(!channel.close(), "it is closed already");
    /// assert_eq!(channel.recv(), Ok("kept"));
    /// # Ok::<(), footbridge::runtime::SendError<&str>>(())
    /// ```
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
    ///
    /// ```
    /// let channel = footbridge::runtime::Chan::new(2);
    /// channel.send(1)?;
    /// assert_eq!(channel.len(), 1);
    /// # Ok::<(), footbridge::runtime::SendError<u8>>(())
    /// ```
    pub fn len(&self) -> usize {
        self.0.lock.lock();
        // SAFETY: the lock is held.
        let len = unsafe { (*self.0.state.get()).buffer.len() };
        self.0.lock.unlock();
        len
    }

    /// Whether the buffer is empty now. That of a channel of capacity 0 always is.
    ///
    /// ```
    /// assert!(footbridge::runtime::Chan::<u8>::new(2).is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the buffer is full now. That of a channel of capacity 0 always is.
    ///
    /// ```
    /// let channel = footbridge::runtime::Chan::new(1);
    /// assert!(!channel.is_full());
    /// channel.send(1)?;
    /// assert!(channel.is_full());
    /// # Ok::<(), footbridge::runtime::SendError<u8>>(())
    /// ```
    pub fn is_full(&self) -> bool {
        self.len() == self.0.capacity
    }

    /// The most values that the buffer holds.
    ///
    /// ```
    /// assert_eq!(footbridge::runtime::Chan::<u8>::new(2).capacity(), 2);
    /// ```
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Whether the other one is a clone of this channel.
    ///
    /// ```
    /// use footbridge::runtime::Chan;
    /// let channel = Chan::<u8>::new(1);
    /// assert!(channel.same_channel(&channel.clone()));
    /// assert!(!channel.same_channel(&Chan::new(1)));
    /// ```
    pub fn same_channel(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Receives until the channel is closed and empty; parks between the values.
    ///
    /// ```
    /// let channel = footbridge::runtime::Chan::new(3);
    /// for n in 1..=3 {
    ///     channel.send(n)?;
    /// }
    /// channel.close();
    /// assert_eq!(channel.iter().sum::<u64>(), 6);
    /// # Ok::<(), footbridge::runtime::SendError<u64>>(())
    /// ```
    pub fn iter(&self) -> Iter<'_, T> {
        Iter(self)
    }

    /// Receives what can be received without waiting.
    ///
    /// ```
    /// let channel = footbridge::runtime::Chan::new(3);
    /// channel.send(1)?;
    /// channel.send(2)?;
    /// assert_eq!(channel.try_iter().collect::<Vec<_>>(), [1, 2]);
    /// # Ok::<(), footbridge::runtime::SendError<u8>>(())
    /// ```
    pub fn try_iter(&self) -> TryIter<'_, T> {
        TryIter(self)
    }
}

impl<T> fmt::Debug for Chan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chan({:p}, capacity {})", Arc::as_ptr(&self.0), self.0.capacity)
    }
}

/// Receives from a channel until it is closed and empty. Made by [`Chan::iter`].
#[must_use = "iterators are lazy and receive nothing unless consumed"]
pub struct Iter<'a, T>(&'a Chan<T>);

impl<T: Send> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.recv().ok()
    }
}

// A closed channel stays closed.
impl<T: Send> FusedIterator for Iter<'_, T> {}

impl<T> fmt::Debug for Iter<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Iter").field(self.0).finish()
    }
}

/// Receives from a channel what needs no waiting. Made by [`Chan::try_iter`].
#[must_use = "iterators are lazy and receive nothing unless consumed"]
pub struct TryIter<'a, T>(&'a Chan<T>);

impl<T: Send> Iterator for TryIter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.try_recv().ok()
    }
}

impl<T> fmt::Debug for TryIter<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TryIter").field(self.0).finish()
    }
}

/// Receives from a channel that it owns until that is closed and empty. Made by
/// `Chan::into_iter`.
#[must_use = "iterators are lazy and receive nothing unless consumed"]
pub struct IntoIter<T>(Chan<T>);

impl<T: Send> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.recv().ok()
    }
}

// A closed channel stays closed.
impl<T: Send> FusedIterator for IntoIter<T> {}

impl<T> fmt::Debug for IntoIter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IntoIter").field(&self.0).finish()
    }
}

impl<T: Send> IntoIterator for Chan<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self)
    }
}

impl<'a, T: Send> IntoIterator for &'a Chan<T> {
    type Item = T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}
