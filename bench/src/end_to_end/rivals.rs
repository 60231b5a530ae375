//! What people would pick instead, each on a host of its own beside xlb's, set up as its manual says, logging off.

use std::{
    env, fs,
    fs::File,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lb_lab::{
    DIR_PREFIX, HTTP_PORT, Lab, Netns,
    netns::{RUN_DIR, unique},
    wait_for,
};

use super::cpu::Processes;

/// It serves in so long.
const LONGEST_START: Duration = Duration::from_secs(10);
/// Where Debian has the module that nginx needs for TCP; elsewhere it may be built in.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// A kind of balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HAProxy in TCP mode.
    Haproxy,
    /// nginx with its stream module.
    Nginx,
    /// nftables: DNAT by a hash, and masquerading for the way back.
    Nftables,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Haproxy, Self::Nginx, Self::Nftables];

    /// How people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "HAProxy, TCP mode",
            Self::Nginx => "nginx, stream",
            Self::Nftables => "nftables, DNAT",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Nftables => "nft",
        }
    }

    fn address(self) -> Ipv4Addr {
        match self {
            Self::Haproxy => Ipv4Addr::new(10, 88, 0, 21),
            Self::Nginx => Ipv4Addr::new(10, 88, 0, 22),
            Self::Nftables => Ipv4Addr::new(10, 88, 0, 23),
        }
    }
}

/// A balancer that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Rival {
    // Dropped in order: see `drop`, then its namespace.
    process: Option<Child>,
    dir: PathBuf,
    kind: Kind,
    netns: Netns,
}

impl Rival {
    /// Starts it on a host of the lab's first bridge; `Err(why)` inside if this machine does not have it.
    pub fn start(kind: Kind, lab: &Lab) -> Result<Result<Self, String>> {
        let Some(program) = find(kind.program()) else {
            return Ok(Err(format!("{} is left out: it is not installed", kind.name())));
        };
        let netns = host(kind, lab)?;
        let dir = Path::new(RUN_DIR).join(format!("{DIR_PREFIX}{}-{}", std::process::id(), unique()));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut rival = Self { process: None, dir, kind, netns };
        let servers: Vec<_> = lab.topology().servers().iter().map(|host| host.v4).collect();
        match kind {
            Kind::Haproxy => {
                let file = rival.file(&haproxy(&servers)?)?;
                rival.spawn(&program, &["-db", "-f", &file])?;
            }
            Kind::Nginx => {
                let file = rival.file(&nginx(&servers, &rival.dir))?;
                let dir = rival.dir.display().to_string();
                rival.spawn(&program, &["-p", &dir, "-c", &file, "-e", "stderr"])?;
            }
            Kind::Nftables => {
                if let Err(why) = rival.nft(&program, &servers)? {
                    return Ok(Err(format!("{} is left out: {why}", kind.name())));
                }
            }
        }
        rival.wait(lab)?;
        Ok(Ok(rival))
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it serves.
    pub fn at(&self) -> SocketAddr {
        SocketAddr::new(self.kind.address().into(), HTTP_PORT)
    }

    /// Its processes; none if the kernel does it all.
    pub fn processes(&self) -> Result<Option<Processes>> {
        self.process.as_ref().map(|child| Processes::tree(child.id())).transpose()
    }

    /// Writes its configuration, and says where.
    fn file(&self, text: &str) -> Result<String> {
        let path = self.dir.join("configuration");
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// Starts it in the foreground, in a process namespace of its own: its workers end with it, however it ends.
    fn spawn(&mut self, program: &Path, arguments: &[&str]) -> Result<()> {
        let log = File::create(self.dir.join("log")).context("create the log")?;
        let mut command = self.netns.command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--"]).arg(program).args(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.process = Some(command.spawn().with_context(|| format!("start {}", program.display()))?);
        Ok(())
    }

    /// Loads the rules; `Err` inside is what nft says, such as what the kernel lacks.
    fn nft(&self, program: &Path, servers: &[Ipv4Addr]) -> Result<Result<(), String>> {
        // On one network the kernel would tell the client of the shorter way to the server.
        self.netns.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/eth0/send_redirects", "0"),
        ])?;
        let mut command = self.netns.command(program);
        command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start nft")?;
        let rules = nftables(self.kind.address(), servers);
        child.stdin.take().context("no stdin")?.write_all(rules.as_bytes()).context("write to nft")?;
        let output = child.wait_with_output().context("wait for nft")?;
        if output.status.success() {
            return Ok(Ok(()));
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Err(text.lines().next().unwrap_or("nft failed").to_owned()))
    }

