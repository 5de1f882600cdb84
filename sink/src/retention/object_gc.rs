//! Deletes folders of the object store that no result names: a sink was stopped between an upload and its result, or between
//! the deletion of a result and that of its objects.
//!
//! Folders of existing Jobs that are not retired stay: their harvest may be in progress. A folder is deleted on the second
//! check that finds it without a result. If a mark in the store names another cluster, nothing is deleted, because its Jobs
//! are unknown here.

use std::{collections::BTreeSet, convert::Infallible};

use job_handler_shared::kube::error::call;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt, api::ListParams};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, path::Path as Key};

use crate::{model::job_change::Uid, object_store::FullLogStore, observe::store::Store};

/// Object that names the cluster.
const CLUSTER_MARK: &str = ".job-handler-cluster";

/// Runs while this sink is the leader, if an object store is configured.
pub(crate) async fn run(objects: Option<FullLogStore>, client: Client, store: Store) -> Infallible {
    let Some(objects) = objects else { return std::future::pending().await };
    let mut suspects = BTreeSet::new();
    let mut warned = false;
    loop {
        match delete_orphaned_folders(&objects, &client, &store, &suspects).await {
            Ok(now) => (suspects, warned) = (now, false),
            Err(why) if warned => tracing::debug!("checking for objects without a result: {why}"),
            Err(why) => {
                tracing::warn!("checking for objects without a result: {why}; retrying");
                warned = true;
            }
        }
        tokio::time::sleep(objects.0.gc_interval).await;
    }
}

/// Namespace and uid of a Job.
pub(crate) type JobFolder = (String, Uid);

/// Deletes folders that no result named on the last check either; returns those that none names now.
///
/// # Errors
/// If the store cannot be read, or belongs to another cluster.
pub async fn delete_orphaned_folders(
    objects: &FullLogStore,
    client: &Client,
    store: &Store,
    suspects: &BTreeSet<JobFolder>,
) -> Result<BTreeSet<JobFolder>, String> {
    objects.claim(client).await?;
    let mut now = BTreeSet::new();
    for folder in objects.folders().await? {
        // Results of other namespaces are not known.
        if !store.served.contains(&folder.0) || !is_orphan(store, &folder) {
            continue;
        }
        if !suspects.contains(&folder) {
            now.insert(folder);
            continue;
        }
        let (namespace, uid) = &folder;
        let number = objects.remove(namespace, uid).await?;
        objects.0.folders_deleted.inc();
        tracing::info!(namespace, job_uid = uid, objects = number, "deleted objects that no result names");
    }
    Ok(now)
}

fn is_orphan(store: &Store, (namespace, uid): &JobFolder) -> bool {
    let named = store.inventory().objects(namespace, uid);
    // A result without the annotation may have objects.
    named.is_none_or(|objects| objects == Some(0)) && !store.awaits_result(namespace, uid, named.is_some())
}

impl FullLogStore {
    /// Marks the store with the uid of namespace `kube-system`, which lives as long as the cluster; fails if another cluster's
    /// mark exists.
    async fn claim(&self, client: &Client) -> Result<(), String> {
        let params = ListParams::default().fields("metadata.name=kube-system");
        let api = Api::<Namespace>::all(client.clone());
        let listed = call("get namespace kube-system", api.list(&params)).await;
        let listed = listed.map_err(|error| error.to_string())?;
        let Some(own) = listed.items.first().and_then(ResourceExt::uid) else {
            return Err("no namespace kube-system identifies this cluster".to_owned());
        };
        let known = match self.mark().await? {
            Some(known) => known,
            None => {
                self.set_mark(&own).await?;
                self.mark().await?.unwrap_or_default()
            }
        };
        if known == own {
            return Ok(());
        }
        Err(format!(
            "{}/{CLUSTER_MARK} belongs to another cluster (uid {known} of its namespace kube-system; ours has {own}): no objects \
             are deleted; give each cluster its own prefix",
            self.0.url
        ))
    }

    async fn mark(&self) -> Result<Option<String>, String> {
        let key = self.0.base.clone().join(CLUSTER_MARK);
        let read = async {
            match self.0.store.get(&key).await {
                Ok(found) => found.bytes().await.map(Some),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        Ok(self.call(read).await?.map(|mark| String::from_utf8_lossy(&mark).into_owned()))
    }

    async fn set_mark(&self, own: &str) -> Result<(), String> {
        let key = self.0.base.clone().join(CLUSTER_MARK);
        let mark = || PutPayload::from(own.to_owned());
        let write = async {
            match self.0.store.put_opts(&key, mark(), PutMode::Create.into()).await {
                // Another process was faster; the caller reads its mark.
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    Ok(())
                }
                // Not every compatible store supports conditions.
                Err(_) => self.0.store.put(&key, mark()).await.map(drop),
                Ok(_) => Ok(()),
            }
        };
        self.call(write).await
    }

    async fn folders(&self) -> Result<Vec<JobFolder>, String> {
        let mut folders = Vec::new();
        for namespace in self.subfolders(&self.0.base).await? {
            for job in self.subfolders(&namespace).await? {
                let mut parts: Vec<_> = job.parts().map(|part| part.as_ref().to_owned()).collect();
                let last = parts.pop().zip(parts.pop());
                folders.extend(last.map(|(uid, namespace)| (namespace, uid)));
            }
        }
        Ok(folders)
    }

    async fn subfolders(&self, folder: &Key) -> Result<Vec<Key>, String> {
        let folder = Some(folder).filter(|key| key.parts().next().is_some());
        self.call(self.0.store.list_with_delimiter(folder)).await.map(|found| found.common_prefixes)
    }
}
