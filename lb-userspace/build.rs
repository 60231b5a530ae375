//! Embeds the eBPF objects that `cargo xtask build` left in `target/bpf`.
//!
//! Without them, or with some that are older than their source, the objects are empty: everything compiles (editors,
//! `cargo check`, `cargo test`), and `xlb run` says what is missing.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

const OBJECTS: [&str; 2] = ["balancer", "decap"];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // target/<profile>/build/<package>/out
    let target = out.ancestors().nth(4).expect("cargo's layout of OUT_DIR");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate stands in the workspace");
    let sources = [root.join("lb-ebpf/src"), root.join("lb-common/src")];
    let newest = sources.iter().filter_map(|dir| newest(dir)).max();
    for source in &sources {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    for object in OBJECTS {
        let path = target.join("bpf").join(object);
        println!("cargo::rerun-if-changed={}", path.display());
        let built = fs::metadata(&path).and_then(|m| m.modified()).ok();
        let bytes = match (built, newest) {
            (Some(built), Some(newest)) if built >= newest => fs::read(&path).unwrap_or_default(),
            _ => Vec::new(),
        };
        fs::write(out.join(object), bytes).expect("write into OUT_DIR");
    }
}

/// Time of the latest change under a directory.
fn newest(dir: &Path) -> Option<SystemTime> {
    let mut latest = None;
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        let time =
            if path.is_dir() { newest(&path) } else { entry.metadata().ok().and_then(|m| m.modified().ok()) };
        latest = latest.max(time);
    }
    latest
}
