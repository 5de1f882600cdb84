//! A test double of a receiver of CloudEvents.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::time::Instant;

use crate::cloudevents::{
    client::{DeliveryError, EventReceiver},
    event::CloudEvent,
};

/// Unavailable until a moment of the paused clock; records what it accepted.
pub(super) struct FlakyReceiver {
    back: Instant,
    received: Mutex<Vec<Value>>,
    attempts: AtomicUsize,
}

impl FlakyReceiver {
    pub(super) fn available_from(back: Instant) -> Arc<Self> {
        Arc::new(Self { back, received: Mutex::default(), attempts: AtomicUsize::new(0) })
    }

    /// The accepted events as JSON, in order.
    pub(super) fn received(&self) -> MutexGuard<'_, Vec<Value>> {
        self.received.lock()
    }

    /// Number of attempts, refused ones included.
    pub(super) fn attempts(&self) -> usize {
        self.attempts.load(Ordering::Relaxed)
    }
}

impl EventReceiver for FlakyReceiver {
    fn name(&self) -> &str {
        "ci"
    }

    async fn deliver(&self, event: &CloudEvent) -> Result<(), DeliveryError> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        if Instant::now() < self.back {
            return Err(DeliveryError::Unavailable("503".into()));
        }
        self.received.lock().push(event.to_json("/s", &Default::default()));
        Ok(())
    }
}
