//! Notices changes of the file, however they are made: written in place, renamed over, or by a symlink swap.
//!
//! A thread of its own watches, by inotify, the directory of the path and of every symlink on the way to the file,
//! directories included (Kubernetes swaps `..data`). It looks again 100 ms after the last event, and every 2 s in any
//! case, because inotify misses changes on some file systems (bind mounts, NFS). What counts is the content.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::sync::watch;

use super::chain::{Identity, chain, identity};

/// From the last event to the look at the file.
const SETTLE: Duration = Duration::from_millis(100);
/// From the first event to the look at the file at most, when the events do not end.
const SETTLE_AT_MOST: Duration = Duration::from_secs(2);
/// From one look to the next when nothing happens.
const POLL: Duration = Duration::from_secs(2);

/// The text of the file, or why it cannot be read.
pub type Content = Result<Arc<str>, Arc<str>>;

/// Watches one file. Dropping it ends the watching.
#[derive(Debug)]
pub struct Watcher {
    content: watch::Receiver<Content>,
    activity: watch::Receiver<Instant>,
    inputs: mpsc::Sender<Input>,
}

/// The file has another content than the last that was reported.
#[derive(Debug, Clone)]
pub struct FileEvent {
    /// What it has now.
    pub content: Content,
    /// Tells when the file has been still for a while.
    pub still: Stillness,
}

/// When something last happened to the file, whether its content changed or not.
#[derive(Debug, Clone)]
pub struct Stillness(watch::Receiver<Instant>);

impl Stillness {
    /// Since when nothing has happened to the file.
    pub fn since(&self) -> Instant {
        *self.0.borrow()
    }

    /// Returns once nothing has happened to the file for `duration`. A change of content is reported by
    /// [`Watcher::changed`] before that, if `duration` is well over 100 ms. Cancel-safe.
    pub async fn wait(&mut self, duration: Duration) {
        loop {
            let until = (*self.0.borrow_and_update() + duration).into();
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                changed = self.0.changed() => if changed.is_err() {
                    // The watcher is gone, so nothing more will be heard of the file.
                    return tokio::time::sleep_until(until).await;
                },
            }
        }
    }
}

impl Watcher {
    /// Starts to watch `path`. The content that the file has now counts as reported, so: watch first, then load.
    ///
    /// A file that is not there yet, or inotify that is not to be had, is no error: it is polled then.
    ///
    /// # Errors
    /// The path is empty, or the system has no thread for it.
    pub fn new(path: &Path) -> io::Result<Self> {
        Self::with_inotify(path, true)
    }

    fn with_inotify(path: &Path, inotify: bool) -> io::Result<Self> {
        let (inputs, receiver) = mpsc::channel();
        let notify = if inotify { inotify_watcher(inputs.clone()) } else { None };
        let (activity_sender, activity) = watch::channel(Instant::now());
        let mut worker = Worker {
            path: std::path::absolute(path)?,
            notify,
            watched: BTreeMap::new(),
            names: BTreeSet::new(),
            content: watch::channel(Err("not read yet".into())).0,
            activity: activity_sender,
        };
        worker.follow_chain();
        _ = worker.content.send_replace(read(&worker.path));
        let content = worker.content.subscribe();
        thread::Builder::new().name("xlb-watch".to_owned()).spawn(move || worker.run(&receiver))?;
        Ok(Self { content, activity, inputs })
    }

    /// Waits until the file has another content than the last reported one. Of several changes while nobody waits,
    /// the last is reported. Cancel-safe: no change is lost.
    pub async fn changed(&mut self) -> FileEvent {
        if self.content.changed().await.is_err() {
            tracing::error!("the watcher of the configuration file has stopped; SIGHUP still reloads it");
            return std::future::pending().await;
        }
        let content = self.content.borrow_and_update().clone();
        FileEvent { content, still: Stillness(self.activity.clone()) }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // An error means that the thread has ended already.
        _ = self.inputs.send(Input::Stop);
    }
}

/// What the thread waits for.
#[derive(Debug)]
enum Input {
    Event(notify::Result<Event>),
    Stop,
}

fn inotify_watcher(inputs: mpsc::Sender<Input>) -> Option<RecommendedWatcher> {
    let send = move |event| _ = inputs.send(Input::Event(event));
    notify::recommended_watcher(send)
        .inspect_err(|error| tracing::warn!(%error, "no inotify: the configuration file is polled every 2 s"))
        .ok()
}

