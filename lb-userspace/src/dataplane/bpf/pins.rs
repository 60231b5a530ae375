//! The pin directory: where it may be, who has it, what is in it.
//!
//! ```text
//! <pin-dir>/            locked by the one controller that works here
//!   v1/                 one directory a layout; those of other layouts are never looked into
//!     prog
//!     link-<interface>
//!     maps/<NAME>
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::BorrowedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock, statfs},
    io::Errno,
    mount::{MountFlags, mount},
};

use super::{error::PinError, holder, link::Link, names, sys};

/// Where a BPF file system is usually mounted.
const MOUNT_POINT: &str = "/sys/fs/bpf";
/// `statfs` answers this for a BPF file system.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Tries, 20 ms apart, to be alone at the mount point.
const MOUNT_TRIES: u32 = 100;
/// Tries to lock a directory that others make and remove meanwhile.
const LOCK_TRIES: u32 = 10;

/// A pin directory that is ours alone. The lock goes with the value, and with the process however it ends.
#[derive(Debug)]
pub struct PinDir {
    path: PathBuf,
    lock: File,
}

/// What [`detach`] removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Interfaces whose data path was taken off.
    pub interfaces: Vec<String>,
    /// Directories of pins.
    pub directories: Vec<PathBuf>,
}

impl PinDir {
    /// Makes the directory, after mounting a BPF file system where one belongs, and locks it.
    pub fn lock(path: &Path) -> Result<Self, PinError> {
        let path =
            std::path::absolute(path).map_err(|e| PinError::io(format!("find {}", path.display()), e))?;
        ensure_mounted(&path)?;
        let lock = lock(&path, true)?;
        Ok(Self { path, lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of this layout's pins.
    pub(super) fn version(&self) -> PathBuf {
        self.path.join(names::version_dir())
    }

    /// The program's pin.
    pub(super) fn program(&self) -> PathBuf {
        self.version().join("prog")
    }

    /// The pin of an interface's link.
    pub(super) fn link(&self, interface: &str) -> PathBuf {
        self.version().join(names::link(interface))
    }

    /// The directory of the maps' pins.
    pub(super) fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    /// The directory of another layout that has a pin for the link of this interface.
    pub(super) fn other_layout_of(&self, interface: &str) -> Option<PathBuf> {
        let others = version_dirs(&self.path).ok()?.into_iter().filter(|dir| *dir != self.version());
        others.into_iter().find(|dir| dir.join(names::link(interface)).exists())
    }

    /// Makes the directories for this layout's pins.
    pub(super) fn make(&self) -> Result<(), PinError> {
        make_dir(&self.path)?;
        make_dir(&self.version())?;
        make_dir(&self.maps())
    }

    /// Ends what a process that was killed in [`Self::put`] had begun.
    pub(super) fn finish(&self) -> Result<(), PinError> {
        for dir in [self.version(), self.maps()] {
            for name in names_in(&dir)? {
                let Some(pin) = names::made_for(&name) else { continue };
                let (temporary, at) = (dir.join(&name), dir.join(pin));
                // A link that has no other pin holds the interface: it is the one to go on with.
                if exists(&at)? {
                    remove_file(&temporary)?;
                } else {
                    fs::rename(&temporary, &at)
                        .map_err(|e| PinError::io(format!("rename {}", temporary.display()), e))?;
                }
            }
        }
        Ok(())
    }

    /// Interfaces that have a pinned link, with the link. One that is no link is removed.
    pub(super) fn links(&self) -> Result<Vec<(String, Link)>, PinError> {
        let mut links = Vec::new();
        for name in names_in(&self.version())? {
            let Some(interface) = names::interface(&name) else { continue };
            let path = self.version().join(&name);
            match Link::open(&path).and_then(|link| link.state().map(|_| link)) {
                Ok(link) => links.push((interface, link)),
                Err(_) => remove_file(&path)?,
            }
        }
        Ok(links)
    }

    /// Pins an object, also over another one: at no moment is there none.
    pub(super) fn put(&self, object: BorrowedFd<'_>, at: &Path) -> Result<(), PinError> {
        self.still_held()?;
        let name = at.file_name().unwrap_or_default().to_string_lossy();
        let temporary = at.with_file_name(names::temporary(&name));
        // Left over from a process that was killed right here.
        remove_file(&temporary)?;
        sys::pin(object, &temporary)
            .and_then(|()| fs::rename(&temporary, at))
            .map_err(|e| PinError::io(format!("pin {}", at.display()), e))
    }

    /// Removes the pin of an interface's link.
    pub(super) fn remove_link(&self, interface: &str) -> Result<(), PinError> {
        self.still_held()?;
        remove_file(&self.link(interface))
    }

    /// Removes this layout's pins, and the directories that are empty then.
    pub(super) fn remove(&self) -> Result<(), PinError> {
        self.still_held()?;
        remove_version(&self.version()).map(drop)?;
        remove_if_empty(&self.path)
    }

    /// What stands under this path when it is no longer ours may be another controller's.
    fn still_held(&self) -> Result<(), PinError> {
        if self.is_held() { Ok(()) } else { Err(PinError::Lost(self.path.clone())) }
    }

    /// Whether the directory is still the one that was locked; false if somebody removed it, or mounted over it.
    pub(super) fn is_held(&self) -> bool {
        is_same(&self.path, &self.lock).unwrap_or(false)
    }

    /// Makes and locks it again.
    pub(super) fn renew(&mut self) -> Result<(), PinError> {
        ensure_mounted(&self.path)?;
        self.lock = lock(&self.path, true)?;
        Ok(())
    }
}

impl Drop for PinDir {
    /// Whoever made it and then could not use it leaves no trace. It goes with the last pin only.
    fn drop(&mut self) {
        if self.is_held() {
            let _ = remove_if_empty(&self.path);
        }
    }
}

/// Takes the data path of every layout off the interfaces and removes the pins. Refuses while a controller works here.
pub fn detach(path: &Path) -> Result<Detached, PinError> {
    let mut all = Detached::default();
    if !on_bpf_fs(path)? || !exists(path)? {
        return Ok(all);
    }
    let _lock = lock(path, false)?;
    for dir in version_dirs(path)? {
        all.interfaces.extend(remove_version(&dir)?);
        all.directories.push(dir);
    }
    remove_if_empty(path)?;
    Ok(all)
}

/// Whether this path is, or would be, on a BPF file system.
pub fn on_bpf_fs(path: &Path) -> Result<bool, PinError> {
    for ancestor in path.ancestors() {
        match statfs(ancestor) {
            Ok(found) => return Ok(found.f_type as u64 == BPF_FS_MAGIC),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            // A BPF file system refuses to look such a name up.
            Err(Errno::PERM) if has_dot(ancestor) => return Err(PinError::Dot(ancestor.to_owned())),
            Err(e) => return Err(PinError::io(format!("look at {}", ancestor.display()), e.into())),
        }
    }
    Ok(false)
}

fn ensure_mounted(path: &Path) -> Result<(), PinError> {
    if on_bpf_fs(path)? {
        return Ok(());
    }
    let mount_point = Path::new(MOUNT_POINT);
    if !path.starts_with(mount_point) {
        return Err(PinError::NoBpfFs(path.to_owned()));
    }
    // Two that start at once must not mount twice: the later mount would hide the earlier one's pins.
    let below = File::open(mount_point).map_err(PinError::mount)?;
    for _ in 0..MOUNT_TRIES {
        match flock(&below, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => thread::sleep(Duration::from_millis(20)),
            other => {
                other.map_err(|e| PinError::mount(e.into()))?;
                break;
            }
        }
    }
    if on_bpf_fs(path)? {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", mount_point, "bpf", flags, Some(c"mode=0700")).map_err(|e| PinError::mount(e.into()))?;
    tracing::info!("mounted a BPF file system at {MOUNT_POINT}");
    if fs::read_link("/proc/self/ns/mnt").ok() != fs::read_link("/proc/1/ns/mnt").ok() {
        tracing::warn!(
            "{MOUNT_POINT} was mounted in this process's own mount namespace (`ip netns exec` makes one): the pins, \
             and forwarding with them, go when its last process ends. Enter only the network namespace \
             (`nsenter --net=`), or mount it in the outer one first"
        );
    }
    Ok(())
}

fn lock(path: &Path, make: bool) -> Result<File, PinError> {
    for _ in 0..LOCK_TRIES {
        if make {
            make_dir(path)?;
        }
        let options = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let dir = match OpenOptions::new().read(true).custom_flags(options).open(path) {
            // Removed by one that left just now.
            Err(e) if make && e.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(|e| PinError::io(format!("open {}", path.display()), e))?,
        };
        let meta = dir.metadata().map_err(|e| PinError::io(format!("look at {}", path.display()), e))?;
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
            return Err(PinError::Untrusted(path.to_owned()));
        }
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let pid = holder::of(meta.dev(), meta.ino());
                return Err(PinError::Held { dir: path.to_owned(), pid });
            }
            other => other.map_err(|e| PinError::io(format!("lock {}", path.display()), e.into()))?,
        }
        if is_same(path, &dir).unwrap_or(false) {
            return Ok(dir);
        }
    }
    Err(PinError::Held { dir: path.to_owned(), pid: None })
}

fn is_same(path: &Path, opened: &File) -> io::Result<bool> {
    let (there, ours) = (fs::symlink_metadata(path)?, opened.metadata()?);
    Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino()))
}

