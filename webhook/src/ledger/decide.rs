//! A round: what the ledger says, what is seen of the Jobs, who asks -> the answers, and the ledger to be written before
//! any of them is given. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{AttemptKind, GrantedAttempt, LedgerContents};

use super::resolve::{self, AttemptOutcome, ObservedJob, ViewSource};
use crate::limit::scopes::SlotHolder;

/// A namespace of which so many names hold slots by old attempts that led to no Job has its creates denied by somebody
/// after us. It has to wait, so that it cannot pin a limit that others share.
pub const MANY_NAMES: usize = 16;
/// Attempts for one name: somebody creates it over and over while it is there.
pub const MANY_TRIES: usize = 32;

/// Everything a round goes by, besides the requests.
#[derive(Clone, Copy)]
pub struct RoundInput<'a> {
    /// The ledger as it was read.
    pub book: &'a LedgerContents,
    /// How the Jobs were seen.
    pub view_source: ViewSource,
    /// Those Jobs.
    pub jobs: &'a [&'a ObservedJob],
    /// By `request.uid`: attempts that ran out by the own clock before a quorum read began, and that this read shows to
    /// have come to nothing ([`resolve::had_no_effect`]).
    pub expired: &'a BTreeSet<String>,
    /// By `request.uid`: known for so long that their creates must have been denied after us.
    pub old: &'a BTreeSet<String>,
    /// By `request.uid`: our own grants that reached nobody.
    pub revoked: &'a BTreeSet<String>,
    /// The revision by which the Jobs of a namespace are counted here.
    pub revision: &'a dyn Fn(&str) -> String,
    /// For people.
    pub now: Timestamp,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlotRequest {
    /// `request.uid`.
    pub request: String,
    /// `namespace/name` of the Job.
    pub name: String,
    /// Its uid.
    pub job_uid: String,
    /// What is tried.
    pub kind: AttemptKind,
    /// Where it takes a slot, and how many there are; the most telling first.
    pub scopes: Vec<(String, u32)>,
    /// Decide, but record nothing.
    pub dry_run: bool,
    /// It may not start now for a reason of its own, unless its name takes its slots already.
    pub in_backoff: bool,
}

/// What becomes of a request, once the ledger is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotAnswer {
    /// It may go on.
    Granted,
    /// No slot is left.
    Full {
        /// Which of its scopes.
        scope: usize,
        /// Who holds the slots, by `namespace/name`.
        holders: BTreeMap<String, SlotHolder>,
    },
    /// Too many attempts of this tenant led to nothing.
    TooManyAttempts {
        /// So many.
        attempts: usize,
    },
    /// For the reason of its own.
    InBackoff,
}

/// A round's outcome.
#[derive(Clone, Debug)]
pub struct RoundDecision {
    /// One answer for each request.
    pub answers: Vec<SlotAnswer>,
    /// The ledger to be written; where it is as it was read, nothing needs to be.
    pub book: LedgerContents,
    /// Of each limit whose slots anybody takes, by its [`limit_of`], the fullest scope.
    pub fullest: BTreeMap<String, SlotCount>,
}

/// How many names take a slot in a scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotCount {
    /// All of them.
    pub active: usize,
    /// Those for which only attempts do.
    pub pending: usize,
}

/// Who takes slots where. There may be thousands, of which a round asks for numbers only, as a rule: nothing is copied.
#[derive(Debug, Default)]
struct SlotUsage<'a> {
    scopes: HashMap<&'a str, ScopeUsage<'a>>,
    /// Attempts that were granted by other policies than ours: nobody here knows where they take a slot, so they do
    /// everywhere.
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
    pending: bool,
}

