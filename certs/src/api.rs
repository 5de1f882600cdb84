//! Calls to the apiserver: bounded in time, their errors in words that tell what to do.

use std::{future::Future, time::Duration};

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The role is missing a verb, or is not bound.
    #[error(
        "no right to {what}: {message}. Apply manifests/base (rbac-webhook.yaml holds the rights), \
         and bind its roles to the ServiceAccount this program runs as"
    )]
    Forbidden {
        /// What was tried.
        what: String,
        /// The apiserver's words.
        message: String,
    },
    /// The apiserver is away or overloaded.
    #[error("cannot {what}: the apiserver gave no answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout {
        /// What was tried.
        what: String,
    },
    /// The apiserver refused.
    #[error("cannot {what}: {message} (HTTP {code})")]
    Refused {
        /// What was tried.
        what: String,
        /// HTTP status code.
        code: u16,
        /// The apiserver's words.
        message: String,
    },
    /// The call did not get through, or its answer was not understood.
    #[error("cannot {what}: {source}")]
    Broken {
        /// What was tried.
        what: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

impl ApiError {
    /// Whether the object changed, appeared or vanished under the call, so that it is worth looking again at once. A
    /// JSON patch whose `test` fails is answered 422.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { code: 409 | 422, .. })
    }

    /// Whether the object (or its namespace) does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }
}

/// Awaits `call`, for at most ten seconds; `what` completes «cannot …».
///
/// # Errors
/// Tells what was tried and what to do.
pub(crate) async fn call<T>(what: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(kube::Error::Api(status))) => {
            let (what, message) = (what.to_string(), status.message.clone());
            Err(match status.code {
                403 => ApiError::Forbidden { what, message },
                code => ApiError::Refused { what, code, message },
            })
        }
        Ok(Err(error)) => Err(ApiError::Broken { what: what.to_string(), source: Box::new(error) }),
        Err(_) => Err(ApiError::Timeout { what: what.to_string() }),
    }
}
