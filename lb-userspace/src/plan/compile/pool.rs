//! The backends of a service while it is compiled.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Knowledge, identity};
use crate::{
    config::spec::{BackendSpec, OnAllDown, ServiceSpec},
    plan::{ring::Member, slow_start::Starter},
};

/// The backends of a service while it is compiled.
#[derive(Default)]
pub(super) struct Pool {
    /// In the spec's order.
    pub(super) all: Vec<Starter>,
    pub(super) names: Vec<Arc<str>>,
    /// By id, leaving ones included.
    pub(super) knowledge: BTreeMap<u16, Knowledge>,
}

impl Pool {
    pub(super) fn add(&mut self, id: u16, backend: &BackendSpec, knowledge: Knowledge, tenths: u32) {
        let member = Member { id, identity: identity(backend), weight: backend.weight };
        self.all.push(Starter { member, tenths });
        self.names.push(Arc::clone(&backend.name));
        if id != 0 {
            self.knowledge.insert(id, knowledge);
        }
    }

    pub(super) fn is_usable(&self, id: u16) -> bool {
        self.knowledge.get(&id).is_some_and(|k| k.is_usable)
    }

    pub(super) fn is_eligible(&self, id: u16) -> bool {
        self.knowledge.get(&id).is_some_and(Knowledge::is_eligible)
    }

    /// Those that take new connections.
    pub(super) fn members(&self, service: &ServiceSpec) -> Vec<Starter> {
        let those = |takes: fn(&Knowledge) -> bool| -> Vec<Starter> {
            self.all.iter().filter(|s| self.knowledge.get(&s.member.id).is_some_and(takes)).copied().collect()
        };
        let eligible = those(Knowledge::is_eligible);
        if eligible.is_empty() && service.on_all_down == OnAllDown::UseAll {
            return those(|k| k.is_last_resort && k.route.is_some());
        }
        eligible
    }

    pub(super) fn usable(&self, members: &[Starter]) -> BTreeSet<u16> {
        let usable = self.knowledge.iter().filter(|(_, k)| k.is_usable).map(|(id, _)| *id);
        usable.chain(members.iter().map(|s| s.member.id)).collect()
    }
}
