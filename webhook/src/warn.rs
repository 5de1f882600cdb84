//! Mode Warn: what a policy would do if it were enforced is told, and nothing else.
//!
//! What it would stamp is told by `/mutate`, which knows all it takes. What it would refuse or queue is told by `/warn`:
//! webhook entries of its own, with `failurePolicy: Ignore` and a short timeout, so that nobody's Job ever waits for, or
//! hangs on, a policy that is only tried out. It never denies.
//!
//! Counts are about right, not exact: of what was seen at most [`FRESH`] ago, and of what was asked about since.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{
    job::JobSnapshot,
    keys,
    ledger::JobLedgerSpec,
    policy::WhenFull,
    refusal::{Decision as Told, Refusal},
};
use kube::Client;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::{
    answer::{Answer, Reply},
    backoff,
    decide::{self, Context, Decision},
    explain::{self, Explanation},
    job::JobView,
    ledger::store::Store,
    limit::Refused,
    list,
    metrics::{Endpoint, Outcome},
    review::{self, Review, Subject},
    slots::{Holder, Place, Rules},
    state::State,
    validate, wording,
};

/// A picture of a namespace that is no older is looked at again.
const FRESH: Duration = Duration::from_secs(1);
/// One of the whole cluster costs more.
const FRESH_CLUSTER: Duration = Duration::from_secs(5);
/// So long before the caller gives up an answer is sent.
const MARGIN: Duration = Duration::from_millis(300);
/// Pictures of namespaces that nobody asked about for so long are thrown away.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Entries that are told of what would be stamped: an author reads no more.
const MOST: usize = 8;

/// Sees the Jobs; clones share what they see.
#[derive(Clone)]
pub struct Onlooker {
    client: Client,
    ledgers: Store,
    seen: Arc<Mutex<HashMap<Option<String>, Shelf>>>,
}

/// When it was asked for last, and what was seen.
type Shelf = (Instant, Arc<AsyncMutex<Seen>>);

/// The Jobs of a namespace, or of all.
#[derive(Debug, Default)]
struct Seen {
    at: Option<Instant>,
    jobs: Vec<Arc<JobSnapshot>>,
    ledger: JobLedgerSpec,
}

/// Answers one review, before `timeout` (the caller's) has passed.
pub async fn warn(bytes: &[u8], timeout: Duration, state: &State) -> Reply {
    let begun = Instant::now();
    let (reply, outcome) = answer(bytes, timeout, state).await;
    state.metrics.review(Endpoint::Warn, outcome, begun.elapsed());
    reply
}

async fn answer(bytes: &[u8], timeout: Duration, state: &State) -> (Reply, Outcome) {
    let review = match review::parse(bytes) {
        Ok(review) => review,
        Err(error) => return (Reply::text(400, error.to_string()), Outcome::Bad),
    };
    let job = match &review.subject {
        _ if state.is_excluded(&review.namespace) => None,
        Subject::Create(job) if job.snapshot.is_active() => Some(job.snapshot.clone()),
        Subject::Update { new, old } => validate::starting(new, old),
        Subject::Create(_) | Subject::NotOurs(_) | Subject::Unreadable(_) => None,
    };
    let mut answer = Answer::default();
    if let Some(job) = job {
        let patience = timeout.saturating_sub(MARGIN);
        match tokio::time::timeout(patience, judge(&job, state)).await {
            Ok(Ok(Some((refused, when_full)))) => {
                answer.warnings.push(tell(&review, &job, refused, when_full, state));
            }
            Ok(Ok(None)) => {}
            Ok(Err(why)) => tracing::debug!(job = job.key(), "mode Warn: {why}"),
            Err(_) => tracing::debug!(job = job.key(), "mode Warn: not counted in time"),
        }
    }
    (answer.reply(&review.uid), Outcome::Allowed)
}

