//! Calls to the apiserver with a time limit, and the one classification of their errors.

use std::{future::Future, time::Duration};

use crate::process::error_chain::error_chain;

/// How long one call may take; log streams and watches have their own limits.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A call that failed. `what` completes «cannot …».
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Authentication failed (401).
    #[error(
        "cannot {what}: the apiserver rejects our credentials: {message}. Does the token belong to another cluster?"
    )]
    Unauthorized {
        /// What was tried.
        what: String,
        /// The apiserver's message.
        message: String,
    },
    /// The authorizer denied the call (403): the role lacks a verb or is not bound.
    #[error(
        "no right to {what}: {message}. Apply manifests/base, and bind its roles to the ServiceAccount this program \
         runs as"
    )]
    Forbidden {
        /// What was tried.
        what: String,
        /// The apiserver's message.
        message: String,
    },
    /// Any other error status, also a 403 of admission or quotas.
    #[error("cannot {what}: {message} (HTTP {code})")]
    Refused {
        /// What was tried.
        what: String,
        /// HTTP status code.
        code: u16,
        /// The status' reason, such as `AlreadyExists`.
        reason: String,
        /// The apiserver's message.
        message: String,
    },
    /// No response in time.
    #[error("cannot {what}: timed out after {} s", after.as_secs())]
    Timeout {
        /// What was tried.
        what: String,
        /// The time limit.
        after: Duration,
    },
    /// The connection failed, or the response could not be parsed.
    #[error("cannot {what}: {}", error_chain(source))]
    Broken {
        /// What was tried.
        what: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
}

impl ApiError {
    /// Classifies an error of the client.
    pub fn new(what: &str, error: kube::Error) -> Self {
        let what = what.to_owned();
        match error {
            kube::Error::Api(status) => {
                let (code, reason, message) = (status.code, status.reason.clone(), status.message.clone());
                match code {
                    401 => Self::Unauthorized { what, message },
                    // Admission and quotas respond 403 too; only the authorizer writes `User "…" cannot …`.
                    403 if message.contains("cannot") && message.contains("ser \"") => {
                        Self::Forbidden { what, message }
                    }
                    code => Self::Refused { what, code, reason, message },
                }
            }
            error => Self::Broken { what, source: Box::new(error) },
        }
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Unauthorized { .. } => Some(401),
            Self::Forbidden { .. } => Some(403),
            Self::Refused { code, .. } => Some(*code),
            Self::Timeout { .. } | Self::Broken { .. } => None,
        }
    }

    /// Rights or credentials are missing.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Unauthorized { .. } | Self::Forbidden { .. })
    }

    /// No response in time; a write may have been done.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }

    /// The apiserver is overloaded and did nothing (429).
    pub fn is_throttled(&self) -> bool {
        self.code() == Some(429)
    }

    /// The resource version or the continue token is too old (410).
    pub fn is_expired(&self) -> bool {
        self.code() == Some(410)
    }

    /// The same call may succeed later: the apiserver is overloaded (429), failing (5xx) or out of reach.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Broken { .. } => true,
            Self::Refused { code, .. } => is_transient(*code),
            Self::Unauthorized { .. } | Self::Forbidden { .. } => false,
        }
    }

    /// An object of that name exists. (A create can also fail with a plain 409 if others update the usage of a
    /// ResourceQuota at the same time: then no such object exists.)
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Refused { code: 409, reason, .. } if reason == "AlreadyExists")
    }

    /// Another write came first, or an object of that name exists.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// A `test` of a JSON patch failed: the object has changed since the patch was made.
    pub fn is_failed_test(&self) -> bool {
        self.code() == Some(422)
    }

    /// The object, or its namespace, does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// The namespace is terminating: nothing can be created in it any more.
    pub fn is_terminating(&self) -> bool {
        matches!(self, Self::Refused { code: 403, message, .. } if message.contains("being terminated"))
    }

    /// A ResourceQuota is exceeded (its admission plugin responds 403 with these words).
    pub fn is_over_quota(&self) -> bool {
        matches!(self, Self::Refused { code: 403, message, .. } if message.contains("exceeded quota: "))
    }

    /// Quota, size limits or admission reject the write: a retry of the same write will be rejected too.
    pub fn is_rejected(&self) -> bool {
        match self {
            Self::Refused { code: 400 | 403 | 413 | 422, .. } => true,
            // etcd's own limit, and that of the apiserver's client of etcd, are reported as internal errors.
            Self::Refused { code: 500, message, .. } => is_too_large(message),
            _ => false,
        }
    }

    /// The write was answered, and nothing of it was stored: it was rejected, or the apiserver or etcd had no room for it.
    /// etcd's answers arrive as internal errors, of which all others leave open what happened.
    pub fn stored_nothing(&self) -> bool {
        match self {
            Self::Unauthorized { .. } | Self::Forbidden { .. } => true,
            Self::Refused { code: 500, message, .. } => {
                is_too_large(message) || NO_ROOM.iter().any(|words| message.contains(words))
            }
            Self::Refused { code, .. } => *code < 500 && *code != 408,
            Self::Timeout { .. } | Self::Broken { .. } => false,
        }
    }
}

