//! The ValidatingWebhookConfigurations of the limits as the apiserver stores them: read, watched and written.
//!
//! Of each stored entry only digests and a size stay in memory. Every configuration is read and watched by its name, so that
//! RBAC can name them; those that never existed are not watched.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::pending,
    stream::{self, BoxStream, SelectAll},
};
use job_handler_shared::{
    keys,
    kube::{
        error::{ApiError, call},
        watch,
    },
    names::limits_configuration,
};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingWebhook, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    core::ObjectMeta,
    runtime::watcher::{Config, Event, watcher},
};

use crate::enforce::webhook_entries::{EntryDigest, EntryPair, digest_and_size};

/// Reads at a time when all configurations are loaded.
const CONCURRENT_READS: usize = 8;

/// The stored configurations, by number.
pub(crate) struct Configurations {
    api: Api<ValidatingWebhookConfiguration>,
    stored: BTreeMap<usize, StoredEntries>,
    watches: SelectAll<BoxStream<'static, (usize, Event<ValidatingWebhookConfiguration>)>>,
    watched: BTreeSet<usize>,
    /// Watches that list at the moment, and whether the list has the configuration.
    listing: HashMap<usize, bool>,
    /// The configuration from which [`Self::read_next`] goes on.
    next: usize,
}

/// The entries of a configuration at a resourceVersion (0: it is not a number).
struct StoredEntries {
    version: u64,
    by_name: HashMap<String, StoredEntry>,
}

/// Digests and size of a stored entry.
pub(crate) struct StoredEntry {
    pub(crate) digest: EntryDigest,
    /// That of its client configuration alone.
    pub(crate) client: EntryDigest,
    /// Size as JSON, without its client configuration.
    own_bytes: usize,
}

