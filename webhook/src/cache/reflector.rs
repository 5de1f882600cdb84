//! A watch that keeps something in memory, and says in plain words why it cannot.

use std::{
    fmt::Debug,
    pin::pin,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt};
use job_handler_shared::process::admin::ReadyHandle;
use job_handler_shared::process::error_chain::error_chain;
use kube::runtime::{
    WatchStreamExt,
    watcher::{self, Event},
};

/// The same fault is told again this often.
const REPEAT: Duration = Duration::from_secs(60);

/// What is kept.
pub trait Mirror<K> {
    /// A list is about to be read.
    fn begin(&mut self) {}
    /// Everything there is, after a list.
    fn replace(&mut self, all: Vec<K>);
    /// Made or changed.
    fn apply(&mut self, object: K);
    /// Gone.
    fn delete(&mut self, object: K);
}

/// What a watch is called.
#[derive(Debug)]
pub struct Part {
    /// For people.
    pub name: &'static str,
    /// As roles and CRDs have it.
    pub plural: &'static str,
    /// Its say in the readiness: ready once everything was seen.
    pub ready: ReadyHandle,
}

/// A watch that ended.
#[derive(Debug, thiserror::Error)]
#[error("the watch of {0} ended, which no watch should")]
pub struct MirrorError(&'static str);

/// Follows a watch for ever; faults are told, and tried again with jittered backoff.
///
/// # Errors
/// Where the stream ends.
pub async fn follow<K: Clone + Debug>(
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    part: Part,
    mut mirror: impl Mirror<K>,
) -> Result<(), MirrorError> {
    let mut stream = pin!(stream.default_backoff());
    let mut listed = Vec::new();
    let mut teller = Teller::new(part);
    while let Some(event) = stream.next().await {
        // An `Init` says that a list is about to be tried, not that anybody answered.
        if !matches!(event, Ok(Event::Init) | Err(_)) {
            teller.works();
        }
        match event {
            Ok(Event::Init) => {
                mirror.begin();
                listed = Vec::new();
            }
            Ok(Event::InitApply(object)) => listed.push(object),
            Ok(Event::InitDone) => {
                mirror.replace(std::mem::take(&mut listed));
                teller.ready();
            }
            Ok(Event::Apply(object)) => mirror.apply(object),
            Ok(Event::Delete(object)) => mirror.delete(object),
            Err(error) => teller.tell(&error),
        }
    }
    Err(MirrorError(teller.part.name))
}

/// Says once what is wrong with a watch, and once that it is over; keeps the watch's part of the readiness.
#[derive(Debug)]
pub struct Teller {
    part: Part,
    synced: bool,
    told: Option<(String, Instant)>,
}

impl Teller {
    /// Of a watch that has seen nothing yet.
    pub fn new(part: Part) -> Self {
        Self { part, synced: false, told: None }
    }

    /// The apiserver answered.
    pub fn works(&mut self) {
        if self.told.take().is_some() {
            tracing::info!("the watch of {} is back", self.part.name);
        }
    }

    /// Everything was seen.
    pub fn ready(&mut self) {
        self.works();
        if !self.synced {
            self.synced = true;
            self.part.ready.ready();
        }
    }

    /// It broke; it will be tried again.
    pub fn tell(&mut self, error: &watcher::Error) {
        let why = explain(self.part.plural, error);
        if !self.synced {
            self.part.ready.not_ready(&why);
        }
        if self.told.as_ref().is_none_or(|(same, at)| *same != why || at.elapsed() > REPEAT) {
            let goes_on = if self.synced { ", going on with what was seen last" } else { "" };
            tracing::warn!("cannot watch {}{goes_on}; trying again: {why}", self.part.name);
            self.told = Some((why, Instant::now()));
        }
    }
}

/// What is missing, and what to do.
fn explain(plural: &str, error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    let status = match error {
        InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) => status,
        WatchError(status) => status,
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => {
            return format!("the apiserver cannot be reached: {}", error_chain(error));
        }
        NoResourceVersion => return error.to_string(),
    };
    match status.code {
        404 => format!("the cluster knows no {plural}: apply the CRDs (manifests/base)"),
        401 => format!(
            "the apiserver does not know who we are: {}. Is the token of another cluster?",
            status.message
        ),
        403 => format!(
            "no right to list and watch {plural}: apply the webhook's roles (manifests/base) and bind them to this \
             ServiceAccount: {}",
            status.message
        ),
        code => format!("the apiserver answered {code}: {}", status.message),
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use job_handler_shared::process::admin::Readiness;
    use kube::core::Status;

    use super::*;

    #[derive(Default)]
    struct Names(Vec<&'static str>);

    impl Mirror<&'static str> for &mut Names {
        fn replace(&mut self, all: Vec<&'static str>) {
            self.0 = all;
        }
        fn apply(&mut self, object: &'static str) {
            self.0.push(object);
        }
        fn delete(&mut self, object: &'static str) {
            self.0.retain(|known| *known != object);
        }
    }

    fn refused(code: u16) -> watcher::Error {
        let status = Status { code, message: "because".into(), ..Status::default() };
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_relist_replaces_and_readiness_says_what_is_missing() {
        let readiness = Readiness::default();
        let part = || Part {
            name: "JobPolicies",
            plural: "jobpolicies.job-handler.io",
            ready: readiness.part("JobPolicies"),
        };
        let mut names = Names::default();
        let _: MirrorError = follow(stream::iter([Err(refused(404))]), part(), &mut names).await.unwrap_err();
        let missing = readiness.missing().join("\n");
        assert!(missing.contains("apply the CRDs"), "{missing}");
        let events = [
            Ok(Event::Init),
            Ok(Event::InitApply("a")),
            Ok(Event::InitApply("b")),
            Ok(Event::InitDone),
            Ok(Event::Apply("c")),
            Ok(Event::Delete("a")),
            Err(refused(403)),
            Ok(Event::Init),
            Ok(Event::InitApply("d")),
        ];
        let _: MirrorError = follow(stream::iter(events), part(), &mut names).await.unwrap_err();
        assert_eq!(names.0, ["b", "c"], "a list that has not ended replaces nothing");
        assert!(readiness.missing().is_empty(), "ready stays ready");
    }

    #[test]
    fn faults_say_what_to_do() {
        for (code, word) in [(401, "token"), (403, "roles"), (404, "CRDs"), (500, "500")] {
            let why = explain("jobpolicies.job-handler.io", &refused(code));
            assert!(why.contains(word), "{why}");
        }
    }
}
