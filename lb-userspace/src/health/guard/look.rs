//! One look at the backends behind an interface, some of which are doubtful or were.

use std::time::{Duration, Instant};

use super::{
    super::{BackendRef, Contact},
    Decision, Group, GuardEvent, GuardEventKind, Phase,
    member::{Hold, Member},
};

/// So many are asked for a proof at once.
const ASKED_AT_ONCE: usize = 8;
/// Who is not probed cannot be asked: its next hop has so long to come back after the link has.
const NEXT_HOP_PATIENCE: Duration = Duration::from_secs(1);

/// When somebody last proved the path.
#[derive(Debug, Clone, Copy, Default)]
struct Proofs {
    /// Anybody.
    any: Option<Instant>,
    /// Somebody who was never lost since the first of the doubts: then the link was not, either.
    steady: Option<Instant>,
}

pub(super) struct Look<'a> {
    interface: u32,
    group: &'a mut Group,
    /// Of all groups.
    members: &'a mut [Member],
    now: Instant,
    decision: &'a mut Decision,
    /// Whose answer refuted a hold.
    answered: Option<usize>,
    /// Holds that went by time-out.
    timed_out: usize,
}

impl<'a> Look<'a> {
    pub(super) fn new(
        interface: u32,
        group: &'a mut Group,
        members: &'a mut [Member],
        now: Instant,
        decision: &'a mut Decision,
    ) -> Self {
        Self { interface, group, members, now, decision, answered: None, timed_out: 0 }
    }

    /// `news` are those that became doubtful, or are still and something else is new of them.
    pub(super) fn decide(mut self, news: Vec<usize>, proved: &dyn Fn(&BackendRef) -> Option<Instant>) {
        let all = || self.group.members.iter().copied().filter(|at| self.members[*at].is_doubtful());
        let doubtful = if self.group.holds { all().collect() } else { news };
        let lost = || doubtful.iter().filter_map(|at| self.members[*at].lost());
        let times = lost().min().zip(lost().max());
        let proofs = times.map_or_else(Proofs::default, |times| self.latest_proofs(times, proved));
        if proofs.any > self.group.spent {
            self.group.spent = None;
        }
        let comparable = self.is_comparable();
        let expired = self.expired(&doubtful);
        if expired.is_some() {
            self.group.spent = Some(self.now);
        }
        let mut holds = false;
        for at in doubtful {
            let withheld = comparable && self.holds(at, proofs, expired);
            let member = &mut self.members[at];
            if !withheld {
                member.hold = None;
            }
            self.decision.changed |= member.settle(withheld);
            holds |= withheld;
        }
        // The single death, which shall not wait for a walk through all.
        if holds || self.group.holds {
            self.speak();
            self.ask();
        }
    }

    /// The latest proofs, for doubts that began between `first` and `last`. Looks no further than it must.
    fn latest_proofs(
        &mut self,
        (first, last): (Instant, Instant),
        proved: &dyn Fn(&BackendRef) -> Option<Instant>,
    ) -> Proofs {
        let mut proofs = Proofs::default();
        // Who was the latest the last time is a good guess.
        for at in self.group.latest.into_iter().chain(self.group.members.iter().copied()) {
            let member = &mut self.members[at];
            if !self.group.holds
                && let Some(known) = proved(&member.subject.key)
            {
                member.learn(known);
            }
            let Contact { proved, back, .. } = member.contact;
            if proved > proofs.any {
                proofs.any = proved;
                self.group.latest = Some(at);
            }
            if back < Some(first) {
                proofs.steady = proofs.steady.max(proved);
            }
            if proofs.steady >= Some(last) {
                break;
            }
        }
        proofs
    }

    /// Servers of two addresses are usable and could be told from their link.
    fn is_comparable(&self) -> bool {
        let members = self.group.members.iter().map(|at| &self.members[*at]);
        let mut addresses = members.filter(|m| m.is_witness()).map(|m| m.subject.address);
        let first = addresses.next();
        addresses.any(|address| Some(address) != first)
    }

    /// The longest time-out of a hold that has reached its own.
    fn expired(&self, doubtful: &[usize]) -> Option<Duration> {
        let unanswered = |member: &Member| {
            member.hold.is_some_and(|hold| hold.refuted.is_none() && hold.until <= self.now)
        };
        let members = doubtful.iter().map(|at| &self.members[*at]);
        members.filter(|member| unanswered(member)).map(|member| member.subject.timeout).max()
    }

