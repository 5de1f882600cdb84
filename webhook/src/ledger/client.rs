//! Reads, creates and replaces ledger objects.

use std::{future::Future, sync::Arc, time::Duration};

use job_handler_shared::kube::error::{ApiError, call_within, status_code};
use job_handler_shared::ledger::crd::{JobLedger, JobLedgerSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::{Api, Client, ResourceExt, api::PostParams};

use crate::ledger::write_order;

/// After this time a call is given up. Whether a write was stored is then found out by reading.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a call that gets a 429 is made. All fit within [`CALL_TIMEOUT`], so that the reported error is the 429.
const CALLS: usize = 2;
/// The apiserver's Retry-After when it throttles (k8s.io/apiserver, pkg/server/filters).
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Annotation of a ledger: the processes that wrote its last versions, newest first. Only [`write_order`] reads it.
const WRITERS: &str = "job-handler/writers";

/// Accesses the ledgers of one namespace.
#[derive(Clone, Debug)]
pub struct LedgerClient {
    api: Api<JobLedger>,
    writer: Arc<str>,
}

/// The processes that wrote a ledger's last versions, newest first.
pub(crate) fn writers(ledger: &JobLedger) -> &str {
    ledger.annotations().get(WRITERS).map_or("", String::as_str)
}

/// The result of a write.
#[derive(Debug)]
pub(crate) enum WriteResult {
    /// It was stored as this version.
    Written(Box<JobLedger>),
    /// Another write came first; nothing was stored.
    Conflict,
    /// It may have been stored, or may still be.
    Unknown(String),
    /// The apiserver rejected these contents, and will again; nothing was stored.
    Rejected(String),
    /// Nothing was stored; the same write may succeed later.
    Failed(String),
}

impl LedgerClient {
    /// Accesses the ledgers in `namespace`.
    pub fn new(client: Client, namespace: &str) -> Self {
        // Random, so that no two processes share it.
        let writer = format!("{:08x}", fastrand::u32(..));
        Self { api: Api::namespaced(client, namespace), writer: writer.into() }
    }

    /// The API for a watch.
    pub(crate) fn api(&self) -> Api<JobLedger> {
        self.api.clone()
    }

    /// The id of this process in the annotation `job-handler/writers`.
    pub fn writer_id(&self) -> &str {
        &self.writer
    }

    /// Reads a ledger by a quorum read; `None` if it does not exist.
    ///
    /// # Errors
    /// An explanation for the caller of the webhook.
    pub(crate) async fn read(&self, name: &str) -> Result<Option<JobLedger>, String> {
        let what = format!("read JobLedger {name}");
        match call_within(CALL_TIMEOUT, &what, retry_throttled(|| self.api.get(name))).await {
            Ok(ledger) => Ok(Some(ledger)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Creates an empty ledger.
    pub(crate) async fn create_empty(&self, name: &str) -> WriteResult {
        let ledger = JobLedger::new(name, JobLedgerSpec::empty());
        let params = PostParams::default();
        let what = format!("create JobLedger {name}");
        match call_within(CALL_TIMEOUT, &what, retry_throttled(|| self.api.create(&params, &ledger))).await {
            Err(error) if error.is_not_found() => WriteResult::Failed(
                "the cluster has no jobledgers.job-handler.io, or the namespace of job-handler is missing: apply manifests/base"
                    .to_owned(),
            ),
            response => classify(response),
        }
    }

    /// Replaces a ledger if its resourceVersion is still the stored one.
    pub(crate) async fn replace(&self, name: &str, mut ledger: JobLedger) -> WriteResult {
        let params = PostParams::default();
        // One empty entry removes the managed fields, and an object without them is not tracked (apimachinery's
        // fieldmanager.go and skipnonapplied.go). Tracking the owner of each attempt would cost the apiserver at every
        // write.
        ledger.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
        let writers = write_order::with_writer(&self.writer, writers(&ledger));
        ledger.annotations_mut().insert(WRITERS.to_owned(), writers);
        let what = format!("write JobLedger {name}");
        let call = retry_throttled(|| self.api.replace(name, &params, &ledger));
        classify(call_within(CALL_TIMEOUT, &what, call).await)
    }
}

/// Repeats a throttled call: after a 429 nothing was tried.
async fn retry_throttled<T, F: Future<Output = kube::Result<T>>>(call: impl Fn() -> F) -> kube::Result<T> {
    for _ in 1..CALLS {
        match call().await {
            Err(error) if status_code(&error) == Some(429) => tokio::time::sleep(RETRY_AFTER).await,
            response => return response,
        }
    }
    call().await
}

fn classify(response: Result<JobLedger, ApiError>) -> WriteResult {
    match response {
        Ok(ledger) => WriteResult::Written(Box::new(ledger)),
        // Not found: the ledger was deleted meanwhile.
        Err(error) if error.is_not_found() || error.is_conflict() => WriteResult::Conflict,
        Err(error) if error.is_throttled() => {
            WriteResult::Failed(format!("{error}; the apiserver is overloaded"))
        }
        Err(error) if error.is_rejected() => WriteResult::Rejected(error.to_string()),
        Err(error) if error.stored_nothing() => WriteResult::Failed(error.to_string()),
        Err(error) => WriteResult::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(409, "conflict", "Conflict")]
    #[case(404, "not found", "Conflict")]
    #[case(413, "Request entity too large: limit is 3145728", "Rejected")]
    #[case(500, "etcdserver: request is too large", "Rejected")]
    #[case(
        500,
        "rpc error: code = ResourceExhausted desc = trying to send message larger than max",
        "Rejected"
    )]
    #[case(422, "invalid", "Rejected")]
    #[case(429, "too many requests", "Failed")]
    #[case(500, "etcdserver: mvcc: database space exceeded", "Failed")]
    #[case(401, "Unauthorized", "Failed")]
    #[case(500, "etcdserver: leader changed", "Unknown")]
    #[case(504, "timeout", "Unknown")]
    fn an_answer_is_no_unknown_write(#[case] code: u16, #[case] message: &str, #[case] expected: &str) {
        let status = Status { code, message: message.into(), ..Status::default() };
        let result = classify(Err(ApiError::new("write", kube::Error::Api(Box::new(status)))));
        assert!(format!("{result:?}").starts_with(expected), "{result:?}");
    }
}