    /// Waits until it serves.
    fn wait(&mut self, lab: &Lab) -> Result<()> {
        let at = self.at();
        let answers = || lab.client().http_get(at, Duration::from_secs(1)).ok();
        let ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
        let served = wait_for(LONGEST_START, || {
            if self.process.as_mut().is_some_and(ended) { Some(false) } else { answers().map(|_| true) }
        });
        if served == Some(true) {
            return Ok(());
        }
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        bail!("{} does not serve; its log:\n{log}", self.kind.name())
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            // The first process of its namespace, whose end is that of all in there and of `unshare`; what comes after
            // is for a failure. Nobody to tell.
            let inner = Processes::below(child.id()).map(|processes| processes.kill());
            if !matches!(inner, Ok(true)) {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A namespace with `eth0` on the bridge of the lab.
fn host(kind: Kind, lab: &Lab) -> Result<Netns> {
    let switch = lab.topology().switch();
    let netns = Netns::create(unique(), kind.program())?;
    let port = format!("p-{}", kind.program());
    switch.ip_batch(&format!(
        "link add {port} type veth peer name eth0 netns {}\nlink set {port} master br0\nlink set {port} up\n",
        netns.name()
    ))?;
    netns.ip_batch(&format!("address add {}/24 dev eth0\nlink set eth0 up\n", kind.address()))?;
    Ok(netns)
}

/// HAProxy with a thread a CPU.
fn haproxy(servers: &[Ipv4Addr]) -> Result<String> {
    let threads = std::thread::available_parallelism().context("count the CPUs")?;
    let mut text = format!(
        "global
    maxconn 4096
    nbthread {threads}
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen web
    bind {}:{HTTP_PORT}
    balance roundrobin
",
        Kind::Haproxy.address()
    );
    for (number, server) in servers.iter().enumerate() {
        text += &format!("    server s{} {server}:{HTTP_PORT} check inter 2s\n", number + 1);
    }
    Ok(text)
}

/// nginx with a worker a CPU.
fn nginx(servers: &[Ipv4Addr], dir: &Path) -> String {
    let module = Path::new(NGINX_STREAM).exists();
    let module = if module { format!("load_module {NGINX_STREAM};\n") } else { String::new() };
    let servers: Vec<_> =
        servers.iter().map(|server| format!("        server {server}:{HTTP_PORT};")).collect();
    let servers = servers.join("\n");
    format!(
        "{module}daemon off;
pid {}/pid;
worker_processes auto;
events {{
    worker_connections 8192;
}}
stream {{
    upstream web {{
{servers}
    }}
    server {{
        listen {}:{HTTP_PORT} backlog=4096;
        proxy_pass web;
    }}
}}
",
        dir.display(),
        Kind::Nginx.address()
    )
}

/// New connections get a server by the hash of their source; conntrack keeps them there. Masquerading brings the
/// answers back through here, as the client is on the servers' own network.
fn nftables(at: Ipv4Addr, servers: &[Ipv4Addr]) -> String {
    let map: Vec<_> = servers.iter().enumerate().map(|(n, server)| format!("{n} : {server}")).collect();
    format!(
        "table ip lb {{
    chain prerouting {{
        type nat hook prerouting priority -100
        ip daddr {at} tcp dport {HTTP_PORT} dnat to jhash ip saddr . tcp sport mod {} map {{ {} }}
    }}
    chain postrouting {{
        type nat hook postrouting priority 100
        ip daddr {{ {} }} tcp dport {HTTP_PORT} masquerade
    }}
}}
",
        servers.len(),
        map.join(", "),
        servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )
}

/// A program on the path, or where Debian keeps those that an ordinary user's path lacks.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|dir: PathBuf| dir.join(program)).find(|path| path.is_file())
}
