//! Lists Jobs page by page, each Job once, whatever becomes of the list meanwhile.

use std::time::Duration;

use job_handler_shared::job::snapshot::JobSnapshot;
use job_handler_shared::process::jitter::jitter;
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api,
    api::ListParams,
    core::{ListMeta, ObjectList},
};

use job_handler_shared::kube::error::{ApiError, call};

/// Tries per call, for answers that may be better the next time.
pub(super) const TRIES: u32 = 5;
/// A list that ran too old and cannot be gone on with is begun again this often.
const RELISTS: usize = 20;

/// The Jobs of an [`Api`] that carry a label.
pub(super) struct Pages<'a> {
    api: &'a Api<Job>,
    first: ListParams,
    next: Option<ListParams>,
    relists: usize,
    /// Where the list has come to, as `namespace/name`. Lists come in the order of etcd's keys, which end so; whatever
    /// is listed anew up to here has been seen.
    reached: String,
}

impl<'a> Pages<'a> {
    pub(super) fn new(api: &'a Api<Job>, label: &str, size: u32) -> Self {
        let first = ListParams::default().labels(label).limit(size);
        Self { api, next: Some(first.clone()), first, relists: 0, reached: String::new() }
    }

    /// The next page; nothing after the last one.
    ///
    /// # Errors
    /// Where it cannot be had, however often it is tried.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<JobSnapshot>>, ApiError> {
        while let Some(params) = self.next.take() {
            match page(self.api, &params).await? {
                Page::Of(page) => {
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
                // Goes on at the same key, with what is there now. What was decided stays right: a Job only ever goes
                // because of newer ones that were seen.
                Page::Expired(Some(token)) => self.next = Some(self.first.clone().continue_token(&token)),
                Page::Expired(None) if self.relists < RELISTS => {
                    self.relists += 1;
                    tracing::warn!(
                        "the list of Jobs ran too old ({} times); it is begun again",
                        self.relists
                    );
                    self.next = Some(self.first.clone());
                }
                Page::Expired(None) => {
                    let message =
                        format!("the list ran too old {} times: a larger --limit may help", self.relists);
                    let (what, reason) = ("list jobs".to_owned(), "Expired".to_owned());
                    return Err(ApiError::Refused { what, code: 410, reason, message });
                }
            }
        }
        Ok(None)
    }
}

enum Page {
    Of(ObjectList<Job>),
    /// The list ran too old; the apiserver may hand out a token to go on with
    /// (`apiserver/pkg/storage/etcd3/errors.go`, `handleCompactedErrorForPaging`).
    Expired(Option<String>),
}

/// One page, tried again where the apiserver is away or overloaded.
async fn page(api: &Api<Job>, params: &ListParams) -> Result<Page, ApiError> {
    let what = "list jobs";
    let mut attempt = 0;
    loop {
        attempt += 1;
        // The status of an expired token holds another one, so it is read before the error is classified.
        let list = async {
            match api.list(params).await {
                Err(kube::Error::Api(status)) if status.code == 410 => {
                    Ok(Page::Expired(status.metadata.as_ref().and_then(token)))
                }
                page => page.map(Page::Of),
            }
        };
        let error = match call(what, list).await {
            Ok(page) => return Ok(page),
            Err(error) => error,
        };
        if attempt >= TRIES || !error.is_transient() {
            return Err(error);
        }
        tracing::warn!("{error}; retrying");
        pause(attempt).await;
    }
}

/// Waits before a further try.
pub(super) async fn pause(attempt: u32) {
    tokio::time::sleep(jitter(Duration::from_millis(375 << attempt))).await;
}

/// Overloaded, or away for a moment. (A timeout is neither: whoever is that slow once is so again.)
pub(super) fn is_passing(error: &ApiError) -> bool {
    error.is_transient() && !error.is_timeout()
}

fn token(of: &ListMeta) -> Option<String> {
    of.continue_.clone().filter(|token| !token.is_empty())
}
