//! Keeps the watch cache of Jobs up to date: a list, then a watch from the list's position. A watch that breaks resumes
//! at the cache's position; if the apiserver no longer has that position (410), the Jobs are listed again.
//!
//! This is not `shared::kube::watch`: the ledger's protocol needs the resourceVersion of a consistent list and the
//! position that bookmarks report, and kube's `watcher` passes on neither.

use std::{convert::Infallible, time::Duration};

use futures::{StreamExt, pin_mut};
use http::Request;
use job_handler_shared::{
    kube::{error::status_code, watch::WatchHealth},
    process::{admin::ReadyHandle, jitter::Backoff},
};
use kube::{
    Client,
    core::{Status, WatchEvent},
    runtime::watcher::Error,
};

use crate::cache::{
    consistent_list::{self, ListError, ListedJob},
    jobs::JobCache,
};

/// The apiserver ends a watch after this time, so that the end shows a working connection.
const WATCH_SECONDS: u64 = 290;
/// The apiserver sends a bookmark about once a minute: a watch without any event for longer than this is dead.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(100);
/// Least and longest delay between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How to continue after a watch.
enum WatchEnd {
    /// Watch from the cache's position.
    Resume,
    /// The apiserver no longer has that position: list again.
    Relist,
}

/// Keeps the cache up to date for as long as the process runs.
pub(crate) async fn run(client: Client, cache: JobCache, readiness: ReadyHandle) -> Infallible {
    let mut health = WatchHealth::new("jobs.batch", Some(readiness));
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut from: Option<u64> = None;
    loop {
        let ended = match from {
            None => match relist(&client, &cache).await {
                Ok(position) => {
                    health.listed();
                    backoff.reset();
                    from = Some(position);
                    continue;
                }
                Err(error) => Err(Error::InitialListFailed(error)),
            },
            Some(position) => {
                let mut had_event = false;
                let ended = watch(&client, &cache, position, &mut health, &mut had_event).await;
                if had_event {
                    backoff.reset();
                }
                // A watch that ends without any event is retried with backoff.
                if had_event && matches!(ended, Ok(WatchEnd::Resume)) {
                    from = cache.position();
                    continue;
                }
                ended
            }
        };
        match ended {
            Ok(WatchEnd::Resume) => {}
            Ok(WatchEnd::Relist) => from = None,
            Err(error) => health.failed(error),
        }
        from = from.and(cache.position());
        backoff.wait().await;
    }
}

/// Lists the Jobs consistently, so that the cache never falls back behind what it showed before.
async fn relist(client: &Client, cache: &JobCache) -> Result<u64, kube::Error> {
    cache.begin_list();
    let pages = consistent_list::list_pages(client, None, |jobs| cache.add_page(jobs));
    let position = pages.await.map_err(|error| match error {
        ListError::Api(error) => *error,
        ListError::Request(error) => kube::Error::HttpError(error),
    })?;
    cache.end_list(position);
    Ok(position)
}

async fn watch(
    client: &Client,
    cache: &JobCache,
    from: u64,
    health: &mut WatchHealth,
    had_event: &mut bool,
) -> Result<WatchEnd, Error> {
    let request = Request::get(format!(
        "/apis/batch/v1/jobs?watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={WATCH_SECONDS}"
    ))
    .body(Vec::new())
    .map_err(|error| Error::WatchStartFailed(kube::Error::HttpError(error)))?;
    let events = client.request_events::<ListedJob>(request).await;
    let events = match events {
        Ok(events) => events,
        Err(error) if status_code(&error) == Some(410) => return Ok(WatchEnd::Relist),
        Err(error) => return Err(Error::WatchStartFailed(error)),
    };
    pin_mut!(events);
    loop {
        let event = match tokio::time::timeout(SILENCE_TIMEOUT, events.next()).await {
            Ok(Some(event)) => event.map_err(Error::WatchFailed)?,
            Ok(None) => return Ok(WatchEnd::Resume),
            Err(_) => {
                let seconds = SILENCE_TIMEOUT.as_secs();
                tracing::warn!("the watch of Jobs had no event for {seconds} s, starting a new one");
                return Ok(WatchEnd::Resume);
            }
        };
        let applied = match event {
            WatchEvent::Added(job) | WatchEvent::Modified(job) => {
                version(&job.0.resource_version).map(|at| cache.apply(job.0, at))
            }
            WatchEvent::Deleted(job) => version(&job.0.resource_version).map(|at| cache.delete(&job.0, at)),
            WatchEvent::Bookmark(mark) => {
                version(&mark.metadata.resource_version).map(|at| cache.bookmark(at))
            }
            WatchEvent::Error(status) => return error_end(status),
        };
        // Without a position the cache is useless; a list may have one.
        if applied.is_none() {
            return Ok(WatchEnd::Relist);
        }
        health.responded();
        *had_event = true;
    }
}

fn error_end(status: Box<Status>) -> Result<WatchEnd, Error> {
    match status.code {
        410 => Ok(WatchEnd::Relist),
        _ => Err(Error::WatchError(status)),
    }
}

fn version(text: &str) -> Option<u64> {
    text.parse().ok()
}
