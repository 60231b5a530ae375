//! Who holds a lock, to be told to whoever wants it.

use rustix::fs::{major, minor};

/// The process that holds a `flock` on this file, if it can be seen from here.
pub(super) fn of(device: u64, inode: u64) -> Option<u32> {
    find(&std::fs::read_to_string("/proc/locks").ok()?, device, inode)
}

/// As `/proc/locks` tells it: `1: FLOCK  ADVISORY  WRITE 4711 00:1f:2042 0 EOF`. Those that wait have an arrow before.
fn find(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, _, _, pid, of) =
            (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
        // Of another process id namespace, the number is 0 or -1.
        (kind == "FLOCK" && of == file).then(|| pid.parse().ok().filter(|pid| *pid != 0)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_and_not_those_who_wait() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:1f:2042 0 EOF
2: FLOCK  ADVISORY  WRITE 12 00:1f:20420 0 EOF
3: -> FLOCK  ADVISORY  WRITE 13 00:1f:2042 0 EOF
4: FLOCK  ADVISORY  WRITE 14 00:1f:2042 0 EOF
5: FLOCK  ADVISORY  WRITE 0 00:1f:2043 0 EOF
";
        let device = rustix::fs::makedev(0, 0x1f);
        assert_eq!(find(locks, device, 2042), Some(14));
        assert_eq!(find(locks, device, 2043), None);
        assert_eq!(find(locks, device, 2044), None);
        assert_eq!(find("", device, 2042), None);
    }

    #[test]
    fn the_kernel_writes_it_so() {
        let file = tempfile::tempfile().unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        // Some file systems show another device in /proc/locks than in stat: then nobody is named.
        if let Some(pid) = of(stat.st_dev, stat.st_ino) {
            assert_eq!(pid, std::process::id());
        }
    }
}
