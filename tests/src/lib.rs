//! What the tests that need root share: `packet.rs` builds and checks frames, `prog.rs` runs the real program on them,
//! `net.rs` starts labs with the real controller.

pub mod net;
pub mod packet;
pub mod prog;
