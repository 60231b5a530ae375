//! A server that answers each connection at once, for probes.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_lab::{HTTP_PORT, NetnsHandle};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::Timespec,
};

/// A client that says nothing is left alone after so long.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Ends when it is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Listens on [`HTTP_PORT`] of all addresses of a namespace.
    pub fn start(netns: &NetnsHandle) -> Result<Self> {
        let bind = || {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, HTTP_PORT))?;
            listener.set_nonblocking(true).map(|()| listener)
        };
        let listener = netns.run(bind)?.context("listen in the servers' namespace")?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = Some(thread::spawn(move || serve(&listener, &told)));
        Ok(Self { stop, thread })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it panicked with has been printed.
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => answer(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // A signal may end the wait: looked at again.
                let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&wait));
            }
            // The client is gone already.
            Err(_) => {}
        }
    }
}

/// A client that asks is answered; probes that only connect close at once. What goes wrong is the probe's to report.
fn answer(mut stream: TcpStream) {
    let mut request = [0; 1024];
    let asked = stream.set_read_timeout(Some(LONGEST_WAIT)).and_then(|()| stream.read(&mut request));
    if asked.is_ok_and(|length| length > 0) {
        let _ = stream.write_all(ANSWER);
    }
}
