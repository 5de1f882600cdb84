//! The ledger objects: read, made, written by resourceVersion.

use std::{future::Future, sync::Arc, time::Duration};

use job_handler_shared::kube::error::{ApiError, call_within, status_code};
use job_handler_shared::ledger::crd::{JobLedger, JobLedgerSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::{Api, Client, ResourceExt, api::PostParams};

use crate::ledger::write_order;

/// A call that takes longer is given up; whether it was a write that was done is then found out by reading.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a call that is turned away by 429 is made: all within [`CALL_TIMEOUT`], so that what is told is the 429.
const TRIES: usize = 2;
/// What the apiserver's Retry-After asks for where it throttles (k8s.io/apiserver, pkg/server/filters).
const THROTTLED: Duration = Duration::from_secs(1);

/// Annotation of a ledger: which processes wrote it last. For [`super::turns`] alone.
const WRITERS: &str = "job-handler/writers";

/// All ledgers.
#[derive(Clone, Debug)]
pub struct LedgerClient {
    api: Api<JobLedger>,
    writer: Arc<str>,
}

/// Which processes wrote a ledger last, as [`turns`] has it.
pub fn writers(ledger: &JobLedger) -> &str {
    ledger.annotations().get(WRITERS).map_or("", String::as_str)
}

/// What became of a write.
#[derive(Debug)]
pub enum WriteResult {
    /// It is stored, as this.
    Written(Box<JobLedger>),
    /// Somebody else wrote first; nothing was written.
    Conflict,
    /// Nobody knows: it may be stored, or be stored yet.
    Unknown(String),
    /// It was refused; nothing was written.
    Rejected(String),
}

impl LedgerClient {
    /// Of the pair's own namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        // Random, so that two are not taken for one.
        let writer = format!("{:08x}", fastrand::u32(..));
        Self { api: Api::namespaced(client, namespace), writer: writer.into() }
    }

    /// For watching.
    pub fn api(&self) -> Api<JobLedger> {
        self.api.clone()
    }

    /// This process, as [`writers`] tells.
    pub fn writer_id(&self) -> &str {
        &self.writer
    }

    /// A ledger as it is now (a quorum read); none where there is none.
    ///
    /// # Errors
    /// For people.
    pub async fn read(&self, name: &str) -> Result<Option<JobLedger>, String> {
        let what = format!("read JobLedger {name}");
        match call_within(CALL_TIMEOUT, &what, retry_throttled(|| self.api.get(name))).await {
            Ok(ledger) => Ok(Some(ledger)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Makes an empty one.
    pub async fn create_empty(&self, name: &str) -> WriteResult {
        let ledger = JobLedger::new(name, JobLedgerSpec::empty());
        let params = PostParams::default();
        let what = format!("create JobLedger {name}");
        match call_within(CALL_TIMEOUT, &what, retry_throttled(|| self.api.create(&params, &ledger))).await {
            Err(error) if error.is_not_found() => WriteResult::Rejected(
                "the cluster has no jobledgers.job-handler.io, or our namespace is gone: apply manifests/base"
                    .to_owned(),
            ),
            response => classify(response),
        }
    }

    /// Writes one, if it is still as it was read.
    pub async fn replace(&self, name: &str, mut ledger: JobLedger) -> WriteResult {
        let params = PostParams::default();
        // One empty entry takes them out, and an object that has none is not tracked (apimachinery's fieldmanager.go and
        // skipnonapplied.go): who owns which attempt is of no use to anybody, and work for the apiserver at every write.
        ledger.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
        let writers = write_order::after(&self.writer, writers(&ledger));
        ledger.annotations_mut().insert(WRITERS.to_owned(), writers);
        let what = format!("write JobLedger {name}");
        let call = retry_throttled(|| self.api.replace(name, &params, &ledger));
        classify(call_within(CALL_TIMEOUT, &what, call).await)
    }
}

/// Retries a throttled call a few times; the apiserver did nothing yet.
async fn retry_throttled<T, F: Future<Output = kube::Result<T>>>(call: impl Fn() -> F) -> kube::Result<T> {
    for _ in 1..TRIES {
        match call().await {
            Err(error) if status_code(&error) == Some(429) => tokio::time::sleep(THROTTLED).await,
            response => return response,
        }
    }
    call().await
}

fn classify(response: Result<JobLedger, ApiError>) -> WriteResult {
    match response {
        Ok(ledger) => WriteResult::Written(Box::new(ledger)),
        // A ledger that somebody deleted meanwhile is a conflict, too.
        Err(error) if error.is_not_found() || error.is_conflict() => WriteResult::Conflict,
        Err(error) if error.is_throttled() => {
            WriteResult::Rejected(format!("{error}; the apiserver is overloaded"))
        }
        Err(error) if error.is_transient() => WriteResult::Unknown(error.to_string()),
        Err(error) => WriteResult::Rejected(error.to_string()),
    }
}