/// Decides. None = the view is older than what somebody else has seen already: look again.
pub fn decide(given: RoundInput<'_>, asked: &[SlotRequest]) -> Option<RoundDecision> {
    if !given.view_source.covers(given.book.observed_through) {
        return None;
    }
    let mut book = take_out(given);
    let mut usage = SlotUsage::of(given, &book);
    let answers = asked
        .iter()
        .map(|one| {
            let answer = judge(given, &book, &usage, one);
            if answer == SlotAnswer::Granted && !one.dry_run && !one.scopes.is_empty() {
                record(given, &mut book, &mut usage, one);
            }
            answer
        })
        .collect();
    Some(RoundDecision { answers, book, fullest: usage.fullest() })
}

/// The ledger without the attempts whose outcome is known.
fn take_out(given: RoundInput<'_>) -> LedgerContents {
    let mut book = given.book.clone();
    if book.pending.is_empty() {
        return book;
    }
    let seen: HashMap<&str, &ObservedJob> = given.jobs.iter().map(|job| (job.uid.as_str(), *job)).collect();
    for (name, request, granted) in given.book.attempts() {
        let goes = match resolve::outcome(granted, seen.get(&*granted.job_uid).copied(), given.view_source) {
            AttemptOutcome::Observed(version) => {
                book.observed_through = book.observed_through.max(version);
                true
            }
            AttemptOutcome::Deleted => true,
            AttemptOutcome::Unknown => given.expired.contains(request) || given.revoked.contains(request),
        };
        if goes {
            book.remove(name, request);
        }
    }
    book
}

fn judge(
    given: RoundInput<'_>,
    book: &LedgerContents,
    usage: &SlotUsage<'_>,
    one: &SlotRequest,
) -> SlotAnswer {
    let tries = book.pending.get(&one.name);
    // Written by an earlier try of this very round, whose answer from the apiserver was lost.
    if tries.is_some_and(|tries| tries.contains_key(&one.request)) {
        return SlotAnswer::Granted;
    }
    if let Some(attempts) = crowd(given, book, usage, one) {
        return SlotAnswer::TooManyAttempts { attempts };
    }
    // A name counts once: at most one Job of that name can be there, so a name that counts already adds nothing, and
    // the apiserver answers 409 itself. But the others have to leave room for it: in a view that is behind, it may count
    // by a Job that is gone, whose slot somebody else was given.
    let mut counts = !one.scopes.is_empty();
    for (n, (scope, max)) in one.scopes.iter().enumerate() {
        counts &= usage.holds(scope, &one.name);
        if usage.count_without(scope, &one.name) >= *max as usize {
            return SlotAnswer::Full { scope: n, holders: usage.holders(scope) };
        }
    }
    if one.in_backoff && !counts { SlotAnswer::InBackoff } else { SlotAnswer::Granted }
}

/// Attempts of the same tenant that led to nothing, where they are too many.
fn crowd(
    given: RoundInput<'_>,
    book: &LedgerContents,
    usage: &SlotUsage<'_>,
    one: &SlotRequest,
) -> Option<usize> {
    if one.scopes.is_empty() {
        return None;
    }
    let tries = book.pending.get(&one.name).map_or(0, BTreeMap::len);
    if tries >= MANY_TRIES {
        return Some(tries);
    }
    let tenant = namespace(&one.name);
    let names = book.pending.iter().filter(|(name, tries)| {
        namespace(name) == tenant
            && tries.keys().any(|request| given.old.contains(request))
            && usage.is_pending(name)
    });
    let names = names.count();
    (names >= MANY_NAMES).then_some(names)
}

fn record<'a>(
    given: RoundInput<'a>,
    book: &mut LedgerContents,
    usage: &mut SlotUsage<'a>,
    one: &'a SlotRequest,
) {
    let granted = GrantedAttempt {
        job_uid: one.job_uid.clone(),
        kind: one.kind.clone(),
        revision: (given.revision)(namespace(&one.name)),
        scopes: one.scopes.iter().map(|(scope, _)| scope.clone()).collect(),
        since: given.now,
    };
    for (scope, _) in &one.scopes {
        usage.add(scope, &one.name, OccupiedSlot { since: given.now, pending: true });
    }
    book.pending.entry(one.name.clone()).or_default().insert(one.request.clone(), granted);
}

