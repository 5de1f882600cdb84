//! The events of a list and of the watch after it, as kube's `watcher` has them, but object by object: `watcher` reads a page
//! of a list as a whole, and 500 objects that tenants wrote can take a gigabyte.

use std::{collections::VecDeque, fmt::Debug, time::Duration};

use futures::{Stream, StreamExt, stream, stream::BoxStream};
use kube::{
    Api, Client, Resource,
    core::Status,
    runtime::watcher::{self, Config, Error, Event},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use crate::kube::{
    error::status_code,
    raw_reads::{self, ListReader, RawWatchEvent, ReadTarget},
};

/// kube's default of a watch's `timeoutSeconds`.
const WATCH_SECONDS: u32 = 290;
/// If the end of a watch does not arrive this long after its timeout, the connection is dead.
const GRACE: Duration = Duration::from_secs(5);

/// The events of the objects of `api`. Of `config`, selectors and timeout apply. After an error, the stream goes on with
/// what has failed.
pub fn objects<K>(api: Api<K>, config: Config) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + DeserializeOwned + Debug + Send + 'static,
{
    let target = ReadTarget::of(&api)
        .select("labelSelector", config.label_selector.as_deref())
        .select("fieldSelector", config.field_selector.as_deref());
    let seconds = config.timeout.unwrap_or(WATCH_SECONDS).into();
    let watch = ObjectWatch {
        client: api.into_client(),
        target,
        seconds,
        state: WatchState::Unlisted,
        failed_at: None,
        queued: VecDeque::new(),
    };
    stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await;
        Some((event, watch))
    })
}

struct ObjectWatch<K> {
    client: Client,
    target: ReadTarget,
    seconds: u64,
    state: WatchState,
    /// Where the watch failed last.
    failed_at: Option<String>,
    /// Events that are read and not delivered: those of one chunk.
    queued: VecDeque<Event<K>>,
}

enum WatchState {
    Unlisted,
    Listing(Box<ListReader>),
    /// Up to this resourceVersion, everything was delivered.
    Listed(String),
    Watching {
        events: BoxStream<'static, kube::Result<RawWatchEvent>>,
        position: String,
        dead_at: Instant,
    },
}

impl<K: Resource + DeserializeOwned> ObjectWatch<K> {
    async fn next(&mut self) -> watcher::Result<Event<K>> {
        loop {
            if let Some(event) = self.queued.pop_front() {
                return Ok(event);
            }
            match std::mem::replace(&mut self.state, WatchState::Unlisted) {
                WatchState::Unlisted => {
                    let reader = ListReader::new(self.client.clone(), self.target.clone());
                    self.state = WatchState::Listing(Box::new(reader));
                    return Ok(Event::Init);
                }
                WatchState::Listing(reader) => self.read_list(reader).await?,
                WatchState::Listed(position) => self.start_watch(position).await?,
                WatchState::Watching { mut events, position, dead_at } => {
                    let event = timeout_at(dead_at, events.next()).await;
                    match event {
                        Ok(Some(Ok(event))) => {
                            if let Some(position) = self.read_event(&event, position)? {
                                self.state = WatchState::Watching { events, position, dead_at };
                            }
                        }
                        Ok(Some(Err(error))) if !raw_reads::is_cut_off(&error) => {
                            return Err(self.watch_failed(position, error));
                        }
                        // It has ended, or is dead.
                        Ok(None | Some(Err(_))) | Err(_) => self.state = WatchState::Listed(position),
                    }
                }
            }
        }
    }

    async fn read_list(&mut self, mut reader: Box<ListReader>) -> watcher::Result<()> {
        let queued = &mut self.queued;
        let mut on_item = |json: &[u8]| -> serde_json::Result<()> {
            queued.push_back(Event::InitApply(serde_json::from_slice(json)?));
            Ok(())
        };
        let read = reader.read_chunk(&mut on_item).await;
        match read {
            Ok(None) => self.state = WatchState::Listing(reader),
            Ok(Some(position)) => {
                self.queued.push_back(Event::InitDone);
                self.state = WatchState::Listed(position);
            }
            Err(error) => {
                self.queued.clear();
                return Err(Error::InitialListFailed(error));
            }
        }
        Ok(())
    }

    async fn start_watch(&mut self, position: String) -> watcher::Result<()> {
        match raw_reads::watch(&self.client, &self.target, &position, self.seconds).await {
            Ok(events) => {
                let dead_at = Instant::now() + Duration::from_secs(self.seconds) + GRACE;
                self.state = WatchState::Watching { events: events.boxed(), position, dead_at };
            }
            // The apiserver no longer has that position: list again.
            Err(error) if status_code(&error) == Some(410) => {}
            Err(error) => {
                self.state = WatchState::Listed(position);
                return Err(Error::WatchStartFailed(error));
            }
        }
        Ok(())
    }

