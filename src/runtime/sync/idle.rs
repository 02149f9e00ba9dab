//! How Ms fall asleep and are woken without losing work, and without waking all of them.
//!
//! An M is *awake*, *spinning* (it has nothing to run and searches), or *sleeping*.
//!
//! **Sleep.** On the left an M that falls asleep, on the right a thread that publishes work:
//!
//! ```text
//!     prepare_sleep: store PARKED              push to a queue
//!     heavy fence                              light fence
//!     check every queue                        wake_one, unpark: load PARKED
//! ```
//!
//! Each side stores, crosses its fence, and loads what the other side stores. So one of the two
//! sees the other: an M does not sleep over work. The light fence costs the publisher nothing where
//! the heavy one is membarrier(2).
//!
//! **Throttle.** One spinning M is enough. A burst of work wakes one M, and that one wakes the next
//! when it has found something. In time order:
//!
//! 1. A publisher that sees sleepers, and no spinning M, counts one and wakes it
//!    ([`wake_one`]). The M is counted before it runs, so that other publishers wake no more.
//! 2. The M finds work ([`search`]), and leaves the count. If it was the last spinning M, it checks
//!    the queues once more: publishers that saw it counted have woken no M. If there is work, it
//!    wakes the next M.
//! 3. If the last spinning M finds nothing, it announces its sleep, and that check of the queues
//!    does the same. If there is work now, the M is counted again: it takes one piece of work, and
//!    others may have left more to it ([`Idle::stay_awake`]).
//!
//! What one side must see of the other is ordered by a fence on each side. The counts and words are
//! SeqCst all the same: the check for a deadlock (`sched/idle.rs`) reads several of them, and
//! relies on their common order.
//!
//! **End.** [`stop`] sets `stopping`, crosses a heavy fence, and unparks all Ms. It is one more
//! publisher: an M that falls asleep checks `stopping` with the queues.
//!
//! Rejected, as in Go's `proc.go`:
//!
//! * One lock for all of the scheduler's state. It does not scale.
//! * To wake an M for each goroutine that is readied. A program whose goroutines ready one another
//!   would wake and park threads all the time.
//! * To wake an M whenever another one is idle, without a count. A burst would wake all of them,
//!   and most would find nothing.

use super::primitive::{
    AtomicBool, AtomicU32, AtomicUsize, Ordering, fence, heavy_fence, light_fence,
};

/// The value of a new word.
const AWAKE: u32 = 0;

/// The thread sleeps on the word, or has announced that it will.
const PARKED: u32 = 1;

/// Another thread has ended the sleep.
const NOTIFIED: u32 = 2;

/// As NOTIFIED, and that thread has counted this M as spinning.
const NOTIFIED_SPINNING: u32 = 3;

/// Whether one M sleeps. Its thread sleeps on the word while the word is PARKED.
pub(crate) struct Parking(AtomicU32);