struct Worker {
    path: PathBuf,
    notify: Option<RecommendedWatcher>,
    /// The directories that are watched.
    watched: BTreeMap<PathBuf, Identity>,
    /// The names in them that matter.
    names: BTreeSet<PathBuf>,
    content: watch::Sender<Content>,
    activity: watch::Sender<Instant>,
}

impl Worker {
    fn run(mut self, inputs: &mpsc::Receiver<Input>) {
        let mut next_poll = Instant::now() + POLL;
        loop {
            let wait = next_poll.saturating_duration_since(Instant::now());
            let happened = match inputs.recv_timeout(wait) {
                Ok(Input::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Ok(Input::Event(event)) => self.concerns(&event),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    next_poll = Instant::now() + POLL;
                    self.follow_chain();
                    read(&self.path) != *self.content.borrow()
                }
            };
            if happened {
                if !self.settle(inputs) {
                    return;
                }
                self.look();
                next_poll = Instant::now() + POLL;
            }
        }
    }

    /// Waits until nothing has happened for a while; false if the watching shall end.
    fn settle(&self, inputs: &mpsc::Receiver<Input>) -> bool {
        let first = Instant::now();
        let mut last = first;
        self.activity.send_replace(last);
        loop {
            let until = (last + SETTLE).min(first + SETTLE_AT_MOST);
            match inputs.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Input::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return false,
                Err(mpsc::RecvTimeoutError::Timeout) => return true,
                Ok(Input::Event(event)) if self.concerns(&event) => {
                    last = Instant::now();
                    self.activity.send_replace(last);
                }
                Ok(Input::Event(_)) => {}
            }
        }
    }

    /// Reports the content if it is another.
    fn look(&mut self) {
        // Watch first, read then: what happens in between is an event.
        self.follow_chain();
        let content = read(&self.path);
        self.content.send_if_modified(|reported| {
            let differs = *reported != content;
            if differs {
                *reported = content;
            }
            differs
        });
    }

    /// Whether an event may mean that the file has another content. Reading it, as we do, must not.
    fn concerns(&self, event: &notify::Result<Event>) -> bool {
        let Ok(event) = event else { return true };
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
            EventKind::Access(_) => return false,
            _ => {}
        }
        let matters = |path: &PathBuf| self.names.contains(path) || self.watched.contains_key(path);
        event.need_rescan() || event.paths.iter().any(matters)
    }

    /// Watches the directories that the path leads through now, and no others.
    fn follow_chain(&mut self) {
        let Some(notify) = &mut self.notify else { return };
        let chain = chain(&self.path);
        let wanted: BTreeMap<PathBuf, Identity> =
            chain.directories.into_iter().filter_map(|dir| identity(&dir).map(|id| (dir, id))).collect();
        let stale = |(dir, id): &(&PathBuf, &Identity)| wanted.get(*dir) != Some(*id);
        for (dir, _) in self.watched.iter().filter(stale) {
            // It may be gone, and its watch with it.
            _ = notify.unwatch(dir);
        }
        self.watched.retain(|dir, id| wanted.get(dir) == Some(id));
        for (dir, id) in wanted {
            if self.watched.contains_key(&dir) {
                continue;
            }
            match notify.watch(&dir, RecursiveMode::NonRecursive) {
                Ok(()) => _ = self.watched.insert(dir, id),
                // Tried again at the next look; until then it is polled.
                Err(error) => tracing::debug!(%error, dir = %dir.display(), "cannot watch the directory"),
            }
        }
        self.names = chain.names;
    }
}

