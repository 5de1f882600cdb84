//! The events that can happen next, and the state after each.

use std::collections::BTreeSet;

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{AttemptKind, LedgerContents};
use job_handler_webhook::ledger::{
    decide::{RoundDecision, RoundInput, SlotAnswer, SlotRequest, decide},
    resolve::ViewSource,
};

use crate::cluster::{
    ClientRequest, JobState, ModelCluster, Phase, Protocol, Replica, RequestStage, Round, Stored, TRIES,
    View, request, scope,
};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A client's request reaches a replica.
    Ask {
        client: usize,
        replica: usize,
    },
    /// The caller gives up.
    GiveUp {
        request: usize,
    },
    /// A replica reads the ledger.
    ReadLedger {
        replica: usize,
    },
    /// It reads the Jobs as of `view` writes.
    ReadJobs {
        replica: usize,
        view: usize,
        fetches: bool,
        clocks_run_out: bool,
    },
    /// It decides and writes.
    Write {
        replica: usize,
        answer: WriteAnswer,
    },
    /// A write whose answer was lost is stored late.
    Arrive,
    /// It answers.
    Answer {
        replica: usize,
    },
    Crash {
        replica: usize,
    },
    /// An admitted request is stored, or fails because of what is stored.
    Land {
        request: usize,
    },
    /// An admitted request is denied by another webhook.
    Deny {
        request: usize,
    },
    Finish {
        name: &'static str,
    },
    Delete {
        name: &'static str,
    },
    Suspend {
        name: &'static str,
    },
    /// Another change of a suspended Job.
    Touch {
        name: &'static str,
    },
}

/// What a replica learns of its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAnswer {
    /// Whether it was stored or conflicted.
    Known,
    /// Nothing; it was stored.
    LostAfter,
    /// Nothing; it was not stored.
    LostBefore,
    /// Nothing; it may be stored later.
    Late,
}

impl ModelCluster {
    pub fn steps(&self, protocol: &Protocol, steps: &mut Vec<Step>) {
        for (client, wants) in protocol.clients.iter().enumerate() {
            let mine = self.tries.values().filter(|one| one.client == client);
            let (count, waits) = mine.fold((0, false), |(count, waits), one| {
                (count + 1, waits || matches!(one.at, RequestStage::Asking(_)))
            });
            // Clients that differ only in the name are interchangeable, and so are the replicas.
            let twin = client.checked_sub(1).filter(|before| protocol.are_twins(*before, client));
            if twin.is_some_and(|before| !self.tries.contains_key(&(before * TRIES))) {
                continue;
            }
            let replicas = if self.tries.is_empty() { 0..1 } else { 0..self.replicas.len() };
            let possible = !wants.unsuspends
                || self.job(wants.name).is_some_and(|(_, job)| job.state == JobState::Suspended);
            if count < wants.tries && !waits && possible {
                steps.extend(replicas.map(|replica| Step::Ask { client, replica }));
            }
        }
        for (&n, one) in &self.tries {
            match one.at {
                RequestStage::Asking(_) if self.budget.gone > 0 => steps.push(Step::GiveUp { request: n }),
                RequestStage::Admitted => {
                    steps.extend([Step::Land { request: n }, Step::Deny { request: n }]);
                }
                _ => {}
            }
        }
        for (n, replica) in self.replicas.iter().enumerate() {
            self.steps_of(protocol, n, replica, steps);
        }
        if self.late_write.is_some() {
            steps.push(Step::Arrive);
        }
        for name in self.names() {
            let Some((_, job)) = self.job(name) else { continue };
            let (active, suspended) = (job.state == JobState::Active, job.state == JobState::Suspended);
            steps.extend((active && self.budget.finishes > 0).then_some(Step::Finish { name }));
            steps.extend((self.budget.deletes > 0).then_some(Step::Delete { name }));
            steps.extend((active && self.budget.suspends > 0).then_some(Step::Suspend { name }));
            steps.extend((suspended && self.budget.touches > 0).then_some(Step::Touch { name }));
        }
    }

