//! Re-reads the ledger and the Jobs before anything is refused, so that a Job that has just finished never causes a
//! refusal.
//!
//! The ledger is read first, then the Jobs are listed: a consistent LIST shows every write before the ledger was read,
//! so the list covers the ledger. Both reads begin after every request that they answer arrived.
//!
//! If few Jobs take slots, they are fetched one by one instead ([`fetch_slot_holders`]): a consistent LIST waits until
//! the apiserver's own cache has caught up with etcd, which takes some 100 ms in a namespace without other writes. Every
//! Job that then causes a refusal was active after the request arrived, and all of them were active when the first one was
//! fetched. The ledger is read at the same time if it holds attempts ([`check_unchanged`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use job_handler_shared::{job::snapshot::JobSnapshot, policy::set::PolicySet};

use crate::{
    cache::consistent_list::{self, JobListing},
    ledger::{
        count, decide,
        freshness::LedgerOrigin,
        known_ledgers::KnownLedger,
        ledger_id::LedgerId,
        resolve::{ViewSource, had_no_effect},
        shared::LedgerContext,
    },
    limit::scopes::LimitRules,
};

/// A LIST that takes longer is useless: its callers are about to give up.
const LIST_TIMEOUT: Duration = Duration::from_secs(8);
/// Most Jobs to fetch one by one instead of listing all.
const MAX_FETCHED: usize = 16;
/// After this time the Jobs are listed instead, for which their callers need the remaining time.
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// Which Jobs a fresh read must show as they are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ReadExtent {
    /// Those that take slots.
    #[default]
    SlotHolders,
    /// Finished ones as well, which decide about failure backoff.
    AllJobs,
}

/// A ledger and the Jobs, read for the requests that arrived before.
#[derive(Debug)]
pub(crate) struct FreshRead {
    /// When the read began: it answers the requests that arrived before.
    pub(crate) began: Instant,
    /// The policies by which the Jobs were read: these Jobs have the labels that these policies name. To decide by newer
    /// ones would let policies that change faster than Jobs can be listed hold a limit shut.
    pub(crate) policies: Arc<PolicySet>,
    pub(crate) ledger: Arc<KnownLedger>,
    /// [`LedgerOrigin::Known`] if the ledger was not read, since nobody holds a slot by it.
    pub(crate) ledger_origin: LedgerOrigin,
    pub(crate) listing: JobListing,
    /// Whether the Jobs were listed or fetched.
    pub(crate) view_source: ViewSource,
    /// Attempts that expired before the Jobs were read and that had no effect according to this read.
    pub(crate) expired: BTreeSet<String>,
}

/// Why a ledger could not be read.
#[derive(Debug)]
pub(crate) enum LedgerReadError {
    /// It does not exist; the read began at this time of the attempts' clock.
    Missing(Instant),
    /// An explanation for the caller of the webhook.
    Failed(String),
}

/// Reads the ledger and the Jobs.
pub(crate) async fn read_fresh(
    context: Arc<LedgerContext>,
    id: LedgerId,
    extent: ReadExtent,
) -> Result<FreshRead, LedgerReadError> {
    context.reads.acquire().await;
    let began = Instant::now();
    let policies = context.policies.current().clone();
    let (ledger, fetches) = match check_unchanged(&context, &id, &policies, extent).await? {
        QuickCheck::Unchanged(ledger, listing) => {
            context.metrics.consistent_reads.inc();
            let ledger_origin =
                if ledger.contents.holds_nothing() { LedgerOrigin::Known } else { LedgerOrigin::Read };
            let view_source = ViewSource::Cache(listing.version);
            let expired = BTreeSet::new();
            return Ok(FreshRead { began, policies, ledger, ledger_origin, listing, view_source, expired });
        }
        QuickCheck::LedgerChanged(ledger) => (ledger, extent == ReadExtent::SlotHolders),
        QuickCheck::JobsChanged(ledger) => (ledger, false),
    };
    // Before the Jobs are read: a Job of an attempt that has expired by now is shown by the read, if it was ever stored.
    let unstored = context.unstored(&id, &policies, &ledger.contents);
    context.metrics.consistent_reads.inc();
    let ledger_origin = LedgerOrigin::Read;
    if fetches && let Some(listing) = fetch_slot_holders(&context, &id, &policies, &ledger).await {
        let view_source = ViewSource::Cache(listing.version);
        let expired = expired(&ledger, &unstored, &listing);
        return Ok(FreshRead { began, policies, ledger, ledger_origin, listing, view_source, expired });
    }
    let listing = list_jobs(&context, &id, &policies).await.map_err(LedgerReadError::Failed)?;
    let expired = expired(&ledger, &unstored, &listing);
    let view_source = ViewSource::List;
    Ok(FreshRead { began, policies, ledger, ledger_origin, listing, view_source, expired })
}

