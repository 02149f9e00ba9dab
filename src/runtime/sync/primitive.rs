//! What the lock-free protocols are built from. The models put loom's primitives in this place.

pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence,
};

pub(crate) use crate::runtime::os::futex::{heavy_fence, light_fence};
