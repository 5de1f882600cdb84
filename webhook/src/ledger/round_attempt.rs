//! One attempt at a round: chooses the ledger and the view of the Jobs, decides, and writes the ledger.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    ledger::crd::AttemptKind,
    policy::{label_keys::LabelKeys, set::PolicySet},
};

mod write;

use crate::{
    cache::tombstones::JobTombstone,
    ledger::{
        batching::BatchingDelay,
        client,
        decide::RoundDecision,
        expiry::ANSWER_WITHIN,
        fresh_read::{self, FreshRead, LedgerReadError},
        freshness::{Freshness, LedgerOrigin},
        known_ledgers::KnownLedger,
        ledger_id::LedgerId,
        resolve::ViewSource,
        round::{RoundSources, decide_round},
        round_attempt::write::{count_grants, holds},
        scope_cache::ScopeCache,
        shared::LedgerContext,
        write_order,
    },
    limit::{Attempt, Verdict, failure_backoff, scopes::LimitRules},
};

/// How long a round waits for the watch cache to reach what another replica has already observed.
const CACHE_LAG: Duration = Duration::from_millis(100);
/// Most versions written by other replicas that a round waits for before it writes itself.
const MAX_YIELDS: u32 = 4;

/// Runs the rounds of one ledger.
pub(crate) struct RoundRunner {
    id: LedgerId,
    context: Arc<LedgerContext>,
    freshness: Freshness,
    batching: BatchingDelay,
    scope_cache: ScopeCache,
    /// `request.uid`s of grants whose callers never received the answer, or that may have been written by a write whose
    /// answer was lost.
    revoked: BTreeSet<String>,
    /// Whether a round may write without a grant, only to remove resolved attempts.
    housekeeping: bool,
    /// When the first write began that may have stored the grants of the current requests.
    granted_since: Option<Instant>,
}

/// Why an attempt at a round produced no verdicts.
#[derive(Debug)]
pub(crate) enum RoundError {
    /// The ledger has changed: try again.
    Retry,
    /// The answer to a write was lost, so it may have been stored: try again.
    RetryUnknownWrite,
    /// The watch cache is older than what another replica has observed: only a fresh read can decide.
    StaleCache,
    /// Policies name labels that were dropped from an attempt's Job when it arrived.
    UnknownLabels,
    /// The apiserver rejects the ledger with these grants, whenever it is written; an explanation.
    Rejected(String),
    /// Trying again now is pointless; an explanation for the caller of the webhook.
    Failed(String),
}

/// What a round decides by.
struct RoundBasis {
    ledger: Arc<KnownLedger>,
    origin: LedgerOrigin,
    view_source: ViewSource,
    jobs: Vec<Arc<JobSnapshot>>,
}

impl RoundRunner {
    pub(crate) fn new(id: LedgerId, context: Arc<LedgerContext>) -> Self {
        Self {
            id,
            context,
            freshness: Freshness::default(),
            batching: BatchingDelay::default(),
            scope_cache: ScopeCache::default(),
            revoked: BTreeSet::new(),
            housekeeping: false,
            granted_since: None,
        }
    }

    pub(crate) fn id(&self) -> &LedgerId {
        &self.id
    }

    /// Removes the grant of a `request.uid` in the next round.
    pub(crate) fn revoke(&mut self, request: String) {
        self.revoked.insert(request);
    }

    pub(crate) fn has_revoked(&self) -> bool {
        !self.revoked.is_empty()
    }

    /// Allows or forbids writes that only remove resolved attempts.
    pub(crate) fn set_housekeeping(&mut self, housekeeping: bool) {
        self.housekeeping = housekeeping;
    }

    /// The policies by which a round decides: those of the moment, or those by which `fresh` was read. A request that arrives
    /// after a change is decided by a read that begins after it.
    fn policies(&self, fresh: Option<&FreshRead>) -> Arc<PolicySet> {
        fresh.map_or_else(|| self.context.policies.current().clone(), |fresh| fresh.policies.clone())
    }

    /// Whether a round can judge an attempt by the labels that were kept of its Job.
    pub(crate) fn knows_labels(&self, attempt: &Attempt, fresh: Option<&FreshRead>) -> bool {
        attempt.knows_labels(self.id.label_keys(&self.policies(fresh)))
    }

    /// Begins with other requests.
    pub(crate) fn begin(&mut self) {
        self.granted_since = None;
    }

    /// Whether it is too late to answer a grant: the time in which the Job has to be stored began with the write.
    pub(crate) fn is_late(&self) -> bool {
        self.granted_since.is_some_and(|since| since.elapsed() > ANSWER_WITHIN)
    }

    /// How long to gather further requests while `waiting` requests wait.
    pub(crate) fn batching_delay(&self, waiting: usize) -> Duration {
        self.batching.delay(waiting, Instant::now())
    }

