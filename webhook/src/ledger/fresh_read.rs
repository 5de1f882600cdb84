//! A look of one's own: the ledger and the Jobs as they are now, for whoever would be refused otherwise.
//!
//! The ledger is read first, then the Jobs are listed: the LIST shows everything that was written before the ledger was
//! read, so it suffices for it. Both begin after everybody came who is answered by them: a Job that finished a moment ago
//! never causes a refusal.
//!
//! Where few Jobs take slots these are fetched one by one instead ([`fetched`]), as a consistent LIST waits for the
//! apiserver's own cache to catch up with etcd: in a namespace where nothing else happens that takes some 100 ms. Whoever is
//! then refused is so by Jobs each of which was active after it came, and all of which were at the moment when the first of
//! them was fetched; the ledger is read beside, where anything stands in it ([`still`]).

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use job_handler_shared::job::snapshot::JobSnapshot;
use tokio::sync::Mutex;

use crate::ledger::{
    attempt_age::{AttemptAges, EXPIRY},
    count::{self, LedgerId},
    decide,
    known_ledgers::KnownLedger,
    limiter::LedgerContext,
    resolve::{ViewSource, had_no_effect},
};
use crate::{
    cache::consistent_list::{self, JobListing},
    limit::scopes::LimitRules,
};

/// A LIST that takes longer helps nobody: its callers are about to give up.
const LIST_TIMEOUT: Duration = Duration::from_secs(8);
/// Between two consistent reads of a process: they cost the apiserver, and a flood of refusals has to share them.
const APART: Duration = Duration::from_millis(50);

/// Jobs that are fetched one by one, rather than that all are listed.
const FETCHED: usize = 16;
/// Whoever is slower than this to give them is asked for the list; its callers' time is needed for that.
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// What was seen.
#[derive(Debug)]
pub struct FreshRead {
    /// Who came before this is answered by it.
    pub began: Instant,
    /// The ledger.
    pub known: Arc<KnownLedger>,
    /// Whether it was read for this; else it is as it was watched, with nothing pending.
    pub read: bool,
    /// The Jobs, listed after the ledger was read, or fetched.
    pub view: JobListing,
    /// Which of both.
    pub view_source: ViewSource,
    /// Attempts that had run out before the Jobs were listed, or theirs fetched, and that came to nothing by what this shows.
    pub expired: BTreeSet<String>,
}

/// Why nothing was.
#[derive(Debug)]
pub enum LedgerReadError {
    /// There is no such ledger; since when that is known by the clock of attempts: the read began then.
    Missing(Instant),
    /// For people.
    Failed(String),
}

/// Lets consistent reads through one after the other.
#[derive(Debug, Default)]
pub struct ReadRateLimiter(Mutex<Option<Instant>>);

impl ReadRateLimiter {
    /// Waits for one's turn; first come, first served.
    pub async fn acquire(&self) {
        let mut last = self.0.lock().await;
        if let Some(last) = *last {
            tokio::time::sleep_until((last + APART).into()).await;
        }
        *last = Some(Instant::now());
    }
}

/// Looks; where it `lists`, not only at those who take slots.
pub async fn look(
    shared: Arc<LedgerContext>,
    id: LedgerId,
    lists: bool,
) -> Result<FreshRead, LedgerReadError> {
    shared.reads.acquire().await;
    let began = Instant::now();
    let (known, fetches) = match still(&shared, &id, lists).await? {
        Still::So(known, view) => {
            shared.metrics.consistent_reads.inc();
            let view_source = ViewSource::Cache(view.version);
            let read = !known.book.pending.is_empty();
            return Ok(FreshRead { began, known, read, view, view_source, expired: BTreeSet::new() });
        }
        Still::Unknown(known) => (known, !lists),
        Still::Changed(known) => (known, false),
    };
    // Before the Jobs are read: what has run out by now can show in them only if it came to something.
    let (clocks, now) = (shared.known_ledgers.attempt_ages(id.name()), shared.known_ledgers.now());
    shared.metrics.consistent_reads.inc();
    if fetches && let Some(view) = fetched(&shared, &id, &known).await {
        let (view_source, expired) = (ViewSource::Cache(view.version), expired(&known, &clocks, now, &view));
        return Ok(FreshRead { began, known, read: true, view, view_source, expired });
    }
    let list = consistent_list::jobs(&shared.client, id.namespace().map(str::to_owned));
    let view = match tokio::time::timeout(LIST_TIMEOUT, list).await {
        Ok(view) => view.map_err(|error| LedgerReadError::Failed(error.to_string()))?,
        Err(_) => return Err(LedgerReadError::Failed("the apiserver did not answer in time".to_owned())),
    };
    // Else a cluster limit could miss some of its Jobs.
    for job in view.jobs.iter().filter(|job| job.is_active()) {
        if shared.policies.namespace(&job.namespace).await.is_none() {
            return Err(LedgerReadError::Failed(format!("the namespace {} is not known yet", job.namespace)));
        }
    }
    let expired = expired(&known, &clocks, now, &view);
    Ok(FreshRead { began, known, read: true, view, view_source: ViewSource::List, expired })
}

