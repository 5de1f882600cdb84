//! Why a log could not be read, and whether another attempt may succeed.

use job_handler_shared::kube::error::ApiError;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReadFailure {
    /// For readers of the result.
    pub(crate) reason: String,
    pub(crate) retry: bool,
    /// The node did not answer in time.
    pub(crate) no_answer: bool,
}

impl ReadFailure {
    /// A failure that another attempt would repeat.
    pub(crate) fn last(reason: &str) -> Self {
        Self { reason: reason.into(), retry: false, no_answer: false }
    }

    pub(crate) fn no_answer() -> Self {
        Self { reason: "the node did not answer in time".into(), retry: true, no_answer: true }
    }
}

impl From<ApiError> for ReadFailure {
    fn from(error: ApiError) -> Self {
        let (reason, retry) = match &error {
            ApiError::Refused { code, message, .. } => {
                (message.clone(), *code == 429 || *code >= 500 || *code == 408)
            }
            ApiError::Forbidden { .. } => (error.to_string(), false),
            _ => (error.to_string(), true),
        };
        Self { reason, retry, no_answer: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_that_may_change_are_retried() {
        for (code, retry) in [(400, false), (404, false), (408, true), (429, true), (500, true), (503, true)]
        {
            let refused = ApiError::Refused {
                what: "read the log".into(),
                code,
                reason: String::new(),
                message: "container \"main\" is not found".into(),
            };
            let failure = ReadFailure::from(refused);
            assert_eq!((failure.retry, failure.no_answer), (retry, false), "{code}");
            assert_eq!(failure.reason, "container \"main\" is not found");
        }
    }
}
