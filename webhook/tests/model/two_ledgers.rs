//! Jobs under limits of both kinds: the cluster's ledger decides without a write, then the namespace's is written, then the
//! cluster's. If that refuses after all, the namespace's grant is revoked. A round is one step here; the other model checks
//! the steps within a round.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{AttemptKind, LedgerContents};
use job_handler_webhook::ledger::{
    decide::{HeldRequest, RoundDecision, RoundInput, SlotAnswer, SlotRequest, decide},
    resolve::{ObservedJob, ViewSource, had_no_effect},
};
use stateright::{Model, Property};

/// The bounds.
#[derive(Clone, Debug)]
pub struct TwoLedgers {
    /// `namespace/name` of each create.
    pub creates: Vec<&'static str>,
    pub in_cluster: u32,
    pub in_namespace: u32,
    pub crashes: u8,
    pub finishes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TwoLedgersState {
    /// Every write of a Job in order: the number of its create, and whether it is active. The index from 1 is the
    /// resourceVersion.
    history: Vec<(usize, bool)>,
    /// By namespace; the cluster's has an empty name.
    books: BTreeMap<&'static str, LedgerContents>,
    at: Vec<CreateStage>,
    crashes: u8,
    finishes: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum CreateStage {
    DryRunInCluster,
    AskNamespace,
    AskCluster,
    Revoke,
    Admitted,
    Ended,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TwoLedgersStep {
    /// The next round of a create, with the Jobs as of so many writes.
    Next(usize, usize),
    Crash(usize),
    StoreJob(usize),
    Deny(usize),
    Finish(usize),
    /// A round without requests, with a LIST and expired attempts.
    CleanUp(&'static str),
}

const CLUSTER: &str = "";

fn namespace(name: &'static str) -> &'static str {
    name.split_once('/').unwrap().0
}

impl TwoLedgers {
    fn scope(&self, book: &str) -> (String, u32) {
        if book == CLUSTER { ("cluster".into(), self.in_cluster) } else { (book.into(), self.in_namespace) }
    }

    fn decide(
        &self,
        state: &TwoLedgersState,
        book: &'static str,
        (view, view_source): (usize, ViewSource),
        asked: Option<(usize, bool)>,
        gone: (&BTreeSet<String>, &BTreeSet<String>),
    ) -> Option<RoundDecision> {
        let mut jobs: BTreeMap<usize, (u64, bool)> = BTreeMap::new();
        for (version, (n, active)) in (1..).zip(&state.history[..view]) {
            jobs.insert(*n, (version, *active));
        }
        let jobs: Vec<ObservedJob> = jobs
            .into_iter()
            .filter(|(n, _)| book == CLUSTER || namespace(self.creates[*n]) == book)
            .map(|(n, (version, active))| ObservedJob {
                name: self.creates[n].into(),
                uid: format!("u{n}"),
                version,
                active,
                scopes: vec![self.scope(book).0],
                since: Timestamp::UNIX_EPOCH,
            })
            .collect();
        let asked: Vec<SlotRequest> = asked
            .into_iter()
            .map(|(n, dry_run)| SlotRequest {
                request: format!("r{n}"),
                name: self.creates[n].into(),
                job_uid: format!("u{n}"),
                kind: AttemptKind::Create,
                scopes: vec![self.scope(book)],
                held: HeldRequest::Nothing,
                dry_run,
                shared: false,
                in_backoff: false,
            })
            .collect();
        let given = RoundInput {
            contents: &state.books[book],
            view_source,
            jobs: &jobs.iter().collect::<Vec<_>>(),
            expired: gone.0,
            unstored: &BTreeMap::new(),
            revoked: gone.1,
            forgotten: &BTreeSet::new(),
            refusals_by: None,
            revision: &|_| "same".to_owned(),
            now: Timestamp::UNIX_EPOCH,
        };
        decide(given, &asked)
    }

    /// Attempts whose requests ended without an effect.
    fn expired(&self, state: &TwoLedgersState, book: &str) -> BTreeSet<String> {
        let is_over = |request: &str| state.at[request[1..].parse::<usize>().unwrap()] == CreateStage::Ended;
        let version = |uid: &str| {
            let n: usize = uid[1..].parse().unwrap();
            state.history.iter().rposition(|(other, _)| *other == n).map(|at| at as u64 + 1)
        };
        let attempts = state.books[book].attempts();
        let expired = attempts.filter(|(_, request, granted)| {
            is_over(request) && had_no_effect(granted, version(&granted.job_uid))
        });
        expired.map(|(_, request, _)| request.to_owned()).collect()
    }

    fn cleaned(&self, state: &TwoLedgersState, book: &'static str) -> LedgerContents {
        let (expired, none) = (self.expired(state, book), BTreeSet::new());
        let now = (state.history.len(), ViewSource::List);
        self.decide(state, book, now, None, (&expired, &none)).unwrap().contents
    }

    fn next(&self, state: &mut TwoLedgersState, n: usize, view: usize) -> Option<()> {
        let own = namespace(self.creates[n]);
        let seen = (view, ViewSource::Cache(view as u64));
        let none = BTreeSet::new();
        let (book, dry_run) = match state.at[n] {
            CreateStage::DryRunInCluster => (CLUSTER, true),
            CreateStage::AskNamespace => (own, false),
            CreateStage::AskCluster => (CLUSTER, false),
            CreateStage::Revoke => {
                let undone = [format!("r{n}")].into();
                let decided = self.decide(state, own, seen, None, (&none, &undone))?;
                state.books.insert(own, decided.contents);
                state.at[n] = CreateStage::Ended;
                return Some(());
            }
            CreateStage::Admitted | CreateStage::Ended => return None,
        };
        let decided = self.decide(state, book, seen, Some((n, dry_run)), (&none, &none))?;
        let granted = decided.answers[0] == SlotAnswer::Granted;
        if !dry_run {
            state.books.insert(book, decided.contents);
        }
        state.at[n] = match (state.at[n], granted) {
            (CreateStage::DryRunInCluster, true) => CreateStage::AskNamespace,
            (CreateStage::AskNamespace, true) => CreateStage::AskCluster,
            (CreateStage::AskCluster, true) => CreateStage::Admitted,
            (CreateStage::AskCluster, false) => CreateStage::Revoke,
            (_, _) => CreateStage::Ended,
        };
        Some(())
    }

    fn active(&self, state: &TwoLedgersState, of: impl Fn(&str) -> bool) -> usize {
        let last: BTreeMap<usize, bool> = state.history.iter().copied().collect();
        last.into_iter().filter(|(n, active)| *active && of(namespace(self.creates[*n]))).count()
    }

    fn is_exact(&self, state: &TwoLedgersState) -> bool {
        let spaces = state.books.keys().filter(|book| **book != CLUSTER);
        self.active(state, |_| true) <= self.in_cluster as usize
            && spaces
                .into_iter()
                .all(|space| self.active(state, |other| other == *space) <= self.in_namespace as usize)
    }

    fn is_clean(&self, state: &TwoLedgersState) -> bool {
        state.at.iter().any(|at| *at != CreateStage::Ended)
            || state.books.keys().all(|book| self.cleaned(state, book).pending.is_empty())
    }
}

impl Model for TwoLedgers {
    type State = TwoLedgersState;
    type Action = TwoLedgersStep;

    fn init_states(&self) -> Vec<TwoLedgersState> {
        let mut books: BTreeMap<_, _> =
            self.creates.iter().map(|name| (namespace(name), LedgerContents::default())).collect();
        books.insert(CLUSTER, LedgerContents::default());
        let at = vec![CreateStage::DryRunInCluster; self.creates.len()];
        vec![TwoLedgersState { history: vec![], books, at, crashes: self.crashes, finishes: self.finishes }]
    }

    fn actions(&self, state: &TwoLedgersState, steps: &mut Vec<TwoLedgersStep>) {
        for (n, at) in state.at.iter().enumerate() {
            match at {
                CreateStage::Admitted => steps.extend([TwoLedgersStep::StoreJob(n), TwoLedgersStep::Deny(n)]),
                CreateStage::Ended => {
                    let last = state.history.iter().rfind(|(other, _)| *other == n);
                    let runs = last.is_some_and(|(_, active)| *active) && state.finishes > 0;
                    steps.extend(runs.then_some(TwoLedgersStep::Finish(n)));
                }
                _ => {
                    steps.extend((0..=state.history.len()).map(|view| TwoLedgersStep::Next(n, view)));
                    steps.extend((state.crashes > 0).then_some(TwoLedgersStep::Crash(n)));
                }
            }
        }
        let books = state.books.iter().filter(|(_, book)| !book.pending.is_empty());
        steps.extend(books.map(|(book, _)| TwoLedgersStep::CleanUp(book)));
    }

    fn next_state(&self, state: &TwoLedgersState, step: TwoLedgersStep) -> Option<TwoLedgersState> {
        let mut next = state.clone();
        match step {
            TwoLedgersStep::Next(n, view) => self.next(&mut next, n, view)?,
            TwoLedgersStep::Crash(n) => {
                next.crashes -= 1;
                next.at[n] = CreateStage::Ended;
            }
            TwoLedgersStep::StoreJob(n) => {
                next.history.push((n, true));
                next.at[n] = CreateStage::Ended;
            }
            TwoLedgersStep::Deny(n) => next.at[n] = CreateStage::Ended,
            TwoLedgersStep::Finish(n) => {
                next.finishes -= 1;
                next.history.push((n, false));
            }
            TwoLedgersStep::CleanUp(book) => {
                let book_after = self.cleaned(state, book);
                next.books.insert(book, book_after);
            }
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(super::EXACT, |two: &Self, state: &TwoLedgersState| two.is_exact(state)),
            Property::always(super::QUIET, |two: &Self, state: &TwoLedgersState| two.is_clean(state)),
            Property::sometimes(super::FULL, |two: &Self, state: &TwoLedgersState| {
                two.active(state, |_| true) == two.in_cluster as usize
            }),
        ]
    }
}