fn read(path: &Path) -> Content {
    match super::read_file(path) {
        Ok((text, _)) => Ok(text.into()),
        Err(error) => Err(format!("cannot read {}: {error}", path.display()).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    /// How a file is changed: (directory, number of the change, text).
    type Change = fn(&Path, usize, &str) -> io::Result<()>;

    fn in_place(dir: &Path, _: usize, text: &str) -> io::Result<()> {
        fs::write(dir.join("lb.yaml"), text)
    }

    fn rename(dir: &Path, _: usize, text: &str) -> io::Result<()> {
        fs::write(dir.join(".lb.yaml.new"), text)?;
        fs::rename(dir.join(".lb.yaml.new"), dir.join("lb.yaml"))
    }

    /// As Kubernetes does: lb.yaml -> ..data/lb.yaml, ..data -> ..N.
    fn symlink_swap(dir: &Path, number: usize, text: &str) -> io::Result<()> {
        let version = format!("..{number}");
        fs::create_dir(dir.join(&version))?;
        fs::write(dir.join(&version).join("lb.yaml"), text)?;
        symlink(&version, dir.join("..data_tmp"))?;
        fs::rename(dir.join("..data_tmp"), dir.join("..data"))?;
        match number {
            0 => symlink("..data/lb.yaml", dir.join("lb.yaml")),
            _ => fs::remove_dir_all(dir.join(format!("..{}", number - 1))),
        }
    }

    async fn next(watcher: &mut Watcher) -> Content {
        timeout(Duration::from_secs(20), watcher.changed()).await.expect("a report within 20 s").content
    }

    /// Makes 100 changes and waits for each. Few may take more than a second, on a machine that is busy otherwise.
    async fn hundred_changes(change: Change) {
        let dir = TempDir::new().expect("tempdir");
        change(dir.path(), 0, "0").expect("change");
        let mut watcher = Watcher::new(&dir.path().join("lb.yaml")).expect("watch");
        let mut slow = 0;
        for number in 1..=100 {
            let text = number.to_string();
            let start = Instant::now();
            change(dir.path(), number, &text).expect("change");
            while next(&mut watcher).await.as_deref() != Ok(text.as_str()) {}
            slow += usize::from(start.elapsed() > Duration::from_secs(1));
        }
        assert!(slow <= 5, "{slow} of 100 changes took more than a second");
    }

    #[tokio::test]
    async fn every_write_in_place_is_reported() {
        hundred_changes(in_place).await;
    }

    #[tokio::test]
    async fn every_rename_is_reported() {
        hundred_changes(rename).await;
    }

    #[tokio::test]
    async fn every_symlink_swap_is_reported() {
        hundred_changes(symlink_swap).await;
    }

    #[tokio::test]
    async fn without_inotify_it_is_polled() {
        let dir = TempDir::new().expect("tempdir");
        in_place(dir.path(), 0, "old").expect("change");
        let mut watcher = Watcher::with_inotify(&dir.path().join("lb.yaml"), false).expect("watch");
        rename(dir.path(), 1, "new").expect("change");
        assert_eq!(next(&mut watcher).await.as_deref(), Ok("new"));
    }

    #[tokio::test]
    async fn a_file_that_goes_is_reported_once_and_one_that_comes_again_too() {
        let dir = TempDir::new().expect("tempdir");
        let path = dir.path().join("sub/lb.yaml");
        let mut watcher = Watcher::new(&path).expect("watch a path that does not exist");
        fs::create_dir(dir.path().join("sub")).expect("mkdir");
        fs::write(&path, "a").expect("write");
        assert_eq!(next(&mut watcher).await.as_deref(), Ok("a"));
        fs::remove_dir_all(dir.path().join("sub")).expect("remove");
        assert!(next(&mut watcher).await.is_err_and(|error| error.contains("No such file")));
        fs::create_dir(dir.path().join("sub")).expect("mkdir");
        fs::write(&path, "b").expect("write");
        assert_eq!(next(&mut watcher).await.as_deref(), Ok("b"));
    }

    #[tokio::test]
    async fn the_same_content_is_no_change_but_ends_the_stillness() {
        let dir = TempDir::new().expect("tempdir");
        in_place(dir.path(), 0, "a").expect("change");
        let mut watcher = Watcher::new(&dir.path().join("lb.yaml")).expect("watch");
        in_place(dir.path(), 1, "b").expect("change");
        let event = timeout(Duration::from_secs(20), watcher.changed()).await.expect("a report");
        let since = event.still.since();
        rename(dir.path(), 2, "b").expect("change");
        let mut still = event.still;
        while still.since() == since {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let again = still.since();
        still.wait(Duration::from_millis(500)).await;
        assert!(again.elapsed() >= Duration::from_millis(500));
        assert!(timeout(Duration::ZERO, watcher.changed()).await.is_err(), "the same content was reported");
    }

    #[tokio::test]
    async fn a_cancelled_wait_loses_nothing() {
        let dir = TempDir::new().expect("tempdir");
        in_place(dir.path(), 0, "a").expect("change");
        let mut watcher = Watcher::new(&dir.path().join("lb.yaml")).expect("watch");
        in_place(dir.path(), 1, "b").expect("change");
        let mut seen = None;
        let deadline = Instant::now() + Duration::from_secs(20);
        while seen.is_none() && Instant::now() < deadline {
            seen = timeout(Duration::from_millis(1), watcher.changed()).await.ok();
        }
        assert_eq!(seen.expect("a report").content.as_deref(), Ok("b"));
    }
}
