//! The interfaces: the program is attached to those that the file names, and again when one comes back.

use std::collections::BTreeMap;

use crate::{
    config::spec::InterfaceSpec,
    dataplane::bpf::{AttachError, Attached},
    net::LinkInfo,
};

/// What attaches: the kernel, or a stand-in for tests.
pub trait Attach: Send {
    /// Attaches the program, see [`crate::dataplane::bpf::Bpf::attach`].
    fn attach(&mut self, ifindex: u32, mode: crate::config::spec::XdpMode) -> Result<Attached, AttachError>;
    /// Takes it off.
    fn detach(&mut self, ifindex: u32);
}

/// One interface wanted.
#[derive(Debug)]
struct Wanted {
    spec: InterfaceSpec,
    state: Result<(u32, Attached), String>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Attachments {
    wanted: BTreeMap<String, Wanted>,
}

/// An attachment that changed. Displays as an event's text.
#[derive(Debug, thiserror::Error)]
pub enum Change {
    /// Attached.
    #[error("attached to {name} in {} mode{}", if .how.native { "native" } else { "generic" }, note(.how))]
    Attached {
        /// The interface.
        name: String,
        /// How.
        how: Attached,
    },
    /// Taken off, because the file no longer names it.
    #[error("detached from {0}")]
    Detached(String),
    /// The interface is gone, and the program with it.
    #[error("interface {0} is gone; the data path is attached again when it comes back")]
    Gone(String),
    /// It could not be attached.
    #[error("cannot attach to {name}: {why}")]
    Failed {
        /// The interface.
        name: String,
        /// Why not.
        why: AttachError,
    },
}

fn note(how: &Attached) -> String {
    how.note.as_ref().map_or_else(String::new, |why| format!(" ({why})"))
}

impl Attachments {
    /// Brings the attachments in line with what the file names and what there is. Answers what changed.
    pub fn update(
        &mut self,
        specs: &[InterfaceSpec],
        links: &BTreeMap<String, LinkInfo>,
        attach: &mut dyn Attach,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        self.wanted.retain(|name, wanted| {
            let keep = specs.iter().any(|s| s == &wanted.spec);
            if let (false, Ok((ifindex, _))) = (keep, &wanted.state) {
                attach.detach(*ifindex);
                changes.push(Change::Detached(name.clone()));
            }
            keep
        });
        for spec in specs {
            let link = links.get(&spec.name).map(|link| link.ifindex);
            let wanted = self.wanted.entry(spec.name.clone()).or_insert_with(|| Wanted {
                spec: spec.clone(),
                // Not tried yet: the first failure is news.
                state: Err(String::new()),
            });
            if let Ok((ifindex, _)) = wanted.state
                && link != Some(ifindex)
            {
                attach.detach(ifindex);
                // `Gone` says it; that there is nothing to attach to is no further news.
                wanted.state = Err(AttachError::NoInterface.to_string());
                changes.push(Change::Gone(spec.name.clone()));
            }
            if wanted.state.is_ok() {
                continue;
            }
            let attached =
                link.ok_or(AttachError::NoInterface).and_then(|i| Ok((i, attach.attach(i, spec.mode)?)));
            match attached {
                Ok((ifindex, how)) => {
                    changes.push(Change::Attached { name: spec.name.clone(), how: how.clone() });
                    wanted.state = Ok((ifindex, how));
                }
                Err(why) => {
                    // Said once, not at every try.
                    let text = why.to_string();
                    if wanted.state.as_ref().err() != Some(&text) {
                        wanted.state = Err(text);
                        changes.push(Change::Failed { name: spec.name.clone(), why });
                    }
                }
            }
        }
        changes
    }

    /// Every interface wanted, and how it is attached or why it is not.
    pub fn all(&self) -> impl Iterator<Item = (&str, Result<&Attached, &str>)> {
        self.wanted
            .iter()
            .map(|(name, w)| (name.as_str(), w.state.as_ref().map(|(_, how)| how).map_err(String::as_str)))
    }

    /// Index and name of each interface that is attached.
    pub fn devices(&self) -> BTreeMap<u32, String> {
        let attached = |(name, w): (&String, &Wanted)| Some((w.state.as_ref().ok()?.0, name.clone()));
        self.wanted.iter().filter_map(attached).collect()
    }
}