/// What a policy in mode Warn would have refused, and whether it would rather have queued it.
async fn judge(job: &JobSnapshot, state: &State) -> Result<Option<(Refused, WhenFull)>, String> {
    let Some(onlooker) = state.onlooker.as_ref().filter(|_| state.policies.synced()) else { return Ok(None) };
    let policies = state.policies.current().clone();
    let Some(as_if) = policies.as_if_enforced() else { return Ok(None) };
    if state.policies.namespace(&job.namespace).await.is_none() {
        return Err(format!("namespace {} is not known yet", job.namespace));
    }
    let namespaces = |name: &str| state.policies.known_namespace(name);
    let rules = Rules { policies: as_if, namespaces: &namespaces };
    let now = Timestamp::now();
    let warned = |cluster: bool| {
        let ours = rules.scopes(job).into_iter().filter(|(scope, _)| policies.warns(&scope.policy));
        ours.filter(|(scope, _)| (scope.place == Place::Cluster) == cluster).collect::<Vec<_>>()
    };
    let waits = rules
        .matching(job)
        .iter()
        .any(|policy| policies.warns(&policy.reference) && policy.spec.failure_backoff.is_some());
    for cluster in [false, true] {
        let scopes = warned(cluster);
        if scopes.is_empty() && (cluster || !waits) {
            continue;
        }
        let mut seen = onlooker.look((!cluster).then(|| job.namespace.clone())).await?;
        for (scope, limit) in scopes {
            let mut holders: BTreeMap<String, Holder> = BTreeMap::new();
            for other in seen.jobs.iter().filter(|other| other.is_active() && other.key() != job.key()) {
                if rules.scopes(other).iter().any(|(theirs, _)| *theirs == scope) {
                    holders.insert(other.key(), holder(other));
                }
            }
            if holders.len() >= limit.max_active_jobs as usize {
                return Ok(Some((wording::full(&scope, limit, &holders, now), limit.when_full)));
            }
        }
        if !cluster
            && waits
            && let Some(refused) = backoff::refuse(rules, &seen.jobs, &seen.ledger, job, now)
            // Where one that is enforced refuses, that is no warning.
            && policies.warns(&refused.policy)
        {
            let action = rules.matching(job).into_iter().find(|policy| policy.reference == refused.policy);
            let action =
                action.and_then(|policy| policy.spec.failure_backoff.as_ref()).map(|rule| rule.action);
            return Ok(Some((refused, action.unwrap_or_default())));
        }
        // Until the next look it counts by having been asked about.
        seen.jobs.retain(|other| other.key() != job.key());
        seen.jobs.push(Arc::new(JobSnapshot { created: now, ..job.clone() }));
    }
    Ok(None)
}

fn holder(job: &JobSnapshot) -> Holder {
    Holder { namespace: job.namespace.clone(), name: job.name.clone(), since: job.created, pending: false }
}

/// Tells the sink, counts, and gives the warning.
fn tell(review: &Review, job: &JobSnapshot, refused: Refused, when_full: WhenFull, state: &State) -> String {
    let would = match when_full {
        WhenFull::Reject => "refused",
        WhenFull::Queue => "queued",
    };
    let message = format!("would be {would} (mode Warn): {}", refused.message);
    if !review.dry_run {
        state.tell(&format!("warn/{}", job.uid), || {
            state.metrics.would_refuse(refused.policy.to_string(), &refused.limit);
            Refusal {
                decision: Told::WouldRefuse,
                policy: refused.policy.clone(),
                limit: refused.limit.clone(),
                namespace: job.namespace.clone(),
                job: job.name.clone(),
                uid: job.uid.clone(),
                // It is let through.
                stored: true,
                owner: job.owner.clone(),
                message: message.clone(),
                at: Timestamp::now(),
            }
        });
    }
    format!("job-handler: this Job {message}")
}

/// What policies in mode Warn would have stamped besides what was decided.
pub fn stamping(review: &Review, job: &JobView, decision: &Decision, context: Context<'_>) -> Vec<String> {
    let Some(as_if) = context.policies.as_if_enforced() else { return Vec::new() };
    let context = Context { policies: as_if, ..context };
    let would = match &review.subject {
        Subject::Create(job) => decide::create(job, context),
        Subject::Update { new, old } => decide::update(new, old, context),
        Subject::NotOurs(_) | Subject::Unreadable(_) => return Vec::new(),
    };
    let account = |decision: &Decision| {
        let own = decision.annotations.get(keys::STAMPED).cloned().flatten();
        let text = own.or_else(|| job.annotation(keys::STAMPED).map(str::to_owned));
        text.as_deref().map(Explanation::parse).unwrap_or_default()
    };
    let changes_job =
        |key: &str| !matches!(key, explain::NOTHING | explain::QUEUED | explain::OPT_OUT | explain::GROUP);
    account(&would)
        .beyond(&account(decision))
        .filter(|(key, _)| changes_job(key))
        .take(MOST)
        .map(|(key, what)| format!("job-handler: would be set (mode Warn): {key}: {what}"))
        .collect()
}

impl Onlooker {
    /// Sees by this client. Ledgers are kept in `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { ledgers: Store::new(client.clone(), namespace), client, seen: Arc::default() }
    }

    /// The Jobs of a namespace or of all; whoever holds them holds up the others who ask about the same.
    async fn look(&self, namespace: Option<String>) -> Result<OwnedMutexGuard<Seen>, String> {
        let (place, fresh) = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            seen.retain(|_, (asked, _)| now.saturating_duration_since(*asked) < FORGOTTEN);
            let entry = seen.entry(namespace.clone()).or_insert_with(|| (now, Arc::default()));
            entry.0 = now;
            (entry.1.clone(), if namespace.is_some() { FRESH } else { FRESH_CLUSTER })
        };
        let mut seen = place.lock_owned().await;
        if seen.at.is_none_or(|at| at.elapsed() >= fresh) {
            let view =
                list::jobs(&self.client, namespace.clone()).await.map_err(|error| error.to_string())?;
            let ledger = match &namespace {
                Some(namespace) => self.ledgers.read(namespace).await?,
                None => None,
            };
            let ledger = ledger.map(|ledger| ledger.spec).unwrap_or_default();
            *seen = Seen { at: Some(Instant::now()), jobs: view.jobs, ledger };
        }
        Ok(seen)
    }
}
