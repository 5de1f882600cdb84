//! How many Jobs are worked on at a time. Whoever only waits for a node's logs gives its slot back meanwhile, so that
//! Jobs whose node does not answer hold up nobody else. Whoever takes long otherwise, such as where a webhook in the way
//! of its writes does not answer, moves over to one of a few slots for such work.

use std::{pin::pin, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Work that lasts longer than this takes long.
const LONG: Duration = Duration::from_secs(1);

tokio::task_local! {
    /// The slot of the work that runs in this task.
    static SLOT: Slot;
}

/// All slots; clones are the same ones.
#[derive(Clone, Debug)]
pub struct Slots {
    pool: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

/// The right to work on something.
#[derive(Debug)]
pub struct Slot {
    pool: Arc<Semaphore>,
    long: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    permit: Option<OwnedSemaphorePermit>,
    /// Since when it is worked in this slot.
    entered: Instant,
    pace: Pace,
    /// Time spent aside, but for the present stay.
    aside: Duration,
    since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Well,
    /// It takes long, but there was no slot for that.
    Long,
    /// It has a slot for what takes long.
    Aside,
}

impl Slots {
    /// So many, and as many for what takes long.
    pub fn new(number: usize) -> Self {
        Self { pool: Arc::new(Semaphore::new(number)), long: Arc::new(Semaphore::new(number)) }
    }

    /// Waits for a free one.
    pub async fn take(&self) -> Slot {
        // An error would say that the semaphore is closed; nobody closes it.
        let permit = self.pool.clone().acquire_owned().await.ok();
        let state =
            State { permit, entered: Instant::now(), pace: Pace::Well, aside: Duration::ZERO, since: None };
        Slot { pool: self.pool.clone(), long: self.long.clone(), state: Mutex::new(state) }
    }
}

impl Slot {
    /// Works in this slot, for at most `bound` without the time spent [`aside`]; nothing where that is over. `takes_long`
    /// is called where it does.
    pub async fn run<F: Future>(self, bound: Duration, work: F, takes_long: impl Fn()) -> Option<F::Output> {
        let begun = Instant::now();
        SLOT.scope(self, async {
            let mut work = pin!(work);
            let mut left = bound;
            loop {
                if let Ok(output) = tokio::time::timeout(left.min(LONG), &mut work).await {
                    return Some(output);
                }
                if SLOT.try_with(Self::make_way).unwrap_or_default() {
                    takes_long();
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
        self.state.lock()
    }

    fn aside(&self) -> Duration {
        let state = self.lock();
        state.aside + state.since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Leaves the slot to others, for one of those for what takes long; tells whether it is new that this does.
    fn make_way(&self) -> bool {
        let mut state = self.lock();
        if state.since.is_some() || state.pace == Pace::Aside || state.entered.elapsed() < LONG {
            return false;
        }
        let news = state.pace == Pace::Well;
        state.pace = Pace::Long;
        if let Ok(permit) = self.long.clone().try_acquire_owned() {
            (state.permit, state.pace) = (Some(permit), Pace::Aside);
        }
        news
    }

    fn leave(&self) -> Arc<Semaphore> {
        let mut state = self.lock();
        state.since = Some(Instant::now());
        state.permit = None;
        self.pool.clone()
    }

    fn enter(&self, permit: Option<OwnedSemaphorePermit>) {
        let mut state = self.lock();
        (state.permit, state.entered, state.pace) = (permit, Instant::now(), Pace::Well);
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
        let first = tokio::spawn(first.run(
            Duration::from_secs(1),
            async {
                aside(gone).await.unwrap();
            },
            || {},
        ));
        // It has the only slot until it is aside.
        let second = slots.take().await;
        go.send(()).unwrap();
        tokio::task::yield_now().await;
        assert!(!first.is_finished(), "it went on without a slot");
        drop(second);
        assert_eq!(first.await.unwrap(), Some(()));
        assert_eq!(slots.pool.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_bound_is_on_work_alone() {
        let slots = Slots::new(1);
        let second = Duration::from_secs(1);
        let long = aside(tokio::time::sleep(100 * second));
        assert_eq!(slots.take().await.run(second, long, || {}).await, Some(()));
        let slow = async {
            aside(tokio::time::sleep(100 * second)).await;
            tokio::time::sleep(2 * second).await;
        };
        assert_eq!(slots.take().await.run(second, slow, || {}).await, None);
        assert_eq!(slots.pool.available_permits(), 1, "given back whatever became of it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_long_makes_way_as_far_as_there_is_room_for_it() {
        let slots = Slots::new(2);
        let told = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut stuck = tokio::task::JoinSet::new();
        let begun = Instant::now();
        for _ in 0..5 {
            let (slot, told) = (slots.take().await, told.clone());
            stuck.spawn(async move {
                let tell = || _ = told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                slot.run(60 * LONG, std::future::pending::<()>(), tell).await
            });
            tokio::task::yield_now().await;
            if stuck.len() == 3 {
                assert!(begun.elapsed() < 3 * LONG, "the first have made way: {:?}", begun.elapsed());
            }
        }
        // Two in slots of their own, two in those of all: until the first are given up, nobody else has room.
        assert!(begun.elapsed() >= 59 * LONG, "{:?}", begun.elapsed());
        assert!(told.load(std::sync::atomic::Ordering::Relaxed) >= 4);
        while let Some(ended) = stuck.join_next().await {
            assert_eq!(ended.unwrap(), None);
        }
        assert_eq!((slots.pool.available_permits(), slots.long.available_permits()), (2, 2));
    }
}
