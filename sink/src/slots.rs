//! How many Jobs are worked on at a time. Whoever only waits for a node's logs gives its slot back meanwhile, so that
//! Jobs whose node does not answer hold up nobody else.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

tokio::task_local! {
    /// The slot of the work that runs in this task.
    static SLOT: Slot;
}

/// All slots; clones are the same ones.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Semaphore>);

/// The right to work on something.
#[derive(Debug)]
pub struct Slot {
    pool: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    permit: Option<OwnedSemaphorePermit>,
    /// Time spent aside, but for the present stay.
    aside: Duration,
    since: Option<Instant>,
}

impl Slots {
    /// So many.
    pub fn new(number: usize) -> Self {
        Self(Arc::new(Semaphore::new(number)))
    }

    /// Waits for a free one.
    pub async fn take(&self) -> Slot {
        // An error would say that the semaphore is closed; nobody closes it.
        let permit = self.0.clone().acquire_owned().await.ok();
        Slot { pool: self.0.clone(), state: Mutex::new(State { permit, aside: Duration::ZERO, since: None }) }
    }
}

impl Slot {
    /// Works in this slot, for at most `bound` without the time spent [`aside`]; nothing where that is over.
    pub async fn run<F: Future>(self, bound: Duration, work: F) -> Option<F::Output> {
        let begun = Instant::now();
        SLOT.scope(self, async {
            let mut work = pin!(work);
            let mut left = bound;
            loop {
                if let Ok(output) = tokio::time::timeout(left, &mut work).await {
                    return Some(output);
                }
                let aside = SLOT.try_with(Self::aside).unwrap_or_default();
                left = bound.saturating_sub(begun.elapsed().saturating_sub(aside));
                if left.is_zero() {
                    return None;
                }
                // Who is aside is not looked at more often than this.
                left = left.max(Duration::from_millis(100));
            }
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn aside(&self) -> Duration {
        let state = self.lock();
        state.aside + state.since.map(|since| since.elapsed()).unwrap_or_default()
    }

    fn leave(&self) -> Arc<Semaphore> {
        let mut state = self.lock();
        state.since = Some(Instant::now());
        state.permit = None;
        self.pool.clone()
    }

    fn enter(&self, permit: Option<OwnedSemaphorePermit>) {
        let mut state = self.lock();
        state.permit = permit;
        let stay = state.since.take().map(|since| since.elapsed()).unwrap_or_default();
        state.aside += stay;
    }
}

/// Awaits `work` without the slot, which others may use meanwhile, and takes one again. Outside of [`Slot::run`] it only
/// awaits.
pub async fn aside<F: Future>(work: F) -> F::Output {
    let Ok(pool) = SLOT.try_with(Slot::leave) else { return work.await };
    let output = work.await;
    let permit = pool.acquire_owned().await.ok();
    // The same task, the same slot: only a task that is torn down has none any more.
    let _: Result<_, _> = SLOT.try_with(|slot| slot.enter(permit));
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_aside_holds_no_slot_and_takes_one_again() {
        let slots = Slots::new(1);
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let first = slots.take().await;
        let first = tokio::spawn(first.run(Duration::from_secs(1), async {
            aside(gone).await.unwrap();
        }));
        // It has the only slot until it is aside.
        let second = slots.take().await;
        go.send(()).unwrap();
        tokio::task::yield_now().await;
        assert!(!first.is_finished(), "it went on without a slot");
        drop(second);
        assert_eq!(first.await.unwrap(), Some(()));
        assert_eq!(slots.0.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_bound_is_on_work_alone() {
        let slots = Slots::new(1);
        let second = Duration::from_secs(1);
        let long = aside(tokio::time::sleep(100 * second));
        assert_eq!(slots.take().await.run(second, long).await, Some(()));
        let slow = async {
            aside(tokio::time::sleep(100 * second)).await;
            tokio::time::sleep(2 * second).await;
        };
        assert_eq!(slots.take().await.run(second, slow).await, None);
        assert_eq!(slots.0.available_permits(), 1, "given back whatever became of it");
    }
}
