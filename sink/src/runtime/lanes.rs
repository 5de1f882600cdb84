//! Two sets of permits for one resource, so that slow work never blocks work that is fast.
//!
//! Three mechanisms use it: workers ([`crate::runtime::concurrency`]), log reads per node, and log reads in all
//! (`harvest::node_limits`, `harvest::log_reader`). Work starts in the regular lane. Once it turns out
//! to be slow, it releases its permit and continues in the slow lane.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Which of the two sets of permits work uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    Regular,
    Slow,
}

/// A permit; none only if its semaphore were closed, which never happens.
pub(crate) type LanePermit = Option<OwnedSemaphorePermit>;

/// The permits; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    regular: Arc<Semaphore>,
    slow: Arc<Semaphore>,
}

impl Lanes {
    pub(crate) fn new(regular: usize, slow: usize) -> Self {
        Self { regular: Arc::new(Semaphore::new(regular)), slow: Arc::new(Semaphore::new(slow)) }
    }

    pub(crate) async fn acquire(&self, pace: Pace) -> LanePermit {
        self.acquire_many(pace, 1).await
    }

    pub(crate) async fn acquire_many(&self, pace: Pace, permits: u32) -> LanePermit {
        self.lane(pace).clone().acquire_many_owned(permits).await.ok()
    }

    /// A permit if one is free now.
    pub(crate) fn try_acquire(&self, pace: Pace) -> LanePermit {
        self.lane(pace).clone().try_acquire_owned().ok()
    }

    fn lane(&self, pace: Pace) -> &Arc<Semaphore> {
        match pace {
            Pace::Regular => &self.regular,
            Pace::Slow => &self.slow,
        }
    }
}

#[cfg(test)]
impl Lanes {
    pub(crate) fn available(&self) -> (usize, usize) {
        (self.regular.available_permits(), self.slow.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_full_slow_lane_does_not_block_the_regular_one() {
        let lanes = Lanes::new(1, 1);
        let slow = lanes.acquire(Pace::Slow).await;
        assert!(lanes.try_acquire(Pace::Slow).is_none());
        assert!(lanes.acquire(Pace::Slow).now_or_never().is_none());
        let regular = lanes.acquire(Pace::Regular).now_or_never().expect("the regular lane is free");
        assert_eq!(lanes.available(), (0, 0));
        drop((slow, regular));
        assert_eq!(lanes.available(), (1, 1));
    }
}
