//! What the tests that need root share: `packet.rs` builds and checks frames, `prog.rs` runs the real program on them,
//! `net.rs` starts labs with the real controller, `pinned.rs` ends and restarts it.

pub mod net;
pub mod packet;
pub mod pinned;
pub mod prog;