/// Reads a ledger by a quorum read and records it.
pub(crate) async fn read_ledger(
    context: &LedgerContext,
    name: &str,
) -> Result<Arc<KnownLedger>, LedgerReadError> {
    let began = context.known_ledgers.now();
    let ledger = context.ledger_client.read(name).await.map_err(LedgerReadError::Failed)?;
    let ledger = ledger.ok_or(LedgerReadError::Missing(began))?;
    let known = KnownLedger::parse(ledger)
        .map_err(|error| LedgerReadError::Failed(format!("the JobLedger {name}: {error}")))?;
    context.known_ledgers.record(name, &known);
    Ok(known)
}

/// What [`check_unchanged`] found.
enum QuickCheck {
    /// The ledger is the known one, and every slot holder still holds its slot.
    Unchanged(Arc<KnownLedger>, JobListing),
    /// The slot holders are too many to fetch, or one of them no longer holds its slot. The ledger as it is now.
    JobsChanged(Arc<KnownLedger>),
    /// The ledger as it is now; the slot holders according to it were not fetched.
    LedgerChanged(Arc<KnownLedger>),
}

/// Checks whether ledger and Jobs are as they were watched, which holds while Jobs are refused one after the other. Then
/// both are read at the same time. A ledger by which nobody holds a slot refuses nothing and is not read at all. If the ledger has
/// moved on meanwhile, the caller needs a fresh read.
async fn check_unchanged(
    context: &LedgerContext,
    id: &LedgerId,
    policies: &PolicySet,
    extent: ReadExtent,
) -> Result<QuickCheck, LedgerReadError> {
    let (name, known_ledgers) = (id.name(), &context.known_ledgers);
    let watched = known_ledgers.latest(name);
    let has_expired =
        |known: &KnownLedger| context.unstored(id, policies, &known.contents).values().any(Duration::is_zero);
    let quick = |known: &Arc<KnownLedger>| extent == ReadExtent::SlotHolders && !has_expired(known);
    let Some(watched) = watched.filter(quick) else {
        return Ok(QuickCheck::LedgerChanged(read_ledger(context, name).await?));
    };
    if watched.contents.holds_nothing() {
        return match fetch_slot_holders(context, id, policies, &watched).await {
            Some(listing) => Ok(QuickCheck::Unchanged(watched, listing)),
            None => Ok(QuickCheck::JobsChanged(read_ledger(context, name).await?)),
        };
    }
    let (ledger, listing) =
        tokio::join!(read_ledger(context, name), fetch_slot_holders(context, id, policies, &watched));
    let ledger = ledger?;
    Ok(match listing {
        Some(listing) if ledger.version == watched.version => QuickCheck::Unchanged(ledger, listing),
        Some(_) => QuickCheck::LedgerChanged(ledger),
        None => QuickCheck::JobsChanged(ledger),
    })
}

async fn list_jobs(
    context: &LedgerContext,
    id: &LedgerId,
    policies: &PolicySet,
) -> Result<JobListing, String> {
    let list =
        consistent_list::list_jobs(&context.client, id.namespace(), policies.label_keys(), &context.cache);
    let listing = match tokio::time::timeout(LIST_TIMEOUT, list).await {
        Ok(listing) => listing.map_err(|error| error.to_string())?,
        Err(_) => return Err("the apiserver did not answer in time".to_owned()),
    };
    // Without a Job's namespace, a limit of the cluster could miss the Job.
    for job in listing.jobs.iter().filter(|job| job.is_active()) {
        if context.policies.namespace(&job.namespace).await.is_none() {
            return Err(format!("the namespace {} is not known yet", job.namespace));
        }
    }
    Ok(listing)
}