/// What a look finds at first.
enum Still {
    /// The ledger is as it was watched, and who takes slots does so still.
    So(Arc<KnownLedger>, JobListing),
    /// Who takes slots by the watch is too many to be fetched, or one of them does no more. The ledger as it is now.
    Changed(Arc<KnownLedger>),
    /// By this ledger, which is as it is now, nobody has looked.
    Unknown(Arc<KnownLedger>),
}

/// Looks whether all is as it was watched, which it is where Jobs are refused one after the other: then ledger and Jobs
/// need not wait for each other. Without attempts in it nobody is refused by the ledger, and it is not read at all. (Who
/// decides by a newer one that has some after all, needs another look: those may be older than who asks.)
async fn still(shared: &LedgerContext, id: &LedgerId, lists: bool) -> Result<Still, LedgerReadError> {
    let name = id.name();
    let watched = shared.known_ledgers.latest(name);
    let run_out =
        !shared.known_ledgers.attempt_ages(name).older(EXPIRY, shared.known_ledgers.now()).is_empty();
    let Some(watched) = watched.filter(|_| !lists && !run_out) else {
        return Ok(Still::Unknown(read(shared, name).await?));
    };
    if watched.book.pending.is_empty() {
        return match fetched(shared, id, &watched).await {
            Some(view) => Ok(Still::So(watched, view)),
            None => Ok(Still::Changed(read(shared, name).await?)),
        };
    }
    let (known, view) = tokio::join!(read(shared, name), fetched(shared, id, &watched));
    let known = known?;
    Ok(match view {
        Some(view) if known.version == watched.version => Still::So(known, view),
        Some(_) => Still::Unknown(known),
        None => Still::Changed(known),
    })
}

/// The Jobs as the watch has told of them, where all that take a slot are seen to do so still: the active ones, and those
/// of the ledger's attempts, which may also be still to come. None where these are many, one of them has come to its end,
/// or anything is in doubt: then only a LIST can tell.
///
/// Whoever is refused by this is refused by what is so now. A grant is one by the watch: of other Jobs the view is as old
/// as the watch, so it is one of [`ViewSource::Cache`], and nobody counts less by it than by the watch.
async fn fetched(shared: &LedgerContext, id: &LedgerId, known: &KnownLedger) -> Option<JobListing> {
    let began = Instant::now();
    let (version, mut jobs) = shared.cache.snapshot(id.namespace())?;
    if version < known.book.observed_through {
        return None;
    }
    let policies = shared.policies.current().clone();
    let namespaces = |name: &str| shared.policies.known_namespace(name);
    let rules = LimitRules { policies: &policies, namespaces: &namespaces };
    let mut holders: BTreeSet<String> = known.book.pending.keys().cloned().collect();
    for job in jobs.iter().filter(|job| job.is_active()) {
        // Else a cluster limit could miss some of its Jobs.
        namespaces(&job.namespace)?;
        if !count::scopes(rules, id, job).is_empty() {
            holders.insert(job.key());
        }
        if holders.len() > FETCHED {
            break;
        }
    }
    if holders.len() > FETCHED {
        return None;
    }
    // Of these the watch may not have told, so nobody has asked for their namespaces yet.
    for holder in &holders {
        namespaces(decide::namespace(holder))?;
    }
    let gets = holders.iter().map(|holder| consistent_list::job(&shared.client, holder));
    let now = tokio::time::timeout(FETCH_TIMEOUT, try_join_all(gets)).await.ok()?.ok()?;
    let mut now: HashMap<String, Arc<JobSnapshot>> =
        now.into_iter().flatten().map(|job| (job.key(), job)).collect();
    if now.values().any(|job| !job.is_active()) {
        return None;
    }
    for job in &mut jobs {
        let key = job.key();
        if holders.contains(&key) {
            *job = now.remove(&key).filter(|there| there.uid == job.uid)?;
        }
    }
    // Of these the watch has not told yet.
    jobs.extend(now.into_values());
    Some(JobListing { began, version, jobs })
}

/// A ledger as it is now.
pub async fn read(shared: &LedgerContext, name: &str) -> Result<Arc<KnownLedger>, LedgerReadError> {
    let began = shared.known_ledgers.now();
    let ledger = shared
        .ledger_client
        .read(name)
        .await
        .map_err(LedgerReadError::Failed)?
        .ok_or(LedgerReadError::Missing(began))?;
    let known = KnownLedger::parse(ledger)
        .map_err(|error| LedgerReadError::Failed(format!("the JobLedger {name}: {error}")))?;
    shared.known_ledgers.record(name, &known);
    Ok(known)
}

fn expired(known: &KnownLedger, clocks: &AttemptAges, now: Instant, view: &JobListing) -> BTreeSet<String> {
    let mut expired = clocks.older(EXPIRY, now);
    if expired.is_empty() {
        return expired;
    }
    let versions: HashMap<&str, u64> = view.jobs.iter().map(|job| (&*job.uid, count::version(job))).collect();
    let attempts: HashMap<&str, _> =
        known.book.attempts().map(|(_, request, granted)| (request, granted)).collect();
    expired.retain(|request| {
        attempts
            .get(&**request)
            .is_some_and(|granted| had_no_effect(granted, versions.get(&*granted.job_uid).copied()))
    });
    expired
}
