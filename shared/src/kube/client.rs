//! One builder of clients: from `KUBECONFIG` or the pod's ServiceAccount, with our user agent and bounded times.

use std::time::Duration;

use http::{HeaderValue, header::USER_AGENT};
use kube::{Client, Config};

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a kubeconfig nor a pod's ServiceAccount.
    #[error(
        "no access to a cluster: {0}. Set KUBECONFIG, or run in a pod with a ServiceAccount (see manifests/base)"
    )]
    Config(#[source] Box<kube::config::InferConfigError>),
    /// The configuration cannot be used.
    #[error("the cluster's configuration cannot be used: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// A client for `program` (such as `job-handler-sink`); its user agent is `program/version`, so that audit logs and
/// API priority tell the programs apart.
///
/// # Errors
/// Where no cluster is configured, or its certificates or tokens cannot be read.
pub async fn build(program: &str, version: &str) -> Result<Client, ClientError> {
    let config = Config::infer().await.map_err(|e| ClientError::Config(Box::new(e)))?;
    with(config, program, version)
}

/// The same, whose calls give the first answer that comes, also where that is 429, 503 or 504: for callers who decide
/// themselves what such an answer means, and whom it is worth waiting for.
///
/// By default kube's client tries those again for minutes, so that a caller with a deadline learns of nothing but its
/// deadline; and a write that was answered by 504 may have been done, which a second one hides behind its 409.
///
/// # Errors
/// As [`build`].
pub async fn build_without_retries(program: &str, version: &str) -> Result<Client, ClientError> {
    let mut config = Config::infer().await.map_err(|e| ClientError::Config(Box::new(e)))?;
    config.default_retry = false;
    with(config, program, version)
}

/// The same as [`build`], for a cluster that was chosen otherwise.
///
/// # Errors
/// Where the configuration's certificates or tokens cannot be read.
pub fn with(mut config: Config, program: &str, version: &str) -> Result<Client, ClientError> {
    if let Ok(agent) = HeaderValue::from_str(&format!("{program}/{version}")) {
        config.headers.push((USER_AGENT, agent));
    }
    config.connect_timeout = Some(Duration::from_secs(5));
    // Longer than a watch's server-side timeout (290 s in kube-runtime), so that only dead connections hit it;
    // single calls are bounded by their callers.
    config.read_timeout = Some(Duration::from_secs(295));
    config.write_timeout = Some(Duration::from_secs(30));
    Client::try_from(config).map_err(|e| ClientError::Client(Box::new(e)))
}
