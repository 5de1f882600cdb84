//! Which cluster, as whom: as kubectl would.

use job_handler_shared::kube::client;
use job_handler_shared::process::error_chain::error_chain;
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{
    ReadError,
    cli::{Access, Storage},
    source::{Source, StorageKind},
};

/// A way to results; `all`: of every namespace.
///
/// # Errors
/// Where the kubeconfig cannot be used.
pub async fn connect(access: &Access, all: bool) -> Result<Source, ReadError> {
    let config = config(access).await?;
    let namespace = access.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = client::with(config, crate::PROGRAM, env!("CARGO_PKG_VERSION"))
        .map_err(|e| ReadError::Access(e.to_string()))?;
    let kinds = match access.storage {
        None => vec![StorageKind::ConfigMap, StorageKind::Secret],
        Some(Storage::ConfigMap) => vec![StorageKind::ConfigMap],
        Some(Storage::Secret) => vec![StorageKind::Secret],
    };
    Ok(Source { client, namespace: (!all).then_some(namespace), kinds, asked: access.storage.is_some() })
}

/// The contexts of the kubeconfig, for completion.
pub fn contexts(file: Option<&std::path::Path>) -> Vec<String> {
    let kubeconfig = match file {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    };
    kubeconfig.map(|k| k.contexts.into_iter().map(|c| c.name).collect()).unwrap_or_default()
}

async fn config(access: &Access) -> Result<Config, ReadError> {
    let options = KubeConfigOptions {
        context: access.context.clone(),
        cluster: access.cluster.clone(),
        user: access.user.clone(),
    };
    let chosen = options.context.is_some() || options.cluster.is_some() || options.user.is_some();
    let unusable = |error: &dyn std::error::Error| {
        ReadError::Access(format!("the kubeconfig cannot be used: {}", error_chain(error)))
    };
    let mut config = match &access.kubeconfig {
        Some(file) => {
            let kubeconfig = Kubeconfig::read_from(file).map_err(|e| unusable(&e))?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|e| unusable(&e))?
        }
        None if chosen => Config::from_kubeconfig(&options).await.map_err(|e| unusable(&e))?,
        // Also within a pod.
        None => Config::infer().await.map_err(|e| {
            let error = error_chain(&e);
            ReadError::Access(format!(
                "no access to a cluster: {error}. Set KUBECONFIG, or give --kubeconfig FILE"
            ))
        })?,
    };
    if access.impersonate.is_some() {
        config.auth_info.impersonate.clone_from(&access.impersonate);
    }
    if !access.impersonate_group.is_empty() {
        config.auth_info.impersonate_groups = Some(access.impersonate_group.clone());
    }
    Ok(config)
}
