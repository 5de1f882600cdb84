//! The events that can happen next, and the state after each.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{AttemptKind, LedgerContents};
use job_handler_webhook::ledger::{
    decide::{HeldRequest, RoundDecision, RoundInput, SlotAnswer, SlotRequest, decide},
    resolve::ViewSource,
};

use crate::cluster::{
    ClientRequest, ModelClient, ModelCluster, ModelJobState, ModelProtocol, ModelReplica, ModelRound,
    ModelView, Phase, REQUESTS_PER_CLIENT, RequestStage, StoredJob, request, scope,
};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelStep {
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
    /// A replica answers the requests of its round.
    Answer {
        replica: usize,
    },
    Crash {
        replica: usize,
    },
    /// An admitted request is stored, or fails because of what is stored.
    StoreJob {
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
    /// The last pod of a deleted Job ends.
    PodsEnd {
        uid: String,
    },
    /// The sink sees that a Job, for which the ledger holds slots, has neither pods nor an active Job.
    Look {
        uid: String,
    },
    /// The sink frees the slot of the Job that it looked at.
    Free,
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
    pub fn steps(&self, protocol: &ModelProtocol, steps: &mut Vec<ModelStep>) {
        for (client, wants) in protocol.clients.iter().enumerate() {
            let mine = self.requests.values().filter(|one| one.client == client);
            let (calls, waits) = mine.fold((0, false), |(calls, waits), one| {
                (calls + 1, waits || matches!(one.at, RequestStage::Asking(_)))
            });
            let count = calls / protocol.entries;
            // Clients that differ only in the name are interchangeable, and so are the replicas.
            let interchangeable =
                client.checked_sub(1).filter(|before| protocol.are_interchangeable(*before, client));
            if interchangeable
                .is_some_and(|before| !self.requests.contains_key(&(before * REQUESTS_PER_CLIENT)))
            {
                continue;
            }
            let replicas = if self.requests.is_empty() { 0..1 } else { 0..self.replicas.len() };
            let is = |state| self.job(wants.name).is_some_and(|(_, job)| job.state == state);
            let possible = match wants {
                ModelClient { unsuspends: true, .. } => is(ModelJobState::Suspended),
                ModelClient { orphans: true, .. } => is(ModelJobState::Active),
                _ => true,
            };
            if count < usize::from(wants.max_requests) && !waits && possible {
                steps.extend(replicas.map(|replica| ModelStep::Ask { client, replica }));
            }
        }
        for (&n, one) in &self.requests {
            match one.at {
                RequestStage::Asking(_) if self.budget.gone > 0 => {
                    steps.push(ModelStep::GiveUp { request: n });
                }
                RequestStage::Admitted if self.is_admitted(n) => {
                    steps.extend([ModelStep::StoreJob { request: n }, ModelStep::Deny { request: n }]);
                }
                _ => {}
            }
        }
        for (n, replica) in self.replicas.iter().enumerate() {
            self.steps_of(protocol, n, replica, steps);
        }
        if self.late_write.is_some() {
            steps.push(ModelStep::Arrive);
        }
        steps.extend(self.orphaned.iter().map(|uid| ModelStep::PodsEnd { uid: uid.clone() }));
        match &self.looked {
            None => steps.extend(self.freeable().map(|uid| ModelStep::Look { uid: uid.clone() })),
            Some(_) => steps.push(ModelStep::Free),
        }
        for name in self.names() {
            let Some((_, job)) = self.job(name) else { continue };
            let (active, suspended) =
                (job.state == ModelJobState::Active, job.state == ModelJobState::Suspended);
            steps.extend((active && self.budget.finishes > 0).then_some(ModelStep::Finish { name }));
            steps.extend((self.budget.deletes > 0).then_some(ModelStep::Delete { name }));
            steps.extend((active && self.budget.suspends > 0).then_some(ModelStep::Suspend { name }));
            steps.extend((suspended && self.budget.touches > 0).then_some(ModelStep::Touch { name }));
        }
    }

    fn steps_of(
        &self,
        protocol: &ModelProtocol,
        n: usize,
        replica: &ModelReplica,
        steps: &mut Vec<ModelStep>,
    ) {
        match &replica.phase {
            Phase::Idle => {
                let asked = self.requests.values().any(|one| one.at == RequestStage::Asking(n));
                // Housekeeping needs no request.
                if asked || (protocol.housekeeping && !self.contents.pending.is_empty()) {
                    steps.push(ModelStep::ReadLedger { replica: n });
                }
            }
            Phase::LedgerRead(round) => {
                let lags = protocol.view != ModelView::List || protocol.without.list_of_ones_own;
                let first = if lags { replica.position } else { self.history.len() };
                for view in first..=self.history.len() {
                    if !view_source(protocol, view).covers(round.contents.observed_through) {
                        continue;
                    }
                    let fetches =
                        protocol.view == ModelView::Fetched && self.take_slots_still(view, &round.contents);
                    let runs_out = !self.expired(protocol, &round.contents).is_empty();
                    for fetches in [false, true].into_iter().take(1 + usize::from(fetches)) {
                        for clocks_run_out in [false, true].into_iter().take(1 + usize::from(runs_out)) {
                            steps.push(ModelStep::ReadJobs { replica: n, view, fetches, clocks_run_out });
                        }
                    }
                }
            }
            Phase::JobsRead { .. } => {
                steps.push(ModelStep::Write { replica: n, answer: WriteAnswer::Known });
                if self.budget.ambiguous > 0 {
                    steps.extend(
                        [WriteAnswer::LostAfter, WriteAnswer::LostBefore, WriteAnswer::Late]
                            .map(|answer| ModelStep::Write { replica: n, answer }),
                    );
                }
            }
            Phase::Wrote { .. } => steps.push(ModelStep::Answer { replica: n }),
        }
        if self.budget.crashes > 0 && (replica.phase != Phase::Idle || !replica.revoked.is_empty()) {
            steps.push(ModelStep::Crash { replica: n });
        }
    }

    /// Whether a name holds a slot, by a view or by the ledger.
    fn takes(&self, view: usize, contents: &LedgerContents, name: &str) -> bool {
        let active = self.job_at(view, name).is_some_and(|(_, job)| job.state == ModelJobState::Active);
        active || contents.pending.contains_key(&format!("ns/{name}"))
    }

    /// Whether every slot holder is active now, or not stored yet.
    fn take_slots_still(&self, view: usize, contents: &LedgerContents) -> bool {
        self.names().into_iter().filter(|name| self.takes(view, contents, name)).all(|name| {
            let (observed, now) = (self.job_at(view, name), self.job(name));
            now.is_none_or(|(_, now)| now.state == ModelJobState::Active)
                && observed.is_none_or(|(_, observed)| now.is_some_and(|(_, now)| now.uid == observed.uid))
        })
    }

    pub fn after(&self, protocol: &ModelProtocol, step: ModelStep) -> Option<Self> {
        let mut cluster = self.clone();
        match step {
            ModelStep::Ask { client, replica } => cluster.ask(protocol, client, replica),
            ModelStep::GiveUp { request } => {
                cluster.budget.gone -= 1;
                cluster.end(request);
            }
            ModelStep::ReadLedger { replica } => cluster.read_ledger(replica),
            ModelStep::ReadJobs { replica, view, fetches, clocks_run_out } => {
                let fetched = fetches.then_some(self.history.len());
                cluster.read_jobs(protocol, replica, (view, fetched), clocks_run_out);
            }
            ModelStep::Write { replica, answer } => {
                if !cluster.write(protocol, replica, answer) {
                    return None;
                }
            }
            ModelStep::Arrive => {
                let (version, contents) = cluster.late_write.take()?;
                if version == cluster.ledger_version {
                    cluster.store_ledger(protocol, contents);
                }
            }
            ModelStep::Answer { replica } => cluster.answer(replica),
            ModelStep::Crash { replica } => {
                cluster.budget.crashes -= 1;
                cluster.replicas[replica] = ModelReplica { position: 0, ..ModelReplica::default() };
                let asked: Vec<usize> = cluster.requests.keys().copied().collect();
                for n in asked {
                    if cluster.requests[&n].at == RequestStage::Asking(replica) {
                        cluster.end(n);
                    }
                }
            }
            ModelStep::StoreJob { request } => cluster.store_job(protocol, request),
            ModelStep::Deny { request } => cluster.end(request),
            ModelStep::Finish { name } => {
                cluster.budget.finishes -= 1;
                cluster.change(name, ModelJobState::Finished);
            }
            ModelStep::Delete { name } => {
                cluster.budget.deletes -= 1;
                cluster.history.push((name, None));
            }
            ModelStep::Suspend { name } => {
                cluster.budget.suspends -= 1;
                cluster.change(name, ModelJobState::Suspended);
            }
            ModelStep::PodsEnd { uid } => _ = cluster.orphaned.remove(&uid),
            ModelStep::Look { uid } => cluster.looked = Some((cluster.ledger_version, uid)),
            ModelStep::Free => {
                let (version, uid) = cluster.looked.take()?;
                if version == cluster.ledger_version || protocol.without.look_at_version {
                    cluster.contents.held.remove(&uid);
                    cluster.ledger_version += 1;
                }
            }
            ModelStep::Touch { name } => {
                cluster.budget.touches -= 1;
                cluster.change(name, ModelJobState::Suspended);
            }
        }
        if protocol.fold {
            cluster.fold();
        }
        (cluster != *self).then_some(cluster)
    }

    /// Uids of which neither pods nor an active Job are left.
    fn freeable(&self) -> impl Iterator<Item = &String> {
        self.contents.held.keys().filter(|uid| {
            let active = self.names().into_iter().filter_map(|name| self.job(name));
            let is_it = |(_, job): (u64, &StoredJob)| job.uid == **uid && job.state == ModelJobState::Active;
            !self.orphaned.contains(*uid) && !active.into_iter().any(is_it)
        })
    }

    fn ask(&mut self, protocol: &ModelProtocol, client: usize, replica: usize) {
        let wants = &protocol.clients[client];
        let n =
            client * REQUESTS_PER_CLIENT + self.requests.values().filter(|one| one.client == client).count();
        let stored = self.job(wants.name).filter(|_| wants.unsuspends || wants.orphans);
        let (job_uid, kind) = match stored {
            Some((version, job)) => (job.uid.clone(), AttemptKind::Unsuspend { from: version }),
            None => (format!("u{n}"), AttemptKind::Create),
        };
        // The calls of the entries go to one replica after the other.
        let all: Vec<usize> = (n..n + protocol.entries).collect();
        let calls = if protocol.entries > 1 { all.clone() } else { Vec::new() };
        for (entry, n) in all.into_iter().enumerate() {
            let at = RequestStage::Asking((replica + entry) % self.replicas.len());
            let (job_uid, kind, calls) = (job_uid.clone(), kind.clone(), calls.clone());
            self.requests.insert(n, ClientRequest { client, job_uid, kind, at, calls, refused: false });
        }
    }

    fn read_ledger(&mut self, n: usize) {
        let asking = self.requests.iter().filter(|(_, one)| one.at == RequestStage::Asking(n));
        let asked = asking.map(|(n, _)| *n).collect();
        let revoked = self.replicas[n].revoked.clone();
        let round = ModelRound {
            contents: self.contents.clone(),
            ledger_version: self.ledger_version,
            asked,
            revoked,
        };
        self.replicas[n].phase = Phase::LedgerRead(round);
    }

    fn read_jobs(
        &mut self,
        protocol: &ModelProtocol,
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
    fn write(&mut self, protocol: &ModelProtocol, n: usize, answer: WriteAnswer) -> bool {
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
                    self.store_ledger(protocol, decided.contents);
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
                    WriteAnswer::LostAfter if fits => self.store_ledger(protocol, decided.contents),
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
        protocol: &ModelProtocol,
        n: usize,
        round: &ModelRound,
        (view, fetched): (usize, Option<usize>),
        expired: &BTreeSet<String>,
    ) -> Option<RoundDecision> {
        let own = protocol.revisions[n];
        let revision = if protocol.without.revision { "any" } else { own };
        let asked: Vec<SlotRequest> = round
            .asked
            .iter()
            .map(|n| {
                let one = &self.requests[n];
                let kind = match one.kind {
                    // Every version of the Job then counts as later.
                    AttemptKind::Unsuspend { .. } if protocol.without.after_from => {
                        AttemptKind::Unsuspend { from: 0 }
                    }
                    ref kind => kind.clone(),
                };
                let ModelClient { name, orphans, .. } = &protocol.clients[one.client];
                let (name, orphans) = (format!("ns/{name}"), *orphans);
                SlotRequest {
                    request: request(*n),
                    name: name.clone(),
                    job_uid: if orphans && protocol.without.room_for_both {
                        // Every attempt of the name then looks like one of its own.
                        let own =
                            round.contents.pending.get(&name).and_then(|attempts| attempts.values().next());
                        own.map_or(&one.job_uid, |granted| &granted.job_uid).clone()
                    } else {
                        one.job_uid.clone()
                    },
                    kind,
                    scopes: vec![(scope(own), u32::try_from(protocol.max).unwrap())],
                    held: if orphans {
                        HeldRequest::Orphans { since: Timestamp::UNIX_EPOCH }
                    } else {
                        HeldRequest::Nothing
                    },
                    dry_run: false,
                    shared: !one.calls.is_empty() && !protocol.without.refusals,
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
            unstored: &BTreeMap::new(),
            revoked: &round.revoked,
            forgotten: &BTreeSet::new(),
            refusals_by: Some(ViewSource::List),
            revision: &|_| revision.to_owned(),
            now: Timestamp::UNIX_EPOCH,
        };
        decide(given, &asked)
    }

    fn store_ledger(&mut self, protocol: &ModelProtocol, mut contents: LedgerContents) {
        if protocol.without.observed_through {
            contents.observed_through = 0;
        }
        if protocol.without.held {
            contents.held.clear();
        }
        if protocol.without.attempts_per_request {
            for attempts in contents.pending.values_mut() {
                while attempts.len() > 1 {
                    attempts.pop_first();
                }
            }
        }
        self.contents = contents;
        self.ledger_version += 1;
    }

    fn answer(&mut self, n: usize) {
        let Phase::Wrote { granted, refused } = std::mem::take(&mut self.replicas[n].phase) else { return };
        for one in granted {
            match self.requests.get_mut(&one) {
                Some(waits) if waits.at == RequestStage::Asking(n) => {
                    waits.at = RequestStage::Admitted;
                    let calls = waits.calls.clone();
                    // The apiserver waits for all answers; one that is not a grant rejects the create.
                    if calls.iter().any(|n| self.requests[n].at == RequestStage::Ended) {
                        self.end(one);
                    }
                }
                _ => {
                    self.replicas[n].revoked.insert(request(one));
                }
            }
        }
        for one in refused {
            let waits = self.requests.get_mut(&one).unwrap();
            waits.refused = !waits.calls.is_empty();
            self.end(one);
        }
    }

    /// Whether all calls about a create are answered; of several, only the first one stands for the create.
    fn is_admitted(&self, n: usize) -> bool {
        let calls = &self.requests[&n].calls;
        calls.is_empty()
            || calls[0] == n && calls.iter().all(|n| self.requests[n].at == RequestStage::Admitted)
    }

    /// Ends a call, and the create with it: calls that were granted have no effect any more.
    fn end(&mut self, request: usize) {
        let Some(one) = self.requests.get_mut(&request) else { return };
        one.at = RequestStage::Ended;
        for call in one.calls.clone() {
            let other = self.requests.get_mut(&call).unwrap();
            if other.at == RequestStage::Admitted {
                other.at = RequestStage::Ended;
            }
        }
    }

    fn store_job(&mut self, protocol: &ModelProtocol, n: usize) {
        let one = self.requests[&n].clone();
        self.end(n);
        let name = protocol.clients[one.client].name;
        let is_stored = match (&one.kind, self.job(name)) {
            (AttemptKind::Create, stored) => stored.is_none(),
            (AttemptKind::Unsuspend { from }, Some((version, _))) => version == *from,
            (AttemptKind::Unsuspend { .. }, None) => false,
        };
        if is_stored && protocol.clients[one.client].orphans {
            self.history.push((name, None));
            self.orphaned.insert(one.job_uid);
        } else if is_stored {
            self.history.push((name, Some(StoredJob { uid: one.job_uid, state: ModelJobState::Active })));
        }
    }

    fn change(&mut self, name: &'static str, state: ModelJobState) {
        if let Some((_, job)) = self.job(name) {
            let stored = StoredJob { state, ..job.clone() };
            self.history.push((name, Some(stored)));
        }
    }
}

fn view_source(protocol: &ModelProtocol, view: usize) -> ViewSource {
    match protocol.view {
        ModelView::Cache | ModelView::Fetched => ViewSource::Cache(view as u64),
        ModelView::List => ViewSource::List,
    }
}

impl ModelProtocol {
    /// Whether two clients differ only in the names of the Jobs that they create, which no other client uses.
    fn are_interchangeable(&self, a: usize, b: usize) -> bool {
        let (one, other) = (&self.clients[a], &self.clients[b]);
        let only = |name| self.clients.iter().filter(|client| client.name == name).count() == 1;
        let alike = one.max_requests == other.max_requests
            && ![one, other].iter().any(|client| client.unsuspends || client.orphans);
        alike && only(one.name) && only(other.name)
    }
}