impl Configurations {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            api: Api::all(client),
            stored: BTreeMap::new(),
            watches: SelectAll::new(),
            watched: BTreeSet::new(),
            listing: HashMap::new(),
            next: 0,
        }
    }

    /// Reads all configurations.
    pub(crate) async fn load(&mut self) -> Result<(), ApiError> {
        let reads = (0..keys::LIMITS_CONFIGURATIONS).map(|index| {
            let api = self.api.clone();
            async move { Ok::<_, ApiError>((index, get(&api, index).await?)) }.boxed()
        });
        let found: Vec<_> = stream::iter(reads).buffer_unordered(CONCURRENT_READS).try_collect().await?;
        for (index, configuration) in found {
            self.take_read(index, configuration);
        }
        Ok(())
    }

    /// Reads one of the known configurations, each in turn, in case a watch missed a change.
    pub(crate) async fn read_next(&mut self) -> Result<(), ApiError> {
        let following = self.watched.range(self.next..).next().or_else(|| self.watched.first());
        let Some(index) = following.copied() else { return Ok(()) };
        self.next = index + 1;
        let configuration = get(&self.api, index).await?;
        self.take_read(index, configuration);
        Ok(())
    }

    /// Waits for a change by someone else, or one that a watch reports late.
    pub(crate) async fn changed(&mut self) {
        while let Some((index, event)) = self.watches.next().await {
            if self.observe(index, event) {
                return;
            }
        }
        pending::<()>().await;
    }

    /// The numbers of the configurations that exist.
    pub(crate) fn existing(&self) -> impl Iterator<Item = usize> {
        self.stored.keys().copied()
    }

    /// The entries of a configuration, if it exists.
    pub(crate) fn entries(&self, index: usize) -> Option<&HashMap<String, StoredEntry>> {
        self.stored.get(&index).map(|stored| &stored.by_name)
    }

    /// The configuration that has an entry of this policy, whatever is in it.
    pub(crate) fn find(&self, pair: &EntryPair) -> Option<usize> {
        let has = |stored: &StoredEntries| pair.names().any(|(name, _)| stored.by_name.contains_key(name));
        self.stored.iter().find(|(_, stored)| has(stored)).map(|(index, _)| *index)
    }

    /// The configuration that [`Self::find`] finds, and the size of the policy's entries there without their client
    /// configurations: another address or CA makes none of them larger.
    pub(crate) fn standing(&self, pair: &EntryPair) -> Option<(usize, usize)> {
        let index = self.find(pair)?;
        let stored = pair.names().filter_map(|(name, _)| self.entries(index)?.get(name));
        Some((index, stored.map(|entry| entry.own_bytes).sum()))
    }

    /// Whether a configuration has both entries of this policy as they should be.
    pub(crate) fn has(&self, index: usize, pair: &EntryPair) -> bool {
        self.entries(index).is_some_and(|stored| {
            pair.names().all(|(name, digest)| stored.get(name).is_some_and(|entry| entry.digest == digest))
        })
    }

    /// Writes a configuration: `wanted`, and those of its other entries for which `kept` has a client configuration, with
    /// that one. What else is in its metadata stays.
    pub(crate) async fn write(
        &mut self,
        index: usize,
        wanted: Vec<ValidatingWebhook>,
        kept: impl Fn(&str) -> Option<WebhookClientConfig>,
    ) -> Result<(), ApiError> {
        let current = get(&self.api, index).await?;
        let names: BTreeSet<String> = wanted.iter().map(|entry| entry.name.clone()).collect();
        let stored = current.iter().flat_map(|current| current.webhooks.iter().flatten());
        let others = stored.filter(|entry| !names.contains(&entry.name));
        let mut webhooks = wanted;
        webhooks.extend(others.filter_map(|entry| {
            Some(ValidatingWebhook { client_config: kept(&entry.name)?, ..entry.clone() })
        }));
        webhooks.sort_by(|a, b| a.name.cmp(&b.name));

        let (name, entries) = (limits_configuration(index), webhooks.len());
        let exists = current.is_some();
        let mut metadata = current.map(|current| current.metadata).unwrap_or_default();
        metadata.managed_fields = None;
        let metadata = with_marks(ObjectMeta { name: Some(name.clone()), ..metadata });
        let configuration = ValidatingWebhookConfiguration { metadata, webhooks: Some(webhooks) };
        let what = format!("write validatingwebhookconfiguration {name}");
        let params = PostParams::default();
        let written = if exists {
            call(&what, self.api.replace(&name, &params, &configuration)).await?
        } else {
            call(&what, self.api.create(&params, &configuration)).await?
        };
        tracing::info!(configuration = name, entries, "wrote the webhook entries of the limits");
        self.take_read(index, Some(written));
        Ok(())
    }

    /// Takes over the response of the apiserver to a call.
    fn take_read(&mut self, index: usize, configuration: Option<ValidatingWebhookConfiguration>) {
        match configuration {
            Some(configuration) => {
                self.store(index, &configuration);
                self.watch(index);
            }
            None => _ = self.stored.remove(&index),
        }
    }

    fn watch(&mut self, index: usize) {
        if !self.watched.insert(index) {
            return;
        }
        let config = Config::default().fields(&format!("metadata.name={}", limits_configuration(index)));
        let events = watch::events(
            watcher(self.api.clone(), config),
            "validatingwebhookconfigurations.admissionregistration.k8s.io",
        );
        self.watches.push(events.map(move |event| (index, event)).boxed());
    }

    /// Returns whether anything has changed.
    fn observe(&mut self, index: usize, event: Event<ValidatingWebhookConfiguration>) -> bool {
        match event {
            Event::Init => {
                self.listing.insert(index, false);
                false
            }
            Event::InitApply(configuration) => {
                self.listing.insert(index, true);
                self.store(index, &configuration)
            }
            Event::InitDone => {
                self.listing.remove(&index) == Some(false) && self.stored.remove(&index).is_some()
            }
            Event::Apply(configuration) => self.store(index, &configuration),
            Event::Delete(configuration) => {
                let is_older = |stored: &StoredEntries| stored.version > version(&configuration);
                !self.stored.get(&index).is_some_and(is_older) && self.stored.remove(&index).is_some()
            }
        }
    }

    /// Events arrive later than the responses to our calls: an older version than the stored one is ignored.
    fn store(&mut self, index: usize, configuration: &ValidatingWebhookConfiguration) -> bool {
        let version = version(configuration);
        if version > 0 && self.stored.get(&index).is_some_and(|stored| stored.version >= version) {
            return false;
        }
        let entries = configuration.webhooks.iter().flatten();
        let stored = |entry: &ValidatingWebhook| {
            let ((digest, bytes), (client, of_client)) =
                (digest_and_size(entry), digest_and_size(&entry.client_config));
            StoredEntry { digest, client, own_bytes: bytes.saturating_sub(of_client) }
        };
        let by_name = entries.map(|entry| (entry.name.clone(), stored(entry))).collect();
        self.stored.insert(index, StoredEntries { version, by_name });
        true
    }
}

async fn get(
    api: &Api<ValidatingWebhookConfiguration>,
    index: usize,
) -> Result<Option<ValidatingWebhookConfiguration>, ApiError> {
    let name = limits_configuration(index);
    call(&format!("get validatingwebhookconfiguration {name}"), api.get_opt(&name)).await
}

