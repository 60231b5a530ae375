//! Which changes of the configuration wait for a human, and why. Pure.

use std::{collections::BTreeMap, fmt};

use super::spec::{BackendSpec, ServiceSpec, Spec};

/// What a human has agreed to, and what a change needs. Ordered: each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Consent {
    /// Nothing: the file was seen to change.
    None,
    /// SIGHUP or `xlb reload`: the change as such is meant.
    Reload,
    /// `xlb apply --force`: its consequences, too.
    Force,
    /// Nobody can agree to it while the data path is attached: the controller has to start anew.
    Detach,
}

/// One reason for which a change is held. Displays as one line: what, why, and what lets it pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// More than half of all backends would go.
    RemovesBackends {
        /// How many go.
        removed: usize,
        /// How many there are.
        of: usize,
    },
    /// A service with traffic would go.
    RemovesService {
        /// Its name.
        service: String,
    },
    /// Every flow of every service would move.
    ChangesSeed {
        /// The seed in force.
        old: u32,
        /// The new one.
        new: u32,
    },
    /// Every flow of a service would move.
    MovesFlows {
        /// Its name.
        service: String,
        /// The keys that change: `hash`, `ring_size`, `forward`.
        keys: Vec<&'static str>,
    },
    /// The kernel's maps would have to be made anew.
    ChangesLimits {
        /// The keys that change.
        keys: Vec<&'static str>,
    },
}

impl Held {
    /// The least consent with which the change is made.
    pub fn needs(&self) -> Consent {
        match self {
            Self::RemovesBackends { .. } | Self::RemovesService { .. } => Consent::Reload,
            Self::ChangesSeed { .. } | Self::MovesFlows { .. } => Consent::Force,
            Self::ChangesLimits { .. } => Consent::Detach,
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemovesBackends { removed, of } => {
                write!(
                    f,
                    "removes {removed} of {of} backends, more than half (a half-written file looks like that)"
                )?;
            }
            Self::RemovesService { service } => write!(f, "removes service `{service}`, which has traffic")?,
            Self::ChangesSeed { old, new } => {
                write!(f, "changes hash_seed from {old} to {new}, which moves every flow of every service")?;
            }
            Self::MovesFlows { service, keys } => {
                write!(
                    f,
                    "changes {} of service `{service}`, which moves all its flows",
                    keys.join(" and ")
                )?;
            }
            Self::ChangesLimits { keys } => {
                write!(f, "changes limits ({}), which are the sizes of the kernel's maps", keys.join(", "))?;
            }
        }
        f.write_str(match self.needs() {
            Consent::None => "",
            Consent::Reload => "; if that is meant: `xlb reload`",
            Consent::Force => "; if that is meant: `xlb apply --force`",
            Consent::Detach => "; maps cannot grow: stop xlb, `xlb detach`, and start it with the new file",
        })
    }
}

/// Why the change from `old` to `new` is not made without consent; empty if it may be made. Those that pass with a
/// given consent are the ones with `held.needs() <= consent`.
///
/// `has_traffic` tells whether a service of `old`, by name, carries packets.
pub fn held(old: &Spec, new: &Spec, has_traffic: impl Fn(&str) -> bool) -> Vec<Held> {
    let mut all = Vec::new();
    all.extend(changed_limits(old, new));
    let new_services = by_name(new);
    let running = old.services.iter().filter_map(|o| new_services.get(&*o.name).map(|n| (o, *n)));
    if old.hash_seed != new.hash_seed && running.clone().next().is_some() {
        all.push(Held::ChangesSeed { old: old.hash_seed, new: new.hash_seed });
    }
    all.extend(running.filter_map(|(o, n)| moved_flows(o, n)));
    let gone = old.services.iter().filter(|o| !new_services.contains_key(&*o.name));
    all.extend(
        gone.filter(|o| has_traffic(&o.name)).map(|o| Held::RemovesService { service: o.name.to_string() }),
    );
    all.extend(removed_backends(old, new));
    all
}

fn by_name(spec: &Spec) -> BTreeMap<&str, &ServiceSpec> {
    spec.services.iter().map(|service| (&*service.name, service)).collect()
}

fn changed_limits(old: &Spec, new: &Spec) -> Option<Held> {
    let (old, new) = (old.limits, new.limits);
    let pairs = [
        ("services", old.services != new.services),
        ("backends", old.backends != new.backends),
        ("slots", old.slots != new.slots),
        ("flows", old.flows != new.flows),
    ];
    let keys = changed(&pairs);
    (!keys.is_empty()).then_some(Held::ChangesLimits { keys })
}

