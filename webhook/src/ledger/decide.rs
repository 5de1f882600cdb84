//! Decides a round: from the ledger, a view of the Jobs and the requests to the answers, and to the ledger that must be
//! stored before any answer is given. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{AttemptKind, GrantedAttempt, HeldSlot, LedgerContents};

use crate::{
    ledger::{
        resolve::{self, AttemptOutcome, ObservedJob, ViewSource},
        usage::{SlotCount, SlotUsage},
    },
    limit::scopes::SlotHolder,
};

/// If this many names of a namespace hold slots only by overdue attempts, something denies the namespace's creates after
/// our admission. Its further attempts are turned away, so that it cannot exhaust a limit that it shares with others.
const MAX_OVERDUE_NAMES: usize = 16;
/// Most refused creates that a ledger remembers. If more are refused within seconds, a slot may be held for nothing until
/// its attempt expires.
const MAX_REFUSED: usize = 512;
/// Most attempts per name: a client may create a name over and over while its Job exists.
pub const MAX_ATTEMPTS_PER_NAME: usize = 32;

/// The input of a round besides its requests.
#[derive(Clone, Copy)]
pub struct RoundInput<'a> {
    /// The ledger as it was read.
    pub contents: &'a LedgerContents,
    /// Where the view of the Jobs comes from.
    pub view_source: ViewSource,
    /// The Jobs in the view.
    pub jobs: &'a [&'a ObservedJob],
    /// `request.uid`s of attempts that expired by this process's clock before a quorum read began that shows that they
    /// had no effect ([`resolve::had_no_effect`]).
    pub expired: &'a BTreeSet<String>,
    /// Attempts that are so old that their creates must have been denied after our admission, by `request.uid`, and how long
    /// their Job can still be stored.
    pub unstored: &'a BTreeMap<String, Duration>,
    /// `request.uid`s of own grants whose callers never received the answer.
    pub revoked: &'a BTreeSet<String>,
    /// Uids of refused creates about which no further call comes.
    pub forgotten: &'a BTreeSet<String>,
    /// Where the Jobs by which a refusal is final were read from; `None` if requests are only granted, and all others are
    /// decided by a later round.
    pub refusals_by: Option<ViewSource>,
    /// The policy revision by which this replica counts the Jobs of a namespace.
    pub revision: &'a dyn Fn(&str) -> String,
    /// The time that new attempts record; informational.
    pub now: Timestamp,
}

/// A request for slots.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlotRequest {
    /// `request.uid`.
    pub request: String,
    /// `namespace/name` of the Job.
    pub name: String,
    /// The Job's uid.
    pub job_uid: String,
    /// The kind of attempt.
    pub kind: AttemptKind,
    /// The scopes in which the Job takes a slot, with their limits; the most specific first.
    pub scopes: Vec<(String, u32)>,
    /// What becomes of slots for which the Job stops to count.
    pub held: HeldRequest,
    /// Whether to decide without recording the attempt.
    pub dry_run: bool,
    /// Whether further calls about the same create come, to any replica: a refusal is then recorded.
    pub shared: bool,
    /// Whether the Job's group waits after failures. It is then refused unless its name holds its slots already.
    pub in_backoff: bool,
}

/// What becomes of slots for which a Job stops to count by a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeldRequest {
    /// There are none.
    #[default]
    Nothing,
    /// The Job keeps the slots in these scopes, which it leaves while it runs.
    LeftScopes {
        /// The scopes.
        scopes: Vec<String>,
        /// When the Job was created.
        since: Timestamp,
    },
    /// The Job goes away, and its pods keep its slots.
    Orphans {
        /// When the Job was created.
        since: Timestamp,
    },
}

/// The answer to a request, valid once the ledger is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotAnswer {
    /// The Job may start.
    Granted,
    /// No slot is free.
    Full {
        /// The index of the scope in the request.
        scope: usize,
        /// The slots' holders by `namespace/name`, or by uid if the ledger holds their slots.
        holders: BTreeMap<String, SlotHolder>,
    },
    /// Too many attempts of this namespace or name have stored no Job.
    TooManyAttempts {
        /// How many.
        attempts: usize,
    },
    /// The Job's group waits after failures.
    InBackoff,
    /// Slots are free now, but an earlier call about the same create was refused, and so the Job is never stored.
    RefusedBefore,
    /// The Job may not go away yet: a Job of its name was admitted while its own slot was that of the name, and there is no
    /// room for both.
    NameAdmitted,
}

