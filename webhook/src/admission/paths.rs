//! Which paths the server answers, and what is a sign that somebody else knows them.

use std::time::Instant;

use actix_web::{HttpRequest, guard::GuardContext};
use job_handler_certs::review_path::ReviewPaths;
use prometheus_client::metrics::counter::Counter;

use crate::{admission::known_callers::KnownCallers, metrics::Endpoint};

/// Which paths are served. All others are answered with 404 before their body is read.
#[derive(Clone)]
pub(super) enum ServedPaths {
    /// `/mutate`.
    Plain,
    /// `/<secret>/mutate`.
    Secret {
        valid: ReviewPaths,
        callers: KnownCallers,
        /// Counts requests to other paths.
        unknown: Counter,
    },
}

impl ServedPaths {
    pub(super) fn pattern(&self, endpoint: &str) -> String {
        match self {
            Self::Plain => endpoint.to_owned(),
            Self::Secret { .. } => format!("/{{secret}}{endpoint}"),
        }
    }

    pub(super) fn accepts(&self, request: &GuardContext<'_>) -> bool {
        let Self::Secret { valid, .. } = self else { return true };
        let secret = request.head().uri.path().split('/').nth(1);
        secret.is_some_and(|secret| valid.accepts(secret))
    }

    pub(super) fn count_unknown(&self) {
        if let Self::Secret { unknown, .. } = self {
            unknown.inc();
        }
    }

    /// Reports a leak of the path if the caller's address is new.
    pub(super) fn check_caller(&self, request: &HttpRequest) {
        let (Self::Secret { valid, callers, .. }, Some(address)) = (self, request.peer_addr()) else {
            return;
        };
        if callers.is_new(address.ip(), Instant::now()) {
            tracing::info!(address = %address.ip(), "reviews come from a new address: replacing their paths soon");
            valid.suspect_leak();
        }
    }

    /// Watches over the answer to a review. Without one, the apiserver shows the URL to a user. The other endpoints have
    /// `failurePolicy: Ignore`: their errors go to its log only.
    pub(super) fn watch_answer(&self, endpoint: Endpoint) -> Option<AnswerGuard> {
        match self {
            Self::Secret { valid, .. } if endpoint == Endpoint::Validate => {
                Some(AnswerGuard(Some(valid.clone())))
            }
            Self::Secret { .. } | Self::Plain => None,
        }
    }
}

/// Reports a leak of the path if it is dropped before the answer is ready: the caller is gone.
pub(super) struct AnswerGuard(Option<ReviewPaths>);

impl AnswerGuard {
    pub(super) fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        if let Some(paths) = &self.0 {
            paths.suspect_leak();
        }
    }
}
