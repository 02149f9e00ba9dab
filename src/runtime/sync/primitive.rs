//! What the protocols of this room are built from. The models put a module of this name, with
//! loom's primitives, in its place: a file that takes an atomic from elsewhere is not modelled.

pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence,
};

pub(crate) use crate::runtime::os::futex::{heavy_fence, light_fence};