/// The outcome of a round.
#[derive(Clone, Debug)]
pub struct RoundDecision {
    /// One answer per request.
    pub answers: Vec<SlotAnswer>,
    /// The ledger to store; equal to the input if nothing changes.
    pub contents: LedgerContents,
    /// The fullest scope of each limit that has a holder, by `<policy uid>/<limit>`.
    pub(crate) fullest: BTreeMap<String, SlotCount>,
}

/// Decides. Returns `None` if the view is older than what another replica has already observed: read again.
pub fn decide(input: RoundInput<'_>, requests: &[SlotRequest]) -> Option<RoundDecision> {
    if !input.view_source.covers(input.contents.observed_through) {
        return None;
    }
    let mut contents = without_resolved(input);
    let mut usage = SlotUsage::of(input, &contents);
    let answers = requests
        .iter()
        .map(|request| {
            let mut answer = answer(input, &contents, &usage, request);
            if answer == SlotAnswer::Granted && contents.refused.contains_key(&request.job_uid) {
                answer = SlotAnswer::RefusedBefore;
            }
            if answer != SlotAnswer::Granted {
                if request.shared && input.is_final(&answer) {
                    record_refusal(input, &mut contents, request);
                }
            } else if !request.dry_run {
                record(input, &mut contents, &mut usage, request);
            }
            answer
        })
        .collect();
    Some(RoundDecision { answers, contents, fullest: usage.fullest() })
}

/// The ledger without the attempts whose outcome is known.
fn without_resolved(input: RoundInput<'_>) -> LedgerContents {
    let mut contents = input.contents.clone();
    contents.refused.retain(|uid, _| !input.forgotten.contains(uid));
    if contents.pending.is_empty() {
        return contents;
    }
    let jobs: HashMap<&str, &ObservedJob> = input.jobs.iter().map(|job| (job.uid.as_str(), *job)).collect();
    for (name, request, granted) in input.contents.attempts() {
        let job = jobs.get(&*granted.job_uid).copied();
        let resolved = match resolve::outcome(granted, job, input.view_source) {
            AttemptOutcome::Observed(version) => {
                contents.observed_through = contents.observed_through.max(version);
                true
            }
            AttemptOutcome::Deleted => true,
            AttemptOutcome::Unknown => input.expired.contains(request) || input.revoked.contains(request),
        };
        if resolved {
            contents.remove(name, request);
        }
    }
    contents
}

fn answer(
    input: RoundInput<'_>,
    contents: &LedgerContents,
    usage: &SlotUsage<'_>,
    request: &SlotRequest,
) -> SlotAnswer {
    let attempts = contents.pending.get(&request.name);
    if let HeldRequest::Orphans { .. } = request.held {
        let is_other = |granted: &GrantedAttempt| granted.job_uid != request.job_uid;
        let has_others = attempts.is_some_and(|attempts| attempts.values().any(is_other));
        // Until now the name counted once for both.
        let has_room =
            |(scope, max): &(String, u32)| usage.count_without(scope, request) + 2 <= *max as usize;
        let may_go = !has_others || request.scopes.iter().all(has_room);
        return if may_go { SlotAnswer::Granted } else { SlotAnswer::NameAdmitted };
    }
    // An earlier write of this very round was stored, but its answer was lost. If other scopes count now, it may have no slot
    // in them.
    let recorded = attempts.and_then(|attempts| attempts.get(&request.request));
    if recorded.is_some_and(|granted| granted.scopes.iter().eq(request.scopes.iter().map(|(scope, _)| scope)))
    {
        return SlotAnswer::Granted;
    }
    if let Some(attempts) = too_many_attempts(input, contents, usage, request) {
        return SlotAnswer::TooManyAttempts { attempts };
    }
    // A name counts once: at most one Job of a name exists, so a name that counts already adds nothing, and the apiserver
    // answers 409 itself. The other names still have to leave room for it: in a view that lags behind, the name may count
    // by a Job that is deleted, whose slot was granted to another name.
    let mut holds_all = !request.scopes.is_empty();
    for (n, (scope, max)) in request.scopes.iter().enumerate() {
        holds_all &= usage.holds(scope, request);
        if usage.count_without(scope, request) >= *max as usize {
            return SlotAnswer::Full { scope: n, holders: usage.holders(scope) };
        }
    }
    if request.in_backoff && !holds_all { SlotAnswer::InBackoff } else { SlotAnswer::Granted }
}

