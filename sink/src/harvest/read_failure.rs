//! Why one attempt to read a log failed, and whether another one may succeed.

use job_handler_shared::kube::error::ApiError;

use crate::harvest::captured::LogLoss;

/// What `GET pods/log` begins with if the kubelet, not the apiserver, answered 404: a kubelet that has just started does
/// not know its pods yet (`pkg/kubelet/server/server.go`, `getContainerLogs`). The apiserver's own 404 names the pod or the
/// node that does not exist.
const KUBELET_NOT_FOUND: &str = "the server could not find the requested resource";

/// The reason in the apiserver's own 404. Others have none: of a load balancer before it, of an apiserver that is starting.
const NOT_FOUND: &str = "NotFound";

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReadFailure {
    pub(crate) loss: LogLoss,
    /// The node did not answer in time.
    pub(crate) no_answer: bool,
}

impl ReadFailure {
    /// The kubelet says that there is no such log.
    pub(crate) fn removed(reason: &str) -> Self {
        Self { loss: LogLoss::Unconfirmed(reason.into()), no_answer: false }
    }

    /// A failure that another attempt would repeat.
    pub(crate) fn last(reason: &str) -> Self {
        Self { loss: LogLoss::Final(reason.into()), no_answer: false }
    }

    pub(crate) fn no_answer() -> Self {
        Self { loss: LogLoss::Passing("the node did not answer in time".into()), no_answer: true }
    }
}

impl From<ApiError> for ReadFailure {
    fn from(error: ApiError) -> Self {
        let loss = match error {
            ApiError::Refused { code: 400, message, .. } => LogLoss::Unconfirmed(message),
            ApiError::Refused { code: 404, reason, message, .. }
                if reason == NOT_FOUND && !message.starts_with(KUBELET_NOT_FOUND) =>
            {
                LogLoss::Final(message)
            }
            ApiError::Refused { message, .. } => LogLoss::Passing(message),
            // A missing right can be granted, and a broken connection be made again.
            error => LogLoss::Passing(error.to_string()),
        };
        Self { loss, no_answer: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_apiserver_knows_that_a_log_is_gone() {
        for (code, message, passing) in [
            (404, "pods \"build-x\" not found", false),
            (404, "nodes \"node-1\" not found", false),
            (404, "the server could not find the requested resource ( pods/log build-x)", true),
            (404, "404 page not found", true),
            (403, "Forbidden (user=kube-apiserver, verb=get, resource=nodes, subresource=proxy)", true),
            (408, "timeout", true),
            (429, "too many requests", true),
            (500, "Get \"https://node-1:10250/…\": dial tcp: connect: connection refused", true),
            (502, "bad gateway", true),
            (503, "the server is currently unable to handle the request", true),
            (504, "gateway timeout", true),
        ] {
            let what = "read the log".to_owned();
            // What the client calls a body that is no Status.
            let foreign = message.starts_with("404");
            let reason = if foreign { "Failed to parse error data" } else { NOT_FOUND }.to_owned();
            let refused = ApiError::Refused { what, code, reason, message: message.to_owned() };
            let failure = ReadFailure::from(refused);
            let text = message.to_owned();
            let loss = if passing { LogLoss::Passing(text) } else { LogLoss::Final(text) };
            assert_eq!(failure, ReadFailure { loss, no_answer: false }, "{code}");
        }
        let what = || "read the log".to_owned();
        let message = "previous terminated container \"main\" in pod \"build-x\" not found";
        let refused = ApiError::Refused {
            what: what(),
            code: 400,
            reason: "BadRequest".to_owned(),
            message: message.to_owned(),
        };
        assert_eq!(ReadFailure::from(refused), ReadFailure::removed(message));
        for error in [
            ApiError::Forbidden { what: what(), message: "User \"sink\" cannot get pods/log".into() },
            ApiError::Unauthorized { what: what(), message: "expired".into() },
            ApiError::Timeout { what: what(), after: std::time::Duration::from_secs(10) },
        ] {
            assert!(ReadFailure::from(error).loss.is_passing());
        }
        assert!(
            ReadFailure::no_answer().loss.is_passing() && !ReadFailure::last("removed").loss.is_passing()
        );
    }
}
