//! Why the program did what it did with a packet: counter index, metric label and trace text in one.

/// One reason for each way out of the program. Numbers are append-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Outcome {
    /// Sent to a backend by the interface it came in by.
    Forwarded = 0,
    /// Sent to a backend by another interface.
    Redirected = 1,
    /// For no service: left untouched to the host's stack.
    PassNotOurs = 2,
    /// To a service address, with lengths or flags that cannot be.
    DropMalformed = 3,
    /// Source address that no packet may have: loopback, multicast, unspecified, the service's own.
    DropBadSource = 4,
    /// A fragment to a service address.
    DropFragment = 5,
    /// The service has no eligible backend.
    DropNoBackend = 6,
    /// The backend's next hop is not known.
    DropNoNextHop = 7,
    /// The backend's interface cannot be redirected to.
    DropNoDevice = 8,
    /// No room in front of the packet for the outer header.
    DropNoHeadroom = 9,
    /// Nobody can serve the flow: the client was told by a TCP RST or an ICMP port unreachable.
    Rejected = 10,
    /// Nobody can serve the flow, and the client was not told: a RST is not answered, the rate was reached, or there is
    /// no room for an answer.
    DropLost = 11,
}

impl Outcome {
    /// Every outcome, by number.
    pub const ALL: [Self; 12] = [
        Self::Forwarded,
        Self::Redirected,
        Self::PassNotOurs,
        Self::DropMalformed,
        Self::DropBadSource,
        Self::DropFragment,
        Self::DropNoBackend,
        Self::DropNoNextHop,
        Self::DropNoDevice,
        Self::DropNoHeadroom,
        Self::Rejected,
        Self::DropLost,
    ];

    /// Size of the counter map: room to grow without another layout.
    pub const CAPACITY: u32 = 64;

    /// Its name in `status`, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Redirected => "redirected",
            Self::PassNotOurs => "pass_not_ours",
            Self::DropMalformed => "drop_malformed",
            Self::DropBadSource => "drop_bad_source",
            Self::DropFragment => "drop_fragment",
            Self::DropNoBackend => "drop_no_backend",
            Self::DropNoNextHop => "drop_no_next_hop",
            Self::DropNoDevice => "drop_no_device",
            Self::DropNoHeadroom => "drop_no_headroom",
            Self::Rejected => "rejected",
            Self::DropLost => "drop_lost",
        }
    }

    /// Whether the packet went to a backend; such packets are counted in the backend's entry, not in `OUTCOMES`.
    #[inline(always)]
    pub const fn is_sent(self) -> bool {
        matches!(self, Self::Forwarded | Self::Redirected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_fit_the_map() {
        for (number, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, number);
        }
        assert!(Outcome::ALL.len() <= Outcome::CAPACITY as usize);
    }

    #[test]
    fn names_are_unique() {
        for a in Outcome::ALL {
            assert_eq!(Outcome::ALL.iter().filter(|b| b.name() == a.name()).count(), 1, "{}", a.name());
        }
    }
}
