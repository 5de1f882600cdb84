//! Calls to the apiserver: bounded in time, their errors sorted by what can be done about them.

use std::{future::Future, time::Duration};

/// How long one call may take; log streams and watches have their own bounds.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The role lacks a verb, or is not bound.
    #[error(
        "no right to {what}: {message}. Apply manifests/base, and bind its roles to the ServiceAccount this program \
         runs as"
    )]
    Rights {
        /// What was tried.
        what: String,
        /// The apiserver's words.
        message: String,
    },
    /// The apiserver refused.
    #[error("cannot {what}: {message} (HTTP {code})")]
    Refused {
        /// What was tried.
        what: String,
        /// HTTP status code.
        code: u16,
        /// The status' reason, such as `AlreadyExists`.
        reason: String,
        /// The apiserver's words.
        message: String,
    },
    /// The apiserver is away or overloaded.
    #[error("cannot {what}: the apiserver gave no answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout {
        /// What was tried.
        what: String,
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
    /// Sorts an error of the client; `what` completes «cannot …».
    pub fn new(what: &str, error: kube::Error) -> Self {
        let what = what.to_owned();
        match error {
            kube::Error::Api(status) => match status.code {
                // Quotas and admission answer 403 too; only the authorizer says `User "…" cannot …`.
                401 | 403 if is_authorizer(status.code, &status.message) => {
                    Self::Rights { what, message: status.message.clone() }
                }
                code => Self::Refused {
                    what,
                    code,
                    reason: status.reason.clone(),
                    message: status.message.clone(),
                },
            },
            error => Self::Broken { what, source: Box::new(error) },
        }
    }

    /// An object of that name is there already. (A create can also be answered with a plain 409, where the count of a
    /// ResourceQuota was written by others at the same time: then nothing is there.)
    pub fn is_there_already(&self) -> bool {
        matches!(self, Self::Refused { code: 409, reason, .. } if reason == "AlreadyExists")
    }

    /// Another write came first, or an object of that name is there already.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { code: 409, .. })
    }

    /// A JSON patch whose `test` did not hold: the object is not as it was when the patch was made.
    pub fn is_failed_test(&self) -> bool {
        matches!(self, Self::Refused { code: 422, .. })
    }

    /// The object, or its namespace, does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// The namespace is on its way out: nothing can be created in it any more.
    pub fn is_terminating(&self) -> bool {
        matches!(self, Self::Refused { code: 403, message, .. } if message.contains("being terminated"))
    }

    /// A ResourceQuota is full (its admission plugin answers 403 and these words).
    pub fn is_over_quota(&self) -> bool {
        matches!(self, Self::Refused { code: 403, message, .. } if message.contains("exceeded quota: "))
    }

    /// The write itself is not wanted (quota, size, admission): the same one will be refused again.
    pub fn is_unwanted(&self) -> bool {
        match self {
            Self::Refused { code: 400 | 403 | 413 | 422, .. } => true,
            // etcd's own limit comes back as an internal error.
            Self::Refused { code: 500, message, .. } => message.contains("too large"),
            _ => false,
        }
    }
}

fn is_authorizer(code: u16, message: &str) -> bool {
    code == 401 || (message.contains("cannot") && message.contains("ser \""))
}

/// Awaits `call`, for at most [`CALL_TIMEOUT`]; `what` completes «cannot …».
///
/// # Errors
/// Tells what was tried.
pub async fn call<T>(what: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(|error| ApiError::new(what, error)),
        Err(_) => Err(ApiError::Timeout { what: what.to_owned() }),
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
    fn errors_are_sorted_by_what_can_be_done() {
        let rbac = r#"configmaps is forbidden: User "system:serviceaccount:a:b" cannot create resource "configmaps""#;
        assert!(matches!(refused(403, rbac), ApiError::Rights { .. }));
        assert!(!refused(403, rbac).is_unwanted());
        let quota = r#"configmaps "a" is forbidden: exceeded quota: q, requested: count/configmaps=1"#;
        assert!(refused(403, quota).is_unwanted() && refused(403, quota).is_over_quota());
        assert!(!refused(403, rbac).is_over_quota());
        assert!(refused(500, "etcdserver: request is too large").is_unwanted());
        assert!(!refused(500, "etcdserver: leader changed").is_unwanted());
        assert!(refused(409, "").is_conflict() && refused(404, "").is_not_found());
        let ending = "unable to create new content in namespace ci because it is being terminated";
        assert!(refused(403, ending).is_terminating());
        assert!(refused(404, "gone").to_string().contains("create configmap ci/a-results"));
    }
}
