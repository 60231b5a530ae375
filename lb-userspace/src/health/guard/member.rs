//! One backend as the guard sees it: what is known of it, what of that is in force, and what is withheld.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::super::{BackendRef, Contact, Health, HealthEvent, Reason};

/// A backend for the guard to watch, as the configuration has it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its name.
    pub key: BackendRef,
    /// Its address: what stands for the server, which may be in several services.
    pub address: IpAddr,
    /// It is probed. What is not can fail by its next hop only, and can prove nothing.
    pub probed: bool,
    /// `guard_timeout` of its service; zero believes every verdict at once.
    pub timeout: Duration,
    /// The health in force and its cause. Only read when the subject is new, or its address is.
    pub initial: (Health, Reason),
}

/// Whether there is a way to send packets to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// There never was.
    Never,
    /// There is.
    Here,
    /// There was, until then.
    Lost(Instant),
}

/// Why a verdict is withheld, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    /// No longer than this.
    pub(super) until: Instant,
    /// When an answer showed that the link is back: the verdict stands once a probe that began later has failed, too.
    pub(super) refuted: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) subject: Subject,
    /// The last verdict.
    pub(super) verdict: (Health, Reason),
    /// The verdict in force.
    pub(super) in_force: (Health, Reason),
    pub(super) way: Way,
    /// There is a way to it, as far as the tables are concerned.
    pub(super) way_in_force: bool,
    /// The last interface that packets to it left by.
    pub(super) interface: Option<u32>,
    pub(super) contact: Contact,
    pub(super) hold: Option<Hold>,
    /// It was asked for a proof and has given none since.
    pub(super) asked: bool,
}

/// Takes packets of flows that it has, see `DESIGN.md` section 6: it is up, or unwell on layer 7 only.
fn is_alive((health, cause): (Health, Reason)) -> bool {
    health == Health::Up || health == Health::Down && cause.is_layer7_only()
}

impl Member {
    pub(super) fn new(subject: Subject) -> Self {
        Self {
            verdict: subject.initial,
            in_force: subject.initial,
            subject,
            way: Way::Never,
            way_in_force: false,
            interface: None,
            contact: Contact::default(),
            hold: None,
            asked: false,
        }
    }

    pub(super) fn note(&mut self, event: &HealthEvent) {
        self.verdict = (event.health, event.cause);
        let known = std::mem::replace(&mut self.contact, event.contact).proved;
        if self.contact.proved > known {
            self.asked = false;
        }
        // What was asked of the book may be newer than the news.
        if let Some(known) = known {
            self.learn(known);
        }
    }

    /// It proved the path at this time, whatever the news say.
    pub(super) fn learn(&mut self, proved: Instant) {
        if self.contact.proved.is_none_or(|known| known < proved) {
            let was_lost = self.contact.lost.is_some_and(|lost| lost <= proved);
            if was_lost || self.contact.proved.is_none() {
                self.contact.back = Some(proved);
            }
            if was_lost {
                (self.contact.lost, self.contact.failed) = (None, None);
            }
            self.contact.proved = Some(proved);
            self.asked = false;
        }
    }

    /// What is in force lets it take packets.
    pub(super) fn is_usable(&self) -> bool {
        self.way_in_force && is_alive(self.in_force)
    }

    /// The verdict says dead, and nothing but silence.
    fn is_silenced(&self) -> bool {
        let (health, cause) = self.verdict;
        health == Health::Down && !is_alive(self.verdict) && !cause.proves_path()
    }

    /// What is known would end its use, and rests on silence or a lost next hop alone.
    pub(super) fn is_doubtful(&self) -> bool {
        let wayless = matches!(self.way, Way::Lost(_));
        self.is_usable() && (self.is_silenced() || wayless && is_alive(self.verdict))
    }

    /// Puts in force what is known, but for what is doubtful if it is `withheld`. Answers whether that changed anything.
    pub(super) fn settle(&mut self, withheld: bool) -> bool {
        let before = (self.in_force, self.way_in_force);
        if !(withheld && self.is_silenced()) {
            self.in_force = self.verdict;
        }
        if !(withheld && matches!(self.way, Way::Lost(_))) {
            self.way_in_force = self.way == Way::Here;
        }
        before != (self.in_force, self.way_in_force)
    }

    /// Since when it is silent or without next hop; `None` if it has given a sign of life since.
    pub(super) fn lost(&self) -> Option<Instant> {
        let wayless = match self.way {
            Way::Lost(at) => Some(at),
            Way::Never | Way::Here => None,
        };
        [self.contact.lost, wayless].into_iter().flatten().min()
    }

    /// It can still prove the path: it is probed, did so before, and has not failed since.
    pub(super) fn may_answer(&self) -> bool {
        self.subject.probed && self.contact.proved.is_some() && self.lost().is_none()
    }

    /// Its silence would say something about the link.
    pub(super) fn is_witness(&self) -> bool {
        self.is_usable() && (self.subject.probed || matches!(self.way, Way::Lost(_)))
    }

    /// A probe that began after the answer that refuted the doubt has failed.
    pub(super) fn failed_again(&self) -> bool {
        let refuted = self.hold.and_then(|hold| hold.refuted);
        refuted.is_some_and(|at| self.contact.failed.is_some_and(|failed| failed >= at))
    }
}
