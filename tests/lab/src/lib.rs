//! A whole little network in one machine: a client, a switch, a balancer and servers, each in a network namespace.
//!
//! [`Lab`] runs `xlb` in it and is what `cargo xtask run` and the network tests are made of. [`Topology`] is the
//! network alone. Everything is removed again on drop, also by a panic; what a killed process leaves behind is
//! removed by the next one that starts ([`netns::sweep`]). All of it needs root.

mod capture;
mod changed;
mod client;
mod device;
mod file;
mod flood;
mod lab;
mod long;
pub mod netns;
mod operate;
mod pair;
mod pinned;
mod process;
pub mod server;
mod status;
pub mod stop;
mod topology;
mod traffic;
mod udp;
mod xlb;

pub use capture::{Capture, Segment, reset_delays};
pub use changed::{with_control, with_lru_flow_table, with_other_bpf};
pub use client::{Client, Failure, Tally};
pub use file::{BackendLine, ConfigFile};
pub use flood::{Flood, FloodReport, Flooding};
pub use lab::{ConfigSource, Lab, LabConfig};
pub use long::{Back, Break, LongConns, LongReport, STALL};
pub use netns::{BPF_DIR, DIR_PREFIX, Netns, NetnsHandle};
pub use operate::{Event, Installed, xlb_under_test};
pub use pair::Pair;
pub use pinned::PinnedLink;
pub use process::{ServerProgram, beside_this_binary};
pub use rustix::process::Signal;
pub use status::{Backend, Status};
pub use topology::{Forward, Host, SERVICE_V4, SERVICE_V6, Topology, TopologyConfig};
pub use traffic::{Pace, Record, Traffic};
pub use udp::{UdpFlows, UdpRound};
pub use xlb::Xlb;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// The port on which every server answers HTTP with its name.
pub const HTTP_PORT: u16 = 80;
/// The port, TCP and UDP, on which every server echoes with its name in front.
pub const ECHO_PORT: u16 = 7;

/// The service's HTTP, IPv4.
pub const HTTP_V4: SocketAddr = SocketAddr::new(IpAddr::V4(SERVICE_V4), HTTP_PORT);
/// The service's HTTP, IPv6.
pub const HTTP_V6: SocketAddr = SocketAddr::new(IpAddr::V6(SERVICE_V6), HTTP_PORT);
/// The service's echo (TCP and UDP), IPv4.
pub const ECHO_V4: SocketAddr = SocketAddr::new(IpAddr::V4(SERVICE_V4), ECHO_PORT);
/// The service's echo (TCP and UDP), IPv6.
pub const ECHO_V6: SocketAddr = SocketAddr::new(IpAddr::V6(SERVICE_V6), ECHO_PORT);

/// Whether this process may make namespaces and load programs.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a test that needs root can run.
///
/// `false` prints why the test is skipped; with `XLB_REQUIRE_ROOT=1` (set by `cargo xtask test`) it panics instead.
pub fn root_or_skip() -> bool {
    if is_root() {
        return true;
    }
    let required = std::env::var_os("XLB_REQUIRE_ROOT").is_some_and(|v| v == "1");
    assert!(
        !required,
        "this test needs root (network namespaces), and XLB_REQUIRE_ROOT=1 forbids to skip it"
    );
    eprintln!("skipped: needs root (network namespaces)");
    false
}

/// Asks `poll` every 20 ms until it says `Some`; `None` when `limit` is over or a stop was asked for.
pub fn wait_for<T>(limit: Duration, mut poll: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = poll() {
            return Some(found);
        }
        if Instant::now() >= deadline || stop::requested() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