fn make_dir(path: &Path) -> Result<(), PinError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            make_dir(path.parent().ok_or_else(|| PinError::io(format!("create {}", path.display()), e))?)?;
            make_dir(path)
        }
        Err(e) if e.raw_os_error() == Some(libc::EPERM) && has_dot(path) => {
            Err(PinError::Dot(path.to_owned()))
        }
        made => made.map_err(|e| PinError::io(format!("create {}", path.display()), e)),
    }
}

fn has_dot(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains('.'))
}

/// Removes a layout's pins, links first; answers the interfaces that had one.
fn remove_version(dir: &Path) -> Result<Vec<String>, PinError> {
    let mut interfaces = Vec::new();
    let names = names_in(dir)?;
    for name in &names {
        let Some(interface) = names::interface(name) else { continue };
        let path = dir.join(name);
        // Not left to the last reference's end, which the kernel puts off. What fails here is no link, or dead.
        let _ = Link::open(&path).and_then(|link| link.state().and_then(|_| link.detach()));
        remove_file(&path)?;
        interfaces.push(interface);
    }
    for name in names {
        let path = dir.join(name);
        for inner in names_in(&path).unwrap_or_default() {
            remove_file(&path.join(inner))?;
        }
        if path.is_dir() {
            remove_if_empty(&path)?;
        } else {
            remove_file(&path)?;
        }
    }
    remove_if_empty(dir)?;
    Ok(interfaces)
}

fn version_dirs(path: &Path) -> Result<Vec<PathBuf>, PinError> {
    let names = names_in(path)?.into_iter().filter(|name| names::is_version_dir(name));
    Ok(names.map(|name| path.join(name)).collect())
}

/// Sorted; none if there is no such directory.
fn names_in(dir: &Path) -> Result<Vec<String>, PinError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| PinError::io(format!("read {}", dir.display()), e))?,
    };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn exists(path: &Path) -> Result<bool, PinError> {
    path.try_exists().map_err(|e| PinError::io(format!("look at {}", path.display()), e))
}

fn remove_file(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(PinError::io(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

fn remove_if_empty(dir: &Path) -> Result<(), PinError> {
    match fs::remove_dir(dir) {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTEMPTY | libc::EBUSY)) => {
            Err(PinError::io(format!("remove {}", dir.display()), e))
        }
        _ => Ok(()),
    }
}
