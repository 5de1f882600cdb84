//! The watch loop of all programs, except for that of Jobs ([`crate::job::watch`]), which uses only [`WatchHealth`].
//!
//! The loop retries with jittered backoff, logs each failure once until it changes, says what to do about it, and reports
//! readiness: a watch is ready after its first complete list and stays ready, since what it saw last remains usable.

use std::{fmt::Debug, future::ready, pin::pin};

use futures::{Stream, StreamExt};
use kube::runtime::{
    WatchStreamExt,
    watcher::{self, Event},
};

use crate::{
    kube::error::ApiError,
    process::{admin::ReadyHandle, failure_log::FailureLog},
};

/// Passes the events of `stream` to `on`; returns only if the stream ends, which a watcher's never does. `resource` is
/// named as in roles and CRDs, such as `jobs.batch`.
pub async fn run<K: Clone + Debug>(
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    resource: &str,
    readiness: &ReadyHandle,
    mut on: impl FnMut(Event<K>),
) {
    let mut health = WatchHealth::new(resource, Some(readiness.clone()));
    let mut stream = pin!(stream.default_backoff());
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                let (responded, listed) = (is_response(&event), matches!(event, Event::InitDone));
                on(event);
                if listed {
                    health.listed();
                } else if responded {
                    health.responded();
                }
            }
            Err(error) => health.failed(error),
        }
    }
}

/// The events of `stream` for callers that read the objects again anyway and only need to know when.
pub fn events<K, S>(stream: S, resource: &str) -> impl Stream<Item = Event<K>> + use<K, S>
where
    K: Clone + Debug,
    S: Stream<Item = watcher::Result<Event<K>>>,
{
    let mut health = WatchHealth::new(resource, None);
    stream.default_backoff().filter_map(move |event| {
        match &event {
            Ok(event) if is_response(event) => health.responded(),
            _ => {}
        }
        ready(event.map_err(|error| health.failed(error)).ok())
    })
}

/// `Init` only announces a list; every other event is a response of the apiserver.
fn is_response<K>(event: &Event<K>) -> bool {
    !matches!(event, Event::Init)
}

/// The state of one watch: reports its failures and its readiness.
#[derive(Debug)]
pub struct WatchHealth {
    resource: String,
    readiness: Option<ReadyHandle>,
    listed: bool,
    failures: FailureLog,
}

impl WatchHealth {
    /// A watch that has not listed yet.
    pub fn new(resource: &str, readiness: Option<ReadyHandle>) -> Self {
        Self { resource: resource.to_owned(), readiness, listed: false, failures: FailureLog::default() }
    }

    /// The apiserver responded.
    pub fn responded(&mut self) {
        if self.failures.succeeded() {
            tracing::info!("watching {} again", self.resource);
        }
    }

    /// A list is complete and stored.
    pub fn listed(&mut self) {
        self.responded();
        if !self.listed {
            self.listed = true;
            self.readiness.iter().for_each(ReadyHandle::set_ready);
        }
    }

    /// The watch failed and will be retried.
    pub fn failed(&mut self, error: watcher::Error) {
        let failure = explain(&self.resource, error);
        if !self.listed {
            self.readiness.iter().for_each(|handle| handle.set_not_ready(&failure));
        }
        if self.failures.is_due(&failure) {
            let meanwhile = if self.listed { ", using the objects that were observed last" } else { "" };
            tracing::warn!("{failure}; retrying{meanwhile}");
        }
    }
}

/// What failed, and what to do about it.
fn explain(resource: &str, error: watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    let what = format!("list and watch {resource}");
    let error = match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
            ApiError::new(&what, error)
        }
        WatchError(status) => ApiError::new(&what, kube::Error::Api(status)),
        NoResourceVersion => return format!("cannot {what}: {NoResourceVersion}"),
    };
    if error.is_not_found() {
        return format!("cannot {what}: the cluster has no such resource. Apply the CRDs: manifests/base");
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use kube::core::Status;

    use super::*;
    use crate::process::admin::Readiness;

    const RESOURCE: &str = "jobpolicies.job-handler.io";

    fn refused(code: u16) -> watcher::Error {
        let message = match code {
            403 => r#"jobpolicies is forbidden: User "a" cannot list resource "jobpolicies""#,
            _ => "because",
        };
        let status = Status { code, message: message.into(), ..Status::default() };
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_ready_after_its_first_list_and_stays_ready() {
        let readiness = Readiness::default();
        let handle = readiness.register("JobPolicies");
        let mut seen = Vec::new();
        run(stream::iter([Err(refused(404)), Ok(Event::Init)]), RESOURCE, &handle, |event: Event<u8>| {
            seen.push(format!("{event:?}"));
        })
        .await;
        let missing = readiness.not_ready().join("\n");
        assert!(missing.contains("Apply the CRDs"), "{missing}");
        let events = [
            Ok(Event::Init),
            Ok(Event::InitApply(1)),
            Ok(Event::InitDone),
            Err(refused(403)),
            Ok(Event::Init),
        ];
        run(stream::iter(events), RESOURCE, &handle, |event| seen.push(format!("{event:?}"))).await;
        assert_eq!(seen, ["Init", "Init", "InitApply(1)", "InitDone", "Init"]);
        assert!(readiness.not_ready().is_empty());
    }

    #[test]
    fn failures_say_what_to_do() {
        for (code, words) in [
            (401, "Does the token belong to another cluster?"),
            (403, "no right to list and watch jobpolicies.job-handler.io"),
            (404, "CRDs"),
            (500, "500"),
        ] {
            let why = explain(RESOURCE, refused(code));
            assert!(why.contains(words), "{why}");
        }
    }
}
