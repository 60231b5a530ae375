//! Operators' words in a file, for starts that find no maps: after a clean stop or a reboot. While the maps live, their
//! records say the same.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{api::model::admin_state, config::spec::AdminState, health::BackendRef, plan::records::Word};

/// Where it stands. Only the default pin directory has one: a second xlb on the host must not share it.
pub const PATH: &str = "/var/lib/xlb/state.json";
/// Another number is another xlb's: not read, and not written over.
const VERSION: u32 = 1;

/// The file, and what it says.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    written: BTreeMap<BackendRef, Word>,
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    backends: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    service: String,
    backend: String,
    /// What the operator asked for.
    #[serde(with = "admin_state")]
    state: AdminState,
    /// What the configuration said then.
    #[serde(with = "admin_state")]
    file: AdminState,
}

impl StateFile {
    /// Reads it; one that is not there says nothing.
    pub fn open(path: &Path) -> io::Result<Self> {
        let written = match fs::read(path) {
            Ok(bytes) => parse(&bytes)?,
            Err(e) if e.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(e),
        };
        Ok(Self { path: path.to_owned(), written })
    }

    /// What it says.
    pub fn words(&self) -> &BTreeMap<BackendRef, Word> {
        &self.written
    }

    /// Makes it say this. A reader sees the old content or the new one, never a part.
    pub fn save(&mut self, words: &BTreeMap<BackendRef, Word>) -> io::Result<()> {
        if *words == self.written {
            return Ok(());
        }
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let line = |(key, word): (&BackendRef, &Word)| Line {
            service: key.service.to_string(),
            backend: key.backend.to_string(),
            state: word.state,
            file: word.file,
        };
        let content = Content { version: VERSION, backends: words.iter().map(line).collect() };
        let beside = self.path.with_extension("json.new");
        let mut file = fs::File::create(&beside)?;
        serde_json::to_writer_pretty(&mut file, &content)?;
        file.write_all(b"\n")?;
        fs::rename(&beside, &self.path)?;
        self.written.clone_from(words);
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> io::Result<BTreeMap<BackendRef, Word>> {
    let content: Content = serde_json::from_slice(bytes)?;
    if content.version != VERSION {
        let text = format!("it has version {}, this xlb knows {VERSION}", content.version);
        return Err(io::Error::new(ErrorKind::InvalidData, text));
    }
    let word = |line: Line| {
        let key = BackendRef { service: line.service.into(), backend: line.backend.into() };
        (key, Word { state: line.state, file: line.file })
    };
    Ok(content.backends.into_iter().map(word).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(state: AdminState) -> BTreeMap<BackendRef, Word> {
        let key = BackendRef { service: "web".into(), backend: "s1".into() };
        [(key, Word { state, file: AdminState::Active })].into()
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("below/state.json");
        let mut file = StateFile::open(&path).expect("none is fine");
        assert!(file.words().is_empty());
        file.save(&BTreeMap::new()).expect("nothing to say");
        assert!(!path.exists(), "nothing to say, nothing written");
        for state in [AdminState::Drain, AdminState::Disabled] {
            file.save(&words(state)).expect("it can be written");
            assert_eq!(StateFile::open(&path).expect("it is there").words(), &words(state));
        }
        file.save(&BTreeMap::new()).expect("it can be written");
        assert!(StateFile::open(&path).expect("it is there").words().is_empty());
    }

    #[test]
    fn what_is_not_ours_is_not_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.json");
        for text in ["", "{}", r#"{"version": 2, "backends": []}"#, r#"{"version": 1, "backends": [{}]}"#] {
            fs::write(&path, text).expect("it can be written");
            assert!(StateFile::open(&path).is_err(), "{text}");
        }
        fs::write(&path, r#"{"version": 1, "backends": []}"#).expect("it can be written");
        assert!(StateFile::open(&path).is_ok());
    }
}
