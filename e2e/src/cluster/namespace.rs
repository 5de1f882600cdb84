//! Namespaces of one's own.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};
use crate::harness::wait::wait_for;

/// A fresh namespace, deleted when this value is dropped (at the latest with the cluster).
#[derive(Debug)]
pub struct TestNamespace {
    name: String,
    config: kube::Config,
}

impl TestNamespace {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Deletes it now; its objects go in the background.
    ///
    /// # Errors
    /// If the API server refuses.
    pub async fn delete(&self) -> Result<()> {
        delete(self.config.clone(), &self.name).await
    }
}

impl std::ops::Deref for TestNamespace {
    type Target = str;

    fn deref(&self) -> &str {
        &self.name
    }
}

impl Cluster {
    /// Makes a namespace with a fresh name and waits until pods can be made in it.
    ///
    /// # Errors
    /// If the API server refuses, or the controllers do not make its ServiceAccount.
    pub async fn namespace(&self, prefix: &str) -> Result<TestNamespace> {
        let client = self.client();
        let namespace: Namespace = serde_json::from_value(
            json!({"metadata": {"generateName": format!("{prefix}-")}}),
        )
        .map_err(|error| Error::Invalid(format!("the namespace {prefix} is not a namespace: {error}")))?;
        let made = Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .map_err(Error::api(format!("making a namespace {prefix}-…")))?;
        let name = made.metadata.name.unwrap_or_default();
        let namespace = TestNamespace { name, config: self.config().clone() };
        let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace.name());
        wait_for(Duration::from_secs(30), "the namespace's default ServiceAccount", || {
            accounts.get("default")
        })
        .await?;
        Ok(namespace)
    }
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        let (config, name) = (self.config.clone(), self.name.clone());
        // Drop cannot wait on the test's runtime, which may be ending: a thread with its own does it.
        let deleted = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(delete(config, &name)))
        });
        // Best effort: the cluster may be gone already, and the namespace with it.
        let _ = deleted.join();
    }
}

async fn delete(config: kube::Config, name: &str) -> Result<()> {
    let deleting = || Error::api(format!("deleting the namespace {name}"));
    let client = kube::Client::try_from(config).map_err(deleting())?;
    let namespaces: Api<Namespace> = Api::all(client);
    let parameters = DeleteParams::default();
    match tokio::time::timeout(Duration::from_secs(5), namespaces.delete(name, &parameters)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.is_not_found() => Ok(()),
        Ok(Err(error)) => Err(deleting()(error)),
        Err(_) => Err(Error::Timeout {
            what: format!("the namespace {name} to be deleted"),
            waited: Duration::from_secs(5),
            last: "no answer".to_owned(),
        }),
    }
}
