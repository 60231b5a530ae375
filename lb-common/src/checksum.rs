//! Internet checksum arithmetic (RFC 1071, RFC 1624).
//!
//! Sums are kept as `u32` of 16-bit words and folded at the end. Words may be read in the host's order on both ends:
//! one's complement addition does not care (RFC 1071, section 2 (B)), as long as the result is stored the same way.

/// Folds carries into 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The words of some bytes, an even number of them. Unfolded: up to 128 KiB do not overflow.
#[inline(always)]
pub fn words<const N: usize>(bytes: &[u8; N]) -> u32 {
    const { assert!(N.is_multiple_of(2)) };
    let mut sum = 0;
    let mut at = 0;
    while at < N {
        sum += u16::from_ne_bytes([bytes[at], bytes[at + 1]]) as u32;
        at += 2;
    }
    sum
}

/// The words of an IPv4 address.
#[inline(always)]
pub const fn words4(address: [u8; 4]) -> u32 {
    let [a, b, c, d] = address;
    u16::from_ne_bytes([a, b]) as u32 + u16::from_ne_bytes([c, d]) as u32
}

/// Unfolded sum of an outer IPv4 header's constant words: version and header length with TOS 0, id 0, DF, the TTL
/// with protocol 0, and the addresses. The program adds TOS, total length and protocol and stores the complement.
pub const fn outer_header4(ttl: u8, source: [u8; 4], destination: [u8; 4]) -> u32 {
    u16::from_ne_bytes([0x45, 0]) as u32
        + u16::from_ne_bytes([0x40, 0]) as u32
        + u16::from_ne_bytes([ttl, 0]) as u32
        + words4(source)
        + words4(destination)
}

/// Checksum of an outer IPv4 header, to be stored as it is; `constant` from [`outer_header4`].
#[inline(always)]
pub const fn finish_header4(constant: u32, tos: u8, total_length: u16, protocol: u8) -> u16 {
    !fold(
        constant
            + u16::from_ne_bytes([0, tos]) as u32
            + total_length.to_be() as u32
            + u16::from_ne_bytes([0, protocol]) as u32,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_outer_header_has_the_checksum_that_etherparse_computes(
            ttl: u8, source: [u8; 4], destination: [u8; 4], tos: u8, length in 20u16.., protocol: u8,
        ) {
            let sum = finish_header4(outer_header4(ttl, source, destination), tos, length, protocol);
            let header = etherparse::Ipv4Header {
                dscp: etherparse::IpDscp::try_new(tos >> 2).unwrap(),
                ecn: etherparse::IpEcn::try_new(tos & 3).unwrap(),
                total_len: length,
                dont_fragment: true,
                time_to_live: ttl,
                protocol: protocol.into(),
                source,
                destination,
                ..Default::default()
            };
            prop_assert_eq!(sum.to_ne_bytes(), header.calc_header_checksum().to_be_bytes());
        }
    }
}