/// The number of attempts of the name or its namespace that stored no Job, if they are too many.
fn too_many_attempts(
    input: RoundInput<'_>,
    contents: &LedgerContents,
    usage: &SlotUsage<'_>,
    request: &SlotRequest,
) -> Option<usize> {
    if request.scopes.is_empty() {
        return None;
    }
    let of_name = contents.pending.get(&request.name).map_or(0, BTreeMap::len);
    if of_name >= MAX_ATTEMPTS_PER_NAME {
        return Some(of_name);
    }
    let own = namespace(&request.name);
    let overdue = contents.pending.iter().filter(|(name, attempts)| {
        namespace(name) == own
            && attempts.keys().any(|request| input.unstored.contains_key(request))
            && usage.is_pending(name)
    });
    let overdue = overdue.count();
    (overdue >= MAX_OVERDUE_NAMES).then_some(overdue)
}

fn record<'a>(
    input: RoundInput<'a>,
    contents: &mut LedgerContents,
    usage: &mut SlotUsage<'a>,
    request: &'a SlotRequest,
) {
    let scopes: Vec<String> = request.scopes.iter().map(|(scope, _)| scope.clone()).collect();
    let hold = |contents: &mut LedgerContents, scopes: &[String], since| {
        let from = match request.kind {
            AttemptKind::Create => 0,
            AttemptKind::Unsuspend { from } => from,
        };
        if !scopes.is_empty() {
            let slot = HeldSlot { name: request.name.clone(), scopes: scopes.to_vec(), from, since };
            contents.hold(&request.job_uid, slot);
        }
    };
    match &request.held {
        HeldRequest::Nothing => {}
        HeldRequest::LeftScopes { scopes, since } => hold(contents, scopes, *since),
        HeldRequest::Orphans { since } => {
            hold(contents, &scopes, *since);
            return usage.add_orphans(request, *since);
        }
    }
    if scopes.is_empty() {
        return;
    }
    let granted = GrantedAttempt {
        job_uid: request.job_uid.clone(),
        kind: request.kind.clone(),
        revision: (input.revision)(namespace(&request.name)),
        scopes,
        since: input.now,
    };
    usage.add_admitted(input, request);
    contents.pending.entry(request.name.clone()).or_default().insert(request.request.clone(), granted);
}

/// Records that a create was refused, which also ends what other calls about it were granted.
///
/// The apiserver sends a validating webhook the Job with the uid under which it would be stored, the same in the calls of
/// all entries, and a new one each time a client or the apiserver itself tries again (`rest.FillObjectMetaSystemFields`, in
/// `registry/rest/create.go`). A single refusal rejects the request. So a Job with this uid is never stored. That does not hold for an
/// un-suspend: another request may try to make the same change.
fn record_refusal(input: RoundInput<'_>, contents: &mut LedgerContents, request: &SlotRequest) {
    let is_of_create =
        |granted: &GrantedAttempt| granted.job_uid == request.job_uid && granted.kind == AttemptKind::Create;
    if let Some(attempts) = contents.pending.get_mut(&request.name) {
        attempts.retain(|_, granted| !is_of_create(granted));
        if attempts.is_empty() {
            contents.pending.remove(&request.name);
        }
    }
    contents.refused.entry(request.job_uid.clone()).or_insert(input.now);
    if contents.refused.len() > MAX_REFUSED {
        let oldest = contents.refused.iter().min_by_key(|(uid, at)| (**at, *uid)).map(|(uid, _)| uid.clone());
        oldest.and_then(|oldest| contents.refused.remove(&oldest));
    }
}

impl RoundInput<'_> {
    /// Whether the request gets this answer. A refusal for failure backoff needs a LIST: only that shows finished Jobs as
    /// they are now.
    fn is_final(&self, answer: &SlotAnswer) -> bool {
        match self.refusals_by {
            None => false,
            Some(ViewSource::Cache(_)) => *answer != SlotAnswer::InBackoff,
            Some(ViewSource::List) => true,
        }
    }
}

/// The namespace of a `namespace/name`.
pub(crate) fn namespace(name: &str) -> &str {
    name.split_once('/').map_or("", |(namespace, _)| namespace)
}
