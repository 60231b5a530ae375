//! The Unix socket's file: made without a moment in which others could connect, taken over only from the dead.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, Mode, fchmod, flock},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with},
};

/// Connections that the kernel queues for us.
const BACKLOG: i32 = 64;
/// Tries, 50 ms apart, to be alone in the socket's directory.
const LOCK_TRIES: u32 = 40;

/// Why the API cannot be reached where it should.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A living controller answers there.
    #[error("a controller already answers at {}", .0.display())]
    AlreadyRunning(PathBuf),
    /// The path is taken by something that we did not make.
    #[error("{} exists and is not a socket: remove it, or choose another `admin.socket`", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{action}")]
    Io {
        /// What was tried: verb and object.
        action: String,
        /// Its answer.
        source: io::Error,
    },
}

impl BindError {
    pub(super) fn io(action: String) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { action, source }
    }
}

/// The socket's file; removed on drop, unless it is somebody else's by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device_inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.device_inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// A listening, non-blocking socket at `path`, mode 0600; its directory is made if it is missing. A socket that nobody
/// answers at is replaced.
pub fn listen_at(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory).map_err(BindError::io(format!("create {}", directory.display())))?;
    // Two controllers that start at once must not both find nobody and both rename: the later one would win unseen.
    // The lock goes with the file, at the end of this function.
    let locked = fs::File::open(directory).map_err(BindError::io(format!("open {}", directory.display())))?;
    lock(&locked).map_err(BindError::io(format!("lock {}", directory.display())))?;

    refuse_if_taken(path)?;
    let temporary = directory.join(format!(".xlb{}", std::process::id()));
    let (listener, file) = create(&temporary, path).map_err(|errno| BindError::Io {
        action: format!("create the socket {}", path.display()),
        source: errno.into(),
    })?;
    Ok((listener, file))
}

/// With the mode set before there is a name (Linux makes the file with the socket's own mode), and with the name moved
/// in place when it already listens.
fn create(temporary: &Path, path: &Path) -> Result<(UnixListener, SocketFile), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    // Left over from a process of the same number that died right here.
    drop(fs::remove_file(temporary));
    bind(&socket, &SocketAddrUnix::new(temporary)?)?;
    let moved = listen(&socket, BACKLOG)
        .and_then(|()| rustix::fs::stat(temporary))
        .and_then(|stat| rustix::fs::rename(temporary, path).map(|()| stat));
    if moved.is_err() {
        drop(fs::remove_file(temporary));
    }
    let stat = moved?;
    let file = SocketFile { path: path.to_owned(), device_inode: (stat.st_dev, stat.st_ino) };
    Ok((UnixListener::from(socket), file))
}

/// Connects without waiting: a living controller may be too busy to accept.
fn refuse_if_taken(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BindError::io(format!("look at {}", path.display()))(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let answer = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| connect(&socket, &SocketAddrUnix::new(path)?));
    match answer {
        // AGAIN: its queue is full.
        Ok(()) | Err(Errno::AGAIN) => Err(BindError::AlreadyRunning(path.to_owned())),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        Err(errno) => {
            Err(BindError::Io { action: format!("ask at {}", path.display()), source: errno.into() })
        }
    }
}

fn lock(directory: &fs::File) -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        match flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => thread::sleep(Duration::from_millis(50)),
            done => return Ok(done?),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds a lock on it"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixStream};

    use super::*;

    #[test]
    fn only_the_owner_may_connect_and_nothing_else_is_left_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/xlb.sock");
        let (_listener, file) = listen_at(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let names: Vec<_> =
            fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["xlb.sock"]);
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_living_controller_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xlb.sock");
        let (_listener, _file) = listen_at(&path).unwrap();
        let second = listen_at(&path).unwrap_err();
        assert!(matches!(second, BindError::AlreadyRunning(_)), "{second}");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_living_controller_with_a_full_queue_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xlb.sock");
        let (_listener, _file) = listen_at(&path).unwrap();
        let mut clients = Vec::new();
        let full = loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            match connect(&client, &SocketAddrUnix::new(&path).unwrap()) {
                Ok(()) => clients.push(client),
                Err(errno) => break errno,
            }
        };
        assert_eq!(full, Errno::AGAIN);
        assert!(matches!(listen_at(&path), Err(BindError::AlreadyRunning(_))));
    }

    #[test]
    fn a_dead_controllers_socket_is_replaced_and_its_guard_spares_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xlb.sock");
        let (dead, old_file) = listen_at(&path).unwrap();
        drop(dead);
        let (_listener, _file) = listen_at(&path).unwrap();
        drop(old_file);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xlb.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen_at(&path), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
