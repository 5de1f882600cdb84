//! A round: what the ledger says, what is seen of the Jobs, who asks -> the answers, and the ledger to be written before
//! any of them is given. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use job_handler_shared::ledger::{Book, Granted, Kind};

use super::resolve::{self, Outcome, Seen, Sight};
use crate::slots::Holder;

/// A namespace of which so many names hold slots by old attempts that led to no Job has its creates denied by somebody
/// after us. It has to wait, so that it cannot pin a limit that others share.
pub const MANY_NAMES: usize = 16;
/// Attempts for one name: somebody creates it over and over while it is there.
pub const MANY_TRIES: usize = 32;

/// Everything a round goes by, besides the requests.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// The ledger as it was read.
    pub book: &'a Book,
    /// How the Jobs were seen.
    pub sight: Sight,
    /// Those Jobs.
    pub jobs: &'a [Seen],
    /// By `request.uid`: attempts that ran out by the own clock before a quorum read began, and that this read shows to
    /// have come to nothing ([`resolve::came_to_nothing`]).
    pub expired: &'a BTreeSet<String>,
    /// By `request.uid`: known for so long that their creates must have been denied after us.
    pub old: &'a BTreeSet<String>,
    /// By `request.uid`: our own grants that reached nobody.
    pub undone: &'a BTreeSet<String>,
    /// The revision by which the Jobs of a namespace are counted here.
    pub revision: &'a dyn Fn(&str) -> String,
    /// For people.
    pub now: Timestamp,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    /// `request.uid`.
    pub request: String,
    /// `namespace/name` of the Job.
    pub name: String,
    /// Its uid.
    pub job_uid: String,
    /// What is tried.
    pub kind: Kind,
    /// Where it takes a slot, and how many there are; the most telling first.
    pub scopes: Vec<(String, u32)>,
    /// Decide, but record nothing.
    pub dry_run: bool,
    /// It may not start now for a reason of its own, unless its name takes its slots already.
    pub barred: bool,
}

/// What becomes of a request, once the ledger is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may go on.
    Granted,
    /// No slot is left.
    Full {
        /// Which of its scopes.
        scope: usize,
        /// Who holds the slots, by `namespace/name`.
        holders: BTreeMap<String, Holder>,
    },
    /// Too many attempts of this tenant led to nothing.
    Crowded {
        /// So many.
        attempts: usize,
    },
    /// For the reason of its own.
    Barred,
}

/// A round's outcome.
#[derive(Clone, Debug)]
pub struct Decided {
    /// One answer for each request.
    pub answers: Vec<Answer>,
    /// The ledger to be written; where it is as it was read, nothing needs to be.
    pub book: Book,
    /// Names that take a slot, per scope.
    pub usage: Usage,
}

/// Who takes slots where.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    scopes: HashMap<String, BTreeMap<String, Holder>>,
    /// Attempts that were granted by other policies than ours: nobody here knows where they take a slot, so they do
    /// everywhere.
    everywhere: BTreeMap<String, Holder>,
}

/// Decides. None = the view is older than what somebody else has seen already: look again.
pub fn decide(given: Given<'_>, asked: &[Asked]) -> Option<Decided> {
    if !given.sight.suffices(given.book.observed_through) {
        return None;
    }
    let mut book = take_out(given);
    let mut usage = Usage::of(given, &book);
    let answers = asked
        .iter()
        .map(|one| {
            let answer = judge(given, &book, &usage, one);
            if answer == Answer::Granted && !one.dry_run && !one.scopes.is_empty() {
                record(given, &mut book, &mut usage, one);
            }
            answer
        })
        .collect();
    Some(Decided { answers, book, usage })
}

/// The ledger without the attempts whose outcome is known.
fn take_out(given: Given<'_>) -> Book {
    let seen: HashMap<&str, &Seen> = given.jobs.iter().map(|job| (job.uid.as_str(), job)).collect();
    let mut book = given.book.clone();
    for (name, request, granted) in given.book.attempts() {
        let goes = match resolve::outcome(granted, seen.get(&*granted.job_uid).copied(), given.sight) {
            Outcome::Seen(version) => {
                book.observed_through = book.observed_through.max(version);
                true
            }
            Outcome::Gone => true,
            Outcome::Unknown => given.expired.contains(request) || given.undone.contains(request),
        };
        if goes {
            book.remove(name, request);
        }
    }
    book
}

