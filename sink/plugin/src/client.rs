//! The connection to the cluster, configured as kubectl configures its own.

use job_handler_shared::kube::client;
use job_handler_shared::process::error_chain::error_chain;
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{cli::ClusterArgs, error::PluginError, result_source::ResultSource};

/// # Errors
/// If the kubeconfig cannot be used.
pub(crate) async fn connect(args: &ClusterArgs, all_namespaces: bool) -> Result<ResultSource, PluginError> {
    let config = load_config(args).await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = client::with(config, crate::PROGRAM, env!("CARGO_PKG_VERSION"))
        .map_err(|e| PluginError::Access(e.to_string()))?;
    Ok(ResultSource::new(client, (!all_namespaces).then_some(namespace), args.storage.map(Into::into)))
}

/// Names of the contexts of the kubeconfig; none if it cannot be read.
pub(crate) fn context_names(file: Option<&std::path::Path>) -> Vec<String> {
    let kubeconfig = match file {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    };
    kubeconfig.map(|k| k.contexts.into_iter().map(|c| c.name).collect()).unwrap_or_default()
}

async fn load_config(args: &ClusterArgs) -> Result<Config, PluginError> {
    let options = KubeConfigOptions {
        context: args.context.clone(),
        cluster: args.cluster.clone(),
        user: args.user.clone(),
    };
    let has_options = options.context.is_some() || options.cluster.is_some() || options.user.is_some();
    let unusable = |error: &dyn std::error::Error| {
        PluginError::Access(format!("cannot use the kubeconfig: {}", error_chain(error)))
    };
    let mut config = match &args.kubeconfig {
        Some(file) => {
            let kubeconfig = Kubeconfig::read_from(file).map_err(|e| unusable(&e))?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|e| unusable(&e))?
        }
        None if has_options => Config::from_kubeconfig(&options).await.map_err(|e| unusable(&e))?,
        // Also works in a pod, with its ServiceAccount.
        None => Config::infer().await.map_err(|e| {
            let error = error_chain(&e);
            PluginError::Access(format!(
                "cannot find a cluster: {error}. Set KUBECONFIG, or use --kubeconfig FILE"
            ))
        })?,
    };
    if args.impersonate.is_some() {
        config.auth_info.impersonate.clone_from(&args.impersonate);
    }
    if !args.impersonate_group.is_empty() {
        config.auth_info.impersonate_groups = Some(args.impersonate_group.clone());
    }
    Ok(config)
}
