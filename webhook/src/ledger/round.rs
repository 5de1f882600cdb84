//! A round in a Job's terms: policies, ledger, a view of the Jobs and attempts -> verdicts, and the ledger to be written
//! before any of them is given. Pure.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, hash_map::Entry},
    sync::Arc,
};

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{JobLedgerSpec, LedgerContents};

use super::{
    decide::{self, RoundDecision, RoundInput, SlotAnswer, SlotRequest, namespace},
    resolve::{ObservedJob, ViewSource},
};
use crate::limit::{Attempt, Refused, Verdict, failure_backoff, message, scopes::LimitRules};
use crate::{
    cache::tombstones::JobTombstone,
    ledger::{
        count::{self, LedgerId},
        scope_cache::RunsByGroup,
    },
};

/// Everything that a round goes by.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// Policies and namespaces.
    pub rules: LimitRules<'a>,
    /// Which ledger.
    pub id: &'a LedgerId,
    /// As it was read.
    pub spec: &'a JobLedgerSpec,
    /// What is in it.
    pub book: &'a LedgerContents,
    /// How the Jobs were seen.
    pub view_source: ViewSource,
    /// The Jobs of the ledger's namespace, or of the cluster, that take a slot or that were tried.
    pub seen: &'a [Arc<ObservedJob>],
    /// Finished Jobs of the groups that wait after failures ([`failure_backoff::group`] of whoever asks).
    pub runs: &'a RunsByGroup,
    /// Jobs of attempts that came, and are gone from this view.
    pub gone: &'a [JobTombstone],
    /// See [`RoundInput::expired`].
    pub expired: &'a BTreeSet<String>,
    /// See [`RoundInput::old`].
    pub old: &'a BTreeSet<String>,
    /// See [`RoundInput::undone`].
    pub revoked: &'a BTreeSet<String>,
    /// For people, and for backoff after failures.
    pub now: Timestamp,
}

/// Decides: one verdict for each attempt. None = the view is older than what somebody else has seen already.
pub fn round(sources: Sources<'_>, attempts: &[&Attempt]) -> Option<(Vec<Verdict>, RoundDecision)> {
    let Sources { rules, id, book, .. } = sources;
    // A view does not show who is gone from it; if it did, the Job that comes later would stand.
    let buried: Vec<ObservedJob> =
        sources.gone.iter().map(|tombstone| buried(tombstone, sources.now)).collect();
    let jobs: Vec<&ObservedJob> = buried.iter().chain(sources.seen.iter().map(AsRef::as_ref)).collect();
    let in_backoff: Vec<Option<Refused>> =
        attempts.iter().map(|attempt| in_backoff(sources, attempt)).collect();
    let asked: Vec<SlotRequest> = attempts
        .iter()
        .zip(&in_backoff)
        .map(|(attempt, in_backoff)| asked(rules, id, attempt, in_backoff.is_some()))
        .collect();
    // Of each namespace once: a ledger may hold many attempts.
    let revisions: RefCell<HashMap<String, String>> = RefCell::default();
    let revision = |namespace: &str| match revisions.borrow_mut().entry(namespace.to_owned()) {
        Entry::Occupied(known) => known.get().clone(),
        Entry::Vacant(new) => new.insert(count::revision(rules, id, namespace)).clone(),
    };
    let given = RoundInput {
        book,
        view_source: sources.view_source,
        jobs: &jobs,
        expired: sources.expired,
        old: sources.old,
        revoked: sources.revoked,
        revision: &revision,
        now: sources.now,
    };
    let decided = decide::decide(given, &asked)?;
    let verdicts = attempts.iter().zip(in_backoff).zip(&decided.answers);
    let verdicts = verdicts
        .map(|((attempt, in_backoff), answer)| verdict(sources, attempt, answer, in_backoff))
        .collect();
    Some((verdicts, decided))
}

/// Takes no slot, and says what became of its create.
fn buried(tombstone: &JobTombstone, now: Timestamp) -> ObservedJob {
    ObservedJob {
        name: tombstone.name.clone(),
        uid: tombstone.uid.clone(),
        version: tombstone.version,
        active: false,
        scopes: Vec::new(),
        since: now,
    }
}

/// Why the Job may not start now although there may be slots.
fn in_backoff(sources: Sources<'_>, attempt: &Attempt) -> Option<Refused> {
    sources.id.namespace()?;
    let group = failure_backoff::group(sources.rules, &attempt.job)?;
    let runs = sources.runs.get(&group).map(Vec::as_slice).unwrap_or_default();
    failure_backoff::refuse(sources.rules, &group, runs, sources.spec, &attempt.job, sources.now)
}

fn asked(rules: LimitRules<'_>, id: &LedgerId, attempt: &Attempt, in_backoff: bool) -> SlotRequest {
    let scopes = count::scopes(rules, id, &attempt.job);
    SlotRequest {
        request: attempt.uid.clone(),
        name: attempt.job.key(),
        job_uid: attempt.job.uid.clone(),
        kind: count::kind(attempt.from.as_deref()),
        scopes: scopes.iter().map(|(scope, limit)| (count::scope_id(scope), limit.max_active_jobs)).collect(),
        dry_run: attempt.dry_run,
        in_backoff,
    }
}

fn verdict(
    sources: Sources<'_>,
    attempt: &Attempt,
    answer: &SlotAnswer,
    in_backoff: Option<Refused>,
) -> Verdict {
    let refused = match answer {
        SlotAnswer::Granted => return Verdict::Granted,
        SlotAnswer::TooManyAttempts { attempts } => {
            let why = format!(
                "{attempts} Jobs of namespace {} were admitted and then not created; something else denies them \
                 after job-handler, such as a ResourceQuota or another webhook",
                namespace(&attempt.job.key())
            );
            return Verdict::TooMany { why, retry_after_seconds: 5 };
        }
        SlotAnswer::Full { scope, holders } => {
            let scopes = count::scopes(sources.rules, sources.id, &attempt.job);
            scopes.get(*scope).map(|(scope, limit)| message::full(scope, limit, holders, sources.now))
        }
        SlotAnswer::InBackoff => in_backoff,
    };
    match refused {
        Some(refused) => Verdict::Refused(refused),
        // Scopes are found by the same rules both times.
        None => Verdict::Unavailable {
            why: "the policies changed while this Job was decided about".to_owned(),
            retry_after_seconds: 1,
        },
    }
}
