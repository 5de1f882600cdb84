//! Who holds slots in which scopes, by a view of the Jobs and a ledger. Pure.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{HeldSlot, LedgerContents};

use crate::{
    ledger::{
        decide::{RoundInput, SlotRequest, namespace},
        resolve::ObservedJob,
    },
    limit::scopes::{HolderKind, SlotHolder},
};

/// How many holders have a slot in a scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SlotCount {
    /// All of them.
    pub total: usize,
    /// In the order of [`HolderKind::NAMES`].
    pub by_kind: [usize; HolderKind::NAMES.len()],
}

/// Who holds slots in which scopes: names, or the uids of Jobs for which the ledger holds slots. A uid has no slash, so none
/// is taken for a name. It borrows: there may be thousands, and most rounds need only their number.
#[derive(Debug, Default)]
pub(super) struct SlotUsage<'a> {
    scopes: HashMap<&'a str, ScopeUsage<'a>>,
    /// Attempts granted under another policy revision. Their scopes are unknown here, so they count in every scope.
    everywhere: HashMap<&'a str, OccupiedSlot<'a>>,
}

#[derive(Debug, Default)]
struct ScopeUsage<'a> {
    holders: HashMap<&'a str, OccupiedSlot<'a>>,
    by_kind: [usize; HolderKind::NAMES.len()],
}

#[derive(Clone, Copy, Debug)]
struct OccupiedSlot<'a> {
    /// `namespace/name` of the Job.
    name: &'a str,
    since: Timestamp,
    kind: HolderKind,
}

impl<'a> SlotUsage<'a> {
    /// Counts the active Jobs of the view and the attempts that remain in `contents`.
    pub(super) fn of(input: RoundInput<'a>, contents: &LedgerContents) -> Self {
        let mut usage = Self::default();
        let held = &input.contents.held;
        for job in input.jobs.iter().filter(|job| job.active) {
            let slot = OccupiedSlot { name: &job.name, since: job.since, kind: HolderKind::Running };
            let holder = holder_key(held, &job.name, &job.uid);
            job.scopes.iter().for_each(|scope| usage.add(scope, holder, slot));
        }
        usage.add_held(input);
        for (name, request, granted) in input.contents.attempts() {
            if !contents.pending.get(name).is_some_and(|attempts| attempts.contains_key(request)) {
                continue;
            }
            let kind = match input.unstored.get(request) {
                Some(free_within) => HolderKind::NeverStored { free_within: *free_within },
                None => HolderKind::JustAdmitted,
            };
            let slot = OccupiedSlot { name, since: granted.since, kind };
            let holder = holder_key(held, name, &granted.job_uid);
            if granted.revision == (input.revision)(namespace(name)) {
                granted.scopes.iter().for_each(|scope| usage.add(scope, holder, slot));
            } else {
                usage.everywhere.entry(holder).or_insert(slot);
            }
        }
        usage
    }

    /// Adds the slots that the ledger holds, except those of Jobs that the view shows as no longer active.
    fn add_held(&mut self, input: RoundInput<'a>) {
        let held = &input.contents.held;
        if held.is_empty() {
            return;
        }
        let jobs: HashMap<&str, &ObservedJob> = input.jobs.iter().map(|job| (&*job.uid, *job)).collect();
        for (uid, slot) in held {
            let kind = match jobs.get(&**uid) {
                Some(job) if !job.active && job.version > slot.from => continue,
                Some(_) => HolderKind::Running,
                None => HolderKind::OrphanedPods,
            };
            let occupied = OccupiedSlot { name: &slot.name, since: slot.since, kind };
            slot.scopes.iter().for_each(|scope| self.add(scope, uid, occupied));
        }
    }

    fn add(&mut self, scope: &'a str, holder: &'a str, slot: OccupiedSlot<'a>) {
        let scope = self.scopes.entry(scope).or_default();
        // The first entry of a holder stays: a Job that runs is not reported as just admitted.
        if let Entry::Vacant(vacant) = scope.holders.entry(holder) {
            vacant.insert(slot);
            scope.by_kind[slot.kind.index()] += 1;
        }
    }

    /// Adds the slots of a request that is granted in this round.
    pub(super) fn add_admitted(&mut self, input: RoundInput<'a>, request: &'a SlotRequest) {
        let slot = OccupiedSlot { name: &request.name, since: input.now, kind: HolderKind::JustAdmitted };
        let holder = holder_key(&input.contents.held, &request.name, &request.job_uid);
        request.scopes.iter().for_each(|(scope, _)| self.add(scope, holder, slot));
    }

