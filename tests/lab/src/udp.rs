//! UDP flows: sockets with a port each, asked in rounds.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::client::Client;

/// What one round of datagrams, one a flow, brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpRound {
    /// Flows by the server that answered.
    pub by_server: BTreeMap<String, u64>,
    /// Flows without an answer.
    pub lost: u64,
    /// Flows answered by another server than the last time.
    pub moved: u64,
}

/// Datagrams under way at once: a veth with an XDP program queues 256 packets and drops what comes on top.
const AT_ONCE: usize = 64;

/// UDP flows from distinct source ports.
#[derive(Debug)]
pub struct UdpFlows {
    flows: Vec<(UdpSocket, Option<String>)>,
    rounds: u64,
}

impl UdpFlows {
    /// `count` flows to the echo address; nothing is sent yet.
    pub fn open(client: &Client, to: SocketAddr, count: usize) -> Result<Self> {
        let any = match to {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let one = |_| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            Ok((socket, None))
        };
        let flows = client.netns().run(|| (0..count).map(one).collect::<io::Result<_>>())?;
        Ok(Self { flows: flows.with_context(|| format!("open udp flows to {to}"))?, rounds: 0 })
    }

    /// Sends a datagram on each flow, some at a time, and collects answers for at most `timeout` in all.
    pub fn round(&mut self, timeout: Duration) -> Result<UdpRound> {
        self.rounds += 1;
        let payload = self.rounds.to_string();
        let deadline = Instant::now() + timeout;
        let mut round = UdpRound::default();
        for some in self.flows.chunks_mut(AT_ONCE) {
            for (socket, _) in &*some {
                // A refusal by ICMP of an earlier datagram shows here; it is a loss, which the receiving half counts.
                let _ = socket.send(payload.as_bytes());
            }
            for (socket, last) in some {
                let Some(server) = answer(socket, &payload, deadline)? else {
                    round.lost += 1;
                    continue;
                };
                round.moved += u64::from(last.as_ref().is_some_and(|last| *last != server));
                *round.by_server.entry(server.clone()).or_default() += 1;
                *last = Some(server);
            }
        }
        Ok(round)
    }
}

/// The server that answers `payload`; answers to earlier rounds are passed over.
fn answer(socket: &UdpSocket, payload: &str, deadline: Instant) -> Result<Option<String>> {
    let mut buffer = [0; 512];
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left)).context("set a time limit")?;
        let Ok(length) = socket.recv(&mut buffer) else { return Ok(None) };
        let text = String::from_utf8_lossy(&buffer[..length]);
        if let Some((server, rest)) = text.split_once(' ')
            && rest == payload
        {
            return Ok(Some(server.to_owned()));
        }
    }
}
