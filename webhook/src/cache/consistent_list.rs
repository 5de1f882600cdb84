//! A consistent LIST of Jobs, page by page, each Job cut down as it is read.

use std::{sync::Arc, time::Instant};

use http::Request;
use job_handler_shared::job::snapshot::JobSnapshot;
use job_handler_shared::{kube::error::status_code, process::error_chain::error_chain};
use kube::Client;
use serde::{Deserialize, Deserializer};

use crate::job_view::JobView;

/// Jobs per page: about 2 MiB of JSON.
const PAGE: usize = 500;
/// A continue token lives as long as etcd's compaction lets it (5 minutes); starting over once is enough.
const TRIES: usize = 2;

/// The Jobs of a namespace, or of all, as of one moment.
#[derive(Clone, Debug)]
pub struct JobListing {
    /// When the LIST began: it shows everything that was written before.
    pub began: Instant,
    /// resourceVersion of the LIST: it shows everything up to this, and nothing later. 0 where it is no number.
    pub version: u64,
    /// All Jobs.
    pub jobs: Vec<Arc<JobSnapshot>>,
}

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The apiserver refused, or did not answer.
    #[error("cannot list Jobs: {}", error_chain(.0))]
    Api(#[from] Box<kube::Error>),
    /// The request cannot be built.
    #[error("cannot ask for Jobs: {0}")]
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

/// A Job as it is kept: without what no decision about limits looks at, for there may be thousands.
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

/// All Jobs of a namespace, or of the cluster. No `resourceVersion` is asked for, which makes the LIST consistent: it
/// shows everything that was written before it began (KEP-2340); the pages that follow are of the same moment.
///
/// # Errors
/// Where the apiserver refuses or is away.
pub async fn jobs(client: &Client, namespace: Option<String>) -> Result<JobListing, ListError> {
    let began = Instant::now();
    let mut tries = 0;
    loop {
        tries += 1;
        let mut jobs = Vec::new();
        match pages(client, namespace.as_deref(), |page| jobs.extend(page)).await {
            Err(ListError::Api(error)) if tries < TRIES && is_expired(&error) => {}
            Err(error) => return Err(error),
            // Only what began with the last try counts as shown; an earlier `began` promises less, never more.
            Ok(version) => return Ok(JobListing { began, version, jobs }),
        }
    }
}

/// The same, page by page. Returns the resourceVersion of which all of them are, 0 where it is no number.
///
/// # Errors
/// Where the apiserver refuses or is away, or takes so long that it has forgotten what the first page was of (410).
pub async fn pages(
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
        let request = Request::get(format!("{path}?limit={PAGE}{token}")).body(Vec::new())?;
        let JobPage { metadata, items } = client.request(request).await.map_err(Box::new)?;
        page(items.into_iter().map(|item| item.0).collect());
        more = metadata.more.filter(|token| !token.is_empty());
        if more.is_none() {
            return Ok(metadata.resource_version.parse().unwrap_or(0));
        }
    }
}

/// A Job as it is now, by `namespace/name`; nothing where it is gone. No `resourceVersion` is asked for, which makes it a
/// quorum read.
///
/// # Errors
/// Where the apiserver refuses or is away.
pub async fn job(client: &Client, key: &str) -> Result<Option<Arc<JobSnapshot>>, ListError> {
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
