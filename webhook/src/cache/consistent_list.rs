//! Consistent reads of Jobs, page by page. Each Job is reduced as it is read.

use std::sync::Arc;

use http::Request;
use job_handler_shared::job::snapshot::JobSnapshot;
use job_handler_shared::{kube::error::status_code, process::error_chain::error_chain};
use kube::Client;
use serde::{Deserialize, Deserializer};

use crate::job_view::JobView;

/// Jobs per page: about 2 MiB of JSON.
const PAGE_SIZE: usize = 500;
/// A continue token lives until etcd compacts its version (5 minutes), so starting over once is enough.
const ATTEMPTS: usize = 2;

/// The Jobs of a namespace, or of the cluster, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct JobListing {
    /// resourceVersion of the list, which shows every write up to it and none after it; 0 if that is not a number.
    pub version: u64,
    /// The Jobs.
    pub jobs: Vec<Arc<JobSnapshot>>,
}

/// Why Jobs could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    /// The apiserver refused or did not answer.
    #[error("cannot list Jobs: {}", error_chain(.0))]
    Api(#[from] Box<kube::Error>),
    /// The request could not be built.
    #[error("cannot build the request for Jobs: {0}")]
    Request(#[from] http::Error),
}

#[derive(Deserialize)]
struct JobPage {
    metadata: JobPageMeta,
    #[serde(default = "Vec::new", deserialize_with = "null_is_empty")]
    items: Vec<ListedJob>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JobPageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    more: Option<String>,
}

/// A Job as read, reduced to what decisions about limits need: there may be thousands.
#[derive(Clone, Debug)]
pub struct ListedJob(pub Arc<JobSnapshot>);

impl<'de> Deserialize<'de> for ListedJob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut job = JobView::deserialize(deserializer)?.snapshot;
        job.annotations.clear();
        if let Some(finished) = &mut job.finished {
            (finished.reason, finished.message) = (String::new(), String::new());
        }
        Ok(Self(Arc::new(job)))
    }
}

fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ListedJob>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Lists the Jobs of a namespace, or of the cluster. The request names no `resourceVersion`, which makes the LIST
/// consistent: it shows every write before it began (KEP-2340). Further pages are of the same moment.
///
/// # Errors
/// If the apiserver refuses or does not answer.
pub(crate) async fn list_jobs(client: &Client, namespace: Option<String>) -> Result<JobListing, ListError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut jobs = Vec::new();
        match list_pages(client, namespace.as_deref(), |page| jobs.extend(page)).await {
            Err(ListError::Api(error)) if attempts < ATTEMPTS && is_expired(&error) => {}
            Err(error) => return Err(error),
            Ok(version) => return Ok(JobListing { version, jobs }),
        }
    }
}

/// Lists Jobs and passes on each page. Returns the resourceVersion of the list, 0 if that is not a number.
///
/// # Errors
/// If the apiserver refuses or does not answer, or if the continue token has expired (410).
pub(crate) async fn list_pages(
    client: &Client,
    namespace: Option<&str>,
    mut page: impl FnMut(Vec<Arc<JobSnapshot>>),
) -> Result<u64, ListError> {
    let path = match namespace {
        Some(namespace) => format!("/apis/batch/v1/namespaces/{}/jobs", escape(namespace)),
        None => "/apis/batch/v1/jobs".to_owned(),
    };
    let mut more: Option<String> = None;
    loop {
        let token = more.map(|token| format!("&continue={}", escape(&token))).unwrap_or_default();
        let request = Request::get(format!("{path}?limit={PAGE_SIZE}{token}")).body(Vec::new())?;
        let JobPage { metadata, items } = client.request(request).await.map_err(Box::new)?;
        page(items.into_iter().map(|item| item.0).collect());
        more = metadata.more.filter(|token| !token.is_empty());
        if more.is_none() {
            return Ok(metadata.resource_version.parse().unwrap_or(0));
        }
    }
}

/// Reads a Job by `namespace/name`; `None` if it does not exist. The request names no `resourceVersion`, which makes it a
/// quorum read.
///
/// # Errors
/// If the apiserver refuses or does not answer.
pub(crate) async fn get_job(client: &Client, key: &str) -> Result<Option<Arc<JobSnapshot>>, ListError> {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    let path = format!("/apis/batch/v1/namespaces/{}/jobs/{}", escape(namespace), escape(name));
    match client.request::<ListedJob>(Request::get(path).body(Vec::new())?).await {
        Ok(ListedJob(job)) => Ok(Some(job)),
        Err(error) if status_code(&error) == Some(404) => Ok(None),
        Err(error) => Err(Box::new(error).into()),
    }
}

fn is_expired(error: &kube::Error) -> bool {
    status_code(error) == Some(410)
}

/// Percent-encodes everything but unreserved characters (RFC 3986).
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
