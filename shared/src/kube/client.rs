//! Builds clients from `KUBECONFIG` or the pod's ServiceAccount, with user agent and timeouts.

use std::time::Duration;

use http::{HeaderValue, header::USER_AGENT};
use kube::{Client, Config};

/// A client that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a kubeconfig nor a ServiceAccount was found.
    #[error(
        "no access to a cluster: {0}. Set KUBECONFIG, or run in a pod with a ServiceAccount (see manifests/base)"
    )]
    Config(#[source] Box<kube::config::InferConfigError>),
    /// The configuration cannot be used.
    #[error("the cluster's configuration cannot be used: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// Builds a client for `program` (such as `job-handler-sink`) with user agent `program/version`, by which audit logs and API
/// priority distinguish the programs.
///
/// # Errors
/// Fails if no cluster is configured, or its certificates or tokens cannot be read.
pub async fn build(program: &str, version: &str) -> Result<Client, ClientError> {
    let config = Config::infer().await.map_err(|e| ClientError::Config(Box::new(e)))?;
    with(config, program, version)
}

/// Builds a client that does not retry responses 429, 503 and 504. By default kube's client retries them for minutes: a
/// caller with a deadline would see nothing but a timeout, and a write that got a 504 may have been done, which its retry
/// hides behind a 409.
///
/// # Errors
/// Fails like [`build`].
pub async fn build_without_retries(program: &str, version: &str) -> Result<Client, ClientError> {
    let mut config = Config::infer().await.map_err(|e| ClientError::Config(Box::new(e)))?;
    config.default_retry = false;
    with(config, program, version)
}

/// Like [`build`], for a configuration that the caller has loaded.
///
/// # Errors
/// Fails if certificates or tokens of the configuration cannot be read.
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
