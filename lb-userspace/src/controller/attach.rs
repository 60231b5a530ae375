//! The interfaces: the program is attached to those that the file names, and again when one comes back.

use std::collections::BTreeMap;

use crate::{
    config::spec::InterfaceSpec,
    dataplane::bpf::{AttachError, Attached, Drift, PinError},
    net::LinkInfo,
};

/// What attaches: the kernel, or a stand-in for tests.
pub trait Attach: Send {
    /// Attaches the program, see [`crate::dataplane::bpf::BpfProgram::attach`].
    fn attach(
        &mut self,
        link: &LinkInfo,
        mode: crate::config::spec::XdpMode,
    ) -> Result<Attached, AttachError>;
    /// Takes it off.
    fn detach(&mut self, interface: &str);
    /// Where it is attached, by this controller or an earlier one.
    fn held(&self) -> Vec<String>;
    /// Looks whether all is as it was left, and mends what it can.
    fn check(&mut self) -> Vec<Drift>;
    /// Takes it off everywhere, and leaves nothing behind.
    fn remove(&mut self) -> Result<(), PinError>;
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
            if !keep && wanted.state.is_ok() {
                attach.detach(name);
                changes.push(Change::Detached(name.clone()));
            }
            keep
        });
        // An earlier controller's, with another file.
        for name in attach.held() {
            if !specs.iter().any(|s| s.name == name) {
                attach.detach(&name);
                changes.push(Change::Detached(name));
            }
        }
        for spec in specs {
            let link = links.get(&spec.name);
            let wanted = self.wanted.entry(spec.name.clone()).or_insert_with(|| Wanted {
                spec: spec.clone(),
                // Not tried yet: the first failure is news.
                state: Err(String::new()),
            });
            if let Ok((ifindex, _)) = wanted.state
                && link.map(|link| link.ifindex) != Some(ifindex)
            {
                attach.detach(&spec.name);
                // `Gone` says it; that there is nothing to attach to is no further news.
                wanted.state = Err(AttachError::NoInterface.to_string());
                changes.push(Change::Gone(spec.name.clone()));
            }
            if wanted.state.is_ok() {
                continue;
            }
            let attached = link
                .ok_or(AttachError::NoInterface)
                .and_then(|link| Ok((link.ifindex, attach.attach(link, spec.mode)?)));
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

    /// Compares with the kernel. What was taken off is attached again by the next [`Self::update`].
    pub fn check(&mut self, attach: &mut dyn Attach) -> Vec<Drift> {
        let drifts = attach.check();
        for drift in &drifts {
            if let Drift::Detached(name) = drift
                && let Some(wanted) = self.wanted.get_mut(name)
            {
                wanted.state = Err(String::new());
            }
        }
        drifts
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::spec::XdpMode;

    /// Stands in for the kernel: what it has attached to, an answer for indexes that it refuses, and what it will find
    /// when it looks.
    #[derive(Default)]
    struct Fake {
        attached: BTreeMap<String, u32>,
        refuses: BTreeMap<u32, &'static str>,
        finds: Vec<Drift>,
    }

    impl Fake {
        fn indexes(&self) -> Vec<u32> {
            self.attached.values().copied().collect()
        }
    }

    impl Attach for Fake {
        fn attach(&mut self, link: &LinkInfo, mode: XdpMode) -> Result<Attached, AttachError> {
            if let Some(why) = self.refuses.get(&link.ifindex) {
                return Err(AttachError::Refused((*why).into()));
            }
            let before = self.attached.insert(link.name.clone(), link.ifindex);
            assert_eq!(before, None, "attached twice to {}", link.name);
            let note = (mode == XdpMode::Auto).then(|| "the driver cannot".into());
            Ok(Attached { native: mode == XdpMode::Native, note })
        }

        fn detach(&mut self, interface: &str) {
            self.attached.remove(interface);
        }

        fn held(&self) -> Vec<String> {
            self.attached.keys().cloned().collect()
        }

        fn check(&mut self) -> Vec<Drift> {
            for drift in &self.finds {
                if let Drift::Detached(name) = drift {
                    self.attached.remove(name);
                }
            }
            std::mem::take(&mut self.finds)
        }

        fn remove(&mut self) -> Result<(), PinError> {
            self.attached.clear();
            Ok(())
        }
    }

    fn wanted(name: &str, mode: XdpMode) -> InterfaceSpec {
        InterfaceSpec { name: name.into(), mode }
    }

    fn links(links: &[(&str, u32)]) -> BTreeMap<String, LinkInfo> {
        let link = |(name, ifindex): &(&str, u32)| {
            let name = (*name).to_owned();
            let info = LinkInfo {
                ifindex: *ifindex,
                name: name.clone(),
                mac: Some([2, 0, 0, 0, 0, 1]),
                mtu: 1500,
                admin_up: true,
                oper_up: true,
                xdp: Vec::new(),
                kind: None,
                master: None,
            };
            (name, info)
        };
        links.iter().map(link).collect()
    }

    /// The changes as they are said.
    fn update(
        attachments: &mut Attachments,
        specs: &[InterfaceSpec],
        there: &[(&str, u32)],
        fake: &mut Fake,
    ) -> Vec<String> {
        attachments.update(specs, &links(there), fake).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_interface_is_attached_when_it_appears_and_again_when_it_returns() {
        let (mut attachments, mut fake) = (Attachments::default(), Fake::default());
        let specs = [wanted("eth0", XdpMode::Native)];
        let failed = ["cannot attach to eth0: there is no such interface"];
        assert_eq!(update(&mut attachments, &specs, &[("lo", 1)], &mut fake), failed);
        assert_eq!(update(&mut attachments, &specs, &[("lo", 1)], &mut fake), [""; 0], "said once");
        assert!(attachments.devices().is_empty());

        let attached = ["attached to eth0 in native mode"];
        assert_eq!(update(&mut attachments, &specs, &[("eth0", 2)], &mut fake), attached);
        assert_eq!(update(&mut attachments, &specs, &[("eth0", 2)], &mut fake), [""; 0]);
        assert_eq!(attachments.devices(), [(2, "eth0".to_owned())].into());

        let gone = ["interface eth0 is gone; the data path is attached again when it comes back"];
        assert_eq!(update(&mut attachments, &specs, &[], &mut fake), gone);
        assert_eq!(update(&mut attachments, &specs, &[], &mut fake), [""; 0], "said once");
        assert_eq!(fake.indexes(), [0; 0]);
        assert_eq!(update(&mut attachments, &specs, &[("eth0", 5)], &mut fake), attached);
        assert_eq!(fake.indexes(), [5]);
    }

    #[test]
    fn an_interface_made_anew_between_two_looks_is_another_one() {
        let (mut attachments, mut fake) = (Attachments::default(), Fake::default());
        let specs = [wanted("eth0", XdpMode::Generic)];
        update(&mut attachments, &specs, &[("eth0", 2)], &mut fake);
        let said = update(&mut attachments, &specs, &[("eth0", 3)], &mut fake);
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[1], "attached to eth0 in generic mode");
        assert_eq!(fake.indexes(), [3]);
        assert_eq!(attachments.devices(), [(3, "eth0".to_owned())].into());
    }

    #[test]
    fn a_failure_is_said_once_and_again_when_its_reason_changes() {
        let (mut attachments, mut fake) = (Attachments::default(), Fake::default());
        let specs = [wanted("eth0", XdpMode::Auto)];
        fake.refuses.insert(2, "busy");
        let busy = ["cannot attach to eth0: busy"];
        assert_eq!(update(&mut attachments, &specs, &[("eth0", 2)], &mut fake), busy);
        assert_eq!(update(&mut attachments, &specs, &[("eth0", 2)], &mut fake), [""; 0]);
        assert_eq!(attachments.all().collect::<Vec<_>>(), [("eth0", Err("busy"))]);
        fake.refuses.insert(2, "no queues");
        let queues = ["cannot attach to eth0: no queues"];
        assert_eq!(update(&mut attachments, &specs, &[("eth0", 2)], &mut fake), queues);
        fake.refuses.clear();
        let attached = ["attached to eth0 in generic mode (the driver cannot)"];
        assert_eq!(update(&mut attachments, &specs, &[("eth0", 2)], &mut fake), attached);
    }

    #[test]
    fn the_file_decides_where_and_how() {
        let (mut attachments, mut fake) = (Attachments::default(), Fake::default());
        let there = [("eth0", 2), ("eth1", 3)];
        let both = [wanted("eth0", XdpMode::Native), wanted("eth1", XdpMode::Native)];
        update(&mut attachments, &both, &there, &mut fake);
        let other_mode = [both[0].clone(), wanted("eth1", XdpMode::Generic)];
        let said = update(&mut attachments, &other_mode, &there, &mut fake);
        assert_eq!(said, ["detached from eth1", "attached to eth1 in generic mode"]);
        assert_eq!(update(&mut attachments, &both[..1], &there, &mut fake), ["detached from eth1"]);
        assert_eq!(fake.indexes(), [2]);
        assert_eq!(attachments.all().count(), 1);
    }
    #[test]
    fn what_an_earlier_controller_left_on_other_interfaces_goes() {
        let (mut attachments, mut fake) = (Attachments::default(), Fake::default());
        fake.attached.insert("eth7".into(), 7);
        let specs = [wanted("eth0", XdpMode::Native)];
        let there = [("eth0", 2), ("eth7", 7)];
        let said = update(&mut attachments, &specs, &there, &mut fake);
        assert_eq!(said, ["detached from eth7", "attached to eth0 in native mode"]);
        assert_eq!(fake.indexes(), [2]);
    }

    #[test]
    fn what_others_took_off_is_attached_again() {
        let (mut attachments, mut fake) = (Attachments::default(), Fake::default());
        let specs = [wanted("eth0", XdpMode::Native)];
        update(&mut attachments, &specs, &[("eth0", 2)], &mut fake);
        assert_eq!(attachments.check(&mut fake), []);
        assert_eq!(update(&mut attachments, &specs, &[("eth0", 2)], &mut fake), [""; 0]);
        fake.finds = vec![Drift::Detached("eth0".into())];
        let drift = attachments.check(&mut fake);
        assert_eq!(drift[0].to_string(), "drift: the data path was taken off eth0");
        let attached = ["attached to eth0 in native mode"];
        assert_eq!(update(&mut attachments, &specs, &[("eth0", 2)], &mut fake), attached);
        assert_eq!(fake.indexes(), [2]);
    }
}
