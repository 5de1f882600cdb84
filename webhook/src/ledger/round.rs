//! A round in terms of Jobs and policies: from the policies, the ledger, a view of the Jobs and the attempts to the
//! verdicts, and to the ledger that must be stored before any verdict is given. Pure.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{JobLedgerSpec, LedgerContents};

use crate::{
    cache::tombstones::JobTombstone,
    ledger::{
        count,
        decide::{self, HeldRequest, RoundDecision, RoundInput, SlotAnswer, SlotRequest, namespace},
        ledger_id::LedgerId,
        resolve::{ObservedJob, ViewSource},
        scope_cache::RunsByGroup,
    },
    limit::{Attempt, EarlierSlots, Refused, Verdict, failure_backoff, message, scopes::LimitRules},
};

/// The input of a round besides its attempts.
#[derive(Clone, Copy)]
pub struct RoundSources<'a> {
    /// Policies and namespaces.
    pub rules: LimitRules<'a>,
    /// Which ledger decides.
    pub id: &'a LedgerId,
    /// The ledger as it was read.
    pub spec: &'a JobLedgerSpec,
    /// Its parsed contents.
    pub contents: &'a LedgerContents,
    /// Where the view of the Jobs comes from.
    pub view_source: ViewSource,
    /// The Jobs of the ledger's namespace, or of the cluster, that take a slot or belong to an attempt.
    pub observed: &'a [Arc<ObservedJob>],
    /// Finished Jobs of the attempts' groups that may have to wait after failures ([`failure_backoff::group`]).
    pub runs: &'a RunsByGroup,
    /// Jobs of attempts that were deleted before this view.
    pub deleted: &'a [JobTombstone],
    /// See [`RoundInput::expired`].
    pub expired: &'a BTreeSet<String>,
    /// See [`RoundInput::unstored`].
    pub unstored: &'a BTreeMap<String, Duration>,
    /// See [`RoundInput::revoked`].
    pub revoked: &'a BTreeSet<String>,
    /// See [`RoundInput::forgotten`].
    pub forgotten: &'a BTreeSet<String>,
    /// See [`RoundInput::refusals_by`].
    pub refusals_by: Option<ViewSource>,
    /// The wall clock, for messages and failure backoff.
    pub now: Timestamp,
}

/// Decides: one verdict per attempt. Returns `None` if the view is older than what another replica has already observed.
pub fn decide_round(
    sources: RoundSources<'_>,
    attempts: &[&Attempt],
) -> Option<(Vec<Verdict>, RoundDecision)> {
    let RoundSources { rules, id, contents, .. } = sources;
    // Deleted Jobs come first: if the view shows a Job of the same uid, that one wins.
    let deleted: Vec<ObservedJob> =
        sources.deleted.iter().map(|job| observe_deleted(job, sources.now)).collect();
    let jobs: Vec<&ObservedJob> = deleted.iter().chain(sources.observed.iter().map(AsRef::as_ref)).collect();
    let backoffs: Vec<Option<Refused>> = attempts.iter().map(|attempt| backoff(sources, attempt)).collect();
    let requests: Vec<SlotRequest> = attempts
        .iter()
        .zip(&backoffs)
        .map(|(attempt, backoff)| slot_request(rules, id, attempt, backoff.is_some()))
        .collect();
    // Computed once per namespace: a ledger may hold many attempts.
    let revisions: RefCell<HashMap<String, String>> = RefCell::default();
    let revision = |namespace: &str| match revisions.borrow_mut().entry(namespace.to_owned()) {
        Entry::Occupied(known) => known.get().clone(),
        Entry::Vacant(new) => new.insert(count::policy_revision(rules, id, namespace)).clone(),
    };
    let input = RoundInput {
        contents,
        view_source: sources.view_source,
        jobs: &jobs,
        expired: sources.expired,
        unstored: sources.unstored,
        revoked: sources.revoked,
        forgotten: sources.forgotten,
        refusals_by: sources.refusals_by,
        revision: &revision,
        now: sources.now,
    };
    let decision = decide::decide(input, &requests)?;
    let verdicts = attempts.iter().zip(backoffs).zip(&decision.answers);
    let verdicts =
        verdicts.map(|((attempt, backoff), answer)| verdict(sources, attempt, answer, backoff)).collect();
    Some((verdicts, decision))
}