    fn steps_of(&self, protocol: &Protocol, n: usize, replica: &Replica, steps: &mut Vec<Step>) {
        match &replica.phase {
            Phase::Idle => {
                let asked = self.tries.values().any(|one| one.at == RequestStage::Asking(n));
                // Housekeeping needs no request.
                if asked || (protocol.housekeeping && !self.contents.pending.is_empty()) {
                    steps.push(Step::ReadLedger { replica: n });
                }
            }
            Phase::LedgerRead(round) => {
                let lags = protocol.view != View::List || protocol.without.list_of_ones_own;
                let first = if lags { replica.position } else { self.history.len() };
                for view in first..=self.history.len() {
                    if !view_source(protocol, view).covers(round.contents.observed_through) {
                        continue;
                    }
                    let fetches =
                        protocol.view == View::Fetched && self.take_slots_still(view, &round.contents);
                    let runs_out = !self.expired(protocol, &round.contents).is_empty();
                    for fetches in [false, true].into_iter().take(1 + usize::from(fetches)) {
                        for clocks_run_out in [false, true].into_iter().take(1 + usize::from(runs_out)) {
                            steps.push(Step::ReadJobs { replica: n, view, fetches, clocks_run_out });
                        }
                    }
                }
            }
            Phase::JobsRead { .. } => {
                steps.push(Step::Write { replica: n, answer: WriteAnswer::Known });
                if self.budget.ambiguous > 0 {
                    steps.extend(
                        [WriteAnswer::LostAfter, WriteAnswer::LostBefore, WriteAnswer::Late]
                            .map(|answer| Step::Write { replica: n, answer }),
                    );
                }
            }
            Phase::Wrote { .. } => steps.push(Step::Answer { replica: n }),
        }
        if self.budget.crashes > 0 && (replica.phase != Phase::Idle || !replica.revoked.is_empty()) {
            steps.push(Step::Crash { replica: n });
        }
    }

    /// Whether a name holds a slot, by a view or by the ledger.
    fn takes(&self, view: usize, contents: &LedgerContents, name: &str) -> bool {
        let active = self.job_at(view, name).is_some_and(|(_, job)| job.state == JobState::Active);
        active || contents.pending.contains_key(&format!("ns/{name}"))
    }

    /// Whether every slot holder is active now, or not stored yet.
    fn take_slots_still(&self, view: usize, contents: &LedgerContents) -> bool {
        self.names().into_iter().filter(|name| self.takes(view, contents, name)).all(|name| {
            let (observed, now) = (self.job_at(view, name), self.job(name));
            now.is_none_or(|(_, now)| now.state == JobState::Active)
                && observed.is_none_or(|(_, observed)| now.is_some_and(|(_, now)| now.uid == observed.uid))
        })
    }

    pub fn after(&self, protocol: &Protocol, step: Step) -> Option<Self> {
        let mut cluster = self.clone();
        match step {
            Step::Ask { client, replica } => cluster.ask(protocol, client, replica),
            Step::GiveUp { request } => {
                cluster.budget.gone -= 1;
                cluster.end(request);
            }
            Step::ReadLedger { replica } => cluster.read_ledger(replica),
            Step::ReadJobs { replica, view, fetches, clocks_run_out } => {
                let fetched = fetches.then_some(self.history.len());
                cluster.read_jobs(protocol, replica, (view, fetched), clocks_run_out);
            }
            Step::Write { replica, answer } => {
                if !cluster.write(protocol, replica, answer) {
                    return None;
                }
            }
            Step::Arrive => {
                let (version, contents) = cluster.late_write.take()?;
                if version == cluster.ledger_version {
                    cluster.store(protocol, contents);
                }
            }
            Step::Answer { replica } => cluster.answer(replica),
            Step::Crash { replica } => {
                cluster.budget.crashes -= 1;
                cluster.replicas[replica] = Replica { position: 0, ..Replica::default() };
                for one in cluster.tries.values_mut() {
                    if one.at == RequestStage::Asking(replica) {
                        one.at = RequestStage::Ended;
                    }
                }
            }
            Step::Land { request } => cluster.land(protocol, request),
            Step::Deny { request } => cluster.end(request),
            Step::Finish { name } => {
                cluster.budget.finishes -= 1;
                cluster.change(name, JobState::Finished);
            }
            Step::Delete { name } => {
                cluster.budget.deletes -= 1;
                cluster.history.push((name, None));
            }
            Step::Suspend { name } => {
                cluster.budget.suspends -= 1;
                cluster.change(name, JobState::Suspended);
            }
            Step::Touch { name } => {
                cluster.budget.touches -= 1;
                cluster.change(name, JobState::Suspended);
            }
        }
        if protocol.fold {
            cluster.fold();
        }
        (cluster != *self).then_some(cluster)
    }

