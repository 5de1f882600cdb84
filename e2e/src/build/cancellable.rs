//! Runs a build on a blocking thread and stops it when its future is dropped, so that Ctrl-C stops a long build.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::error::{Error, Result};

thread_local! {
    /// Set while this thread runs a build; true once the build's future was dropped.
    static CANCELLED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Runs a build on a thread of its own. If the future is dropped before the build is done, the builder is terminated: a
/// runtime that shuts down waits for its blocking threads.
///
/// # Errors
/// Those of the build.
pub(crate) async fn run_cancellable<T: Send + 'static>(
    build: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let _on_drop = SetOnDrop(cancelled.clone());
    let thread = tokio::task::spawn_blocking(move || {
        CANCELLED.set(Some(cancelled));
        let built = build();
        CANCELLED.set(None);
        built
    });
    thread.await.map_err(|error| Error::Invalid(format!("the build panicked: {error}")))?
}

/// Whether the future of the build that this thread runs was dropped.
pub(super) fn is_cancelled() -> bool {
    CANCELLED.with_borrow(|flag| flag.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)))
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::build::builder::Builder;

    #[test]
    fn dropping_the_future_ends_the_build() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let (started, begun) = std::sync::mpsc::channel();
        let since = Instant::now();
        runtime.block_on(async {
            let build = run_cancellable(move || {
                let mut command = Command::new("sh");
                // The build command starts child processes, like real ones.
                command.args(["-c", "sleep 600 & echo $! >&2; wait"]);
                started.send(()).unwrap();
                Builder { what: "nothing", duration: "", steps: None }.run(command)
            });
            let begun = tokio::task::spawn_blocking(move || begun.recv().unwrap());
            tokio::select! { result = build => panic!("{result:?}"), begun = begun => begun.unwrap() }
        });
        // Waits for its blocking threads.
        drop(runtime);
        assert!(since.elapsed() < Duration::from_secs(60), "{:?}", since.elapsed());
    }
}
