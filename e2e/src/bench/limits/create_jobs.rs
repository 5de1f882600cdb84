//! Creates Jobs, one or many.

use futures::{StreamExt, TryStreamExt};
use kube::Client;

use crate::bench::reviews;
use crate::harness::error::{Error, Result};

/// Concurrent creates of [`create_all`].
const CLIENTS: usize = 20;

/// Creates a Job. The inner error is the message of a refusal.
pub(super) async fn create(client: &Client, namespace: &str, name: &str) -> Result<Result<(), String>> {
    let what = format!("creating the Job {namespace}/{name}");
    let request = http::Request::post(format!("/apis/batch/v1/namespaces/{namespace}/jobs"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(reviews::job(namespace, name).to_string().into_bytes())
        .map_err(|error| Error::Invalid(format!("{what}: {error}")))?;
    match client.request_text(request).await {
        Ok(_) => Ok(Ok(())),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Err(status.message.clone())),
        Err(error) => Err(Error::api(what)(error)),
    }
}

/// Creates this number of Jobs; a refusal is an error.
pub(super) async fn create_all(client: &Client, namespace: &str, prefix: &str, number: usize) -> Result<()> {
    let creating = (0..number).map(|n| {
        let (client, name) = (client.clone(), format!("{prefix}-{n}"));
        async move { create(&client, namespace, &name).await }
    });
    let refused: Vec<String> = futures::stream::iter(creating)
        .buffer_unordered(CLIENTS)
        .try_filter_map(|created| async move { Ok(created.err()) })
        .try_collect()
        .await?;
    match refused.first() {
        Some(message) => Err(Error::Invalid(format!("a Job in {namespace} was refused: {message}"))),
        None => Ok(()),
    }
}