fn version(configuration: &ValidatingWebhookConfiguration) -> u64 {
    configuration.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// The metadata of a configuration with our label, and with what keeps others from changing the entries.
pub(super) fn with_marks(mut metadata: ObjectMeta) -> ObjectMeta {
    let app = ("app.kubernetes.io/name".to_owned(), keys::APP.to_owned());
    metadata.labels.get_or_insert_default().extend([app]);
    let annotation = (keys::NO_AKS_ENFORCER.to_owned(), "true".to_owned());
    metadata.annotations.get_or_insert_default().extend([annotation]);
    metadata
}

#[cfg(test)]
mod tests {
    use job_handler_shared::{policy::set::PolicySet, testing::apiserver::Apiserver};
    use k8s_openapi::{ByteString, api::admissionregistration::v1::WebhookClientConfig};
    use serde_json::json;

    use super::*;
    use crate::enforce::webhook_entries::{build, tests::namespaced};

    const RESOURCE: &str = "validatingwebhookconfigurations";

    fn pairs() -> Vec<EntryPair> {
        pairs_of(&WebhookClientConfig::default())
    }

    fn pairs_of(client: &WebhookClientConfig) -> Vec<EntryPair> {
        let limit = json!({"limits": [{"name": "l", "maxActiveJobs": 1}]});
        let set = PolicySet::new([namespaced("a", "ci", limit.clone()), namespaced("b", "ci", limit)]);
        build(&set, client, "job-handler-system")
    }

    #[tokio::test]
    async fn what_is_written_is_known_and_found_by_the_next_leader() {
        let apiserver = Apiserver::default();
        let pairs = pairs();
        let mut first = Configurations::new(apiserver.client());
        first.load().await.unwrap();
        assert_eq!(first.existing().count(), 0);
        for (index, pair) in [0, 7].into_iter().zip(&pairs) {
            first.write(index, pair.entries.to_vec(), |_| None).await.unwrap();
            assert!(first.has(index, pair) && !first.has(index + 1, pair));
        }
        let stored = apiserver.get(RESOURCE, "", "job-handler-limits-7").unwrap();
        assert_eq!(stored["metadata"]["labels"]["app.kubernetes.io/name"], "job-handler");
        assert_eq!(stored["metadata"]["annotations"][keys::NO_AKS_ENFORCER], "true");
        let mut second = Configurations::new(apiserver.client());
        second.load().await.unwrap();
        assert_eq!(second.existing().collect::<Vec<_>>(), [0, 7]);
        assert_eq!((second.find(&pairs[0]), second.find(&pairs[1])), (Some(0), Some(7)));
        assert!(second.has(7, &pairs[1]));
        // With another CA, they are others, but as large as before.
        let ca_bundle = Some(ByteString(vec![b'a'; 900]));
        let renewed = pairs_of(&WebhookClientConfig { ca_bundle, ..WebhookClientConfig::default() });
        assert!(!second.has(7, &renewed[1]));
        assert_eq!(second.standing(&renewed[1]), Some((7, renewed[1].own_bytes)));
    }

    #[tokio::test]
    async fn a_write_keeps_the_metadata_and_the_entries_that_it_is_told_to_keep() {
        let apiserver = Apiserver::default();
        let pairs = pairs();
        let both = pairs.iter().flat_map(|pair| pair.entries.clone()).collect();
        let mut configurations = Configurations::new(apiserver.client());
        configurations.write(0, both, |_| None).await.unwrap();
        apiserver.change(RESOURCE, "", "job-handler-limits", |stored| {
            stored["metadata"]["annotations"] = json!({"owner": "someone"});
        });
        configurations
            .write(0, pairs[0].entries.to_vec(), |name| {
                name.starts_with("b.").then(WebhookClientConfig::default)
            })
            .await
            .unwrap();
        assert!(configurations.has(0, &pairs[0]) && configurations.has(0, &pairs[1]));
        configurations.write(0, pairs[0].entries.to_vec(), |_| None).await.unwrap();
        assert!(configurations.has(0, &pairs[0]) && !configurations.has(0, &pairs[1]));
        let stored = apiserver.get(RESOURCE, "", "job-handler-limits").unwrap();
        assert_eq!(stored["metadata"]["annotations"]["owner"], "someone");
    }

    #[tokio::test]
    async fn changes_by_others_are_seen_and_late_events_are_ignored() {
        let apiserver = Apiserver::default();
        let pairs = pairs();
        let mut configurations = Configurations::new(apiserver.client());
        configurations.write(0, pairs[0].entries.to_vec(), |_| None).await.unwrap();
        apiserver.change(RESOURCE, "", "job-handler-limits", |stored| stored["webhooks"] = json!([]));
        configurations.changed().await;
        assert!(!configurations.has(0, &pairs[0]));
        let older: ValidatingWebhookConfiguration =
            serde_json::from_value(apiserver.get(RESOURCE, "", "job-handler-limits").unwrap()).unwrap();
        configurations.write(0, pairs[0].entries.to_vec(), |_| None).await.unwrap();
        assert!(!configurations.observe(0, Event::Apply(older.clone())));
        assert!(!configurations.observe(0, Event::Delete(older)));
        assert!(configurations.has(0, &pairs[0]));
        apiserver.remove(RESOURCE, "", "job-handler-limits");
        configurations.changed().await;
        assert_eq!(configurations.existing().count(), 0);
        // A deletion that the watch missed.
        configurations.write(0, pairs[0].entries.to_vec(), |_| None).await.unwrap();
        assert!(!configurations.observe(0, Event::Init) && configurations.observe(0, Event::InitDone));
        configurations.read_next().await.unwrap();
        assert!(configurations.has(0, &pairs[0]), "it is there");
    }
}
