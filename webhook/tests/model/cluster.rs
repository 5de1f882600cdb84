//! The state of the model: etcd with its history, the ledger, requests in progress, replicas between their steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{AttemptKind, GrantedAttempt, LedgerContents};
use job_handler_webhook::ledger::{
    decide::{RoundInput, decide},
    resolve::{ObservedJob, ViewSource, had_no_effect},
};

/// What to check: the bounds, and which rules are removed.
#[derive(Clone, Debug)]
pub struct ModelProtocol {
    pub max: usize,
    pub clients: Vec<ModelClient>,
    pub view: ModelView,
    /// The policy revision of each replica.
    pub revisions: Vec<&'static str>,
    /// Whether to check states that differ only in the order of the replicas once.
    pub fold: bool,
    pub budget: EventBudget,
    /// Whether replicas also run rounds without requests.
    pub housekeeping: bool,
    /// How many times the apiserver asks about one create: once for each policy that selects the Job.
    pub entries: usize,
    pub without: RemovedRules,
}

/// How replicas read Jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelView {
    Cache,
    List,
    /// The cache, with or without the slot holders fetched.
    Fetched,
}

/// A client that creates a Job, un-suspends one that exists from the start, or deletes an active one whose pods run on, and
/// retries.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelClient {
    pub name: &'static str,
    pub unsuspends: bool,
    pub orphans: bool,
    pub max_requests: u8,
}

/// How many of the optional events may happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventBudget {
    pub crashes: u8,
    /// Ledger writes whose answer is lost.
    pub ambiguous: u8,
    /// Callers that give up before they are answered.
    pub gone: u8,
    pub deletes: u8,
    pub finishes: u8,
    /// Other changes of a suspended Job.
    pub touches: u8,
    pub suspends: u8,
}

impl Default for EventBudget {
    fn default() -> Self {
        Self { crashes: 0, ambiguous: 0, gone: 0, deletes: 0, finishes: 2, touches: 0, suspends: 0 }
    }
}

/// Rules of the protocol that can be removed.
#[derive(Clone, Debug, Default)]
pub struct RemovedRules {
    pub observed_through: bool,
    pub after_from: bool,
    pub quorum_read: bool,
    pub list_of_ones_own: bool,
    pub attempts_per_request: bool,
    pub revision: bool,
    /// Recording a refusal where other calls about the same create come.
    pub refusals: bool,
    /// Reading again after a write whose answer was lost.
    pub reread: bool,
    /// Slots that are held for the pods of deleted Jobs.
    pub held: bool,
    /// Room for both before a Job goes whose name was admitted again.
    pub room_for_both: bool,
    /// Freeing the slots of pods only in the ledger that was read before them.
    pub look_at_version: bool,
}

