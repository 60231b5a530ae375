//! What the TCP segments of a host are, and when: a packet socket on its network card.

use std::{
    collections::BTreeMap,
    io, mem,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};

use crate::{device::packet_socket, topology::Host};

/// A TCP segment, as it left the host or came to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// When the kernel saw it.
    pub at: Instant,
    /// The host's end.
    pub here: SocketAddr,
    /// The other end.
    pub there: SocketAddr,
    /// It left the host.
    pub is_sent: bool,
    /// It is a RST.
    pub is_reset: bool,
}

/// A capture under way. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<io::Result<Vec<Segment>>>>,
}

/// Room for what has not been read, in bytes: seconds of all that a test sends.
const ROOM: libc::c_int = 64 << 20;
/// A stop is noticed in so long.
const PATIENCE: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
const ETHERNET: usize = 14;
const RESET: u8 = 1 << 2;

impl Capture {
    /// Captures at the host's `eth0`, both ways.
    pub fn start(host: &Host) -> Result<Self> {
        let every_protocol = libc::ETH_P_ALL as u16;
        let socket = host.netns.run(|| packet_socket("eth0", every_protocol))?;
        let socket = socket.context("open a socket to capture")?;
        let on: libc::c_int = 1;
        set_option(&socket, libc::SO_RCVBUFFORCE, &ROOM)
            .and_then(|()| set_option(&socket, libc::SO_TIMESTAMPNS, &on))
            .and_then(|()| set_option(&socket, libc::SO_RCVTIMEO, &PATIENCE))
            .context("prepare the socket to capture")?;
        let stop = Arc::new(AtomicBool::new(false));
        let for_stop = Arc::clone(&stop);
        let worker = thread::spawn(move || {
            let mut segments = Vec::new();
            while !for_stop.load(Ordering::Relaxed) {
                segments.extend(receive(&socket)?);
            }
            Ok(segments)
        });
        Ok(Self { stop, worker: Some(worker) })
    }

    /// Ends it: what was seen, the oldest first.
    pub fn finish(mut self) -> Result<Vec<Segment>> {
        self.stop.store(true, Ordering::Relaxed);
        let worker = self.worker.take().context("the capture was finished")?;
        let segments = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let segments = segments.context("capture")?;
        ensure!(!segments.is_empty(), "nothing was captured");
        Ok(segments)
    }
}

/// Of each connection that was reset, from its first segment sent at `from` or later to the RST; if that came before,
/// from the last segment.
pub fn reset_delays(segments: &[Segment], from: Instant) -> Vec<Duration> {
    let mut sent = BTreeMap::new();
    let mut delays = Vec::new();
    for segment in segments {
        let flow = (segment.here, segment.there);
        if segment.is_sent {
            let at = sent.entry(flow).or_insert(segment.at);
            if *at < from {
                *at = segment.at;
            }
        } else if segment.is_reset
            && let Some(at) = sent.get(&flow)
        {
            delays.push(segment.at.saturating_duration_since(*at));
        }
    }
    delays
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            // Whoever wanted its result has called `finish`.
            let _ = worker.join();
        }
    }
}

/// The next frame, if it is a TCP segment and comes soon.
fn receive(socket: &OwnedFd) -> io::Result<Option<Segment>> {
    let mut frame = [0u8; 128];
    let mut control = [0u64; 16];
    let mut iovec = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    // SAFETY: all-zero bytes are a valid sockaddr_ll and a valid msghdr.
    let (mut address, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &raw mut iovec;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to buffers of the sizes that it says, which outlive the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    if length < 0 {
        let error = io::Error::last_os_error();
        let is_nothing = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
        return if is_nothing { Ok(None) } else { Err(error) };
    }
    let frame = &frame[..frame.len().min(length as usize)];
    let is_sent = address.sll_pkttype == libc::PACKET_OUTGOING;
    let segment = |at| segment(frame, at, is_sent);
    Ok(stamp(&message).and_then(instant).and_then(segment))
}

/// When the kernel saw it, since 1970.
fn stamp(message: &libc::msghdr) -> Option<Duration> {
    // SAFETY: the kernel has filled the control data of this message, which outlives the borrow.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS) {
        return None;
    }
    // SAFETY: data of this type is a timespec; where it stands need not be aligned for one.
    let time = unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast::<libc::timespec>()) };
    Some(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

fn instant(since_1970: Duration) -> Option<Instant> {
    let (now, wall) = (Instant::now(), SystemTime::now());
    now.checked_sub(wall.duration_since(UNIX_EPOCH + since_1970).unwrap_or_default())
}

/// What it is, if it is TCP in IPv4 or IPv6 without extension headers.
fn segment(frame: &[u8], at: Instant, is_sent: bool) -> Option<Segment> {
    const TCP: u8 = 6;
    let ip = frame.get(ETHERNET..)?;
    let (from, to, tcp): (IpAddr, IpAddr, _) = match (frame[12..ETHERNET].as_array()?, *ip.first()? >> 4) {
        ([0x08, 0x00], 4) if *ip.get(9)? == TCP => {
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
            (address(12)?, address(16)?, ip.get(usize::from(ip[0] & 15) * 4..)?)
        }
        ([0x86, 0xdd], 6) if *ip.get(6)? == TCP => {
            let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
            (address(8)?, address(24)?, ip.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let (from, to) = (SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?));
    let (here, there) = if is_sent { (from, to) } else { (to, from) };
    Some(Segment { at, here, there, is_sent, is_reset: tcp.get(13)? & RESET != 0 })
}

fn set_option<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the option's value is a T of this size that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_counted_from_the_first_segment_sent_after_that_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let segment = |port, ms, is_sent, is_reset| Segment {
            at: at(ms),
            here: SocketAddr::from(([10, 88, 0, 2], port)),
            there: SocketAddr::from(([192, 0, 2, 10], 7)),
            is_sent,
            is_reset,
        };
        let segments = [
            segment(1, 0, true, false),
            segment(2, 1, true, false),
            segment(2, 2, false, true),
            segment(3, 9, true, false),
            segment(1, 10, true, false),
            segment(1, 200, true, false),
            segment(1, 201, false, true),
            segment(3, 202, false, false),
        ];
        let delays = reset_delays(&segments, at(5));
        assert_eq!(delays, [Duration::from_millis(1), Duration::from_millis(191)]);
    }

    #[test]
    fn tcp_is_told_from_the_rest() {
        let mut frame = vec![0; ETHERNET + 40];
        frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0]);
        frame[ETHERNET + 9] = 6;
        frame[ETHERNET + 12..ETHERNET + 24].copy_from_slice(&[10, 88, 0, 2, 192, 0, 2, 10, 0x12, 0x34, 0, 7]);
        frame[ETHERNET + 20 + 13] = RESET;
        let now = Instant::now();
        let found = segment(&frame, now, true).unwrap();
        assert_eq!(
            (found.here, found.there),
            ("10.88.0.2:4660".parse().unwrap(), "192.0.2.10:7".parse().unwrap())
        );
        assert!(found.is_reset && found.is_sent);
        assert_eq!(segment(&frame, now, false).unwrap().here, found.there);
        assert_eq!(segment(&frame[..ETHERNET + 25], now, true), None);
        frame[ETHERNET + 9] = 17;
        assert_eq!(segment(&frame, now, true), None);
    }
}