impl Parking {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(AWAKE))
    }

    /// Announces that this thread is about to sleep. It must check for work afterwards.
    fn announce(&self) {
        self.0.store(PARKED, Ordering::SeqCst);
        heavy_fence();
    }

    /// Takes the announcement back, or ends the sleep. Returns whether another thread has woken
    /// this M and counted it as spinning.
    pub(crate) fn end(&self) -> bool {
        self.0.swap(AWAKE, Ordering::SeqCst) == NOTIFIED_SPINNING
    }

    /// Whether the thread sleeps, or has announced that it will, and no other thread has woken it.
    pub(crate) fn is_parked(&self) -> bool {
        self.0.load(Ordering::SeqCst) == PARKED
    }

    /// Sleeps, if no other thread has ended the announcement. Returns whether the M is counted as
    /// spinning.
    ///
    /// `sleep(word, value)` sleeps while the word has that value, and may return early. With
    /// `may_time_out` the sleep may have reached its limit: `None` is returned if the M is still
    /// announced then.
    pub(crate) fn park(
        &self,
        sleep: impl FnOnce(&AtomicU32, u32),
        may_time_out: bool,
    ) -> Option<bool> {
        if self.is_parked() {
            sleep(&self.0, PARKED);
        }
        if may_time_out && self.is_parked() {
            return None;
        }
        Some(self.end())
    }

    /// Ends the sleep, or the announcement, of this M. `wake` wakes the thread that sleeps on the
    /// word; one thread at most calls it for a sleep.
    ///
    /// Returns whether the M has yet to leave its sleep, which another thread may have ended. When
    /// it leaves it reads what this call has exchanged, and so sees what the caller did before.
    pub(crate) fn unpark(&self, wake: impl FnOnce(&AtomicU32)) -> bool {
        if self.is_parked() && self.exchange(PARKED, NOTIFIED) {
            wake(&self.0);
            return true;
        }
        match self.0.load(Ordering::Relaxed) {
            AWAKE | PARKED => false,
            notified => self.exchange(notified, notified),
        }
    }

    /// Ends the sleep of an M that the caller has counted as spinning. If this returns true, the
    /// thread must be woken.
    fn notify_spinning(&self) -> bool {
        self.is_parked() && self.exchange(PARKED, NOTIFIED_SPINNING)
    }

    fn exchange(&self, from: u32, to: u32) -> bool {
        self.0.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// How many Ms of a run are spinning, and how many sleep.
pub(crate) struct Idle {
    spinning: AtomicUsize,
    /// Ms that sleep or have announced that they will.
    sleeping: AtomicUsize,
    /// How often an M has left the state that `sleeping` counts.
    wakes: AtomicUsize,
}

/// A runtime instance, as far as the sleep of its Ms is concerned.
pub(crate) trait Instance {
    fn idle(&self) -> &Idle;

    /// Whether the run is over.
    fn stopping(&self) -> &AtomicBool;

    /// One for each M.
    fn parkings(&self) -> impl Iterator<Item = &Parking> + Clone;

    /// Whether a queue that all Ms take from has something.
    fn work_exists(&self) -> bool;

    /// Wakes the thread of an M that was chosen to search for work. It sleeps on the word.
    fn wake(&self, chosen: &Parking, word: &AtomicU32);
}

/// An M that has nothing to run, as [`search`] leads it.
pub(crate) trait Searcher {
    type Instance: Instance;
    type Found;

    fn instance(&self) -> &Self::Instance;

    fn parking(&self) -> &Parking;

    /// Checks the queues once.
    fn find(&self) -> Option<Self::Found>;

    /// Checks the queues again: for a while if the M is spinning, and else once.
    fn spin(&self, is_spinning: bool) -> Option<Self::Found>;

    /// Whether a queue that only this M takes from has something.
    fn has_own_work(&self) -> bool;

    /// Sleeps until another thread or a timer wakes this M. `sleeping` Ms sleep, this one included.
    /// Returns whether it is counted as spinning.
    fn sleep(&self, sleeping: usize) -> bool;

    /// Called when the M has left the count of sleepers.
    fn has_woken(&self);

    /// Leaves the count of spinning Ms. Models observe it here.
    fn stop_spinning(&self) -> bool {
        self.instance().idle().stop_spinning()
    }
}

/// Wakes a sleeping M, unless one is spinning already. Called after work was published.
#[inline(always)]
pub(crate) fn wake_one(instance: &impl Instance) {
    if instance.idle().has_sleepers() {
        wake_sleeper(instance);
    }
}

#[inline(never)]
fn wake_sleeper(instance: &impl Instance) {
    let chosen = instance.idle().choose(instance.parkings(), || instance.work_exists());
    if let Some(chosen) = chosen {
        instance.wake(chosen, &chosen.0);
    }
}

/// Finds something to run, and sleeps until there is something. `is_spinning`: the M is counted as
/// spinning. `None`: the run is over.
pub(crate) fn search<M: Searcher>(m: &M, mut is_spinning: bool) -> Option<M::Found> {
    let instance = m.instance();
    let idle = instance.idle();
    loop {
        let mut found = m.find();
        if found.is_none() && !is_stopping(instance) {
            is_spinning = is_spinning || idle.start_spinning(instance.parkings().count());
            found = m.spin(is_spinning);
        }
        if std::mem::take(&mut is_spinning) {
            let was_last = m.stop_spinning();
            // Publishers that saw this M counted have woken no other.
            if was_last && found.is_some() && instance.work_exists() {
                wake_one(instance);
            }
        }
        if is_stopping(instance) {
            return None;
        }
        if found.is_some() {
            return found;
        }
        is_spinning = sleep_until_work(m);
    }
}

fn is_stopping(instance: &impl Instance) -> bool {
    let stopping = instance.stopping();
    stopping.load(Ordering::Acquire)
}

/// Announces that the M sleeps, checks for work, and sleeps if there is none. Returns whether the M
/// is counted as spinning.
fn sleep_until_work(m: &impl Searcher) -> bool {
    let (instance, parking) = (m.instance(), m.parking());
    let (idle, stopping) = (instance.idle(), instance.stopping());
    let sleeping = idle.prepare_sleep(parking);
    let has_work = m.has_own_work() || instance.work_exists() || stopping.load(Ordering::SeqCst);
    if !has_work {
        return sleep(m, sleeping);
    }
    idle.stay_awake(parking);
    leave_sleep(m);
    true
}

/// The sleep itself, of an M that is announced and has found nothing.
pub(crate) fn sleep(m: &impl Searcher, sleeping: usize) -> bool {
    let is_spinning = m.sleep(sleeping);
    leave_sleep(m);
    is_spinning
}

/// Comes before the M drains its inbox: the check for a deadlock finds either a goroutine in the
/// inbox or that the M has woken.
fn leave_sleep(m: &impl Searcher) {
    m.instance().idle().leave_sleep();
    m.has_woken();
}

/// Ends a run: every M leaves when it comes to the scheduler. `wake` wakes the thread
/// of an M that sleeps on the word.
pub(crate) fn stop<I: Instance>(instance: &I, wake: impl Fn(&Parking, &AtomicU32)) {
    let stopping = instance.stopping();
    stopping.store(true, Ordering::SeqCst);
    heavy_fence();
    for parking in instance.parkings() {
        parking.unpark(|word| wake(parking, word));
    }
}

impl Idle {
    pub(crate) fn new() -> Self {
        Self {
            spinning: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            wakes: AtomicUsize::new(0),
        }
    }

    pub(crate) fn sleeping(&self) -> usize {
        self.sleeping.load(Ordering::SeqCst)
    }

    pub(crate) fn wakes(&self) -> usize {
        self.wakes.load(Ordering::SeqCst)
    }

    /// Whether an M sleeps that may have to be woken for work which the caller has just published.
    #[inline(always)]
    fn has_sleepers(&self) -> bool {
        light_fence();
        self.sleeping.load(Ordering::Relaxed) != 0
    }

    /// Chooses a sleeping M for published work, unless an M is spinning already, and counts it as
    /// spinning. The thread of the M that is returned must be woken.
    fn choose<'a>(
        &self,
        all: impl Iterator<Item = &'a Parking> + Clone,
        work_exists: impl Fn() -> bool,
    ) -> Option<&'a Parking> {
        // Against `stop_spinning`, which crosses no heavy fence.
        fence(Ordering::SeqCst);
        while self.spinning.load(Ordering::Relaxed) == 0
            && self.spinning.compare_exchange(0, 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        {
            let chosen = all.clone().find(|parking| parking.notify_spinning());
            if chosen.is_some() {
                return chosen;
            }
            self.stop_spinning();
            // Other publishers may have relied on this count meanwhile.
            if !work_exists() || !all.clone().any(Parking::is_parked) {
                return None;
            }
        }
        None
    }

    /// Counts an M, of `ms`, as spinning, unless about half of them are. More would take the lines
    /// of queues from the Ms that work.
    pub(crate) fn start_spinning(&self, ms: usize) -> bool {
        let few = 2 * self.spinning.load(Ordering::Relaxed) + 1 < ms;
        if few {
            self.spinning.fetch_add(1, Ordering::SeqCst);
        }
        few
    }

    /// Takes an M from the count of spinning Ms. Returns whether it was the last one. Then, if it
    /// has found something, it must check whether there is more, and wake another M for that.
    pub(crate) fn stop_spinning(&self) -> bool {
        let was_last = self.spinning.fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last {
            // Between this count and the check of the queues, against the fence in `choose`: a
            // publisher that sees this M counted has published before, and the check finds it. On
            // x86-64 the read-modify-write does this alone; the memory model wants the fence.
            fence(Ordering::SeqCst);
        }
        was_last
    }

    /// Counts an M as sleeping and announces it. Returns how many sleep. The M must check for work
    /// afterwards.
    pub(crate) fn prepare_sleep(&self, parking: &Parking) -> usize {
        let sleeping = self.sleeping.fetch_add(1, Ordering::SeqCst) + 1;
        parking.announce();
        sleeping
    }

    /// Takes the announcement back, for work that the check has found. The M is counted as spinning
    /// from then on, by itself or by the thread that has woken it.
    ///
    /// It must be counted. Three Ms: M0 publishes two goroutines and wakes no M, since M1 is
    /// spinning. M1 stops, as the last one and with nothing; its check finds work, and it takes one
    /// goroutine. If it were not counted, it would wake no M for the other one, and M2 would sleep
    /// over it.
    fn stay_awake(&self, parking: &Parking) {
        if !parking.end() {
            self.spinning.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Takes an M whose parking has ended from the count of sleepers.
    pub(crate) fn leave_sleep(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }
}
