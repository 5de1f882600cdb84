//! Lists Jobs page by page, each Job once, also if the list expires meanwhile.

use std::time::Duration;

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    kube::error::{ApiError, call},
    process::jitter::{exponential, jitter},
};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api,
    api::ListParams,
    core::{ListMeta, ObjectList},
};

/// Attempts per call, if the apiserver is unavailable or overloaded.
pub(super) const MAX_ATTEMPTS: u32 = 5;
/// Pause after the first attempt that failed, before jitter; it doubles with each one.
const FIRST_PAUSE: Duration = Duration::from_millis(750);
/// Longest pause between two attempts, before jitter.
const MAX_PAUSE: Duration = Duration::from_secs(6);
/// How often a list that expired without a new token is started again.
const MAX_RELISTS: usize = 20;

/// The Jobs of an [`Api`] that carry a label.
pub(super) struct JobPages<'a> {
    api: &'a Api<Job>,
    first: ListParams,
    next: Option<ListParams>,
    relists: usize,
    /// The last Job listed, as `namespace/name`. Lists come in the order of etcd's keys, which end like that, so that a
    /// list that is started again skips Jobs up to here.
    reached: String,
}

impl<'a> JobPages<'a> {
    pub(super) fn new(api: &'a Api<Job>, label: &str, size: u32) -> Self {
        let first = ListParams::default().labels(label).limit(size);
        Self { api, next: Some(first.clone()), first, relists: 0, reached: String::new() }
    }

    /// The next page; none after the last one.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<JobSnapshot>>, ApiError> {
        while let Some(params) = self.next.take() {
            match page(self.api, &params).await? {
                JobListPage::Jobs(page) => {
                    self.next = token(&page.metadata).map(|token| self.first.clone().continue_token(&token));
                    let mut jobs: Vec<_> = page.items.iter().map(JobSnapshot::from).collect();
                    drop(page);
                    if self.relists > 0 {
                        jobs.retain(|job| job.key() > self.reached);
                    }
                    if let Some(last) = jobs.last() {
                        self.reached = last.key();
                    }
                    return Ok(Some(jobs));
                }
                // Continues at the same key with the present Jobs. Earlier decisions stay right: a Job is only deleted
                // because of newer ones that were listed.
                JobListPage::Expired(Some(token)) => {
                    self.next = Some(self.first.clone().continue_token(&token));
                }
                JobListPage::Expired(None) if self.relists < MAX_RELISTS => {
                    self.relists += 1;
                    tracing::warn!("the list of Jobs expired ({} times); listing again", self.relists);
                    self.next = Some(self.first.clone());
                }
                JobListPage::Expired(None) => {
                    let message =
                        format!("the list expired {} times: a larger --limit may help", self.relists);
                    let (what, reason) = ("list jobs".to_owned(), "Expired".to_owned());
                    return Err(ApiError::Refused { what, code: 410, reason, message });
                }
            }
        }
        Ok(None)
    }
}

enum JobListPage {
    Jobs(ObjectList<Job>),
    /// The list expired; the apiserver may return a token to continue with
    /// (`apiserver/pkg/storage/etcd3/errors.go`, `handleCompactedErrorForPaging`).
    Expired(Option<String>),
}

/// Gets one page; retries while the apiserver is unavailable or overloaded.
async fn page(api: &Api<Job>, params: &ListParams) -> Result<JobListPage, ApiError> {
    let what = "list jobs";
    let mut attempt = 0;
    loop {
        attempt += 1;
        // The status of an expired token holds another one, so it is read before the error is classified.
        let list = async {
            match api.list(params).await {
                Err(kube::Error::Api(status)) if status.code == 410 => {
                    Ok(JobListPage::Expired(status.metadata.as_ref().and_then(token)))
                }
                page => page.map(JobListPage::Jobs),
            }
        };
        let error = match call(what, list).await {
            Ok(page) => return Ok(page),
            Err(error) => error,
        };
        if attempt >= MAX_ATTEMPTS || !error.is_transient() {
            return Err(error);
        }
        tracing::warn!("{error}; retrying");
        pause(attempt).await;
    }
}

/// Waits before the attempt that follows this one; the first is 1.
pub(super) async fn pause(attempt: u32) {
    tokio::time::sleep(jitter(exponential(FIRST_PAUSE, MAX_PAUSE, attempt - 1))).await;
}

/// Whether the apiserver is overloaded or unavailable. Timeouts are not retried: a slow call is likely to be slow again.
pub(super) fn is_retryable(error: &ApiError) -> bool {
    error.is_transient() && !error.is_timeout()
}

fn token(of: &ListMeta) -> Option<String> {
    of.continue_.clone().filter(|token| !token.is_empty())
}