    /// How long to wait before the next attempt.
    pub(crate) fn retry_delay(&self) -> Duration {
        self.batching.retry_delay()
    }

    /// While the ledger is contended: waits for the replicas that write before this one.
    pub(crate) async fn wait_for_other_writers(&self) {
        let known_ledgers = &self.context.known_ledgers;
        if !known_ledgers.is_contended(self.id.name()) {
            return;
        }
        // Each new version has its own order.
        for _ in 0..MAX_YIELDS {
            let Some((known, at)) = known_ledgers.latest_with_time(self.id.name()) else { return };
            let me = self.context.ledger_client.writer_id();
            let before = write_order::writers_before(me, client::writers(&known.ledger));
            let known_for = known_ledgers.now().saturating_duration_since(at);
            let left = self.batching.time_of_writes(before).saturating_sub(known_for);
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Decides about `attempts` and stores the ledger: by the caches, or by `fresh` if there is one.
    pub(crate) async fn attempt(
        &mut self,
        attempts: &[&Attempt],
        fresh: Option<&FreshRead>,
    ) -> Result<Vec<Verdict>, RoundError> {
        let context = self.context.clone();
        let policies = self.policies(fresh);
        let namespaces = |name: &str| context.policies.known_namespace(name);
        let rules = LimitRules { policies: &policies, namespaces: &namespaces };

        let keys = self.id.label_keys(&policies);
        if !attempts.iter().all(|attempt| attempt.knows_labels(keys)) {
            return Err(RoundError::UnknownLabels);
        }
        let basis = self.basis(keys, fresh).await?;
        let (verdicts, decision) = self.decide(&policies, rules, &basis, attempts, fresh)?;
        let grants = count_grants(attempts, &verdicts, &basis.ledger.contents, &decision.contents);
        let expired = fresh.is_some_and(|fresh| !fresh.expired.is_empty());
        self.commit(&basis, &decision.contents, grants, expired).await?;
        self.revoked.retain(|request| holds(&decision.contents, request));
        self.report_usage(rules, &decision);
        Ok(verdicts)
    }

    /// The newest ledger and a view of the Jobs that covers it.
    async fn basis(
        &mut self,
        keys: &Arc<LabelKeys>,
        fresh: Option<&FreshRead>,
    ) -> Result<RoundBasis, RoundError> {
        let (ledger, origin) = self.newest_ledger(fresh).await?;
        let basis = match (self.view(&ledger, keys, fresh).await, fresh) {
            (Some((view_source, jobs)), _) => RoundBasis { ledger, origin, view_source, jobs },
            // Another replica has written since, by Jobs that the fresh read does not show. The ledger that was read with
            // the Jobs may still refuse, and if it grants, the write detects the conflict.
            (None, Some(fresh))
                if origin == LedgerOrigin::Known && self.freshness.accepts(fresh.ledger.version) =>
            {
                let (ledger, view_source) = (fresh.ledger.clone(), fresh.view_source);
                RoundBasis { ledger, origin, view_source, jobs: fresh.listing.jobs.clone() }
            }
            (None, _) => return Err(RoundError::StaleCache),
        };
        let not_read = fresh.is_some_and(|fresh| {
            fresh.ledger_origin == LedgerOrigin::Known && fresh.ledger.version != basis.ledger.version
        });
        // If the ledger has moved on meanwhile, the caller needs a fresh read.
        if not_read && !basis.ledger.contents.holds_nothing() {
            return Err(RoundError::StaleCache);
        }
        Ok(basis)
    }

    /// The newest ledger: the newest known version if it may be the newest one, else a read one.
    async fn newest_ledger(
        &mut self,
        fresh: Option<&FreshRead>,
    ) -> Result<(Arc<KnownLedger>, LedgerOrigin), RoundError> {
        let name = self.id.name();
        let known = self.context.known_ledgers.latest(name).into_iter();
        let newest = known.chain(fresh.map(|fresh| fresh.ledger.clone())).max_by_key(|known| known.version);
        // After a conflict the watch has usually delivered the version that won by the time of the next attempt.
        if let Some(known) = newest.filter(|known| self.freshness.accepts(known.version)) {
            return Ok((known, LedgerOrigin::Known));
        }
        match fresh_read::read_ledger(&self.context, name).await {
            Ok(known) => {
                self.freshness = Freshness::Any;
                Ok((known, LedgerOrigin::Read))
            }
            Err(LedgerReadError::Missing(at)) => Err(self.create_ledger(at).await),
            Err(LedgerReadError::Failed(why)) => Err(RoundError::Failed(why)),
        }
    }

    /// The Jobs with the labels of these keys, if a view covers the ledger (and the fresh read, if there is one).
    async fn view(
        &self,
        ledger: &KnownLedger,
        keys: &Arc<LabelKeys>,
        fresh: Option<&FreshRead>,
    ) -> Option<(ViewSource, Vec<Arc<JobSnapshot>>)> {
        let observed_through = ledger.contents.observed_through;
        if let Some(fresh) = fresh {
            if ledger.version == fresh.ledger.version {
                return Some((fresh.view_source, fresh.listing.jobs.clone()));
            }
            if fresh.listing.version >= observed_through && fresh.listing.version > 0 {
                return Some((ViewSource::Cache(fresh.listing.version), fresh.listing.jobs.clone()));
            }
            // The watch may not have delivered the Jobs that were fetched.
            if fresh.view_source != ViewSource::List {
                return None;
            }
        }
        // A view that is older than the fresh read must not refuse.
        let needed = fresh.map_or(observed_through, |fresh| observed_through.max(fresh.listing.version));
        let cache = &self.context.cache;
        if cache.position().is_none_or(|position| position < needed) {
            cache.wait_for(needed, CACHE_LAG).await;
        }
        let (position, jobs) =
            cache.snapshot(self.id.namespace()).filter(|(position, _)| *position >= needed)?;
        // Without a Job's namespace, a limit of the cluster could miss the Job.
        let is_known =
            |job: &Arc<JobSnapshot>| self.context.policies.known_namespace(&job.namespace).is_some();
        // Policies may name further labels since the Jobs were cached. Those of a fresh read have all that its policies name.
        let complete = jobs.iter().all(|job| job.knows_labels(keys) && (!job.is_active() || is_known(job)));
        complete.then_some((ViewSource::Cache(position), jobs))
    }

    fn decide(
        &mut self,
        policies: &Arc<PolicySet>,
        rules: LimitRules<'_>,
        basis: &RoundBasis,
        attempts: &[&Attempt],
        fresh: Option<&FreshRead>,
    ) -> Result<(Vec<Verdict>, RoundDecision), RoundError> {
        let RoundBasis { ledger, view_source, jobs, .. } = basis;
        let deleted = self.deleted_jobs(ledger, *view_source, fresh);
        // The Jobs of a LIST are used once, so caching their scopes would be useless.
        let mut of_list = ScopeCache::default();
        let cache = if *view_source == ViewSource::List { &mut of_list } else { &mut self.scope_cache };
        cache.prepare(policies, jobs.len());
        let attempted = ledger.contents.attempts().map(|(_, _, granted)| &*granted.job_uid);
        let named: HashSet<&str> = attempted.chain(ledger.contents.held.keys().map(String::as_str)).collect();
        let observed = cache.observe(rules, &self.id, jobs, &named);
        // The cluster's ledger knows no failure backoff.
        let in_namespace = attempts.iter().filter(|_| self.id.namespace().is_some());
        let groups = in_namespace.filter_map(|attempt| failure_backoff::group(rules, &attempt.job)).collect();
        let runs = cache.finished_runs(rules, jobs, &groups);
        let nothing = BTreeSet::new();
        let known_ledgers = &self.context.known_ledgers;
        let sources = RoundSources {
            rules,
            id: &self.id,
            spec: &ledger.ledger.spec,
            contents: &ledger.contents,
            view_source: *view_source,
            observed: &observed,
            runs: &runs,
            deleted: &deleted,
            expired: fresh.map_or(&nothing, |fresh| &fresh.expired),
            unstored: &self.context.unstored(&self.id, policies, &ledger.contents),
            revoked: &self.revoked,
            forgotten: &known_ledgers.old_refusals(self.id.name()),
            refusals_by: fresh.map(|fresh| fresh.view_source),
            now: Timestamp::now(),
        };
        decide_round(sources, attempts).ok_or(RoundError::StaleCache)
    }

    /// Jobs of attempted creates that were deleted before this view. (An un-suspend records the version at which its Job
    /// existed.)
    fn deleted_jobs(
        &self,
        ledger: &KnownLedger,
        view_source: ViewSource,
        fresh: Option<&FreshRead>,
    ) -> Vec<JobTombstone> {
        let until = match (view_source, fresh) {
            (ViewSource::Cache(position), _) => position,
            (ViewSource::List, Some(fresh)) => fresh.listing.version,
            (ViewSource::List, None) => return Vec::new(),
        };
        let creates =
            ledger.contents.attempts().filter(|(_, _, granted)| granted.kind == AttemptKind::Create);
        self.context.cache.deleted_jobs(creates.map(|(_, _, granted)| &*granted.job_uid), until)
    }

    fn report_usage(&self, rules: LimitRules<'_>, decision: &RoundDecision) {
        for policy in rules.policies.iter().filter(|policy| policy.enforced()) {
            for limit in &policy.spec.limits {
                let key = format!("{}/{}", policy.reference.uid, limit.name);
                if let Some(count) = decision.fullest.get(&key) {
                    let (policy, ledger) = (policy.reference.to_string(), self.id.name());
                    let slots = (count.total, limit.max_active_jobs, &count.by_kind[..]);
                    self.context.metrics.limit(policy, &limit.name, ledger, slots);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
