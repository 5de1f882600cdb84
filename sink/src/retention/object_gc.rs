//! Sweeps folders of which no result tells: a sink was stopped between an upload and its result, or between a result's
//! removal and that of its objects.
//!
//! Jobs that are there and not retired may be in the middle of a harvest; their folders stay. A folder goes only once it
//! was without a result twice. Nothing is swept where another cluster's sink has been before, which a mark in the store
//! tells: its Jobs are not known here.

use std::collections::BTreeSet;

use job_handler_shared::kube::error::call;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt, api::ListParams};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, path::Path as Key};

use crate::{jobs::marks, model::job_change::Uid, object_store::FullLogStore, observe::store::Store};

/// The object that tells whose the store is.
const MARK: &str = ".job-handler-cluster";

/// Sweeps for ever, where there is a store.
pub async fn keep(objects: Option<FullLogStore>, client: Client, store: Store) {
    let Some(objects) = objects else { return };
    let mut suspects = BTreeSet::new();
    let mut warned = false;
    loop {
        match sweep(&objects, &client, &store, &suspects).await {
            Ok(now) => (suspects, warned) = (now, false),
            Err(why) if warned => tracing::debug!("looking for objects without a result: {why}"),
            Err(why) => {
                tracing::warn!("looking for objects without a result: {why}; trying again");
                warned = true;
            }
        }
        tokio::time::sleep(objects.0.gc_interval).await;
    }
}

/// Namespace and uid of a Job.
pub type Folder = (String, Uid);

/// Removes folders that were without a result the last time, too; gives those that are without one now.
///
/// # Errors
/// Where the store cannot be read, or is another cluster's.
pub async fn sweep(
    objects: &FullLogStore,
    client: &Client,
    store: &Store,
    suspects: &BTreeSet<Folder>,
) -> Result<BTreeSet<Folder>, String> {
    objects.own(client).await?;
    let mut now = BTreeSet::new();
    for folder in objects.folders().await? {
        if !is_orphan(store, &folder.1) {
            continue;
        }
        if !suspects.contains(&folder) {
            now.insert(folder);
            continue;
        }
        let (namespace, uid) = &folder;
        let number = objects.remove(namespace, uid).await?;
        objects.0.folders_deleted.inc();
        tracing::info!(
            namespace,
            job_uid = uid,
            objects = number,
            "objects removed: no result tells of them"
        );
    }
    Ok(now)
}

fn is_orphan(store: &Store, uid: &str) -> bool {
    match store.inventory().objects(uid) {
        // What a result without its note tells is not known.
        Some(objects) => objects == Some(0),
        None => {
            let awaited = store.job(uid).is_some_and(|job| !marks::is_result_removed(&job));
            !awaited && store.deleted_job(uid).is_none()
        }
    }
}

impl FullLogStore {
    /// Marks the store as this cluster's, by the uid of its namespace `kube-system`, which lives as long as a cluster.
    async fn own(&self, client: &Client) -> Result<(), String> {
        let params = ListParams::default().fields("metadata.name=kube-system");
        let api = Api::<Namespace>::all(client.clone());
        let listed = call("get namespace kube-system", api.list(&params)).await;
        let listed = listed.map_err(|error| error.to_string())?;
        let Some(own) = listed.items.first().and_then(ResourceExt::uid) else {
            return Err("there is no namespace kube-system to tell this cluster by".to_owned());
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
            "{}/{MARK} says that it is another cluster's (uid {known} of its namespace kube-system; ours has {own}): \
             nothing is swept; give each cluster a prefix of its own",
            self.0.url
        ))
    }

    async fn mark(&self) -> Result<Option<String>, String> {
        let key = self.0.base.clone().join(MARK);
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
        let key = self.0.base.clone().join(MARK);
        let mark = || PutPayload::from(own.to_owned());
        let write = async {
            match self.0.store.put_opts(&key, mark(), PutMode::Create.into()).await {
                // Another's is there by now, as will be read.
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    Ok(())
                }
                // Not every compatible store knows conditions.
                Err(_) => self.0.store.put(&key, mark()).await.map(drop),
                Ok(_) => Ok(()),
            }
        };
        self.call(write).await
    }

    /// All folders of Jobs.
    async fn folders(&self) -> Result<Vec<Folder>, String> {
        let mut folders = Vec::new();
        for namespace in self.below(&self.0.base).await? {
            for job in self.below(&namespace).await? {
                let mut parts: Vec<_> = job.parts().map(|part| part.as_ref().to_owned()).collect();
                let last = parts.pop().zip(parts.pop());
                folders.extend(last.map(|(uid, namespace)| (namespace, uid)));
            }
        }
        Ok(folders)
    }

    async fn below(&self, folder: &Key) -> Result<Vec<Key>, String> {
        let folder = Some(folder).filter(|key| key.parts().next().is_some());
        self.call(self.0.store.list_with_delimiter(folder)).await.map(|found| found.common_prefixes)
    }
}