    /// Counts a Job that goes away in this round by its uid, besides its name: another Job may take that.
    pub(super) fn add_orphans(&mut self, request: &'a SlotRequest, since: Timestamp) {
        let slot = OccupiedSlot { name: &request.name, since, kind: HolderKind::OrphanedPods };
        request.scopes.iter().for_each(|(scope, _)| self.add(scope, &request.job_uid, slot));
    }

    pub(super) fn holds(&self, scope: &str, request: &SlotRequest) -> bool {
        let holds = |usage: &ScopeUsage<'_>| own_keys(request).any(|key| usage.holders.contains_key(key));
        self.scopes.get(scope).is_some_and(holds)
    }

    /// The number of slots that holders other than the requesting one have.
    pub(super) fn count_without(&self, scope: &str, request: &SlotRequest) -> usize {
        let usage = self.scopes.get(scope);
        let own =
            |usage: &ScopeUsage<'_>| own_keys(request).filter(|key| usage.holders.contains_key(key)).count();
        let others = usage.map_or(0, |usage| usage.holders.len() - own(usage));
        let is_other = |holder: &&str| own_keys(request).all(|key| key != *holder);
        others + self.only_everywhere(usage).filter(is_other).count()
    }

    /// Holders that count in this scope only because they count everywhere.
    fn only_everywhere<'s>(
        &'s self,
        scope: Option<&'s ScopeUsage<'a>>,
    ) -> impl Iterator<Item = &'a str> + 's {
        let holders = self.everywhere.keys().copied();
        holders.filter(move |holder| scope.is_none_or(|scope| !scope.holders.contains_key(holder)))
    }

    pub(super) fn holders(&self, scope: &str) -> BTreeMap<String, SlotHolder> {
        let in_scope = self.scopes.get(scope).into_iter().flat_map(|usage| &usage.holders);
        // The scope's own entries come last and win: a Job that runs is not reported as just admitted.
        let all = self.everywhere.iter().chain(in_scope);
        all.map(|(key, slot)| ((*key).to_owned(), holder(*slot))).collect()
    }

    pub(super) fn fullest(&self) -> BTreeMap<String, SlotCount> {
        let mut limits: BTreeMap<&str, SlotCount> = BTreeMap::new();
        for (id, scope) in &self.scopes {
            let mut count = SlotCount { total: scope.holders.len(), by_kind: scope.by_kind };
            for holder in self.only_everywhere(Some(scope)) {
                count.total += 1;
                let kind = self.everywhere.get(holder).map_or(HolderKind::JustAdmitted, |slot| slot.kind);
                count.by_kind[kind.index()] += 1;
            }
            let fullest = limits.entry(limit_of(id)).or_default();
            *fullest = count.max(*fullest);
        }
        limits.into_iter().map(|(limit, count)| (limit.to_owned(), count)).collect()
    }

    /// Whether the name holds slots only by attempts.
    pub(super) fn is_pending(&self, name: &str) -> bool {
        !self.scopes.values().any(|scope| scope.holders.get(name).is_some_and(|slot| !slot.kind.is_attempt()))
    }
}

/// Under what a Job counts: its name, or its uid if the ledger holds slots for it. At most one Job of a name exists, but the
/// pods of a deleted one run beside it.
fn holder_key<'a>(held: &BTreeMap<String, HeldSlot>, name: &'a str, uid: &'a str) -> &'a str {
    if held.contains_key(uid) { uid } else { name }
}

/// Under what the Job of a request may count already.
fn own_keys(request: &SlotRequest) -> impl Iterator<Item = &str> {
    [&*request.name, &*request.job_uid].into_iter()
}

fn holder(slot: OccupiedSlot<'_>) -> SlotHolder {
    let OccupiedSlot { name, since, kind } = slot;
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    SlotHolder { namespace: namespace.to_owned(), name: name.to_owned(), since, kind }
}

/// The limit of a scope id: `<policy uid>/<limit>`, which a group's id continues with `/<group>`.
fn limit_of(scope: &str) -> &str {
    let end = scope.match_indices('/').nth(1).map_or(scope.len(), |(at, _)| at);
    &scope[..end]
}