    /// Whether this doubtful verdict is held, or still so. Makes and changes its hold.
    fn holds(&mut self, at: usize, proofs: Proofs, expired: Option<Duration>) -> bool {
        let member = &mut self.members[at];
        let (lost, timeout) = (member.lost(), member.subject.timeout);
        if timeout.is_zero() {
            return false;
        }
        if lost.is_some() && proofs.steady >= lost {
            return false;
        }
        let before = member.hold;
        let (refuted, by) = match lost {
            Some(lost) => (proofs.any.filter(|proof| *proof >= lost), self.group.latest),
            // Who has answered itself since its verdict refutes it itself.
            None => (member.contact.proved, Some(at)),
        };
        let mut hold = before.unwrap_or(Hold { until: self.now + timeout, refuted: None });
        let is_news = hold.refuted.is_none() && refuted.is_some();
        if is_news {
            hold.refuted = refuted;
            self.answered = self.answered.or(by);
            if !member.subject.probed {
                hold.until = hold.until.min(self.now + NEXT_HOP_PATIENCE);
            }
        }
        member.hold = Some(hold);
        if hold.refuted.is_some() {
            let held = hold.until > self.now && !member.failed_again();
            if is_news && held && member.subject.probed {
                self.decision.probe.push(member.subject.key.clone());
            }
            return held;
        }
        let over = before.is_some() && expired.is_some_and(|longest| timeout <= longest);
        self.timed_out += usize::from(over);
        // A group whose time is spent holds nothing more.
        !over && (before.is_some() || self.group.spent.is_none())
    }

    /// Says what is new, and notes what was said.
    fn speak(&mut self) {
        let members = || self.group.members.iter().map(|at| &self.members[*at]);
        let held = members().filter(|member| member.hold.is_some()).count();
        let unanswered =
            members().filter_map(|member| member.hold).all(|hold| hold.refuted.is_none()) && held > 0;
        let was = self.group.phase;
        let mut kinds = Vec::new();
        let mut phase = was;
        if self.timed_out > 0 {
            kinds.push(GuardEventKind::TimedOut { backends: self.timed_out });
        }
        if let (Phase::Silent, Some(by)) = (was, self.answered) {
            let by = self.members[by].subject.key.clone();
            kinds.push(GuardEventKind::Answered { by, held });
            phase = Phase::Returning;
        } else if was != Phase::Silent && unanswered && !members().any(Member::may_answer) {
            let first = members().filter_map(|member| member.hold).map(|hold| hold.until).min();
            let backends = members().filter(|member| member.is_witness()).count();
            kinds.push(GuardEventKind::Began { backends, until: first.unwrap_or(self.now) });
            phase = Phase::Silent;
        }
        if held == 0 {
            if phase == Phase::Silent && kinds.is_empty() {
                kinds.push(GuardEventKind::Over);
            }
            phase = Phase::Quiet;
        }
        self.group.phase = phase;
        self.group.holds = held > 0;
        let interface = self.interface;
        self.decision.events.extend(kinds.into_iter().map(|kind| GuardEvent { interface, kind }));
    }

    /// Asks those for a proof of whom it would be a steady one; the likeliest are who gave one last.
    fn ask(&mut self) {
        let group = || self.group.members.iter().copied();
        let held = group().filter(|at| self.members[*at].hold.is_some());
        let Some(first) = held.filter_map(|at| self.members[at].lost()).min() else {
            for at in &self.group.members {
                self.members[*at].asked = false;
            }
            return;
        };
        let is_able = |member: &Member| member.may_answer() && member.contact.back < Some(first);
        let (asked, mut able): (Vec<usize>, Vec<usize>) =
            group().filter(|at| is_able(&self.members[*at])).partition(|at| self.members[*at].asked);
        able.sort_by_key(|at| std::cmp::Reverse(self.members[*at].contact.proved));
        for at in able.into_iter().take(ASKED_AT_ONCE.saturating_sub(asked.len())) {
            let member = &mut self.members[at];
            member.asked = true;
            self.decision.probe.push(member.subject.key.clone());
        }
    }
}