impl<'a> SlotUsage<'a> {
    /// By the Jobs that are seen, and by the attempts that are left in the book.
    fn of(given: RoundInput<'a>, left: &LedgerContents) -> Self {
        let mut usage = Self::default();
        for job in given.jobs.iter().filter(|job| job.active) {
            for scope in &job.scopes {
                usage.add(scope, &job.name, OccupiedSlot { since: job.since, pending: false });
            }
        }
        for (name, request, granted) in given.book.attempts() {
            if !left.pending.get(name).is_some_and(|tries| tries.contains_key(request)) {
                continue;
            }
            let slot = OccupiedSlot { since: granted.since, pending: true };
            if granted.revision == (given.revision)(namespace(name)) {
                granted.scopes.iter().for_each(|scope| usage.add(scope, name, slot));
            } else {
                usage.everywhere.entry(name).or_insert(slot);
            }
        }
        usage
    }

    fn add(&mut self, scope: &'a str, name: &'a str, slot: OccupiedSlot) {
        let scope = self.scopes.entry(scope).or_default();
        // The first to be told of a name stays: what is seen to run is not called just admitted.
        if let Entry::Vacant(vacant) = scope.names.entry(name) {
            vacant.insert(slot);
            scope.pending += usize::from(slot.pending);
        }
    }

    fn holds(&self, scope: &str, name: &str) -> bool {
        self.scopes.get(scope).is_some_and(|scope| scope.names.contains_key(name))
    }

    /// Slots taken by others than `name`.
    fn count_without(&self, scope: &str, name: &str) -> usize {
        let known = self.scopes.get(scope);
        let others = known.map_or(0, |known| known.names.len() - usize::from(known.names.contains_key(name)));
        others + self.only_everywhere(known).filter(|other| *other != name).count()
    }

    /// Names that take a slot in this scope only because they do everywhere.
    fn only_everywhere<'s>(
        &'s self,
        scope: Option<&'s ScopeUsage<'a>>,
    ) -> impl Iterator<Item = &'a str> + 's {
        let names = self.everywhere.keys().copied();
        names.filter(move |name| scope.is_none_or(|scope| !scope.names.contains_key(name)))
    }

    fn holders(&self, scope: &str) -> BTreeMap<String, SlotHolder> {
        let known = self.scopes.get(scope).into_iter().flat_map(|known| &known.names);
        // In this order, so that what is seen to run is not called just admitted.
        let all = self.everywhere.iter().chain(known);
        all.map(|(name, slot)| ((*name).to_owned(), holder(name, *slot))).collect()
    }

    fn fullest(&self) -> BTreeMap<String, SlotCount> {
        let mut limits: BTreeMap<&str, SlotCount> = BTreeMap::new();
        for (id, scope) in &self.scopes {
            let more = self.only_everywhere(Some(scope)).count();
            let taken = SlotCount { active: scope.names.len() + more, pending: scope.pending + more };
            let most = limits.entry(limit_of(id)).or_default();
            *most = taken.max(*most);
        }
        limits.into_iter().map(|(limit, taken)| (limit.to_owned(), taken)).collect()
    }

    /// Whether only attempts take slots for the name.
    fn is_pending(&self, name: &str) -> bool {
        !self.scopes.values().any(|scope| scope.names.get(name).is_some_and(|slot| !slot.pending))
    }
}

fn holder(name: &str, slot: OccupiedSlot) -> SlotHolder {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let OccupiedSlot { since, pending } = slot;
    SlotHolder { namespace: namespace.to_owned(), name: name.to_owned(), since, pending }
}

/// Of a `namespace/name`.
pub fn namespace(name: &str) -> &str {
    name.split_once('/').map_or("", |(namespace, _)| namespace)
}

/// The limit of a scope, as ledgers name it: `<policy uid>/<limit>`, and of a group `/<group>` behind it.
pub fn limit_of(scope: &str) -> &str {
    let end = scope.match_indices('/').nth(1).map_or(scope.len(), |(at, _)| at);
    &scope[..end]
}