/// The watched Jobs, if all that take a slot still do: the active Jobs and those of the ledger's attempts, which may also
/// not be stored yet. Returns `None` if they are too many, if one of them has finished, or if anything is in doubt: then
/// the Jobs have to be listed.
///
/// Refusals by this view are up to date. Grants are as old as the watch, since the view shows other Jobs as they were
/// watched; hence [`ViewSource::Cache`]. It counts no fewer Jobs than the watch cache does.
async fn fetch_slot_holders(
    context: &LedgerContext,
    id: &LedgerId,
    policies: &PolicySet,
    ledger: &KnownLedger,
) -> Option<JobListing> {
    let (version, mut jobs) = context.cache.snapshot(id.namespace())?;
    if version < ledger.contents.observed_through {
        return None;
    }
    let holders = slot_holders(context, id, policies, ledger, &jobs)?;
    let keys = policies.label_keys();
    let gets = holders.iter().map(|holder| consistent_list::get_job(&context.client, holder, keys));
    let fetched = tokio::time::timeout(FETCH_TIMEOUT, try_join_all(gets)).await.ok()?.ok()?;
    let mut fetched: HashMap<String, Arc<JobSnapshot>> =
        fetched.into_iter().flatten().map(|job| (job.key(), job)).collect();
    if fetched.values().any(|job| !job.is_active()) {
        return None;
    }
    for job in &mut jobs {
        let key = job.key();
        if holders.contains(&key) {
            *job = fetched.remove(&key).filter(|now| now.uid == job.uid)?;
        }
    }
    // The rest is stored, and the watch has not delivered it yet.
    jobs.extend(fetched.into_values());
    Some(JobListing { version, jobs })
}

/// `namespace/name` of each Job that takes a slot; `None` if there are too many, or if the namespace or the labels of one
/// are not known.
fn slot_holders(
    context: &LedgerContext,
    id: &LedgerId,
    policies: &PolicySet,
    ledger: &KnownLedger,
    jobs: &[Arc<JobSnapshot>],
) -> Option<BTreeSet<String>> {
    let namespaces = |name: &str| context.policies.known_namespace(name);
    let rules = LimitRules { policies, namespaces: &namespaces };
    // Of finished Jobs too: they are part of the view.
    let keys = id.label_keys(policies);
    if !jobs.iter().all(|job| job.knows_labels(keys)) {
        return None;
    }
    let mut holders: BTreeSet<String> = ledger.contents.pending.keys().cloned().collect();
    for job in jobs.iter().filter(|job| job.is_active()) {
        // Without a Job's namespace, a limit of the cluster could miss the Job.
        namespaces(&job.namespace)?;
        if !count::scopes(rules, id, job).is_empty() {
            holders.insert(job.key());
        }
        if holders.len() > MAX_FETCHED {
            break;
        }
    }
    if holders.len() > MAX_FETCHED {
        return None;
    }
    // The watch may not have delivered the Jobs of attempts, so their namespaces were not checked above.
    for holder in &holders {
        namespaces(decide::namespace(holder))?;
    }
    Some(holders)
}

fn expired(
    ledger: &KnownLedger,
    unstored: &BTreeMap<String, Duration>,
    listing: &JobListing,
) -> BTreeSet<String> {
    let over = unstored.iter().filter(|(_, left)| left.is_zero());
    let mut expired: BTreeSet<String> = over.map(|(request, _)| request.clone()).collect();
    if expired.is_empty() {
        return expired;
    }
    let versions: HashMap<&str, u64> =
        listing.jobs.iter().map(|job| (&*job.uid, count::resource_version(job))).collect();
    let attempts: HashMap<&str, _> =
        ledger.contents.attempts().map(|(_, request, granted)| (request, granted)).collect();
    expired.retain(|request| {
        attempts
            .get(&**request)
            .is_some_and(|granted| had_no_effect(granted, versions.get(&*granted.job_uid).copied()))
    });
    expired
}
