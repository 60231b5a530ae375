//! What the tests that need root share: `packet.rs` builds and checks frames, `prog.rs` runs the real program on them
//! with maps that the engine fills, `raw.rs` with maps that the test fills, `flows.rs` has the real flow table,
//! `net.rs` starts labs with the real controller, `pinned.rs` ends and restarts it.

pub mod flows;
pub mod net;
pub mod packet;
pub mod pinned;
pub mod prog;
pub mod raw;
