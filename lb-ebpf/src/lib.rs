//! What the XDP programs share: access to the packet.

#![no_std]

pub mod packet;