/// etcd refused the request before it did anything (`api/v3/rpctypes/error.go`), in its own words and in those of gRPC.
const NO_ROOM: [&str; 3] =
    ["ResourceExhausted", "mvcc: database space exceeded", "etcdserver: too many requests"];

/// etcd's `request is too large`, and gRPC's `trying to send message larger than max`.
fn is_too_large(message: &str) -> bool {
    message.contains("too large") || message.contains("message larger than max")
}

fn is_transient(code: u16) -> bool {
    matches!(code, 408 | 429 | 500..)
}

/// The HTTP status code of an error, if the apiserver responded with one.
pub fn status_code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// Awaits `call` for at most [`CALL_TIMEOUT`]. `what` completes «cannot …».
///
/// # Errors
/// If the call fails or takes longer.
pub async fn call<T>(what: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    call_within(CALL_TIMEOUT, what, call).await
}

/// Awaits `call` for at most `limit`. `what` completes «cannot …».
///
/// # Errors
/// If the call fails or takes longer.
pub async fn call_within<T>(
    limit: Duration,
    what: &str,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(limit, call).await {
        Ok(response) => response.map_err(|error| ApiError::new(what, error)),
        Err(_) => Err(ApiError::Timeout { what: what.to_owned(), after: limit }),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn refused(code: u16, message: &str) -> ApiError {
        let status = Status { code, message: message.into(), ..Status::default() };
        ApiError::new("create configmap ci/a-results", kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn errors_are_classified_by_what_can_be_done() {
        let rbac = r#"configmaps is forbidden: User "system:serviceaccount:a:b" cannot create resource "configmaps""#;
        assert!(matches!(refused(403, rbac), ApiError::Forbidden { .. }));
        assert!(!refused(403, rbac).is_rejected());
        let quota = r#"configmaps "a" is forbidden: exceeded quota: q, requested: count/configmaps=1"#;
        assert!(refused(403, quota).is_rejected() && refused(403, quota).is_over_quota());
        assert!(!refused(403, rbac).is_over_quota());
        assert!(refused(500, "etcdserver: request is too large").is_rejected());
        assert!(!refused(500, "etcdserver: leader changed").is_rejected());
        assert!(refused(409, "").is_conflict() && refused(404, "").is_not_found());
        let ending = "unable to create new content in namespace ci because it is being terminated";
        assert!(refused(403, ending).is_terminating());
        assert!(refused(401, "Unauthorized").is_denied() && refused(410, "").is_expired());
        assert!(
            refused(429, "").is_transient()
                && refused(503, "").is_transient()
                && !refused(422, "").is_transient()
        );
        let grpc = "rpc error: code = ResourceExhausted desc = trying to send message larger than max (2097163 vs. 2097152)";
        assert!(refused(500, grpc).is_rejected() && refused(500, grpc).stored_nothing());
        let full = refused(500, "etcdserver: mvcc: database space exceeded");
        assert!(full.stored_nothing() && !full.is_rejected(), "there may be space later");
        assert!(refused(409, "").stored_nothing() && refused(429, "").stored_nothing());
        for code in [500, 503, 504] {
            assert!(!refused(code, "etcdserver: leader changed").stored_nothing());
        }
        assert!(refused(404, "gone").to_string().contains("create configmap ci/a-results"));
    }
}
