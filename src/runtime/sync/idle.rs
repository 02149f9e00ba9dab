//! How Ms fall asleep and are woken without losing work, and without waking everybody.
//!
//! **Sleep.** An M announces that it will sleep, crosses a heavy fence, and looks at every queue once
//! more; whoever adds work crosses a light fence and then looks for announcements. One of the two
//! sees the other.
//!
//! **Throttle.** Of those who look for work, one is enough: a burst of work wakes one M, which wakes
//! the next one when it has found something. So the waker counts the M that it wakes as
//! *spinning* (looking) before it runs, and wakes nobody while one is counted. Who stops looking
//! takes itself from the count, and, if it was the last one and found something, looks once more
//! for work that others left to it: they saw it counted. If it was the last one and found nothing,
//! it does so when it has announced that it will sleep; if there is work then, it is counted again.
//!
//! Whatever one must see of the other is so by a fence on both sides. The counts and words are
//! stronger than that needs: `check_deadlock` adds up looks at all of them to one state.
//!
//! The primitives come from `super`: the crate hands in the real ones, the model test loom's.

use super::primitive::{AtomicU32, AtomicUsize, Ordering, fence, heavy_fence, light_fence};

// States of the word that an M sleeps on.
pub(crate) const AWAKE: u32 = 0;

pub(crate) const PARKED: u32 = 1;

const NOTIFIED: u32 = 2;

/// As NOTIFIED, and the waker has counted this M among those that look for work.
const NOTIFIED_SPINNING: u32 = 3;

/// Whether one M sleeps. Its word is what it sleeps on, while it is [`PARKED`].
pub(crate) struct Parking(AtomicU32);

impl Parking {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(AWAKE))
    }

    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.0
    }

    /// Announces that this thread is about to sleep. Then it must look for work once more.
    pub(crate) fn announce(&self) {
        self.0.store(PARKED, Ordering::SeqCst);
        heavy_fence();
    }

    /// Takes the announcement back, or ends the sleep. Returns whether somebody woke this M and
    /// counted it as spinning.
    pub(crate) fn end(&self) -> bool {
        self.0.swap(AWAKE, Ordering::SeqCst) == NOTIFIED_SPINNING
    }

    /// Whether the thread sleeps or is about to, and nobody has woken it.
    pub(crate) fn is_parked(&self) -> bool {
        self.0.load(Ordering::SeqCst) == PARKED
    }

    /// Ends the announcement from outside. If this call did it, the sleeper must be woken.
    pub(crate) fn notify(&self) -> bool {
        self.exchange(NOTIFIED)
    }

    /// As [`Self::notify`], for an M that the caller has counted among those that look for work.
    fn notify_spinning(&self) -> bool {
        self.exchange(NOTIFIED_SPINNING)
    }

    fn exchange(&self, state: u32) -> bool {
        self.is_parked()
            && self.0.compare_exchange(PARKED, state, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// How many Ms of a run look for work, and how many sleep.
pub(crate) struct Idle {
    /// Ms that looked for work in vain and look on.
    spinning: AtomicUsize,
    /// Ms that sleep or are about to.
    sleeping: AtomicUsize,
    /// How often an M left the state that `sleeping` counts.
    wakes: AtomicUsize,
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

    /// Whether somebody sleeps who might be woken for work that the caller has just published.
    #[inline(always)]
    pub(crate) fn someone_sleeps(&self) -> bool {
        light_fence();
        self.sleeping.load(Ordering::Relaxed) != 0
    }

    /// Chooses an M to wake for published work, unless one looks for work already. Returns the one
    /// whose thread must be woken.
    pub(crate) fn choose<'a>(
        &self,
        all: impl Iterator<Item = &'a Parking> + Clone,
        work_exists: impl Fn() -> bool,
    ) -> Option<&'a Parking> {
        // Against one who stops looking, which crosses no heavy fence.
        fence(Ordering::SeqCst);
        while self.spinning.load(Ordering::Relaxed) == 0
            && self.spinning.compare_exchange(0, 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        {
            let chosen = all.clone().find(|parking| parking.notify_spinning());
            if chosen.is_some() {
                return chosen;
            }
            self.stop_spinning();
            // Others may have relied on our looking meanwhile.
            if !work_exists() || !all.clone().any(Parking::is_parked) {
                return None;
            }
        }
        None
    }

    /// Counts an M, of so many, among those that look for work, unless these are many already.
    pub(crate) fn start_spinning(&self, ms: usize) -> bool {
        let few = 2 * self.spinning.load(Ordering::Relaxed) + 1 < ms;
        if few {
            self.spinning.fetch_add(1, Ordering::SeqCst);
        }
        few
    }

    /// Takes it from the count. Returns whether it was the last one: if it has found something, it
    /// must look whether there is more, and then wake another one.
    pub(crate) fn stop_spinning(&self) -> bool {
        let was_last = self.spinning.fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last {
            // Against those who publish work and see it counted. A read-modify-write does this on
            // x86-64; the memory model wants a fence.
            fence(Ordering::SeqCst);
        }
        was_last
    }

    /// Counts an M among the sleepers and announces it. Returns how many they are. Then it must look
    /// for work once more.
    pub(crate) fn prepare_sleep(&self, parking: &Parking) -> usize {
        let sleeping = self.sleeping.fetch_add(1, Ordering::SeqCst) + 1;
        parking.announce();
        sleeping
    }

    /// Takes the announcement back, for what the last look has found. The M is counted among those
    /// that look for work from then on, whoever woke it: it has stopped looking just before, and
    /// who published work until then has left more than it takes to it.
    pub(crate) fn stay_awake(&self, parking: &Parking) {
        if !parking.end() {
            self.spinning.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The M sleeps no more: its parking has ended.
    pub(crate) fn leave_sleep(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }
}
