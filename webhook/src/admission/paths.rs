//! Which paths the server answers, and what is a sign that somebody else knows them.

use std::{net::IpAddr, time::Duration};

use actix_web::{HttpRequest, guard::GuardContext};
use job_handler_certs::review_path::{LeakSign, ReviewPaths};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use crate::{admission::known_callers::KnownCallers, metrics::Endpoint};

/// `timeoutSeconds` of the entries of limits. Who has less time has it from his user's request, which sets a `timeout`, or was
/// held up before: the apiserver answers such a request by itself, without our URL. So it does when a user cancels.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(10);
/// We may see a request so late. `report_leaks` notices longer pauses.
const SEEN_LATE: Duration = Duration::from_secs(3);

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
        if callers.is_new(address.ip(), Instant::now().into()) {
            tracing::debug!(address = %address.ip(), "reviews come from a new address");
            valid.suspect_leak(LeakSign::NewCaller);
        }
    }

    /// Reports a leak of the path if a connection of a known caller was closed, or got no place: the apiserver shows the
    /// URL to the user whose review it would have carried.
    pub(super) fn lost_connection(&self, address: IpAddr) {
        if let Self::Secret { valid, callers, .. } = self
            && callers.knows(address, Instant::now().into())
        {
            valid.suspect_leak(LeakSign::LostConnection);
        }
    }

    /// Watches over the answer to a review whose caller waits for `timeout`. Without one, the apiserver shows the URL to a
    /// user. The other endpoints have `failurePolicy: Ignore`: their errors go to its log only.
    pub(super) fn watch_answer(&self, endpoint: Endpoint, timeout: Duration) -> Option<AnswerGuard> {
        match self {
            Self::Secret { valid, .. } if endpoint == Endpoint::Validate && timeout >= ENTRY_TIMEOUT => {
                Some(AnswerGuard { paths: Some(valid.clone()), begun: Instant::now() })
            }
            Self::Secret { .. } | Self::Plain => None,
        }
    }
}

/// Reports a leak of the path if it is dropped before the answer is ready because the caller's time is over.
pub(super) struct AnswerGuard {
    /// None: answered.
    paths: Option<ReviewPaths>,
    begun: Instant,
}

impl AnswerGuard {
    pub(super) fn answered(mut self) {
        self.paths = None;
    }
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        if let Some(paths) = &self.paths
            && self.begun.elapsed() >= ENTRY_TIMEOUT.saturating_sub(SEEN_LATE)
        {
            paths.suspect_leak(LeakSign::NoAnswer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant as StdInstant;

    use futures::FutureExt;

    use super::*;

    fn served() -> (ServedPaths, ReviewPaths) {
        let paths = ReviewPaths::default();
        let (callers, unknown) = (KnownCallers::new(StdInstant::now()), Counter::default());
        (ServedPaths::Secret { valid: paths.clone(), callers, unknown }, paths)
    }

    fn signs(paths: &ReviewPaths) -> Vec<LeakSign> {
        paths.suspected().now_or_never().into_iter().flatten().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_caller_whose_time_was_over_shows_the_url() {
        let (served, paths) = served();
        let leave_after = async |seconds: u64| {
            let guard = served.watch_answer(Endpoint::Validate, ENTRY_TIMEOUT).unwrap();
            tokio::time::advance(Duration::from_secs(seconds)).await;
            guard
        };
        for (seconds, expected) in [(0, vec![]), (6, vec![]), (8, vec![LeakSign::NoAnswer])] {
            drop(leave_after(seconds).await);
            assert_eq!(signs(&paths), expected, "after {seconds} s");
        }
        leave_after(10).await.answered();
        assert_eq!(signs(&paths), []);
        let shorter = served.watch_answer(Endpoint::Validate, Duration::from_secs(9));
        assert!(shorter.is_none(), "the user's own timeout");
        let others = [Endpoint::Mutate, Endpoint::Warn];
        assert!(others.iter().all(|other| served.watch_answer(*other, ENTRY_TIMEOUT).is_none()));
    }

    #[test]
    fn the_entries_of_limits_have_this_timeout() {
        let entries = include_str!("../../../sink/src/enforce/webhook_entries.rs");
        let expected = format!("\nconst TIMEOUT_SECONDS: i32 = {};\n", ENTRY_TIMEOUT.as_secs());
        assert!(entries.contains(&expected));
    }

    #[tokio::test]
    async fn a_lost_connection_of_a_known_caller_is_a_sign_and_one_of_a_stranger_is_not() {
        let (served, paths) = served();
        let (known, stranger) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let ServedPaths::Secret { callers, .. } = &served else { unreachable!() };
        assert!(!callers.is_new(known, StdInstant::now()), "it is at the start");
        served.lost_connection(stranger);
        assert_eq!(signs(&paths), []);
        served.lost_connection(known);
        assert_eq!(signs(&paths), [LeakSign::LostConnection]);
    }
}
