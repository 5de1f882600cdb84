//! Errors of the commands.

use std::io;

use job_handler_shared::kube::error::ApiError;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No usable kubeconfig, or no connection to the cluster.
    #[error("{0}")]
    Access(String),
    /// RBAC does not allow the call.
    #[error("no right to {what}: {message}\nIt needs `get` and `list` on {kind}s in the namespace")]
    Forbidden {
        /// The call, to complete "no right to".
        what: String,
        /// Message of the apiserver.
        message: String,
        /// Resource that holds the results, singular.
        kind: &'static str,
    },
    /// A call failed for another reason.
    #[error(transparent)]
    Api(ApiError),
    /// No result, run or log matches; the message lists what exists.
    #[error("{0}")]
    NotFound(String),
    /// The object has the labels of a result, but no manifest that can be parsed.
    #[error("{0}")]
    Unreadable(String),
    /// Stored logs fail verification. What could be read has been written.
    #[error("{}", .0.join("\nerror: "))]
    Damaged(Vec<String>),
    /// The output cannot be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}
