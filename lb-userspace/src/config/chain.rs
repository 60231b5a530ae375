//! Where a change can change what a path means: the directories that it leads through.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

/// Symlinks on the way to the file, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Device and inode: what makes a directory the same one.
pub(super) type Identity = (u64, u64);

/// What a directory is known by, if it is there.
pub(super) fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The places where a change can change what a path means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Directories without symlinks in their paths.
    pub directories: BTreeSet<PathBuf>,
    /// The symlinks in them, and the file at the end (or where the way breaks off).
    pub names: BTreeSet<PathBuf>,
}

/// Walks an absolute path as the kernel does (path_resolution(7)).
pub(super) fn chain(path: &Path) -> Chain {
    let mut chain = Chain::default();
    let mut here = PathBuf::from("/");
    let mut rest = reversed(path);
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            here.pop();
            continue;
        }
        let next = here.join(name);
        let metadata = fs::symlink_metadata(&next).ok();
        let target = match &metadata {
            Some(metadata) if metadata.is_symlink() && links < MAX_LINKS => fs::read_link(&next).ok(),
            _ => None,
        };
        if target.is_some() || metadata.is_none() || rest.is_empty() {
            chain.directories.insert(here.clone());
            chain.names.insert(next.clone());
        }
        if let Some(target) = target {
            links += 1;
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            rest.extend(reversed(&target));
        } else if metadata.is_some() {
            here = next;
        } else {
            break;
        }
    }
    chain
}

/// The names in a path, last first.
fn reversed(path: &Path) -> Vec<OsString> {
    let wanted = |component: &Component<'_>| matches!(component, Component::Normal(_) | Component::ParentDir);
    path.components().rev().filter(wanted).map(|component| component.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn the_chain_has_every_link_and_every_directory() {
        let dir = TempDir::new().expect("tempdir");
        let root = fs::canonicalize(dir.path()).expect("canonical");
        fs::create_dir_all(root.join("real/..1")).expect("mkdir");
        fs::write(root.join("real/..1/lb.yaml"), "").expect("write");
        symlink("..1", root.join("real/..data")).expect("link");
        symlink("..data/lb.yaml", root.join("real/lb.yaml")).expect("link");
        symlink(root.join("real"), root.join("etc")).expect("link");
        let paths = |names: &[&str]| names.iter().map(|name| root.join(name)).collect::<BTreeSet<_>>();
        let found = chain(&root.join("etc/../etc/lb.yaml"));
        let wanted = Chain {
            directories: &paths(&["real", "real/..1"]) | &BTreeSet::from([root.clone()]),
            names: paths(&["etc", "real/lb.yaml", "real/..data", "real/..1/lb.yaml"]),
        };
        // `etc/..` is the real directory's parent.
        assert_eq!(found, wanted);
        symlink("loop", root.join("loop")).expect("link");
        assert_eq!(chain(&root.join("loop")).names, paths(&["loop"]));
    }
}
