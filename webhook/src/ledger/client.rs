//! The ledger objects: read, made, written by resourceVersion.

use std::{future::Future, sync::Arc, time::Duration};

use job_handler_shared::ledger::crd::{JobLedger, JobLedgerSpec};
use job_handler_shared::process::error_chain::error_chain;
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
        match tokio::time::timeout(CALL_TIMEOUT, let_in(|| self.api.get(name))).await {
            Ok(Ok(ledger)) => Ok(Some(ledger)),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(None),
            Ok(Err(error)) => Err(format!("cannot read the JobLedger {name}: {}", error_chain(&error))),
            Err(_) => Err(format!("cannot read the JobLedger {name}: the apiserver does not answer")),
        }
    }

    /// Makes an empty one.
    pub async fn create_empty(&self, name: &str) -> WriteResult {
        let ledger = JobLedger::new(name, JobLedgerSpec::empty());
        let params = PostParams::default();
        match tokio::time::timeout(CALL_TIMEOUT, let_in(|| self.api.create(&params, &ledger))).await {
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => WriteResult::Rejected(
                "the cluster knows no jobledgers.job-handler.io, or our namespace is gone: apply manifests/base"
                    .to_owned(),
            ),
            answer => sort(name, answer),
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
        sort(
            name,
            tokio::time::timeout(CALL_TIMEOUT, let_in(|| self.api.replace(name, &params, &ledger))).await,
        )
    }
}

/// Waits out a moment of throttling: where nobody is let in, nothing was tried.
async fn let_in<T, F: Future<Output = kube::Result<T>>>(call: impl Fn() -> F) -> kube::Result<T> {
    for _ in 1..TRIES {
        match call().await {
            Err(kube::Error::Api(status)) if status.code == 429 => tokio::time::sleep(THROTTLED).await,
            answer => return answer,
        }
    }
    call().await
}

fn sort(name: &str, answer: Result<kube::Result<JobLedger>, tokio::time::error::Elapsed>) -> WriteResult {
    match answer {
        Ok(Ok(ledger)) => WriteResult::Written(Box::new(ledger)),
        Ok(Err(kube::Error::Api(status))) => match status.code {
            // Gone is a conflict too: somebody deleted it meanwhile.
            404 | 409 => WriteResult::Conflict,
            // Not let in: nothing was tried.
            429 => WriteResult::Rejected(format!(
                "cannot write the JobLedger {name}: HTTP 429, the apiserver is overloaded: {}",
                status.message
            )),
            500.. => WriteResult::Unknown(format!("HTTP {}: {}", status.code, status.message)),
            code => WriteResult::Rejected(format!(
                "cannot write the JobLedger {name}: HTTP {code}: {}",
                status.message
            )),
        },
        Ok(Err(error)) => WriteResult::Unknown(error_chain(&error)),
        Err(_) => WriteResult::Unknown("the apiserver does not answer".to_owned()),
    }
}
