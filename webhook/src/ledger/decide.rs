//! Decides a round: from the ledger, a view of the Jobs and the requests to the answers, and to the ledger that must be
//! stored before any answer is given. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    time::Duration,
};

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{AttemptKind, GrantedAttempt, LedgerContents};

use crate::{
    ledger::resolve::{self, AttemptOutcome, ObservedJob, ViewSource},
    limit::scopes::{HolderKind, SlotHolder},
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
    /// Whether to decide without recording the attempt.
    pub dry_run: bool,
    /// Whether further calls about the same create come, to any replica: a refusal is then recorded.
    pub shared: bool,
    /// Whether the Job's group waits after failures. It is then refused unless its name holds its slots already.
    pub in_backoff: bool,
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
        /// The slots' holders by `namespace/name`.
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

/// How many names hold a slot in a scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SlotCount {
    /// All of them.
    pub active: usize,
    /// Those that hold it only by an attempt.
    pub pending: usize,
}

/// Which names hold slots in which scopes. It borrows: there may be thousands, and most rounds need only their number.
#[derive(Debug, Default)]
struct SlotUsage<'a> {
    scopes: HashMap<&'a str, ScopeUsage<'a>>,
    /// Attempts granted under another policy revision. Their scopes are unknown here, so they count in every scope.
    everywhere: HashMap<&'a str, OccupiedSlot>,
}

#[derive(Debug, Default)]
struct ScopeUsage<'a> {
    names: HashMap<&'a str, OccupiedSlot>,
    pending: usize,
}

#[derive(Clone, Copy, Debug)]
struct OccupiedSlot {
    since: Timestamp,
    kind: HolderKind,
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
            } else if !request.dry_run && !request.scopes.is_empty() {
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
        holds_all &= usage.holds(scope, &request.name);
        if usage.count_without(scope, &request.name) >= *max as usize {
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
    let granted = GrantedAttempt {
        job_uid: request.job_uid.clone(),
        kind: request.kind.clone(),
        revision: (input.revision)(namespace(&request.name)),
        scopes: request.scopes.iter().map(|(scope, _)| scope.clone()).collect(),
        since: input.now,
    };
    for (scope, _) in &request.scopes {
        usage.add(scope, &request.name, OccupiedSlot { since: input.now, kind: HolderKind::Admitted });
    }
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

impl<'a> SlotUsage<'a> {
    /// Counts the active Jobs of the view and the attempts that remain in `contents`.
    fn of(input: RoundInput<'a>, contents: &LedgerContents) -> Self {
        let mut usage = Self::default();
        for job in input.jobs.iter().filter(|job| job.active) {
            for scope in &job.scopes {
                usage.add(scope, &job.name, OccupiedSlot { since: job.since, kind: HolderKind::Active });
            }
        }
        for (name, request, granted) in input.contents.attempts() {
            if !contents.pending.get(name).is_some_and(|attempts| attempts.contains_key(request)) {
                continue;
            }
            let kind = match input.unstored.get(request) {
                Some(free_within) => HolderKind::Unstored { free_within: *free_within },
                None => HolderKind::Admitted,
            };
            let slot = OccupiedSlot { since: granted.since, kind };
            if granted.revision == (input.revision)(namespace(name)) {
                granted.scopes.iter().for_each(|scope| usage.add(scope, name, slot));
            } else {
                usage.everywhere.entry(name).or_insert(slot);
            }
        }
        usage
    }

    fn add(&mut self, scope: &'a str, name: &'a str, slot: OccupiedSlot) {
        let scope = self.scopes.entry(scope).or_default();
        // The first entry of a name stays: a Job that runs is not reported as just admitted.
        if let Entry::Vacant(vacant) = scope.names.entry(name) {
            vacant.insert(slot);
            scope.pending += usize::from(slot.kind != HolderKind::Active);
        }
    }

    fn holds(&self, scope: &str, name: &str) -> bool {
        self.scopes.get(scope).is_some_and(|scope| scope.names.contains_key(name))
    }

    /// The number of slots that names other than `name` hold.
    fn count_without(&self, scope: &str, name: &str) -> usize {
        let usage = self.scopes.get(scope);
        let others = usage.map_or(0, |usage| usage.names.len() - usize::from(usage.names.contains_key(name)));
        others + self.only_everywhere(usage).filter(|other| *other != name).count()
    }

    /// Names that count in this scope only because they count everywhere.
    fn only_everywhere<'s>(
        &'s self,
        scope: Option<&'s ScopeUsage<'a>>,
    ) -> impl Iterator<Item = &'a str> + 's {
        let names = self.everywhere.keys().copied();
        names.filter(move |name| scope.is_none_or(|scope| !scope.names.contains_key(name)))
    }

    fn holders(&self, scope: &str) -> BTreeMap<String, SlotHolder> {
        let in_scope = self.scopes.get(scope).into_iter().flat_map(|usage| &usage.names);
        // The scope's own entries come last and win: a Job that runs is not reported as just admitted.
        let all = self.everywhere.iter().chain(in_scope);
        all.map(|(name, slot)| ((*name).to_owned(), holder(name, *slot))).collect()
    }

    fn fullest(&self) -> BTreeMap<String, SlotCount> {
        let mut limits: BTreeMap<&str, SlotCount> = BTreeMap::new();
        for (id, scope) in &self.scopes {
            let everywhere = self.only_everywhere(Some(scope)).count();
            let active = scope.names.len() + everywhere;
            let count = SlotCount { active, pending: scope.pending + everywhere };
            let fullest = limits.entry(limit_of(id)).or_default();
            *fullest = count.max(*fullest);
        }
        limits.into_iter().map(|(limit, count)| (limit.to_owned(), count)).collect()
    }

    /// Whether the name holds slots only by attempts.
    fn is_pending(&self, name: &str) -> bool {
        !self
            .scopes
            .values()
            .any(|scope| scope.names.get(name).is_some_and(|slot| slot.kind == HolderKind::Active))
    }
}

fn holder(name: &str, slot: OccupiedSlot) -> SlotHolder {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let OccupiedSlot { since, kind } = slot;
    SlotHolder { namespace: namespace.to_owned(), name: name.to_owned(), since, kind }
}

/// The namespace of a `namespace/name`.
pub(crate) fn namespace(name: &str) -> &str {
    name.split_once('/').map_or("", |(namespace, _)| namespace)
}

/// The limit of a scope id: `<policy uid>/<limit>`, which a group's id continues with `/<group>`.
fn limit_of(scope: &str) -> &str {
    let end = scope.match_indices('/').nth(1).map_or(scope.len(), |(at, _)| at);
    &scope[..end]
}
