//! The states of a goroutine, and the reasons why it waits.
//!
//! ```text
//!              newproc             make_current            gopark
//!      Idle ------------> Runnable ------------> Running ----------> Waiting
//!       ^                  ^    ^                 |   |                 |
//!       |                  |    `-----------------'   |                 |
//!       |                  |     gosched, preemption  |                 |
//!       |                  `------------------------- | ----------------'
//!       |                             goready         |
//!       `---------------- Dead <----------------------'
//!              gfput                 goexit0
//! ```
//!
//! The thread that has the right to make a transition makes it with a plain store
//! (`G::transition`). For `Idle` and `Dead` that is the owner of the G; for `Runnable` the M that
//! took it from a queue; for `Running` the M that runs it; for `Waiting` the one thread that
//! readies it.

use crate::runtime::os::throw;
use crate::runtime::sync::status;

/// What a goroutine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum Status {
    /// Not in use.
    Idle = 0,
    /// In a run queue.
    Runnable = status::RUNNABLE as u8,
    /// On an M, running code.
    Running = status::RUNNING as u8,
    /// Parked, until another goroutine, a thread or a timer readies it.
    Waiting = status::WAITING as u8,
    /// Finished. Its result may not have been taken yet.
    Dead = 6,
}

impl Status {
    pub(crate) fn from_u32(value: u32) -> Self {
        match value {
            0 => Self::Idle,
            status::RUNNABLE => Self::Runnable,
            status::RUNNING => Self::Running,
            status::WAITING => Self::Waiting,
            6 => Self::Dead,
            other => throw(format_args!("a goroutine has the status {other}, which none is")),
        }
    }

    /// The word that tracebacks print for it.
    ///
    /// ```
    /// use footbridge::runtime::Status;
    /// assert_eq!(Status::Waiting.name(), "waiting");
    /// ```
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Runnable => "runnable",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Dead => "dead",
        }
    }

    pub(crate) fn may_become(self, next: Self) -> bool {
        use Status::{Dead, Idle, Runnable, Running, Waiting};
        matches!(
            (self, next),
            (Idle, Runnable)
                | (Runnable, Running)
                | (Running, Runnable | Waiting | Dead)
                | (Waiting, Runnable)
                | (Dead, Idle)
        )
    }
}

/// Why a goroutine waits. The names are Go's where Go has the same reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum WaitReason {
    /// Not waiting.
    None,
    /// In `Chan::send`.
    ChanSend,
    /// In `Chan::recv`.
    ChanReceive,
    /// In `select`.
    Select,
    /// In `select` without cases: for ever.
    SelectNoCases,
    /// In `sleep`.
    Sleep,
    /// In `JoinHandle::join`.
    Join,
    /// At the end of a `scope`.
    Scope,
    /// In `Mutex::lock`.
    MutexLock,
    /// In `RwLock::read`.
    RwLockRead,
    /// In `RwLock::write`.
    RwLockWrite,
    /// In a wait of a `Condvar`.
    CondvarWait,
    /// In `WaitGroup::wait`.
    WaitGroupWait,
    /// In `Once` or `OnceLock`, while another goroutine initialises.
    Once,
    /// In `Barrier::wait`.
    Barrier,
    /// In [`gopark`](crate::runtime::gopark), called by code outside of this crate.
    Other,
}

impl WaitReason {
    pub(crate) const ALL: [Self; 16] = [
        Self::None,
        Self::ChanSend,
        Self::ChanReceive,
        Self::Select,
        Self::SelectNoCases,
        Self::Sleep,
        Self::Join,
        Self::Scope,
        Self::MutexLock,
        Self::RwLockRead,
        Self::RwLockWrite,
        Self::CondvarWait,
        Self::WaitGroupWait,
        Self::Once,
        Self::Barrier,
        Self::Other,
    ];

    /// The words that tracebacks print for it.
    ///
    /// ```
    /// use footbridge::runtime::WaitReason;
    /// assert_eq!(WaitReason::ChanReceive.name(), "chan receive");
    /// ```
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::ChanSend => "chan send",
            Self::ChanReceive => "chan receive",
            Self::Select => "select",
            Self::SelectNoCases => "select (no cases)",
            Self::Sleep => "sleep",
            Self::Join => "join",
            Self::Scope => "scope",
            Self::MutexLock => "sync.Mutex.Lock",
            Self::RwLockRead => "sync.RWMutex.RLock",
            Self::RwLockWrite => "sync.RWMutex.Lock",
            Self::CondvarWait => "sync.Cond.Wait",
            Self::WaitGroupWait => "sync.WaitGroup.Wait",
            Self::Once => "once",
            Self::Barrier => "barrier",
            Self::Other => "parked",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitions_are_those_of_the_machine() {
        use Status::{Dead, Idle, Runnable, Running, Waiting};
        let all = [Idle, Runnable, Running, Waiting, Dead];
        let legal: Vec<_> = all
            .iter()
            .flat_map(|&a| all.iter().map(move |&b| (a, b)))
            .filter(|&(a, b)| a.may_become(b))
            .collect();
        assert_eq!(
            legal,
            [
                (Idle, Runnable),
                (Runnable, Running),
                (Running, Runnable),
                (Running, Waiting),
                (Running, Dead),
                (Waiting, Runnable),
                (Dead, Idle),
            ]
        );
    }
}
