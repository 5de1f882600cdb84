//! Stores what a watch reports: objects one by one after a complete list.

use std::fmt::Debug;

use futures::Stream;
use job_handler_shared::{kube::watch, process::admin::ReadyHandle};
use kube::runtime::watcher::{self, Event};

/// A cache that a watch keeps up to date.
pub trait WatchHandler<K> {
    /// A list begins.
    fn begin(&mut self) {}
    /// An object of a list that is not complete yet. What is returned is kept for `replace`.
    fn listed(&mut self, object: K) -> Option<K> {
        Some(object)
    }
    /// A list is complete: these are all objects.
    fn replace(&mut self, all: Vec<K>);
    /// An object was created or changed.
    fn apply(&mut self, object: K);
    /// An object was deleted.
    fn delete(&mut self, object: K);
}

/// Runs a watch; never returns. `resource` is named as in roles and CRDs, such as `jobs.batch`.
pub async fn run<K: Clone + Debug>(
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    resource: &str,
    readiness: ReadyHandle,
    mut handler: impl WatchHandler<K>,
) {
    let mut listed = Vec::new();
    watch::run(stream, resource, &readiness, |event| match event {
        Event::Init => {
            handler.begin();
            listed = Vec::new();
        }
        Event::InitApply(object) => listed.extend(handler.listed(object)),
        Event::InitDone => handler.replace(std::mem::take(&mut listed)),
        Event::Apply(object) => handler.apply(object),
        Event::Delete(object) => handler.delete(object),
    })
    .await;
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use job_handler_shared::process::admin::Readiness;

    use super::*;

    #[derive(Default)]
    struct Names(Vec<&'static str>);

    impl WatchHandler<&'static str> for &mut Names {
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

    #[tokio::test(start_paused = true)]
    async fn only_a_complete_list_replaces_the_cache() {
        let mut names = Names::default();
        let events = [
            Ok(Event::Init),
            Ok(Event::InitApply("a")),
            Ok(Event::InitApply("b")),
            Ok(Event::InitDone),
            Ok(Event::Apply("c")),
            Ok(Event::Delete("a")),
            Err(watcher::Error::NoResourceVersion),
            Ok(Event::Init),
            Ok(Event::InitApply("d")),
        ];
        let readiness = Readiness::default();
        run(stream::iter(events), "names", readiness.register("Names"), &mut names).await;
        assert_eq!(names.0, ["b", "c"]);
        assert!(readiness.not_ready().is_empty());
    }
}