/// A deleted Job takes no slot and resolves its attempt.
fn observe_deleted(tombstone: &JobTombstone, now: Timestamp) -> ObservedJob {
    ObservedJob {
        name: tombstone.name.clone(),
        uid: tombstone.uid.clone(),
        version: tombstone.version,
        active: false,
        scopes: Vec::new(),
        since: now,
    }
}

/// The refusal of an attempt whose group waits after failures.
fn backoff(sources: RoundSources<'_>, attempt: &Attempt) -> Option<Refused> {
    // Only ledgers of namespaces know about groups.
    sources.id.namespace()?;
    let group = failure_backoff::group(sources.rules, &attempt.job)?;
    let runs = sources.runs.get(&group).map(Vec::as_slice).unwrap_or_default();
    failure_backoff::refuse(sources.rules, &group, runs, sources.spec, &attempt.job, sources.now)
}

fn slot_request(rules: LimitRules<'_>, id: &LedgerId, attempt: &Attempt, in_backoff: bool) -> SlotRequest {
    let scopes_of = |job| -> Vec<(String, u32)> {
        let scopes = count::scopes(rules, id, job).into_iter();
        scopes.map(|(scope, limit)| (count::scope_id(&scope), limit.max_active_jobs)).collect()
    };
    let scopes = scopes_of(&attempt.job);
    let held = match &attempt.earlier_slots {
        EarlierSlots::Nothing => HeldRequest::Nothing,
        EarlierSlots::Orphaned => HeldRequest::Orphans { since: attempt.job.created },
        EarlierSlots::Left(stored) => {
            let stays = |scope: &String| scopes.iter().any(|(stays, _)| stays == scope);
            let left = scopes_of(stored).into_iter().map(|(scope, _)| scope).filter(|scope| !stays(scope));
            HeldRequest::LeftScopes { scopes: left.collect(), since: stored.created }
        }
    };
    SlotRequest {
        request: attempt.uid.clone(),
        name: attempt.job.key(),
        job_uid: attempt.job.uid.clone(),
        kind: count::attempt_kind(attempt.from.as_deref()),
        scopes,
        held,
        dry_run: !attempt.takes_slot(),
        shared: attempt.from.is_none() && !attempt.dry_run && rules.deciding(&attempt.job) > 1,
        in_backoff,
    }
}

fn verdict(
    sources: RoundSources<'_>,
    attempt: &Attempt,
    answer: &SlotAnswer,
    backoff: Option<Refused>,
) -> Verdict {
    let refused = match answer {
        SlotAnswer::Granted => return Verdict::Granted,
        SlotAnswer::TooManyAttempts { attempts } => {
            let why = format!(
                "{attempts} Jobs of namespace {} were admitted and then not created; something denies them after \
                 job-handler, such as a ResourceQuota or another webhook",
                namespace(&attempt.job.key())
            );
            return Verdict::TooMany { why, retry_after_seconds: 5 };
        }
        SlotAnswer::Full { scope, holders } => {
            let scopes = count::scopes(sources.rules, sources.id, &attempt.job);
            scopes.get(*scope).map(|(scope, limit)| message::full(scope, limit, holders, sources.now))
        }
        SlotAnswer::InBackoff => backoff,
        SlotAnswer::RefusedBefore => {
            let deciding =
                sources.rules.matching(&attempt.job).into_iter().find(|policy| policy.has_limits());
            deciding.map(|policy| message::refused_before(policy))
        }
        SlotAnswer::NameAdmitted => {
            let why = "another Job of this name was admitted a moment ago, and the limit has no room for both; the \
                       pods of this one would run on";
            return Verdict::Unavailable { why: why.to_owned(), retry_after_seconds: 1 };
        }
    };
    match refused {
        Some(refused) => Verdict::Refused(refused),
        // Unreachable as long as the same rules yield the same scopes twice.
        None => Verdict::Unavailable {
            why: "the policies changed during the decision".to_owned(),
            retry_after_seconds: 1,
        },
    }
}
