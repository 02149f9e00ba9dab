#![allow(unsafe_code, reason = "names are reached through raw pointers")]
//! Names of goroutines.
//!
//! A name is for people: panics and tracebacks print it. Most goroutines have none, and pay for
//! that with one load when a G is used again.
//!
//! **Invariant.** A name is freed when its G is used again, and not when its goroutine ends. So the
//! goroutine itself (in the handler of a fault, too) and its `JoinHandle` read the name without a
//! lock. All other threads read it under [`NAMES`], and compare the number of the goroutine under
//! that lock. When a G is used again, the old name is freed, then the number changes, then the new
//! name is set: a thread that finds the right number under the lock finds no other goroutine's
//! name.

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

/// Held while a name is set, freed, or copied by a thread that is neither the goroutine's nor has
/// its handle. A leaf lock: nothing else is locked, and no goroutine parks, while it is held.
static NAMES: Mutex<()> = Mutex::new(());

/// The name of a goroutine that is about to start. Boxed twice, so that a pointer to it is one
/// word.
pub(crate) struct Name(Box<Box<str>>);

impl Name {
    pub(crate) fn new(name: Box<str>) -> Self {
        Self(Box::new(name))
    }
}

/// The name of the goroutine in a G, if it has one.
pub(crate) struct NameCell(AtomicPtr<Box<str>>);

impl NameCell {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Frees the name of the previous goroutine. The caller owns the G, which has its old number.
    #[inline(always)]
    pub(crate) fn clear(&self) {
        if !self.0.load(Ordering::Relaxed).is_null() {
            self.free();
        }
    }

    #[cold]
    fn free(&self) {
        let lock = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        let name = self.0.swap(ptr::null_mut(), Ordering::Relaxed);
        drop(lock);
        // SAFETY: `set` stored it, and `clear` found it not null. The previous goroutine has ended
        // and its handle is gone; all other threads read it under the lock.
        drop(unsafe { Box::from_raw(name) });
    }

    /// Names the new goroutine. The caller owns the G, which has no name and has its new number.
    #[cold]
    pub(crate) fn set(&self, name: Name) {
        let _lock = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.store(Box::into_raw(name.0), Ordering::Release);
    }

    /// The name. Takes no lock: for the goroutine itself and for its handle. A signal handler may
    /// call it.
    ///
    /// # Safety
    /// The goroutine has not ended, or its handle exists, as long as the name is used.
    pub(crate) unsafe fn get(&self) -> Option<&str> {
        // SAFETY: null, or from `set` and not freed by the contract.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }.map(|name| &**name)
    }

    /// A copy of the name, if `is_same` finds under the lock that the G is still the goroutine that
    /// the caller means.
    pub(crate) fn copy(&self, is_same: impl FnOnce() -> bool) -> Option<String> {
        let _lock = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_same() {
            return None;
        }
        // SAFETY: null, or from `set`; it is freed under the lock.
        unsafe { self.0.load(Ordering::Relaxed).as_ref() }.map(|name| name.to_string())
    }
}

/// A goroutine as it is printed: `goroutine 7`, or `goroutine 7 "pump"`. Does not allocate.
pub(crate) struct Label<'a> {
    pub(crate) id: u64,
    pub(crate) name: Option<&'a str>,
}

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "goroutine {}", self.id)?;
        // Quoted and escaped: a name may be any text, and a traceback has one line for it.
        self.name.map_or(Ok(()), |name| write!(f, " {name:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_there_from_set_to_clear() {
        let cell = NameCell::new();
        cell.clear();
        // SAFETY: no name is freed while it is used.
        unsafe {
            assert_eq!(cell.get(), None);
            cell.set(Name::new("pump".into()));
            assert_eq!(cell.get(), Some("pump"));
        }
        assert_eq!(cell.copy(|| true).as_deref(), Some("pump"));
        assert_eq!(cell.copy(|| false), None);
        cell.clear();
        assert_eq!(cell.copy(|| true), None);
    }

    #[test]
    fn labels_escape_names() {
        let label = |name| Label { id: 7, name }.to_string();
        assert_eq!(label(None), "goroutine 7");
        assert_eq!(label(Some("pump")), "goroutine 7 \"pump\"");
        assert_eq!(label(Some("a \"b\"\n")), "goroutine 7 \"a \\\"b\\\"\\n\"");
    }
}
