//! A look of one's own: the ledger and the Jobs as they are now, for whoever would be refused otherwise.
//!
//! The ledger is read first, then the Jobs are listed: the LIST shows everything that was written before the ledger was
//! read, so it suffices for it. Both begin after everybody came who is answered by them: a Job that finished a moment ago
//! never causes a refusal.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use super::{
    clocks::{Clocks, EXPIRY},
    counting::{self, LedgerId},
    limiter::Shared,
    memory::Known,
    resolve::came_to_nothing,
};
use crate::list::{self, View};

/// A LIST that takes longer helps nobody: its callers are about to give up.
const LIST_TIMEOUT: Duration = Duration::from_secs(8);
/// Between two consistent reads of a process: they cost the apiserver, and a flood of refusals has to share them.
const APART: Duration = Duration::from_millis(50);

/// What was seen.
#[derive(Debug)]
pub struct Look {
    /// Who came before this is answered by it.
    pub began: Instant,
    /// The ledger.
    pub known: Arc<Known>,
    /// The Jobs, listed after the ledger was read.
    pub view: View,
    /// Attempts that had run out before the LIST began, and that it shows to have come to nothing.
    pub expired: BTreeSet<String>,
}

/// Why nothing was.
#[derive(Debug)]
pub enum Blind {
    /// There is no such ledger; since when that is known by the clock of attempts: the read began then.
    Missing(Instant),
    /// For people.
    Cannot(String),
}

/// Lets consistent reads through one after the other.
#[derive(Debug, Default)]
pub struct Reads(Mutex<Option<Instant>>);

impl Reads {
    /// Waits for one's turn; first come, first served.
    pub async fn turn(&self) {
        let mut last = self.0.lock().await;
        if let Some(last) = *last {
            tokio::time::sleep_until((last + APART).into()).await;
        }
        *last = Some(Instant::now());
    }
}

/// Looks.
pub async fn look(shared: Arc<Shared>, id: LedgerId) -> Result<Look, Blind> {
    shared.reads.turn().await;
    let began = Instant::now();
    let known = read(&shared, id.name()).await?;
    // Before the LIST begins: what has run out by now can show in it only if it came to something.
    let (clocks, now) = (shared.memory.clocks(id.name()), shared.memory.now());
    shared.metrics.consistent_reads.inc();
    let list = list::jobs(&shared.client, id.namespace().map(str::to_owned));
    let view = match tokio::time::timeout(LIST_TIMEOUT, list).await {
        Ok(view) => view.map_err(|error| Blind::Cannot(error.to_string()))?,
        Err(_) => return Err(Blind::Cannot("the apiserver did not answer in time".to_owned())),
    };
    // Else a cluster limit could miss some of its Jobs.
    for job in view.jobs.iter().filter(|job| job.is_active()) {
        if shared.policies.namespace(&job.namespace).await.is_none() {
            return Err(Blind::Cannot(format!("the namespace {} is not known yet", job.namespace)));
        }
    }
    let expired = expired(&known, &clocks, now, &view);
    Ok(Look { began, known, view, expired })
}

/// A ledger as it is now.
pub async fn read(shared: &Shared, name: &str) -> Result<Arc<Known>, Blind> {
    let began = shared.memory.now();
    let ledger = shared.store.read(name).await.map_err(Blind::Cannot)?.ok_or(Blind::Missing(began))?;
    let known = Known::of(ledger).map_err(|error| Blind::Cannot(format!("the JobLedger {name}: {error}")))?;
    shared.memory.note(name, &known);
    Ok(known)
}

fn expired(known: &Known, clocks: &Clocks, now: Instant, view: &View) -> BTreeSet<String> {
    let mut expired = clocks.older(EXPIRY, now);
    if expired.is_empty() {
        return expired;
    }
    let versions: HashMap<&str, u64> =
        view.jobs.iter().map(|job| (&*job.uid, counting::version(job))).collect();
    let attempts: HashMap<&str, _> =
        known.book.attempts().map(|(_, request, granted)| (request, granted)).collect();
    expired.retain(|request| {
        attempts
            .get(&**request)
            .is_some_and(|granted| came_to_nothing(granted, versions.get(&*granted.job_uid).copied()))
    });
    expired
}
