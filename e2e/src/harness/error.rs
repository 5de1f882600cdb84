//! The error of all rooms: one type, because every caller only shows it.

use std::path::PathBuf;
use std::time::Duration;

/// Each message says what was expected, what was found and what to do.
#[derive(thiserror::Error)]
pub enum Error {
    /// An operation on files or processes failed.
    #[error("{what}: {cause}")]
    Io {
        /// The operation, with the path or program.
        what: String,
        /// The operating system's error; part of the message, so not a `source`.
        cause: std::io::Error,
    },
    /// The API server refused or could not be reached.
    #[error("{what}: {cause}")]
    Api {
        /// The operation.
        what: String,
        /// The client's error.
        cause: Box<kube::Error>,
    },
    /// A required tool is not installed.
    #[error("{0}")]
    MissingTool(String),
    /// A build failed.
    #[error("building {what} failed ({status}); its last lines:\n{tail}")]
    Build {
        /// What was built.
        what: String,
        /// The builder's exit status.
        status: String,
        /// The end of the builder's output.
        tail: String,
    },
    /// A process exited unexpectedly.
    #[error("{name} exited unexpectedly ({status}); end of {}:\n{tail}", log.display())]
    ProcessExited {
        /// The process.
        name: String,
        /// Its exit status.
        status: String,
        /// Its log file.
        log: PathBuf,
        /// The end of the log file.
        tail: String,
    },
    /// The requested port is in use.
    #[error(
        "port {0} on 127.0.0.1 is in use by another program: end that program (`ss -ltnp 'sport = :{0}'` \
         names it), or choose another port"
    )]
    PortInUse(u16),
    /// A condition was not met in time.
    #[error("timed out after {waited:?} waiting for {what}; last seen: {last}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long the caller waited.
        waited: Duration,
        /// What the last attempt saw.
        last: String,
    },
    /// A command failed.
    #[error("`{command}` failed ({status}):\n{stderr}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// An operation that an existing cluster does not support.
    #[error("{0} needs a new cluster, but E2E_KUBECONFIG names an existing one")]
    Unsupported(&'static str),
    /// Invalid input: a kubeconfig, a manifest, an answer.
    #[error("{0}")]
    Invalid(String),
}

/// Same as [`Display`](std::fmt::Display), so that a failed `unwrap` shows a log's end as lines, not as an escaped
/// string.
impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// Wraps an I/O error with the operation.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }

    /// Wraps a client error with the operation.
    pub fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |cause| Self::Api { what, cause: Box::new(cause) }
    }
}

/// The result of fallible functions in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
