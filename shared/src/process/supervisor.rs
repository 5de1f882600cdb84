//! Runs the tasks of a process: none may end early, and all end at shutdown.

use std::{error::Error, future::Future, io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinError,
};
use tokio_util::{sync::CancellationToken, task::JoinMap};

type TaskResult = Result<(), Box<dyn Error + Send + Sync>>;

/// A task that ended while the process was not shutting down.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It returned without an error.
    #[error("task {0:?} exited unexpectedly")]
    Exited(String),
    /// It returned an error.
    #[error("task {task:?} failed: {source}")]
    Failed {
        /// The task's name.
        task: String,
        /// Its error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It panicked.
    #[error("task {task:?} panicked: {source}")]
    Panicked {
        /// The task's name.
        task: String,
        /// Its panic.
        source: JoinError,
    },
}

/// What a task may return.
pub trait TaskOutput {
    /// The result that the supervisor reports.
    fn into_result(self) -> TaskResult;
}

impl TaskOutput for () {
    fn into_result(self) -> TaskResult {
        Ok(())
    }
}

impl TaskOutput for std::convert::Infallible {
    fn into_result(self) -> TaskResult {
        match self {}
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> TaskOutput for Result<(), E> {
    fn into_result(self) -> TaskResult {
        self.map_err(Into::into)
    }
}

/// The named tasks of a process.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinMap<String, TaskResult>,
    shutdown: CancellationToken,
}

impl Supervisor {
    /// Cancelled at shutdown.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Spawns a task that is dropped at shutdown, wherever it stands.
    pub fn spawn<F>(&mut self, task: impl Into<String>, future: F)
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(task.into(), async move {
            shutdown.run_until_cancelled(future).await.map_or(Ok(()), TaskOutput::into_result)
        });
    }

    /// Spawns a task that ends by itself at shutdown, when its token is cancelled.
    pub fn spawn_graceful<F>(&mut self, task: impl Into<String>, run: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        let future = run(self.shutdown.clone());
        self.tasks.spawn(task.into(), async move { future.await.into_result() });
    }

    /// Waits for the first task that ends; without tasks, forever.
    pub async fn first_exit(&mut self) -> TaskError {
        match self.tasks.join_next().await {
            Some((task, ended)) => match failure(&task, ended) {
                Some(error) => error,
                None => TaskError::Exited(task),
            },
            None => std::future::pending().await,
        }
    }

    /// Ends all tasks; those that take longer than `grace` are aborted.
    ///
    /// # Errors
    /// The first failure of a task that was still running.
    pub async fn shut_down(mut self, grace: Duration) -> Result<(), TaskError> {
        self.shutdown.cancel();
        let mut first = Ok(());
        let all = async {
            while let Some((task, ended)) = self.tasks.join_next().await {
                if let Some(error) = failure(&task, ended) {
                    first = std::mem::replace(&mut first, Ok(())).and(Err(error));
                }
            }
        };
        if tokio::time::timeout(grace, all).await.is_err() {
            let tasks: Vec<&str> = self.tasks.keys().map(String::as_str).collect();
            tracing::warn!(
                "aborting tasks that did not end within {} s: {}",
                grace.as_secs(),
                tasks.join(", ")
            );
        }
        first
    }
}

fn failure(task: &str, ended: Result<TaskResult, JoinError>) -> Option<TaskError> {
    let task = task.to_owned();
    match ended {
        Ok(Ok(())) => None,
        Ok(Err(source)) => Some(TaskError::Failed { task, source }),
        Err(source) => Some(TaskError::Panicked { task, source }),
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct ShutdownSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl ShutdownSignals {
    /// Listens from now on; without a listener the signals end the process at once.
    ///
    /// # Errors
    /// If the process may not handle signals.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The name of the next signal.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn the_task_that_ends_is_named_with_the_reason() {
        let mut tasks = Supervisor::default();
        tasks.spawn("policies watch", std::future::pending::<()>());
        tasks.spawn("jobs watch", async {});
        assert_eq!(tasks.first_exit().await.to_string(), r#"task "jobs watch" exited unexpectedly"#);
        tasks.spawn("admin server", async { Err::<(), _>("address in use") });
        assert_eq!(tasks.first_exit().await.to_string(), r#"task "admin server" failed: address in use"#);
        tasks.spawn("leases", async { assert!(GRACE.is_zero(), "not zero") });
        let error = tasks.first_exit().await.to_string();
        assert!(error.starts_with(r#"task "leases" panicked"#) && error.contains("not zero"), "{error}");
        tasks.shut_down(GRACE).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_end_at_shutdown_or_are_aborted_after_the_grace_period() {
        let mut tasks = Supervisor::default();
        tasks.spawn("dropped", std::future::pending::<()>());
        tasks.spawn_graceful("graceful", |token| async move {
            token.cancelled().await;
            Err::<(), _>("lost its lease")
        });
        tasks.spawn_graceful("stuck", |_| std::future::pending::<()>());
        let start = tokio::time::Instant::now();
        let error = tasks.shut_down(GRACE).await.unwrap_err().to_string();
        assert_eq!(error, r#"task "graceful" failed: lost its lease"#);
        assert_eq!(start.elapsed(), GRACE);
    }
}
