//! Delivers CloudEvents: one loop per receiver, so that one that is away holds up neither the others nor a harvest.
//!
//! Where it is kept that something is pending:
//! - *completed*, *failed*: in the manifest of the result, written with it ([`crate::manifest::Manifest`]), until the
//!   receiver has taken it. An annotation on the result says which receivers are still to be told.
//! - *started*: nowhere; it follows from the Job's state. Who leads remembers which receivers were told of which running
//!   Job, and tells them again (same id) where it does not know. A Job that finishes before takes it along into its
//!   manifest. Only of a Job that is deleted while it runs and the receiver is away, nothing remains to be told.
//! - *refused*: [`crate::spool`].
//!
//! So each is told at least once across restarts, in the order of the phases of its Job, and nothing is held in memory
//! but what the watches know anyway.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use kube::Client;
use tokio::time::Instant;

use crate::{
    announce,
    cloudevent::{Pending, Told},
    commit,
    metrics::SinkMetrics,
    receiver::{Fault, Patience, Post, Receiver},
    store::{Store, Uid},
};

/// Annotation on a result: the receivers that are still to be told of it, comma between them.
pub const OUTBOX: &str = "job-handler/cloudevents";
/// Jobs that are told of at a time, per receiver.
const AT_A_TIME: usize = 8;
/// Jobs per round.
const ROUND: usize = 256;
/// Everything is looked at again this often.
const RESYNC: Duration = Duration::from_secs(30);
/// Changes of this long are looked at together.
const GATHER: Duration = Duration::from_millis(100);
/// Longest pause before an event that was rejected is tried again.
const LONGEST: Duration = Duration::from_secs(600);

/// What a result's annotation says.
pub fn read(annotations: Option<&BTreeMap<String, String>>) -> Vec<String> {
    let text = annotations.and_then(|all| all.get(OUTBOX));
    text.map_or_else(Vec::new, |text| text.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect())
}

/// What a result's annotation is to say; none where nothing is pending.
pub fn annotation(pending: &Pending) -> Option<String> {
    let names: Vec<&str> = pending.keys().map(String::as_str).collect();
    (!names.is_empty()).then(|| names.join(","))
}

/// Delivers to all receivers for ever; only ever done by the leader.
pub async fn keep(receivers: Vec<Arc<Receiver>>, client: Client, store: Store, metrics: SinkMetrics) {
    let each = receivers.into_iter().map(|receiver| {
        Box::pin(
            Outbox { receiver, client: client.clone(), store: store.clone(), metrics: metrics.clone() }
                .keep(),
        )
    });
    futures::future::join_all(each).await;
}

/// What is to be told to one receiver.
struct Outbox<R> {
    receiver: Arc<R>,
    client: Client,
    store: Store,
    metrics: SinkMetrics,
}

/// Events that were rejected: how often, and when they are tried again.
type Later = HashMap<Uid, (u32, Instant)>;

impl<R: Post> Outbox<R> {
    async fn keep(self) {
        let sink = self.receiver.name().to_owned();
        let mut changes = self.store.changes();
        let mut patience = Patience::default();
        let mut away = false;
        let mut later = Later::new();
        loop {
            changes.mark_unchanged();
            let mut pending = self.store.untold(&sink);
            self.metrics.set_events_pending(&sink, pending.len());
            later.retain(|uid, _| pending.contains(uid));
            let now = Instant::now();
            pending.retain(|uid| later.get(uid).is_none_or(|(_, at)| *at <= now));
            let more = pending.len() > ROUND;
            // While it is away, one is enough to find out that it is back.
            pending.truncate(if away { 1 } else { ROUND });
            let some = !pending.is_empty();
            match self.round(pending, &mut later).await {
                Ok(()) if some => {
                    if patience.well() {
                        tracing::info!(receiver = sink, "CloudEvents: it takes events again");
                    }
                    if more || std::mem::take(&mut away) {
                        continue;
                    }
                }
                Ok(()) => {}
                Err(fault) => {
                    let pause = patience.pause();
                    away = true;
                    self.metrics.event_failed(&sink);
                    if patience.is_worth_a_word() {
                        tracing::warn!(receiver = sink, "CloudEvents wait: {fault}; trying again");
                    }
                    tokio::time::sleep(pause).await;
                    continue;
                }
            }
            let wake = later
                .values()
                .map(|(_, at)| *at)
                .min()
                .map_or(Instant::now() + RESYNC, |at| at.min(Instant::now() + RESYNC));
            tokio::select! { _ = changes.changed() => {}, () = tokio::time::sleep_until(wake) => {} }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Tells of some Jobs, until the receiver takes no more.
    async fn round(&self, pending: Vec<Uid>, later: &mut Later) -> Result<(), Fault> {
        let mut told = stream::iter(pending)
            .map(|uid| async move {
                let outcome = self.job(&uid).await;
                (uid, outcome)
            })
            .buffer_unordered(AT_A_TIME);
        while let Some((uid, outcome)) = told.next().await {
            match outcome {
                Ok(()) => _ = later.remove(&uid),
                Err(Fault::Rejected(why)) => {
                    let tries = later.get(&uid).map_or(0, |(tries, _)| *tries) + 1;
                    let pause = Duration::from_secs(2_u64.saturating_pow(tries)).min(LONGEST);
                    self.metrics.event_failed(self.receiver.name());
                    if tries == 1 {
                        let receiver = self.receiver.name();
                        tracing::warn!(
                            receiver,
                            uid,
                            "CloudEvents: {why}; this Job's wait, the others go on"
                        );
                    }
                    later.insert(uid, (tries, Instant::now() + pause));
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// Tells all that is pending of one Job, in order.
    async fn job(&self, uid: &str) -> Result<(), Fault> {
        let sink = self.receiver.name();
        let place =
            self.store.places_of(uid).into_iter().find(|place| place.outbox.iter().any(|n| n == sink));
        let Some(place) = place else { return self.running(uid).await };
        if let Some(found) =
            commit::read_at(&self.client, place.kind, &place.namespace, &place.name, uid).await?
        {
            for phase in found.manifest.cloud_events_pending.get(sink).into_iter().flatten() {
                let told = Told::of_manifest(*phase, &found.manifest, found.kind, &found.name);
                self.post(&told).await?;
            }
            announce::amend(&self.client, &found, |manifest| {
                manifest.cloud_events_pending.remove(sink).is_some()
            })
            .await?;
        }
        // Else labels and annotations alone are no result, or it has been deleted: nothing is left to tell from.
        let mut done = place;
        done.outbox.retain(|name| name != sink);
        self.store.put_result(uid, done);
        Ok(())
    }

    async fn running(&self, uid: &str) -> Result<(), Fault> {
        let sink = self.receiver.name();
        let group = self.store.group_of(uid).map(|(_, group)| group.value);
        let job = self.store.job(uid).filter(|job| job.finished.is_none());
        let Some(told) = job.and_then(|job| Told::started(&job, group.as_deref())) else { return Ok(()) };
        self.post(&told).await?;
        self.store.put_told(uid, sink);
        Ok(())
    }

    async fn post(&self, told: &Told) -> Result<(), Fault> {
        self.receiver.post(told).await?;
        self.metrics.event_told(self.receiver.name(), told.phase);
        Ok(())
    }
}