impl Default for ModelProtocol {
    fn default() -> Self {
        Self {
            max: 1,
            clients: Vec::new(),
            view: ModelView::Cache,
            revisions: vec!["same", "same"],
            fold: false,
            budget: EventBudget::default(),
            housekeeping: true,
            entries: 1,
            without: RemovedRules::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelCluster {
    /// Every write of a Job in order: its name, and the Job or `None` for a deletion. The index from 1 is the
    /// resourceVersion.
    pub history: Vec<(&'static str, Option<StoredJob>)>,
    pub contents: LedgerContents,
    pub ledger_version: u8,
    /// A write of the ledger that may still be stored.
    pub late_write: Option<(u8, LedgerContents)>,
    /// By number. Each client has its own numbers, so that the order of requests makes no difference by itself.
    pub requests: BTreeMap<usize, ClientRequest>,
    pub replicas: Vec<ModelReplica>,
    /// Uids of deleted Jobs whose pods run on.
    pub orphaned: BTreeSet<String>,
    /// The version of the ledger and the uid that the sink saw without a Job or pods, before it frees the slot.
    pub looked: Option<(u8, String)>,
    pub budget: EventBudget,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoredJob {
    pub uid: String,
    pub state: ModelJobState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModelJobState {
    Active,
    Suspended,
    Finished,
}

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientRequest {
    pub client: usize,
    pub job_uid: String,
    pub kind: AttemptKind,
    pub at: RequestStage,
    /// Numbers of all calls about the same create; empty if there is only this one.
    pub calls: Vec<usize>,
    /// Whether a replica refused it; only recorded if there are other calls.
    pub refused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestStage {
    /// Waits for the answer of this replica.
    Asking(usize),
    /// Admitted and not stored yet.
    Admitted,
    /// StoredJob, refused, denied by another webhook, or given up.
    Ended,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ModelReplica {
    /// Number of writes of the history that its cache has.
    pub position: usize,
    pub phase: Phase,
    /// Grants whose callers never received the answer.
    pub revoked: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    #[default]
    Idle,
    LedgerRead(ModelRound),
    JobsRead {
        round: ModelRound,
        view: usize,
        /// The number of writes after which the slot holders were fetched.
        fetched: Option<usize>,
        expired: BTreeSet<String>,
    },
    Wrote {
        granted: Vec<usize>,
        refused: Vec<usize>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelRound {
    pub contents: LedgerContents,
    pub ledger_version: u8,
    pub asked: Vec<usize>,
    pub revoked: BTreeSet<String>,
}

/// The requests of client n are numbered from n times this.
pub const REQUESTS_PER_CLIENT: usize = 100;

pub fn request(n: usize) -> String {
    format!("r{n}")
}

/// The id of the one scope, which depends on the policy revision.
pub fn scope(revision: &str) -> String {
    format!("limit of {revision}")
}

impl ModelCluster {
    pub fn new(protocol: &ModelProtocol) -> Self {
        let mut history = Vec::new();
        for client in protocol.clients.iter().filter(|client| client.unsuspends) {
            if !history.iter().any(|(name, _)| *name == client.name) {
                let stored =
                    StoredJob { uid: format!("first {}", client.name), state: ModelJobState::Suspended };
                history.push((client.name, Some(stored)));
            }
        }
        Self {
            history,
            contents: LedgerContents::default(),
            ledger_version: 0,
            late_write: None,
            requests: BTreeMap::new(),
            replicas: protocol.revisions.iter().map(|_| ModelReplica::default()).collect(),
            orphaned: BTreeSet::new(),
            looked: None,
            budget: protocol.budget.clone(),
        }
    }

    /// The Job of a name and its resourceVersion after `view` writes.
    pub fn job_at(&self, view: usize, name: &str) -> Option<(u64, &StoredJob)> {
        let mut writes = self.history[..view].iter().enumerate();
        let (n, (_, stored)) = writes.rfind(|(_, (other, _))| *other == name)?;
        stored.as_ref().map(|stored| (n as u64 + 1, stored))
    }

    pub fn job(&self, name: &str) -> Option<(u64, &StoredJob)> {
        self.job_at(self.history.len(), name)
    }

    pub fn names(&self) -> BTreeSet<&'static str> {
        self.history.iter().map(|(name, _)| *name).collect()
    }

    /// The Jobs after `view` writes, counted by a policy revision. Fetched Jobs are shown as of a later write.
    pub fn observed(
        &self,
        view: usize,
        revision: &str,
        fetched: impl Fn(&str) -> Option<usize>,
    ) -> Vec<ObservedJob> {
        let job = |name: &&'static str| {
            let (version, stored) = self.job_at(fetched(name).unwrap_or(view), name)?;
            Some(ObservedJob {
                name: format!("ns/{name}"),
                uid: stored.uid.clone(),
                version,
                active: stored.state == ModelJobState::Active,
                scopes: vec![scope(revision)],
                since: Timestamp::UNIX_EPOCH,
            })
        };
        self.names().iter().filter_map(job).collect()
    }

    /// The Jobs that run: active ones, and those of which pods are left.
    pub fn active(&self) -> usize {
        let is_active =
            |name: &&&'static str| self.job(name).is_some_and(|(_, job)| job.state == ModelJobState::Active);
        self.names().iter().filter(is_active).count() + self.orphaned.len()
    }

    /// Sorts the replicas, so that states that differ only in their order become equal.
    pub fn fold(&mut self) {
        let asking = |n: usize| -> Vec<usize> {
            let waiting = self.requests.iter().filter(|(_, one)| one.at == RequestStage::Asking(n));
            waiting.map(|(n, _)| *n).collect()
        };
        let digest = |n: usize| {
            let mut hasher = DefaultHasher::new();
            (&self.replicas[n], asking(n)).hash(&mut hasher);
            hasher.finish()
        };
        let mut order: Vec<usize> = (0..self.replicas.len()).collect();
        order.sort_by_key(|n| digest(*n));
        self.replicas = order.iter().map(|n| self.replicas[*n].clone()).collect();
        for one in self.requests.values_mut() {
            if let RequestStage::Asking(n) = &mut one.at {
                *n = order.iter().position(|other| other == n).unwrap();
            }
        }
    }

    /// The attempts that have expired without an effect. No attempt expires while its request is in progress: that is why
    /// the expiry is 60 s.
    pub fn expired(&self, protocol: &ModelProtocol, contents: &LedgerContents) -> BTreeSet<String> {
        let ran_out = |request: &str| {
            let n: usize = request[1..].parse().unwrap();
            self.requests[&n].at == RequestStage::Ended
        };
        let nothing = |granted: &GrantedAttempt| {
            let stored = self.names().into_iter().filter_map(|name| self.job(name));
            let stored =
                stored.into_iter().find(|(_, job)| job.uid == granted.job_uid).map(|(version, _)| version);
            protocol.without.quorum_read || had_no_effect(granted, stored)
        };
        contents
            .attempts()
            .filter(|(_, request, granted)| ran_out(request) && nothing(granted))
            .map(|(_, request, _)| request.to_owned())
            .collect()
    }

    /// Whether an attempt is left of a create that was refused. Only without crashes, gone callers and lost answers: those
    /// leave attempts that expire.
    pub fn has_phantom(&self) -> bool {
        let is_over = |calls: &[usize]| calls.iter().all(|n| self.requests[n].at == RequestStage::Ended);
        let refused = self.requests.values().filter(|one| one.refused && is_over(&one.calls));
        let uids: BTreeSet<&str> = refused.map(|one| one.job_uid.as_str()).collect();
        self.contents.attempts().any(|(_, _, granted)| uids.contains(granted.job_uid.as_str()))
    }

    /// Whether a request or write is in progress, or a round would empty the ledger.
    pub fn is_clean(&self, protocol: &ModelProtocol) -> bool {
        let quiet = self.late_write.is_none()
            && self.requests.values().all(|one| one.at == RequestStage::Ended)
            && self.replicas.iter().all(|replica| replica.phase == Phase::Idle);
        if !quiet || self.contents.pending.is_empty() {
            return true;
        }
        let none = BTreeSet::new();
        let expired = self.expired(protocol, &self.contents);
        let seen = self.observed(self.history.len(), protocol.revisions[0], |_| None);
        let given = RoundInput {
            contents: &self.contents,
            view_source: ViewSource::List,
            jobs: &seen.iter().collect::<Vec<_>>(),
            expired: &expired,
            unstored: &BTreeMap::new(),
            revoked: &none,
            forgotten: &none,
            refusals_by: None,
            revision: &|_| protocol.revisions[0].to_owned(),
            now: Timestamp::UNIX_EPOCH,
        };
        decide(given, &[]).unwrap().contents.pending.is_empty()
    }
}
