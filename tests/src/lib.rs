//! What the tests that need root share: `packet.rs` builds and checks frames, `prog.rs` runs the real program on them.

pub mod packet;
pub mod prog;