fn moved_flows(old: &ServiceSpec, new: &ServiceSpec) -> Option<Held> {
    let keys = changed(&[
        ("hash", old.hash != new.hash),
        ("ring_size", old.ring_size != new.ring_size),
        ("forward", old.forward != new.forward),
    ]);
    (!keys.is_empty()).then(|| Held::MovesFlows { service: old.name.to_string(), keys })
}

fn changed(keys: &[(&'static str, bool)]) -> Vec<&'static str> {
    keys.iter().filter(|(_, changed)| *changed).map(|(key, _)| *key).collect()
}

fn removed_backends(old: &Spec, new: &Spec) -> Option<Held> {
    let new_services = by_name(new);
    // Its service, address and port make a backend the same one, never its name or place.
    let is_same = |a: &BackendSpec, b: &BackendSpec| a.address == b.address && a.port == b.port;
    let removed_of = |old: &ServiceSpec| {
        let new = new_services.get(&*old.name).map_or(&[][..], |service| &service.backends);
        let stays = |(place, backend): (usize, &BackendSpec)| {
            // Most stand where they stood.
            new.get(place).is_some_and(|b| is_same(b, backend)) || new.iter().any(|b| is_same(b, backend))
        };
        old.backends.iter().enumerate().filter(|at| !stays(*at)).count()
    };
    let removed: usize = old.services.iter().map(removed_of).sum();
    let of = old.services.iter().map(|service| service.backends.len()).sum();
    (removed * 2 > of).then_some(Held::RemovesBackends { removed, of })
}

/// Whether `new` is `old` without some backends, services, listens or interfaces, and nothing else: no key has
/// another value and nothing was added. False if they are equal.
pub fn only_removes(old: &Spec, new: &Spec) -> bool {
    // Destructured, so that a new field does not compile until it is thought of.
    let Spec { interfaces, hash_seed, limits, admin, services } = new;
    let old_services = by_name(old);
    old != new
        && hash_seed == &old.hash_seed
        && limits == &old.limits
        && admin == &old.admin
        && interfaces.iter().all(|interface| old.interfaces.contains(interface))
        && services
            .iter()
            .all(|service| old_services.get(&*service.name).is_some_and(|old| same_or_less(old, service)))
}

fn same_or_less(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    let same_keys = {
        let mut old = old.clone();
        old.listen.clone_from(&new.listen);
        old.backends.clone_from(&new.backends);
        old == *new
    };
    let old_backends: BTreeMap<&str, &BackendSpec> = old.backends.iter().map(|b| (&*b.name, b)).collect();
    same_keys
        && new.listen.iter().all(|listen| old.listen.contains(listen))
        && new.backends.iter().all(|backend| old_backends.get(&*backend.name) == Some(&backend))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;

    const BASE: &str = r#"
interfaces: [eth0, eth1]
services:
  - name: web
    listen: ["192.0.2.10:80/tcp", "192.0.2.10:443/tcp"]
    forward: l2
    backends: [{name: a, address: 10.0.0.1}, {name: b, address: 10.0.0.2}, {name: c, address: 10.0.0.3}]
  - name: dns
    listen: ["192.0.2.11:53/udp"]
    forward: l2
    health: {type: none}
    backends: [{address: 10.0.1.1}, {address: 10.0.1.2}, {address: 10.0.1.3}]
"#;

    fn spec(text: &str) -> Spec {
        parse(text, Path::new("f")).unwrap_or_else(|errors| panic!("{errors}")).spec
    }

    /// What holds the change of BASE by these replacements.
    fn after(replacements: &[(&str, &str)]) -> (Spec, Spec) {
        let mut text = BASE.to_owned();
        for (from, to) in replacements {
            assert!(text.contains(from), "{from}");
            text = text.replacen(from, to, 1);
        }
        (spec(BASE), spec(&text))
    }

    fn reasons(replacements: &[(&str, &str)], traffic: bool) -> Vec<Held> {
        let (old, new) = after(replacements);
        held(&old, &new, |_| traffic)
    }

    /// The text of the second service, and nothing in its place.
    const NO_DNS: (&str, &str) = (DNS, "");
    const DNS: &str = r#"  - name: dns
    listen: ["192.0.2.11:53/udp"]
    forward: l2
    health: {type: none}
    backends: [{address: 10.0.1.1}, {address: 10.0.1.2}, {address: 10.0.1.3}]
"#;

    #[test]
    fn everyday_changes_are_not_held() {
        for replacements in [
            &[][..],
            &[("{name: a, address: 10.0.0.1}, ", "")],
            &[("address: 10.0.0.1}", "address: 10.0.0.9}")],
            &[("10.0.0.1}", "10.0.0.1, state: disabled}"), ("10.0.0.2}", "10.0.0.2, weight: 1}")],
            &[("192.0.2.10:443/tcp", "192.0.2.10:8443/tcp")],
            &[("[eth0, eth1]", "[eth0]")],
            &[("type: none", "type: tcp")],
            &[("name: a", "name: renamed"), ("name: b", "name: also")],
        ] {
            assert_eq!(reasons(replacements, true), [], "{replacements:?}");
        }
    }

    #[test]
    fn more_than_half_of_all_backends_needs_a_reload() {
        let three = ("{name: a, address: 10.0.0.1}, {name: b, address: 10.0.0.2}, ", "");
        let one = ("{address: 10.0.1.1}, ", "");
        let two = ("{address: 10.0.1.1}, {address: 10.0.1.2}, ", "");
        assert_eq!(reasons(&[three, one], false), [], "exactly half is not more");
        let reasons = reasons(&[three, two], false);
        assert_eq!(reasons, [Held::RemovesBackends { removed: 4, of: 6 }]);
        assert_eq!(reasons[0].needs(), Consent::Reload);
        assert!(reasons[0].to_string().ends_with("`xlb reload`"), "{}", reasons[0]);
    }

    #[test]
    fn the_same_address_in_another_service_is_another_backend() {
        let moved = [
            ("10.0.0.1}", "10.1.0.1}"),
            ("10.0.0.2}", "10.1.0.2}"),
            ("10.0.0.3}", "10.1.0.3}"),
            ("10.0.1.1}", "10.0.0.1}"),
        ];
        assert_eq!(reasons(&moved, false), [Held::RemovesBackends { removed: 4, of: 6 }]);
    }

    #[test]
    fn a_service_with_traffic_needs_a_reload() {
        assert_eq!(reasons(&[NO_DNS], false), []);
        assert_eq!(reasons(&[NO_DNS], true), [Held::RemovesService { service: "dns".into() }]);
        let renamed = [("name: dns", "name: resolver")];
        assert_eq!(reasons(&renamed, true), [Held::RemovesService { service: "dns".into() }]);
    }

    #[test]
    fn what_moves_every_flow_needs_force() {
        let service = || "web".to_owned();
        assert_eq!(
            reasons(&[("l2", "ipip")], false),
            [Held::MovesFlows { service: service(), keys: vec!["forward"] }]
        );
        let both = [("forward: l2", "forward: l2\n    hash: client\n    ring_size: 251")];
        let reasons_of_both = reasons(&both, false);
        assert_eq!(
            reasons_of_both,
            [Held::MovesFlows { service: service(), keys: vec!["hash", "ring_size"] }]
        );
        assert_eq!(reasons_of_both[0].needs(), Consent::Force);
        let seed = [("interfaces", "hash_seed: 7\ninterfaces")];
        assert_eq!(reasons(&seed, false), [Held::ChangesSeed { old: 0, new: 7 }]);
    }

    #[test]
    fn limits_are_refused_whatever_anyone_agrees_to() {
        let reasons = reasons(&[("interfaces", "limits: {flows: 10, slots: 1000000}\ninterfaces")], true);
        assert_eq!(reasons, [Held::ChangesLimits { keys: vec!["slots", "flows"] }]);
        assert!(reasons[0].needs() > Consent::Force);
        assert!(reasons[0].to_string().contains("`xlb detach`"));
    }

    #[test]
    fn a_seed_means_nothing_to_a_file_without_running_services() {
        let old = spec("interfaces: [eth0]\nservices: []\n");
        let new = spec(&format!("hash_seed: 7{BASE}"));
        assert_eq!(held(&old, &new, |_| true), []);
        assert!(!only_removes(&old, &new) && only_removes(&spec(BASE), &old));
    }

    #[test]
    fn only_removals_are_only_removals() {
        for (replacements, wanted) in [
            (&[][..], false),
            (&[("{name: a, address: 10.0.0.1}, ", "")], true),
            (&[(", \"192.0.2.10:443/tcp\"", "")], true),
            (&[NO_DNS], true),
            (&[NO_DNS, ("{name: a, address: 10.0.0.1}, ", "")], true),
            (&[("[eth0, eth1]", "[eth0]")], true),
            (&[NO_DNS, ("10.0.0.1}", "10.0.0.1, weight: 1}")], false),
            (&[NO_DNS, ("10.0.0.1}", "10.0.0.9}")], false),
            (&[NO_DNS, ("forward: l2", "forward: l2\n    drain_timeout: 1m")], false),
            (&[NO_DNS, ("name: web", "name: www")], false),
            (&[NO_DNS, ("interfaces", "hash_seed: 7\ninterfaces")], false),
        ] {
            let (old, new) = after(replacements);
            assert_eq!(only_removes(&old, &new), wanted, "{replacements:?}");
        }
    }
}
