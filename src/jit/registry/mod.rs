//! Which code is at an address: the table of every stub, readable in a signal handler.
//!
//! A *region* is a range of addresses with two tables beside it: one word per 64-byte granule, and
//! one descriptor per piece of code. An arena is a region whose memory the crate owns; a
//! [`ForeignRegion`] is one whose memory its user owns. Regions are never removed, so a lookup is
//! one comparison per region, one load, and (for names) one descriptor.
//!
//! Nothing in the lookup path may take a lock, allocate, panic or touch a thread-local.

mod foreign;
mod info;
mod kind;
mod primitive;
pub(crate) mod protocol;
mod region;

pub use foreign::{ForeignCode, ForeignRegion};
pub use info::{StubInfo, lookup};
pub use kind::StubKind;

pub(crate) use kind::Flags;
pub(crate) use region::{Publication, Region, StubId};

crate::for_runtime! {
    pub(crate) use info::lookup_return;
    pub(crate) use region::has_preemptible_code;
}