    fn ask(&mut self, protocol: &Protocol, client: usize, replica: usize) {
        let wants = &protocol.clients[client];
        let n = client * TRIES + self.tries.values().filter(|one| one.client == client).count();
        let stored = self.job(wants.name).filter(|_| wants.unsuspends);
        let (job_uid, kind) = match stored {
            Some((version, job)) => (job.uid.clone(), AttemptKind::Unsuspend { from: version }),
            None => (format!("u{n}"), AttemptKind::Create),
        };
        self.tries.insert(n, ClientRequest { client, job_uid, kind, at: RequestStage::Asking(replica) });
    }

    fn read_ledger(&mut self, n: usize) {
        let asking = self.tries.iter().filter(|(_, one)| one.at == RequestStage::Asking(n));
        let asked = asking.map(|(n, _)| *n).collect();
        let revoked = self.replicas[n].revoked.clone();
        let round =
            Round { contents: self.contents.clone(), ledger_version: self.ledger_version, asked, revoked };
        self.replicas[n].phase = Phase::LedgerRead(round);
    }

    fn read_jobs(
        &mut self,
        protocol: &Protocol,
        n: usize,
        (view, fetched): (usize, Option<usize>),
        clocks_run_out: bool,
    ) {
        let Phase::LedgerRead(round) = self.replicas[n].phase.clone() else { return };
        let expired = if clocks_run_out { self.expired(protocol, &round.contents) } else { BTreeSet::new() };
        self.replicas[n].position = view;
        self.replicas[n].phase = Phase::JobsRead { round, view, fetched, expired };
    }

    /// Writes the decision of a round. Returns false if there is none, or if an answer is to be lost and nothing was written.
    fn write(&mut self, protocol: &Protocol, n: usize, answer: WriteAnswer) -> bool {
        let Phase::JobsRead { round, view, fetched, expired } = self.replicas[n].phase.clone() else {
            return false;
        };
        let Some(decided) = self.decide(protocol, n, &round, (view, fetched), &expired) else { return false };
        let changed = decided.contents != round.contents;
        if !changed && answer != WriteAnswer::Known {
            return false;
        }
        let fits = round.ledger_version == self.ledger_version;
        let answered = |granted: bool| {
            let answers = round.asked.iter().zip(&decided.answers);
            answers.filter(|(_, a)| (**a == SlotAnswer::Granted) == granted).map(|(n, _)| *n).collect()
        };
        let wrote = Phase::Wrote { granted: answered(true), refused: answered(false) };
        self.replicas[n].phase = Phase::Idle;
        match answer {
            WriteAnswer::Known if !changed || fits => {
                if changed {
                    self.store(protocol, decided.contents);
                }
                for done in &round.revoked {
                    self.replicas[n].revoked.remove(done);
                }
                self.replicas[n].phase = wrote;
            }
            // A conflict: the round starts over.
            WriteAnswer::Known => {}
            lost => {
                self.budget.ambiguous -= 1;
                match lost {
                    WriteAnswer::LostAfter if fits => self.store(protocol, decided.contents),
                    WriteAnswer::Late => self.late_write = Some((round.ledger_version, decided.contents)),
                    _ => {}
                }
                if protocol.without.reread {
                    self.replicas[n].phase = wrote;
                }
            }
        }
        true
    }

