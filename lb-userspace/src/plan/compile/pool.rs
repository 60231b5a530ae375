//! The backends of a service while it is compiled.

use std::{collections::BTreeSet, sync::Arc};

use super::{Knowledge, identity};
use crate::{
    config::spec::{BackendSpec, OnAllDown, ServiceSpec},
    health::Health,
    plan::{ring::Member, slow_start::Starter},
};

/// The backends of a service while it is compiled.
#[derive(Default)]
pub(super) struct Pool {
    /// In the spec's order.
    pub(super) all: Vec<Starter>,
    pub(super) names: Vec<Arc<str>>,
    /// Of each; whoever has no id can do nothing.
    pub(super) knowledge: Vec<Knowledge>,
    /// Those that have left the file.
    pub(super) leaving: Vec<(u16, Knowledge)>,
}

impl Pool {
    pub(super) fn add(&mut self, id: u16, backend: &BackendSpec, knowledge: Knowledge, tenths: u32) {
        let member = Member { id, identity: identity(backend), weight: backend.weight };
        self.all.push(Starter { member, tenths });
        self.names.push(Arc::clone(&backend.name));
        self.knowledge.push(knowledge);
    }

    /// Those that have an id, and what is known of them.
    pub(super) fn known(&self) -> impl Iterator<Item = (&Starter, &Knowledge)> {
        self.all.iter().zip(&self.knowledge).filter(|(starter, _)| starter.member.id != 0)
    }

    /// Those that take new connections.
    pub(super) fn members(&self, service: &ServiceSpec) -> Vec<Starter> {
        let those = |takes: fn(&Knowledge) -> bool| -> Vec<Starter> {
            self.known().filter(|(_, knowledge)| takes(knowledge)).map(|(starter, _)| *starter).collect()
        };
        let eligible = those(Knowledge::is_eligible);
        if eligible.is_empty() && service.on_all_down == OnAllDown::UseAll {
            return those(|k| k.is_last_resort && k.route.is_some());
        }
        eligible
    }

    /// Ids of those that are not dead, in order.
    pub(super) fn usable(&self, members: &[Starter]) -> Vec<u16> {
        let mut members = members.iter().map(|s| s.member.id).peekable();
        let is_usable = |(starter, knowledge): (&Starter, &Knowledge)| {
            let id = starter.member.id;
            (members.next_if_eq(&id).is_some() || knowledge.is_usable).then_some(id)
        };
        let mut usable: Vec<u16> = self.known().filter_map(is_usable).collect();
        usable.extend(self.leaving.iter().filter(|(_, k)| k.is_usable).map(|(id, _)| *id));
        usable
    }

    /// Whether some have had no verdict yet.
    pub(super) fn is_gathering(&self) -> bool {
        self.known().any(|(_, k)| k.is_last_resort && k.note.health == Health::Unknown)
    }

    /// Ids of those whose drain has reached its deadline.
    pub(super) fn drained(&self) -> BTreeSet<u16> {
        let named = self.known().filter(|(_, k)| k.drain_is_over).map(|(starter, _)| starter.member.id);
        named.chain(self.leaving.iter().filter(|(_, k)| k.drain_is_over).map(|(id, _)| *id)).collect()
    }
}
