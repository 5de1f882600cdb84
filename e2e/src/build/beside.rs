//! Builds run beside the runtime, and end with whoever waits for them: a signal during a build stops the builder.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::error::{Error, Result};

thread_local! {
    /// Set while this thread builds for somebody.
    static UNWANTED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Runs a build on a thread of its own. If the future is dropped before it is done, the build ends soon, too: a runtime
/// waits for its blocking threads.
///
/// # Errors
/// Those of the build.
pub(crate) async fn beside<T: Send + 'static>(
    build: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let unwanted = Arc::new(AtomicBool::new(false));
    let _on_drop = SetOnDrop(unwanted.clone());
    let thread = tokio::task::spawn_blocking(move || {
        UNWANTED.set(Some(unwanted));
        let built = build();
        UNWANTED.set(None);
        built
    });
    thread.await.map_err(|error| Error::Invalid(format!("the build panicked: {error}")))?
}

/// Whether nobody waits any more for what this thread builds.
pub(super) fn is_unwanted() -> bool {
    UNWANTED.with_borrow(|flag| flag.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)))
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
    use crate::build::watched;

    #[test]
    fn a_build_ends_with_whoever_waits_for_it() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let (started, begun) = std::sync::mpsc::channel();
        let since = Instant::now();
        runtime.block_on(async {
            let build = beside(move || {
                let mut command = Command::new("sh");
                // A builder has builders of its own.
                command.args(["-c", "sleep 600 & echo $! >&2; wait"]);
                started.send(()).unwrap();
                watched::run(command, "nothing", "")
            });
            let begun = tokio::task::spawn_blocking(move || begun.recv().unwrap());
            tokio::select! { result = build => panic!("{result:?}"), begun = begun => begun.unwrap() }
        });
        // Waits for its blocking threads.
        drop(runtime);
        assert!(since.elapsed() < Duration::from_secs(60), "{:?}", since.elapsed());
    }
}
