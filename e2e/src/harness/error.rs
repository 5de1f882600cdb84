//! What can go wrong on the ground: one type, because every caller does the same with it (show it).

use std::path::PathBuf;
use std::time::Duration;

/// An error of the ground. Each message says what was expected, what was found and what to do.
#[derive(thiserror::Error)]
pub enum Error {
    /// An operation on files or processes failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried, with the path or program.
        what: String,
        /// The operating system's answer; part of the message, so not also a `source`.
        cause: std::io::Error,
    },
    /// The API server refused or could not be reached.
    #[error("{what}: {cause}")]
    Api {
        /// What was tried.
        what: String,
        /// The client's error.
        cause: Box<kube::Error>,
    },
    /// A tool that is needed is not installed.
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
    /// A process ended although it should live on.
    #[error("{name} ended ({status}); the end of {}:\n{tail}", log.display())]
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
    /// A port that was asked for is taken.
    #[error(
        "port {0} on 127.0.0.1 is in use by another program: end that program (`ss -ltnp 'sport = :{0}'` \
         names it), or choose another port"
    )]
    PortInUse(u16),
    /// A condition did not come true in time.
    #[error("waited {waited:?} for {what}, in vain; last seen: {last}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was waited for.
        waited: Duration,
        /// What the last look saw.
        last: String,
    },
    /// A command ended with an error.
    #[error("`{command}` failed ({status}):\n{stderr}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// Something that only a cluster of our own can do.
    #[error("{0} needs a cluster of our own; E2E_KUBECONFIG names an existing one")]
    Unsupported(&'static str),
    /// Input (a kubeconfig, a manifest, an answer) is not what it should be.
    #[error("{0}")]
    Invalid(String),
}

/// As [`Display`](std::fmt::Display): a test that unwraps shows the log's end as lines, not as one escaped string.
impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// Wraps an I/O error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }

    /// Wraps a client error with what was tried.
    pub fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |cause| Self::Api { what, cause: Box::new(cause) }
    }
}

/// The ground's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