    /// Queues what an event says. Returns the position after it; none if the objects have to be listed again.
    fn read_event(&mut self, event: &RawWatchEvent, position: String) -> watcher::Result<Option<String>> {
        let json = event.object.get();
        let read = match event.kind.as_str() {
            "ERROR" => return self.read_error(json, position),
            "BOOKMARK" => event.version().map(Some),
            kind => serde_json::from_str::<K>(json).map(|object| {
                let version = object.meta().resource_version.clone();
                let deleted = kind == "DELETED";
                self.queued.push_back(if deleted { Event::Delete(object) } else { Event::Apply(object) });
                version
            }),
        };
        match read {
            Ok(version) => Ok(version.filter(|version| !version.is_empty())),
            Err(error) => Err(self.watch_failed(position, kube::Error::SerdeError(error))),
        }
    }

    fn watch_failed(&mut self, position: String, error: kube::Error) -> Error {
        // An event that cannot be read would come again for ever. A list may show a later state of that object.
        let again = self.failed_at.replace(position.clone()).is_some_and(|failed_at| failed_at == position);
        self.state = if again { WatchState::Unlisted } else { WatchState::Listed(position) };
        Error::WatchFailed(error)
    }

    fn read_error(&mut self, json: &str, position: String) -> watcher::Result<Option<String>> {
        let status = serde_json::from_str::<Status>(json);
        let status = status.map_err(|error| Error::WatchFailed(kube::Error::SerdeError(error)))?;
        if status.code == 410 {
            return Ok(None);
        }
        self.state = WatchState::Listed(position);
        Err(Error::WatchError(Box::new(status)))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt;
    use serde_json::json;

    use super::*;
    use crate::testing::apiserver::Apiserver;

    fn map(name: &str) -> serde_json::Value {
        json!({"metadata": {"name": name, "namespace": "ci"}})
    }

    /// The next `count` events, in short.
    async fn next(
        events: &mut (impl Stream<Item = watcher::Result<Event<ConfigMap>>> + Unpin),
        count: usize,
    ) -> Vec<String> {
        let mut seen = Vec::new();
        for _ in 0..count {
            let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap().unwrap();
            seen.push(match event {
                Ok(Event::Init) => "init".to_owned(),
                Ok(Event::InitApply(object)) => format!("listed {}", object.name_any()),
                Ok(Event::InitDone) => "done".to_owned(),
                Ok(Event::Apply(object)) => format!("applied {}", object.name_any()),
                Ok(Event::Delete(object)) => format!("deleted {}", object.name_any()),
                Err(_) => "error".to_owned(),
            });
        }
        seen
    }

    #[tokio::test]
    async fn objects_are_listed_page_by_page_and_watched_from_there() {
        let apiserver = Apiserver::default().with_page(2);
        for name in ["a", "b", "c", "d", "e"] {
            apiserver.put("configmaps", map(name));
        }
        let api = Api::<ConfigMap>::all(apiserver.client());
        let mut events = Box::pin(objects(api, Config::default()));
        let listed = ["init", "listed a", "listed b", "listed c", "listed d", "listed e", "done"];
        assert_eq!(next(&mut events, 7).await, listed);
        apiserver.put("configmaps", map("f"));
        apiserver.remove("configmaps", "ci", "a");
        assert_eq!(next(&mut events, 2).await, ["applied f", "deleted a"]);
    }

    #[tokio::test]
    async fn a_position_that_is_gone_and_a_failed_list_lead_to_a_new_list() {
        let apiserver = Apiserver::default();
        apiserver.put("configmaps", map("a"));
        let api = Api::<ConfigMap>::namespaced(apiserver.client(), "ci");
        let mut events = Box::pin(objects(api, Config::default()));
        apiserver.refuse_all(Some(500));
        assert_eq!(next(&mut events, 2).await, ["init", "error"]);
        apiserver.refuse_all(None);
        assert_eq!(next(&mut events, 3).await, ["init", "listed a", "done"]);
        apiserver.report("configmaps", false);
        apiserver.put("configmaps", map("b"));
        apiserver.forget("configmaps");
        apiserver.report("configmaps", true);
        assert_eq!(next(&mut events, 4).await, ["init", "listed a", "listed b", "done"]);
    }

    #[tokio::test]
    async fn an_event_that_cannot_be_read_twice_leads_to_a_new_list() {
        let apiserver = Apiserver::default();
        let api = Api::<ConfigMap>::all(apiserver.client());
        let mut events = Box::pin(objects(api, Config::default()));
        assert_eq!(next(&mut events, 2).await, ["init", "done"]);
        let mut unreadable = map("a");
        unreadable["data"] = "no map".into();
        apiserver.put("configmaps", unreadable);
        assert_eq!(next(&mut events, 2).await, ["error", "error"]);
        apiserver.put("configmaps", map("a"));
        assert_eq!(next(&mut events, 3).await, ["init", "listed a", "done"]);
    }
}
