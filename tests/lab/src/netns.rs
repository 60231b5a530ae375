//! Network namespaces that go away by themselves.
//!
//! Only the network is switched, never the mounts (unlike `ip netns exec`, which hides bpffs): pins stay visible, and
//! `/sys/class/net` still shows the outer namespace.

use std::{
    fs::{self, File},
    io,
    ops::Deref,
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use rustix::{
    process::{Signal, set_parent_process_death_signal},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::process::run_ip;

/// Where the directories of running labs are.
pub const RUN_DIR: &str = "/run";
/// Where their BPF pins are.
pub const BPF_DIR: &str = "/sys/fs/bpf";
/// The names in both are `xlb-lab-<pid>-<n>`.
pub const DIR_PREFIX: &str = "xlb-lab-";

/// A number that no other lab, topology or namespace of this process has.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A network namespace, removed on drop. Its name is `xlb-<pid>-<n>-<role>`.
#[derive(Debug)]
pub struct Netns {
    handle: NetnsHandle,
}

/// A way into a namespace, for threads and children; it does not keep the name alive.
#[derive(Debug, Clone)]
pub struct NetnsHandle {
    name: Arc<str>,
    file: Arc<File>,
}

impl Netns {
    /// Creates a namespace with `lo` up and no duplicate address detection. `group` is the number that the namespaces of one topology share.
    pub fn create(group: u32, role: &str) -> Result<Self> {
        sweep();
        let name = format!("xlb-{}-{group}-{role}", std::process::id());
        run_ip(&["netns", "add", &name])?;
        let netns = NetnsHandle::open(&name).map(|handle| Self { handle }).inspect_err(|_| remove(&name))?;
        // Without this IPv6 is deaf for the first seconds of each device: its link-local address is being checked.
        netns.sysctl(&[("net/ipv6/conf/all/accept_dad", "0"), ("net/ipv6/conf/default/accept_dad", "0")])?;
        netns.ip_batch("link set lo up\n")?;
        Ok(netns)
    }

    /// A way in that can be cloned and sent.
    pub fn handle(&self) -> NetnsHandle {
        self.handle.clone()
    }
}

impl Deref for Netns {
    type Target = NetnsHandle;

    fn deref(&self) -> &NetnsHandle {
        &self.handle
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.handle.name);
    }
}

impl NetnsHandle {
    /// Opens a namespace that exists, by its name under `/run/netns`.
    pub fn open(name: &str) -> Result<Self> {
        let path = netns_path(name);
        let file = File::open(&path).with_context(|| format!("open namespace {}", path.display()))?;
        Ok(Self { name: name.into(), file: Arc::new(file) })
    }

    /// The name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into the namespace for good: for threads made for the purpose.
    pub fn enter(&self) -> io::Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    }

    /// Runs `work` in a thread of its own inside the namespace and waits for it. A panic in there goes on out here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| self.enter().map(|()| work()));
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .with_context(|| format!("enter namespace {}", self.name))
    }

    /// A command that will run inside the namespace and dies with the thread that starts it: programs of a lab are
    /// started from a thread that lives as long as the process.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let file = Arc::clone(&self.file);
        let mut command = Command::new(program.as_ref());
        let enter = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        };
        // SAFETY: between fork and exec only two system calls are made; nothing is allocated or locked.
        unsafe {
            command.pre_exec(enter);
        }
        command
    }

    /// Runs many `ip` commands inside the namespace, one a line.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        crate::process::run_ip_batch(&self.name, lines)
    }

    /// Writes `value` to `/proc/sys/<key>` as seen from inside the namespace; keys like `net/ipv4/ip_forward`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                fs::write(format!("/proc/sys/{key}"), value)
                    .with_context(|| format!("set {key} = {value}"))?;
            }
            Ok(())
        })?
    }
}

fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Removes a namespace and says so if that fails: a drop has nobody to return an error to.
fn remove(name: &str) {
    if netns_path(name).exists()
        && let Err(error) = run_ip(&["netns", "del", name])
    {
        eprintln!("could not remove namespace {name}: {error:#}");
    }
}

/// Removes what labs of dead processes left behind: namespaces, run directories, BPF pins. Runs once a process.
///
/// Namespaces under this process's own id are of a dead one, too: the first one of ours is made after this.
pub fn sweep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for name in stale("/run/netns", "xlb-") {
            remove(&name);
        }
        for dir in [RUN_DIR, BPF_DIR] {
            for name in stale(dir, DIR_PREFIX) {
                let path = Path::new(dir).join(name);
                if let Err(error) = fs::remove_dir_all(&path) {
                    eprintln!("could not remove {}: {error}", path.display());
                }
            }
        }
    });
}

/// The names in `dir` of the form `<prefix><pid>-...` whose process is gone (or is this one).
fn stale(dir: &str, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            owner(name, prefix).is_some_and(|pid| {
                pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists()
            })
        })
        .collect()
}

/// The process id in a name of the form `<prefix><pid>-...`.
pub fn owner(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_have_an_owner() {
        assert_eq!(owner("xlb-4711-2-client", "xlb-"), Some(4711));
        assert_eq!(owner("4711-2", ""), Some(4711));
        assert_eq!(owner("xlb-lab-4711-2", "xlb-lab-"), Some(4711));
        assert_eq!(owner("xlb-lab-4711-2", "xlb-"), None);
        assert_eq!(owner("cni-4711-2", "xlb-"), None);
        assert_eq!(owner("xlb-4711", "xlb-"), None);
    }
}
