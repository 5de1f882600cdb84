//! Consistent reads of Jobs. Each Job is reduced as it is read.

use std::sync::Arc;

use http::Request;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    kube::{
        error::status_code,
        raw_reads::{self, ReadTarget, escape},
    },
    policy::label_keys::NamespaceLabelKeys,
    process::error_chain::error_chain,
};
use kube::Client;
use tokio::sync::Semaphore;

use crate::{cache::jobs::JobCache, job_view::read_trimmed};

/// A continue token lives until etcd compacts its version (5 minutes), so starting over once is enough.
const ATTEMPTS: usize = 2;

/// Bounds the Jobs of a process that are in memory as JSON: each may take 7 MiB.
static WHOLE_JOBS: Semaphore = Semaphore::const_new(2);

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
#[error("cannot list Jobs: {}", error_chain(.0))]
pub(crate) struct ListError(#[from] Box<kube::Error>);

/// Reads a Job as decisions about limits need it, with the labels of the keys of its namespace: there may be thousands.
///
/// # Errors
/// If the JSON is no Job.
pub fn read_job(json: &[u8], keys: &NamespaceLabelKeys) -> serde_json::Result<JobSnapshot> {
    let mut job = read_trimmed(json, keys)?;
    job.annotations.clear();
    if let Some(finished) = &mut job.finished {
        (finished.reason, finished.message) = (String::new(), String::new());
    }
    Ok(job)
}

/// Lists the Jobs of a namespace, or of the cluster, as [`raw_reads::list`] does. Jobs that the cache has in the same
/// version are taken from there, so that a list does not double the memory.
///
/// # Errors
/// If the apiserver refuses or does not answer.
pub(crate) async fn list_jobs(
    client: &Client,
    namespace: Option<&str>,
    keys: &NamespaceLabelKeys,
    cache: &JobCache,
) -> Result<JobListing, ListError> {
    let path = match namespace {
        Some(namespace) => format!("/apis/batch/v1/namespaces/{}/jobs", escape(namespace)),
        None => "/apis/batch/v1/jobs".to_owned(),
    };
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut jobs = Vec::new();
        let list = raw_reads::list(client, ReadTarget::path(&*path), |json| {
            let job = read_job(json, keys)?;
            let known = cache.find_same(&job).filter(|known| known.knows_labels(keys.of(&job.namespace)));
            jobs.push(known.unwrap_or_else(|| Arc::new(job)));
            Ok(())
        });
        match list.await {
            Err(error) if attempts < ATTEMPTS && status_code(&error) == Some(410) => {}
            Err(error) => return Err(Box::new(error).into()),
            Ok(version) => return Ok(JobListing { version, jobs }),
        }
    }
}

/// Reads a Job by `namespace/name`; `None` if it does not exist. The request names no `resourceVersion`, which makes it a
/// quorum read.
///
/// # Errors
/// If the apiserver refuses or does not answer.
pub(crate) async fn get_job(
    client: &Client,
    key: &str,
    keys: &NamespaceLabelKeys,
) -> Result<Option<Arc<JobSnapshot>>, ListError> {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    let path = format!("/apis/batch/v1/namespaces/{}/jobs/{}", escape(namespace), escape(name));
    let broken = |error| ListError(Box::new(error));
    let request =
        Request::get(path).body(Vec::new()).map_err(|error| broken(kube::Error::HttpError(error)))?;
    match raw_reads::object(client, request, &WHOLE_JOBS, |json| read_job(json, keys)).await {
        Ok(job) => Ok(Some(Arc::new(job))),
        Err(error) if status_code(&error) == Some(404) => Ok(None),
        Err(error) => Err(broken(error)),
    }
}
