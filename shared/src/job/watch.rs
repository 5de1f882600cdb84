//! The Jobs of the cluster as both programs observe them: a list, then a watch from the list's position. A watch that
//! breaks resumes at the last position; if the apiserver no longer has that position (410), or if the watch failed twice at
//! an event behind it, the Jobs are listed again.
//!
//! Each Job is handed over by itself, so that the observer trims it before the next one is read. This is not
//! `shared::kube::watch`: kube's `watcher` reads a page as a whole, and passes on neither the resourceVersion of a list nor
//! the position that bookmarks report, which the ledger's protocol needs.

use std::{convert::Infallible, pin::pin, time::Duration};

use futures::StreamExt;
use kube::{Client, core::Status, runtime::watcher::Error};
use tokio::{
    sync::watch::Receiver,
    time::{Instant, sleep_until},
};

use crate::{
    job::snapshot::JobSnapshot,
    kube::{
        error::status_code,
        raw_reads::{self, RawWatchEvent, ReadTarget},
        watch::WatchHealth,
    },
    process::{admin::ReadyHandle, jitter::Backoff},
};

const JOBS: &str = "/apis/batch/v1/jobs";
/// Least and longest delay between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Receives the Jobs.
pub trait JobObserver {
    /// Reads a Job from its JSON and trims it.
    ///
    /// # Errors
    /// If it is no Job.
    fn read(&self, json: &[u8]) -> serde_json::Result<JobSnapshot>;
    /// A list begins that replaces all Jobs.
    fn list_began(&mut self);
    /// A Job of the list.
    fn listed(&mut self, job: JobSnapshot);
    /// The list is complete: it shows the moment `position`, a resourceVersion.
    fn list_ended(&mut self, position: u64);
    /// A Job was created or changed.
    fn changed(&mut self, job: JobSnapshot, position: u64);
    /// A Job was deleted; this is its last state.
    fn deleted(&mut self, job: JobSnapshot, position: u64);
    /// Every event up to `position` was delivered.
    fn reached(&mut self, position: u64);
    /// Whether the Jobs have to be listed again because more of them is needed than was kept. Asked when a watch begins, and
    /// whenever the policies change.
    fn needs_list(&self) -> bool;
}

/// How long a watch lasts.
#[derive(Clone, Copy, Debug)]
pub struct WatchTiming {
    /// The apiserver ends a watch after this time, seconds, so that the end shows a working connection.
    pub seconds: u64,
    /// A watch without any event for this long is dead.
    pub silence: Duration,
    /// From one list for more of the Jobs to the next. Whoever may write policies can ask for one at any time.
    pub relist: Duration,
}

/// How to continue after a watch.
enum WatchEnd {
    /// Watch from the last position.
    Resume,
    /// List again.
    Relist,
    /// List again, since more of the Jobs is needed.
    RelistForMore,
}

/// A watch that has ended.
struct EndedWatch {
    /// Position of its last event.
    position: u64,
    had_event: bool,
    end: Result<WatchEnd, Error>,
}

/// Observes all Jobs for as long as the process runs. `policies` changes whenever the policies do, and may change more often.
pub async fn run(
    client: Client,
    timing: WatchTiming,
    mut observer: impl JobObserver + Send,
    mut policies: Receiver<u64>,
    readiness: ReadyHandle,
) -> Infallible {
    let mut health = WatchHealth::new("jobs.batch", Some(readiness));
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut from: Option<u64> = None;
    // Where the watch failed last.
    let mut failed_at: Option<u64> = None;
    // When the Jobs may be listed for more of them, and whether they are.
    let (mut relist_at, mut for_more) = (Instant::now(), false);
    loop {
        let Some(position) = from else {
            match list(&client, &mut observer).await {
                // Only a watch that works ends the backoff: a list may be out of date as soon as it is complete.
                Ok(position) => {
                    health.listed();
                    from = Some(position);
                    if std::mem::take(&mut for_more) {
                        relist_at = Instant::now() + timing.relist;
                    }
                }
                Err(error) => {
                    health.failed(Error::InitialListFailed(error));
                    backoff.wait().await;
                }
            }
            continue;
        };
        let began = Instant::now();
        let watch = JobWatch { client: &client, timing, from: position, relist_at };
        let ended = watch.run(&mut observer, &mut policies, &mut health).await;
        from = Some(ended.position);
        // Of a quiet cluster, a watch may end without any event.
        let worked = ended.had_event || began.elapsed() >= Duration::from_secs(timing.seconds) / 2;
        if worked {
            backoff.reset();
        }
        match ended.end {
            Ok(WatchEnd::Resume) if worked => continue,
            Ok(WatchEnd::Resume) => {}
            Ok(WatchEnd::Relist) => from = None,
            Ok(WatchEnd::RelistForMore) => (from, for_more) = (None, true),
            // An event that cannot be read would come again for ever. A list may show a later state of that Job.
            Err(error @ Error::WatchFailed(_)) => {
                if failed_at.replace(ended.position) == Some(ended.position) {
                    (from, failed_at) = (None, None);
                }
                health.failed(error);
            }
            Err(error) => health.failed(error),
        }
        backoff.wait().await;
    }
}

