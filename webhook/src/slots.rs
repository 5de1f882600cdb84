//! Counting: which scopes a Job takes a slot in, who holds them, and whether there is one left. Pure.
//!
//! A name counts once in a scope if it is active in the view or has an attempt that nobody has seen the outcome of. The
//! view is a consistent LIST that began after the request came, so a stale picture can only count too many.
//!
//! Several rounds may run at once, over different views. An attempt that one of them saw the outcome of still counts in
//! those whose view began before that: they cannot have seen it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
pub use job_handler_shared::scope::{Place, ScopeKey};
use job_handler_shared::{
    combine::{Labels, Policy, PolicySet},
    job::JobSnapshot,
    policy::Limit,
    scope,
};

use crate::{
    backoff,
    limit::{Attempt, Refused, Verdict},
    select::enforced,
    wording,
};

/// An attempt that was never seen is given up after this long: the apiserver lets a request live for 34 s.
pub const EXPIRY: Duration = Duration::from_secs(60);
/// A second webhook entry asks about the same create within this time, and has to be answered alike.
const SAME_CREATE: Duration = Duration::from_secs(10);

/// The Jobs of a namespace, or of all, as of one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Which namespace; none = the cluster.
    pub namespace: Option<String>,
    /// When the LIST began: it shows everything that was written before.
    pub began: Instant,
    /// When it ended: what is read after that is not older.
    pub ended: Instant,
    /// All Jobs.
    pub jobs: Vec<JobSnapshot>,
}

/// Whoever takes a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Since when; an attempt's: when it was granted.
    pub since: Timestamp,
    /// Granted, and not seen yet.
    pub pending: bool,
}

/// Everything a round decides by, besides the view.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// All policies.
    pub policies: &'a PolicySet,
    /// Labels of namespaces.
    pub namespaces: &'a (dyn Fn(&str) -> Option<Arc<Labels>> + Sync),
}

/// Attempts that were granted here and whose outcome may not be seen yet.
#[derive(Debug, Default)]
pub struct Slots {
    granted: Vec<Granted>,
    refused: HashMap<String, (Refused, Instant)>,
}

#[derive(Debug)]
struct Granted {
    uid: String,
    job: JobSnapshot,
    from: Option<String>,
    at: Instant,
    since: Timestamp,
    /// When its outcome was known.
    resolved: Option<Instant>,
}

impl<'a> Rules<'a> {
    /// The scopes in which a Job takes a slot, with their limits; the most telling first.
    pub fn scopes(&self, job: &JobSnapshot) -> Vec<(ScopeKey, &'a Limit)> {
        scope::scopes(&self.matching(job), job)
    }

    /// The enforced policies that select a Job.
    pub fn matching(&self, job: &JobSnapshot) -> Vec<&'a Arc<Policy>> {
        let labels = (self.namespaces)(&job.namespace).unwrap_or_default();
        enforced(self.policies, &job.namespace, &labels, &scope::without_group(&job.labels))
    }
}

impl Slots {
    /// A round over a view: first what it shows of earlier attempts, then one decision after the other.
    pub fn round<'a>(&'a mut self, view: &'a View, rules: Rules<'a>, now: Timestamp) -> Round<'a> {
        let unseen = self.resolve(view);
        let mut usage: HashMap<ScopeKey, BTreeMap<String, Holder>> = HashMap::new();
        let mut hold = |job: &JobSnapshot, since: Timestamp, pending: bool| {
            for (scope, _) in rules.scopes(job) {
                usage.entry(scope).or_default().entry(job.key()).or_insert_with(|| Holder {
                    namespace: job.namespace.clone(),
                    name: job.name.clone(),
                    since,
                    pending,
                });
            }
        };
        for job in view.jobs.iter().filter(|job| job.is_active()) {
            hold(job, job.created, false);
        }
        for (job, since) in &unseen {
            hold(job, *since, true);
        }
        Round { slots: self, view, rules, now, usage }
    }

    /// Takes back a grant that reached nobody.
    pub fn undo(&mut self, uid: &str) {
        self.granted.retain(|attempt| attempt.uid != uid);
    }

    /// Attempts without a known outcome.
    pub fn pending(&self) -> usize {
        self.granted.iter().filter(|attempt| attempt.resolved.is_none()).count()
    }

    /// Takes note of the outcomes that a view shows. Returns the attempts that count beside it.
    fn resolve(&mut self, view: &View) -> Vec<(JobSnapshot, Timestamp)> {
        // No round lasts this long, so none can need them any more.
        self.granted.retain(|attempt| {
            attempt.resolved.is_none_or(|at| view.began.saturating_duration_since(at) < EXPIRY)
        });
        self.refused.retain(|_, (_, at)| view.ended.saturating_duration_since(*at) < SAME_CREATE);
        let seen: HashMap<&str, &JobSnapshot> = view.jobs.iter().map(|job| (job.uid.as_str(), job)).collect();
        let mut unseen = Vec::new();
        for attempt in self.granted.iter_mut().filter(|attempt| view.reaches(&attempt.job.namespace)) {
            if attempt.is_settled(seen.get(attempt.job.uid.as_str()), view) {
                attempt.resolved.get_or_insert(view.ended);
            } else if attempt.resolved.is_none_or(|known| known > view.began) {
                unseen.push((attempt.job.clone(), attempt.since));
            }
        }
        unseen
    }
}