    fn decide(
        &self,
        protocol: &Protocol,
        n: usize,
        round: &Round,
        (view, fetched): (usize, Option<usize>),
        expired: &BTreeSet<String>,
    ) -> Option<RoundDecision> {
        let own = protocol.revisions[n];
        let revision = if protocol.without.revision { "any" } else { own };
        let asked: Vec<SlotRequest> = round
            .asked
            .iter()
            .map(|n| {
                let one = &self.tries[n];
                let kind = match one.kind {
                    // Every version of the Job then counts as later.
                    AttemptKind::Unsuspend { .. } if protocol.without.after_from => {
                        AttemptKind::Unsuspend { from: 0 }
                    }
                    ref kind => kind.clone(),
                };
                SlotRequest {
                    request: request(*n),
                    name: format!("ns/{}", protocol.clients[one.client].name),
                    job_uid: one.job_uid.clone(),
                    kind,
                    scopes: vec![(scope(own), u32::try_from(protocol.max).unwrap())],
                    dry_run: false,
                    in_backoff: false,
                }
            })
            .collect();
        let fetched = |name: &str| fetched.filter(|_| self.takes(view, &round.contents, name));
        let seen = self.observed(view, own, fetched);
        let given = RoundInput {
            contents: &round.contents,
            view_source: view_source(protocol, view),
            jobs: &seen.iter().collect::<Vec<_>>(),
            expired,
            overdue: &BTreeSet::new(),
            revoked: &round.revoked,
            revision: &|_| revision.to_owned(),
            now: Timestamp::UNIX_EPOCH,
        };
        decide(given, &asked)
    }

    fn store(&mut self, protocol: &Protocol, mut contents: LedgerContents) {
        if protocol.without.observed_through {
            contents.observed_through = 0;
        }
        if protocol.without.attempts_per_request {
            for tries in contents.pending.values_mut() {
                while tries.len() > 1 {
                    tries.pop_first();
                }
            }
        }
        self.contents = contents;
        self.ledger_version += 1;
    }

    fn answer(&mut self, n: usize) {
        let Phase::Wrote { granted, refused } = std::mem::take(&mut self.replicas[n].phase) else { return };
        for one in granted {
            match self.tries.get_mut(&one) {
                Some(waits) if waits.at == RequestStage::Asking(n) => waits.at = RequestStage::Admitted,
                _ => {
                    self.replicas[n].revoked.insert(request(one));
                }
            }
        }
        for one in refused {
            self.end(one);
        }
    }

    fn end(&mut self, request: usize) {
        if let Some(one) = self.tries.get_mut(&request) {
            one.at = RequestStage::Ended;
        }
    }

    fn land(&mut self, protocol: &Protocol, n: usize) {
        let one = self.tries[&n].clone();
        self.end(n);
        let name = protocol.clients[one.client].name;
        let lands = match (&one.kind, self.job(name)) {
            (AttemptKind::Create, stored) => stored.is_none(),
            (AttemptKind::Unsuspend { from }, Some((version, _))) => version == *from,
            (AttemptKind::Unsuspend { .. }, None) => false,
        };
        if lands {
            self.history.push((name, Some(Stored { uid: one.job_uid, state: JobState::Active })));
        }
    }

    fn change(&mut self, name: &'static str, state: JobState) {
        if let Some((_, job)) = self.job(name) {
            let stored = Stored { state, ..job.clone() };
            self.history.push((name, Some(stored)));
        }
    }
}

fn view_source(protocol: &Protocol, view: usize) -> ViewSource {
    match protocol.view {
        View::Cache | View::Fetched => ViewSource::Cache(view as u64),
        View::List => ViewSource::List,
    }
}

impl Protocol {
    /// Whether two clients differ only in the names of the Jobs that they create, which no other client uses.
    fn are_twins(&self, a: usize, b: usize) -> bool {
        let (one, other) = (&self.clients[a], &self.clients[b]);
        let only = |name| self.clients.iter().filter(|client| client.name == name).count() == 1;
        let alike = one.tries == other.tries && !one.unsuspends && !other.unsuspends;
        alike && only(one.name) && only(other.name)
    }
}
