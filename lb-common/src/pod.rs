//! The map types may be copied to and from the kernel as bytes.

use crate::backend::{Backend, BackendStats};
use crate::flow::{FlowKey, Pin, PinStats, SweepItem};
use crate::lookup::{Entry, Line};
use crate::record::Record;
use crate::service::{Service, ServiceKey4, ServiceKey6};

macro_rules! pod {
    ($($t:ty),*) => {$(
        // SAFETY: `repr(C)`, no padding (each type's size is asserted where it is defined), every bit pattern is valid.
        unsafe impl aya::Pod for $t {}
    )*};
}

pod!(
    Backend,
    BackendStats,
    Entry,
    FlowKey,
    Line,
    Pin,
    PinStats,
    Record,
    Service,
    ServiceKey4,
    ServiceKey6,
    SweepItem
);
