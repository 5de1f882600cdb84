//! Why a reconcile failed, and what follows from it.

use std::time::Duration;

use job_handler_shared::kube::error::ApiError;

use crate::{harvest::captured::PendingLogs, result::writer::CommitError};

/// Time limit of one reconcile, without the wait for logs; only reached where the cluster does not answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(150);

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum JobReconcileError {
    /// A call failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The result could not be stored.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The Job was changed by someone else.
    #[error("{0} has changed meanwhile")]
    Changed(String),
    /// A node does not deliver some logs now; it may later.
    #[error("cannot read all logs for now: {}", .0.reason)]
    LogsPending(PendingLogs),
    /// The time limit is over.
    #[error("timed out after {} s", TIMEOUT.as_secs())]
    TimedOut,
}

impl JobReconcileError {
    /// Other calls in the namespace will probably fail alike.
    pub(crate) fn concerns_namespace(&self) -> bool {
        match self {
            Self::Api(error) | Self::Commit(CommitError::Api(error)) => {
                error.is_rejected() || error.is_timeout()
            }
            Self::TimedOut => true,
            _ => false,
        }
    }

    /// The namespace is being deleted.
    pub(crate) fn is_terminating(&self) -> bool {
        match self {
            Self::Api(error) | Self::Commit(CommitError::Api(error)) => error.is_terminating(),
            _ => false,
        }
    }

    /// The same write will be refused again.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Commit(CommitError::Api(error)) => error.is_rejected() || error.is_not_found(),
            Self::Commit(CommitError::NamesTaken { .. } | CommitError::Json(..)) => true,
            _ => false,
        }
    }
}