impl View {
    fn reaches(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|own| own == namespace)
    }
}

impl Granted {
    /// Whether the view shows what became of it.
    fn is_settled(&self, seen: Option<&&JobSnapshot>, view: &View) -> bool {
        let later = view.began > self.at;
        let expired = view.began.saturating_duration_since(self.at) > EXPIRY;
        match (&self.from, seen) {
            // A create: the Job is there, in whatever state.
            (None, Some(_)) => true,
            (None, None) => expired,
            // A change: the Job is there, written after the state that was changed.
            (Some(from), Some(job)) => is_newer(&job.resource_version, from) || expired,
            (Some(_), None) => later,
        }
    }
}

/// Resource versions are ordered numbers (KEP-5504); where one is not, another one counts as newer.
fn is_newer(version: &str, than: &str) -> bool {
    match (version.parse::<u128>(), than.parse::<u128>()) {
        (Ok(version), Ok(than)) => version > than,
        _ => version != than,
    }
}

/// Decisions over one view, one after the other.
pub struct Round<'a> {
    slots: &'a mut Slots,
    view: &'a View,
    rules: Rules<'a>,
    now: Timestamp,
    usage: HashMap<ScopeKey, BTreeMap<String, Holder>>,
}

impl Round<'_> {
    /// Decides, and records a grant.
    pub fn decide(&mut self, attempt: &Attempt) -> Verdict {
        let verdict = self.judge(attempt);
        if attempt.dry_run {
            return verdict;
        }
        match &verdict {
            Verdict::Granted => self.grant(attempt),
            // Each try of a create has its own Job uid; an un-suspended Job keeps its uid and may try again.
            Verdict::Refused(refused) if attempt.from.is_none() && !attempt.job.uid.is_empty() => {
                self.slots.refused.insert(attempt.job.uid.clone(), (refused.clone(), Instant::now()));
            }
            _ => {}
        }
        verdict
    }

    fn judge(&self, attempt: &Attempt) -> Verdict {
        let job = &attempt.job;
        if let Some((refused, _)) = self.slots.refused.get(&job.uid).filter(|_| attempt.from.is_none()) {
            return Verdict::Refused(refused.clone());
        }
        let scopes = self.rules.scopes(job);
        let key = job.key();
        let mut counted = !scopes.is_empty();
        let none = BTreeMap::new();
        for (scope, limit) in &scopes {
            if scope.place == Place::Cluster && self.view.namespace.is_some() {
                return Verdict::Unavailable {
                    why: "the policies changed while this Job was decided about".to_owned(),
                    retry_after_seconds: 1,
                };
            }
            let holders = self.usage.get(scope).unwrap_or(&none);
            if holders.contains_key(&key) {
                continue;
            }
            counted = false;
            if holders.len() >= limit.max_active_jobs as usize {
                return Verdict::Refused(wording::full(scope, limit, holders, self.now));
            }
        }
        if !counted && let Some(refused) = backoff::refuse(self.rules, &self.view.jobs, job, self.now) {
            return Verdict::Refused(refused);
        }
        Verdict::Granted
    }

    fn grant(&mut self, attempt: &Attempt) {
        let job = &attempt.job;
        for (scope, _) in self.rules.scopes(job) {
            self.usage.entry(scope).or_default().entry(job.key()).or_insert_with(|| Holder {
                namespace: job.namespace.clone(),
                name: job.name.clone(),
                since: self.now,
                pending: true,
            });
        }
        self.slots.granted.push(Granted {
            uid: attempt.uid.clone(),
            job: job.clone(),
            from: attempt.from.clone(),
            at: Instant::now(),
            since: self.now,
            resolved: None,
        });
    }
}
