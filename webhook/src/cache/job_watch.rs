//! Feeds the cache: a list, then a watch from where it ended; again from the last position where a watch breaks, again
//! with a list where the apiserver no longer knows that position (410).

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

/// The apiserver ends a watch after this; ours is ended by it, not by a dead connection.
const WATCH_SECONDS: u64 = 290;
/// The apiserver sends a bookmark about once a minute: a watch that says nothing for longer than this is dead.
const SILENCE: Duration = Duration::from_secs(100);
/// Between tries, at least and at most, with jitter.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Why a watch ended.
enum End {
    /// Go on from the last position.
    Resume,
    /// That position is no longer known.
    Relist,
}

/// Keeps the cache up to date for ever.
pub async fn run(client: Client, cache: JobCache, readiness: ReadyHandle) -> Infallible {
    let mut health = WatchHealth::new("jobs.batch", Some(readiness));
    let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
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
                let mut told = false;
                let ended = watch(&client, &cache, position, &mut health, || told = true).await;
                if told {
                    backoff.reset();
                }
                // Only who says nothing and ends is asked again less and less often.
                if told && matches!(ended, Ok(End::Resume)) {
                    from = cache.position();
                    continue;
                }
                ended
            }
        };
        match ended {
            Ok(End::Resume) => {}
            Ok(End::Relist) => from = None,
            Err(error) => health.failed(error),
        }
        // A broken watch goes on from what it told last.
        from = from.and(cache.position());
        backoff.wait().await;
    }
}

/// Consistent, so that the picture never goes back behind what was told before.
async fn relist(client: &Client, cache: &JobCache) -> Result<u64, kube::Error> {
    cache.begin_list();
    let position =
        consistent_list::list_pages(client, None, |jobs| cache.add_page(jobs)).await.map_err(|error| {
            match error {
                ListError::Api(error) => *error,
                ListError::Request(error) => kube::Error::HttpError(error),
            }
        })?;
    cache.end_list(position);
    Ok(position)
}

async fn watch(
    client: &Client,
    cache: &JobCache,
    from: u64,
    health: &mut WatchHealth,
    mut works: impl FnMut(),
) -> Result<End, Error> {
    let request = Request::get(format!(
        "/apis/batch/v1/jobs?watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={WATCH_SECONDS}"
    ))
    .body(Vec::new())
    .map_err(|error| Error::WatchStartFailed(kube::Error::HttpError(error)))?;
    let events = client.request_events::<ListedJob>(request).await;
    let events = match events {
        Ok(events) => events,
        Err(error) if status_code(&error) == Some(410) => return Ok(End::Relist),
        Err(error) => return Err(Error::WatchStartFailed(error)),
    };
    pin_mut!(events);
    loop {
        let event = match tokio::time::timeout(SILENCE, events.next()).await {
            Ok(Some(event)) => event.map_err(Error::WatchFailed)?,
            Ok(None) => return Ok(End::Resume),
            Err(_) => {
                tracing::warn!("the watch of Jobs said nothing for {} s, beginning anew", SILENCE.as_secs());
                return Ok(End::Resume);
            }
        };
        let told = match event {
            WatchEvent::Added(job) | WatchEvent::Modified(job) => {
                version(&job.0.resource_version).map(|at| cache.apply(job.0, at))
            }
            WatchEvent::Deleted(job) => version(&job.0.resource_version).map(|at| cache.delete(&job.0, at)),
            WatchEvent::Bookmark(mark) => {
                version(&mark.metadata.resource_version).map(|at| cache.bookmark(at))
            }
            WatchEvent::Error(status) => return ended(status),
        };
        // Without a position the picture is worth nothing; a list may have one.
        if told.is_none() {
            return Ok(End::Relist);
        }
        health.responded();
        works();
    }
}

fn ended(status: Box<Status>) -> Result<End, Error> {
    match status.code {
        410 => Ok(End::Relist),
        _ => Err(Error::WatchError(status)),
    }
}

fn version(text: &str) -> Option<u64> {
    text.parse().ok()
}
