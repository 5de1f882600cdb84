//! Namespaces for tests.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};
use crate::harness::wait::wait_for;

/// A new namespace, deleted when this value is dropped.
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

    /// Deletes it; its objects are deleted in the background.
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
    /// Creates a namespace with a generated name and waits until pods can be created in it.
    ///
    /// # Errors
    /// If the API server refuses, or the controllers do not create its ServiceAccount.
    pub async fn namespace(&self, prefix: &str) -> Result<TestNamespace> {
        let client = self.client();
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"generateName": format!("{prefix}-")}})).map_err(
                |error| Error::Invalid(format!("the namespace {prefix} is not a valid namespace: {error}")),
            )?;
        let made = Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .map_err(Error::api(format!("creating a namespace {prefix}-…")))?;
        let name = made.metadata.name.unwrap_or_default();
        let namespace = TestNamespace { name, config: self.config().clone() };
        let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace.name());
        wait_for(Duration::from_secs(60), "the namespace's default ServiceAccount", || {
            accounts.get("default")
        })
        .await?;
        Ok(namespace)
    }
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        let (config, name) = (self.config.clone(), self.name.clone());
        // The test's runtime may be ending, so a thread with its own runtime deletes the namespace.
        let deleted = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(delete(config, &name)))
        });
        // Best effort: the cluster may have ended already.
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
