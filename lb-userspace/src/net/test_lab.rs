//! Two network namespaces with a cable between them, for tests as root: the thread of the test is in one, a helper
//! thread in the other. Both are anonymous: they vanish with their threads, also after a panic.

use std::{fs, future::Future, process::Command, sync::mpsc, thread};

use rustix::thread::UnshareFlags;

pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];

/// The test's side is `lb0`, 10.0.0.1 and 2001:db8::1; the other side is `p0`, `PEER_MAC`, 10.0.0.11 and 2001:db8::11.
pub struct Lab {
    jobs: mpsc::Sender<Job>,
    done: mpsc::Receiver<()>,
    /// Path of the other side's namespace.
    namespace: String,
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs a test in a laboratory of its own; without root it is skipped, or fails with `XLB_REQUIRE_ROOT=1`.
pub fn isolated<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("XLB_REQUIRE_ROOT").is_none_or(|value| value != "1"),
            "needs root to make network namespaces"
        );
        eprintln!("skipped: needs root to make network namespaces");
        return;
    }
    let _ = tracing_subscriber::fmt().with_test_writer().try_init(); // another test may have been first
    let run = move || {
        unshare_network();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test(Lab::new()));
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn unshare_network() {
    // SAFETY: only the network namespace of this thread changes; descriptors stay shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace");
}

/// Runs `ip` in the namespace of this thread; the arguments are separated by blanks.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

/// What `ip` prints.
pub fn ip_output(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Lab {
    fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (outbox, done) = mpsc::channel();
        let (announce, thread_id) = mpsc::channel();
        thread::spawn(move || {
            unshare_network();
            announce.send(rustix::thread::gettid()).expect("the test waits");
            for job in inbox {
                job();
                if outbox.send(()).is_err() {
                    return;
                }
            }
        });
        let thread_id = thread_id.recv().expect("the other side starts").as_raw_pid();
        let namespace = format!("/proc/{}/task/{thread_id}/ns/net", std::process::id());
        let lab = Self { jobs, done, namespace };
        ip("link set lo up");
        lab.connect();
        lab.peer("link set lo up");
        lab
    }

    /// Makes the cable and the addresses at both ends.
    pub fn connect(&self) {
        ip("link add lb0 type veth peer name p0 address 02:00:00:00:00:11");
        ip(&format!("link set p0 netns {}", self.namespace));
        ip("addr add 10.0.0.1/24 dev lb0");
        ip("addr add 2001:db8::1/64 dev lb0 nodad");
        for family in ["ipv4", "ipv6"] {
            set(family, "retrans_time_ms", "100"); // three of them make a failure
            set(family, "delay_first_probe_time", "1");
        }
        set("ipv4", "locktime", "0"); // else a MAC that changes within 1 s is not believed
        ip("link set lb0 up");
        self.peer("addr add 10.0.0.11/24 dev p0");
        self.peer("addr add 2001:db8::11/64 dev p0 nodad");
        self.peer("link set p0 up");
    }

    /// Runs `ip` at the other side.
    pub fn peer(&self, arguments: &str) {
        let arguments = arguments.to_owned();
        self.at_peer(move || ip(&arguments));
    }

    /// Changes the MAC of the other side, which announces it by a gratuitous ARP, as a router that takes over does.
    pub fn change_peer_mac(&self, mac: &str) {
        self.at_peer(|| fs::write("/proc/sys/net/ipv4/conf/p0/arp_notify", "1").expect("a parameter"));
        self.peer(&format!("link set p0 address {mac}"));
    }

    fn at_peer(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs.send(Box::new(job)).expect("the other side listens");
        self.done.recv().expect("the other side succeeds");
    }
}

/// Sets a neighbour parameter of `lb0`; `/proc/sys/net` is that of the calling thread's namespace.
fn set(family: &str, name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{family}/neigh/lb0/{name}"), value).expect("a neighbour parameter");
}
