//! Watches of a benchmark.

use futures::TryStreamExt;
use futures::stream::BoxStream;
use kube::runtime::watcher::{self, Event};

use crate::harness::error::{Error, Result};

/// A watch that retries by itself.
pub(super) type Watch<'a, K> = BoxStream<'a, Result<Event<K>, watcher::Error>>;

/// The next event, or nothing where the watch had an error and retries.
///
/// # Errors
/// If the watch ended.
pub(super) async fn next_event<K>(events: &mut Watch<'_, K>) -> Result<Option<Event<K>>> {
    match events.try_next().await {
        Ok(Some(event)) => Ok(Some(event)),
        Ok(None) => Err(Error::Invalid("a watch ended".to_owned())),
        Err(_) => Ok(None),
    }
}