fn judge(given: Given<'_>, book: &Book, usage: &Usage, one: &Asked) -> Answer {
    let tries = book.pending.get(&one.name);
    // Written by an earlier try of this very round, whose answer from the apiserver was lost.
    if tries.is_some_and(|tries| tries.contains_key(&one.request)) {
        return Answer::Granted;
    }
    if let Some(attempts) = crowd(given, book, usage, one) {
        return Answer::Crowded { attempts };
    }
    // A name counts once: at most one Job of that name can be there, so a name that counts already adds nothing, and
    // the apiserver answers 409 itself. But the others have to leave room for it: in a view that is behind, it may count
    // by a Job that is gone, whose slot somebody else was given.
    let mut counts = !one.scopes.is_empty();
    for (n, (scope, max)) in one.scopes.iter().enumerate() {
        counts &= usage.holds(scope, &one.name);
        if usage.count_without(scope, &one.name) >= *max as usize {
            return Answer::Full { scope: n, holders: usage.holders(scope) };
        }
    }
    if one.barred && !counts { Answer::Barred } else { Answer::Granted }
}

/// Attempts of the same tenant that led to nothing, where they are too many.
fn crowd(given: Given<'_>, book: &Book, usage: &Usage, one: &Asked) -> Option<usize> {
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

fn record(given: Given<'_>, book: &mut Book, usage: &mut Usage, one: &Asked) {
    let granted = Granted {
        job_uid: one.job_uid.clone(),
        kind: one.kind.clone(),
        revision: (given.revision)(namespace(&one.name)),
        scopes: one.scopes.iter().map(|(scope, _)| scope.clone()).collect(),
        since: given.now,
    };
    usage.add(&granted.scopes, &one.name, given.now, true);
    book.pending.entry(one.name.clone()).or_default().insert(one.request.clone(), granted);
}

impl Usage {
    fn of(given: Given<'_>, book: &Book) -> Self {
        let mut usage = Self::default();
        for job in given.jobs.iter().filter(|job| job.active) {
            usage.add(&job.scopes, &job.name, job.since, false);
        }
        for (name, _, granted) in book.attempts() {
            if granted.revision == (given.revision)(namespace(name)) {
                usage.add(&granted.scopes, name, granted.since, true);
            } else {
                let holder = holder(name, granted.since, true);
                usage.everywhere.entry(name.to_owned()).or_insert(holder);
            }
        }
        usage
    }

    /// Every scope that somebody takes a slot in, with their number and how many of them are attempts.
    pub fn counts(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        self.scopes.keys().map(|scope| {
            let holders = self.holders(scope);
            (scope.as_str(), holders.len(), holders.values().filter(|holder| holder.pending).count())
        })
    }

    fn add(&mut self, scopes: &[String], name: &str, since: Timestamp, pending: bool) {
        for scope in scopes {
            let holders = self.scopes.entry(scope.clone()).or_default();
            holders.entry(name.to_owned()).or_insert_with(|| holder(name, since, pending));
        }
    }

    fn holds(&self, scope: &str, name: &str) -> bool {
        self.scopes.get(scope).is_some_and(|holders| holders.contains_key(name))
    }

    /// Slots taken by others than `name`.
    fn count_without(&self, scope: &str, name: &str) -> usize {
        let holders = self.scopes.get(scope);
        let known = holders.map_or(0, |known| known.len() - usize::from(known.contains_key(name)));
        let is_new =
            |other: &&String| *other != name && holders.is_none_or(|known| !known.contains_key(*other));
        known + self.everywhere.keys().filter(is_new).count()
    }

    fn holders(&self, scope: &str) -> BTreeMap<String, Holder> {
        let mut all = self.everywhere.clone();
        // Last, so that what is seen to run is not called just admitted.
        all.extend(self.scopes.get(scope).cloned().unwrap_or_default());
        all
    }

    /// Whether only attempts take slots for the name.
    fn is_pending(&self, name: &str) -> bool {
        !self.scopes.values().any(|holders| holders.get(name).is_some_and(|holder| !holder.pending))
    }
}

fn holder(name: &str, since: Timestamp, pending: bool) -> Holder {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Holder { namespace: namespace.to_owned(), name: name.to_owned(), since, pending }
}

/// Of a `namespace/name`.
pub fn namespace(name: &str) -> &str {
    name.split_once('/').map_or("", |(namespace, _)| namespace)
}