/// Lists the Jobs consistently, so that the observer never falls back behind what it saw before.
async fn list(client: &Client, observer: &mut impl JobObserver) -> kube::Result<u64> {
    observer.list_began();
    let position = raw_reads::list(client, ReadTarget::path(JOBS), |json| {
        let job = observer.read(json)?;
        observer.listed(job);
        Ok(())
    })
    .await?;
    observer.list_ended(position);
    Ok(position)
}

/// A watch to be made.
struct JobWatch<'a> {
    client: &'a Client,
    timing: WatchTiming,
    /// The position that it begins at.
    from: u64,
    /// It goes on until then although more of the Jobs is needed.
    relist_at: Instant,
}

impl JobWatch<'_> {
    async fn run(
        self,
        observer: &mut impl JobObserver,
        policies: &mut Receiver<u64>,
        health: &mut WatchHealth,
    ) -> EndedWatch {
        let Self { client, timing, from, relist_at } = self;
        let mut ended = EndedWatch { position: from, had_event: false, end: Ok(WatchEnd::Resume) };
        let (target, version) = (ReadTarget::path(JOBS), from.to_string());
        let mut start = pin!(raw_reads::watch(client, &target, &version, timing.seconds));
        let mut relist = pin!(sleep_until(relist_at));
        let mut needs_list = observer.needs_list();
        let started = loop {
            // An apiserver may answer only once there is an event.
            tokio::select! {
                started = &mut start => break started,
                Ok(()) = policies.changed() => needs_list = observer.needs_list(),
                () = &mut relist, if needs_list => return ended.with(Ok(WatchEnd::RelistForMore)),
            }
        };
        let events = match started {
            Ok(events) => events,
            Err(error) if status_code(&error) == Some(410) => return ended.with(Ok(WatchEnd::Relist)),
            Err(error) => return ended.with(Err(Error::WatchStartFailed(error))),
        };
        let mut events = pin!(events);
        let mut dead_at = Instant::now() + timing.silence;
        loop {
            let event = tokio::select! {
                event = tokio::time::timeout_at(dead_at, events.next()) => event,
                Ok(()) = policies.changed() => {
                    needs_list = observer.needs_list();
                    continue;
                }
                () = &mut relist, if needs_list => return ended.with(Ok(WatchEnd::RelistForMore)),
            };
            let event = match event {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) if !raw_reads::is_cut_off(&error) => {
                    return ended.with(Err(Error::WatchFailed(error)));
                }
                Ok(None | Some(Err(_))) => return ended,
                Err(_) => {
                    let seconds = timing.silence.as_secs();
                    tracing::warn!("the watch of Jobs had no event for {seconds} s, starting a new one");
                    return ended;
                }
            };
            match handle(&event, observer) {
                Ok(Some(position)) => ended.position = position,
                // Without a position the watch cannot be resumed; a list may have one.
                Ok(None) => return ended.with(Ok(WatchEnd::Relist)),
                Err(error) => return ended.with(error_end(error)),
            }
            health.responded();
            ended.had_event = true;
            dead_at = Instant::now() + timing.silence;
        }
    }
}

impl EndedWatch {
    fn with(self, end: Result<WatchEnd, Error>) -> Self {
        Self { end, ..self }
    }
}

/// Passes an event on. Returns its position, if it has one.
fn handle(event: &RawWatchEvent, observer: &mut impl JobObserver) -> Result<Option<u64>, Error> {
    let unreadable = |error| Error::WatchFailed(kube::Error::SerdeError(error));
    let json = event.object.get();
    match event.kind.as_str() {
        "ERROR" => {
            let status = serde_json::from_str::<Status>(json).map_err(unreadable)?;
            Err(Error::WatchError(Box::new(status)))
        }
        "BOOKMARK" => {
            let position = version(&event.version().map_err(unreadable)?);
            position.into_iter().for_each(|position| observer.reached(position));
            Ok(position)
        }
        kind => {
            let job = observer.read(json.as_bytes()).map_err(unreadable)?;
            let Some(position) = version(&job.resource_version) else { return Ok(None) };
            if kind == "DELETED" {
                observer.deleted(job, position);
            } else {
                observer.changed(job, position);
            }
            Ok(Some(position))
        }
    }
}

fn error_end(error: Error) -> Result<WatchEnd, Error> {
    match error {
        Error::WatchError(status) if status.code == 410 => Ok(WatchEnd::Relist),
        error => Err(error),
    }
}

fn version(text: &str) -> Option<u64> {
    text.parse().ok()
}

#[cfg(test)]
mod tests;
