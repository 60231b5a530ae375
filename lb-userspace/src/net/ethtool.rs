//! Reads a NIC's settings with the ethtool ioctls: in use since Linux 2.6 and in every driver, so lighter than the
//! netlink of the same name, which has to look up a family first.

use std::{io, mem, os::fd::AsRawFd as _, os::fd::OwnedFd};

use rustix::net::{AddressFamily, SocketType};

/// `linux/ethtool.h`
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// Settings of a NIC; `None` where the driver does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NicFeatures {
    /// The NIC takes VLAN tags out of received frames.
    pub rx_vlan_offload: Option<bool>,
    /// The NIC merges received TCP segments (large receive offload).
    pub lro: Option<bool>,
    /// Its receive queues.
    pub rx_queues: Option<RxQueues>,
    /// CPUs online on this host.
    pub cpus: u32,
}

/// The receive queues of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RxQueues {
    /// In use.
    pub used: u32,
    /// Possible.
    pub max: u32,
    /// The queues are pairs of receive and transmit, so `ethtool -L` calls them `combined`.
    pub combined: bool,
}

impl NicFeatures {
    /// Reads them for an interface of the calling thread's network namespace. What the driver does not support is
    /// `None`; errors are those of the interface (`ENODEV`: there is none).
    pub fn read(interface: &str) -> io::Result<Self> {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        let mut value = Value { command: ETHTOOL_GFLAGS, data: 0 };
        let flags = supported(ethtool(&socket, interface, &mut value))?.map(|()| value.data);
        let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
        let channels = supported(ethtool(&socket, interface, &mut channels))?.map(|()| channels);
        Ok(Self {
            rx_vlan_offload: flags.map(|flags| flags & ETH_FLAG_RXVLAN != 0),
            lro: flags.map(|flags| flags & ETH_FLAG_LRO != 0),
            rx_queues: channels.map(Channels::rx_queues),
            cpus: online_cpus(),
        })
    }
}

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_channels`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

impl Channels {
    fn rx_queues(self) -> RxQueues {
        let combined = self.max_combined > 0;
        let max = if combined { self.max_combined } else { self.max_rx };
        RxQueues { used: self.rx + self.combined, max, combined }
    }
}

/// The structures that the ethtool ioctl reads and writes.
///
/// # Safety
/// The type must be exactly the kernel's structure of the command in its first field.
unsafe trait Request {}
// SAFETY: `Value` is `struct ethtool_value`, the structure of ETHTOOL_GFLAGS, the only command it is made with.
unsafe impl Request for Value {}
// SAFETY: `Channels` is `struct ethtool_channels`, the structure of ETHTOOL_GCHANNELS, the only command it is made with.
unsafe impl Request for Channels {}

fn ethtool<T: Request>(socket: &OwnedFd, interface: &str, request: &mut T) -> io::Result<()> {
    // SAFETY: an `ifreq` is integers, arrays and unions of them: all zeroes are a value of it.
    let mut argument: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero: the name ends there.
    if interface.len() >= argument.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in argument.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    argument.ifr_ifru.ifru_data = std::ptr::from_mut(request).cast();
    // SAFETY: SIOCETHTOOL takes a pointer to an `ifreq` whose data points to the structure of the command in it, which
    // `Request` promises; both live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn supported(result: io::Result<()>) -> io::Result<Option<()>> {
    match result {
        Ok(()) => Ok(Some(())),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

fn online_cpus() -> u32 {
    // SAFETY: sysconf takes a number and returns one.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u32::try_from(cpus).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_answers_without_root() {
        let lo = NicFeatures::read("lo").expect("lo exists");
        assert_eq!(lo.rx_vlan_offload, Some(false));
        assert_eq!(lo.lro, Some(false));
        assert_eq!(lo.rx_queues, None, "lo has no channels");
        assert!(lo.cpus >= 1);
    }

    #[test]
    fn a_missing_interface_is_an_error() {
        for name in ["xlb-none0", "a-name-that-is-longer-than-fits"] {
            let error = NicFeatures::read(name).expect_err("no such interface");
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV), "{name}");
        }
    }

    #[test]
    fn receive_queues_are_combined_or_alone() {
        let combined = Channels { max_combined: 8, combined: 2, ..Channels::default() };
        assert_eq!(combined.rx_queues(), RxQueues { used: 2, max: 8, combined: true });
        let alone = Channels { max_rx: 4, max_tx: 4, rx: 1, tx: 1, ..Channels::default() };
        assert_eq!(alone.rx_queues(), RxQueues { used: 1, max: 4, combined: false });
    }
}
