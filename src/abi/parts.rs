//! The list of a value's parts. Nearly every value has one or two, which need no allocation.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use super::assign::Part;

/// The parts of a value, in the order of their offsets: a list that is read as a slice.
#[derive(Clone)]
pub struct Parts(List);

#[derive(Clone)]
enum List {
    One(Part),
    Two([Part; 2]),
    Other(Vec<Part>),
}

impl Parts {
    /// No part yet.
    pub(super) const fn new() -> Parts {
        Parts(List::Other(Vec::new()))
    }

    pub(super) fn push(&mut self, part: Part) {
        match &mut self.0 {
            List::Other(parts) if parts.is_empty() => self.0 = List::One(part),
            List::One(first) => self.0 = List::Two([*first, part]),
            List::Two([first, second]) => self.0 = List::Other(vec![*first, *second, part]),
            List::Other(parts) => parts.push(part),
        }
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut Part> {
        match &mut self.0 {
            List::One(part) => Some(part),
            List::Two([_, last]) => Some(last),
            List::Other(parts) => parts.last_mut(),
        }
    }
}

impl Deref for Parts {
    type Target = [Part];

    fn deref(&self) -> &[Part] {
        match &self.0 {
            List::One(part) => std::slice::from_ref(part),
            List::Two(parts) => parts,
            List::Other(parts) => parts,
        }
    }
}

impl From<Part> for Parts {
    fn from(part: Part) -> Parts {
        Parts(List::One(part))
    }
}

impl FromIterator<Part> for Parts {
    fn from_iter<I: IntoIterator<Item = Part>>(parts: I) -> Parts {
        let mut list = Parts::new();
        parts.into_iter().for_each(|part| list.push(part));
        list
    }
}

impl<'a> IntoIterator for &'a Parts {
    type Item = &'a Part;
    type IntoIter = std::slice::Iter<'a, Part>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for Parts {
    fn eq(&self, other: &Parts) -> bool {
        **self == **other
    }
}

impl Eq for Parts {}

impl Hash for Parts {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::loc::Gpr;

    #[test]
    fn any_number_of_parts_is_the_slice_of_them() {
        let parts: Vec<Part> =
            Gpr::ALL.iter().zip(0..).map(|(gpr, i)| Part::new((*gpr).into(), i * 8, 8)).collect();
        for n in 0..parts.len() {
            let mut list: Parts = parts[..n].iter().copied().collect();
            assert_eq!(*list, parts[..n]);
            assert_eq!(list.last_mut().copied(), parts[..n].last().copied());
            list.push(parts[n]);
            assert_eq!(*list, parts[..=n]);
        }
        assert_eq!(Parts::from(parts[3]), parts[3..4].iter().copied().collect());
    }
}
