//! Limits concurrent reconciles.
//!
//! A reconcile that waits for container logs returns its permit meanwhile ([`without_permit`]), so that Jobs whose node
//! does not answer block no other Job. A reconcile that is slow for another reason, such as a webhook that delays its
//! writes, moves to a second set of permits.

use std::{pin::pin, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::runtime::lanes::{LanePermit, Lanes, Pace};

/// A reconcile that runs longer than this is slow.
const SLOW_AFTER: Duration = Duration::from_secs(1);
/// The shortest pause between two checks of a reconcile's time.
const CHECK_PAUSE: Duration = Duration::from_millis(100);

tokio::task_local! {
    /// The permit of the reconcile that runs in this task.
    static PERMIT: WorkerPermit;
}

/// All permits; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct WorkerPermits(Lanes);

/// The right to run one reconcile.
#[derive(Debug)]
pub(crate) struct WorkerPermit {
    lanes: Lanes,
    state: Mutex<PermitState>,
}

#[derive(Debug)]
struct PermitState {
    permit: LanePermit,
    acquired: Instant,
    progress: Progress,
    /// Time spent without a permit, except for the present wait.
    waited: Duration,
    waiting_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Regular,
    /// It is slow, but the slow lane was full.
    SlowInRegularLane,
    InSlowLane,
}

impl WorkerPermits {
    /// As many permits for slow reconciles as for others.
    pub(crate) fn new(number: usize) -> Self {
        Self(Lanes::new(number, number))
    }

    pub(crate) async fn acquire(&self) -> WorkerPermit {
        let state = PermitState {
            permit: self.0.acquire(Pace::Regular).await,
            acquired: Instant::now(),
            progress: Progress::Regular,
            waited: Duration::ZERO,
            waiting_since: None,
        };
        WorkerPermit { lanes: self.0.clone(), state: Mutex::new(state) }
    }
}

impl WorkerPermit {
    /// Runs `work` for at most `limit`, not counting the time spent in [`without_permit`]; none if it timed out. Calls
    /// `on_slow` when the work becomes slow.
    pub(crate) async fn run<F: Future>(
        self,
        limit: Duration,
        work: F,
        on_slow: impl Fn(),
    ) -> Option<F::Output> {
        let started = Instant::now();
        PERMIT
            .scope(self, async {
                let mut work = pin!(work);
                let mut left = limit;
                loop {
                    if let Ok(output) = tokio::time::timeout(left.min(SLOW_AFTER), &mut work).await {
                        return Some(output);
                    }
                    if PERMIT.try_with(Self::move_to_slow_lane).unwrap_or_default() {
                        on_slow();
                    }
                    let waited = PERMIT.try_with(Self::waited).unwrap_or_default();
                    left = limit.saturating_sub(started.elapsed().saturating_sub(waited));
                    if left.is_zero() {
                        return None;
                    }
                    left = left.max(CHECK_PAUSE);
                }
            })
            .await
    }

    fn lock(&self) -> MutexGuard<'_, PermitState> {
        self.state.lock()
    }

    fn waited(&self) -> Duration {
        let state = self.lock();
        state.waited + state.waiting_since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Exchanges the permit of slow work for one of the slow lane; returns whether the work has just become slow.
    fn move_to_slow_lane(&self) -> bool {
        let mut state = self.lock();
        if state.waiting_since.is_some()
            || state.progress == Progress::InSlowLane
            || state.acquired.elapsed() < SLOW_AFTER
        {
            return false;
        }
        let just_now = state.progress == Progress::Regular;
        state.progress = Progress::SlowInRegularLane;
        if let Some(permit) = self.lanes.try_acquire(Pace::Slow) {
            (state.permit, state.progress) = (Some(permit), Progress::InSlowLane);
        }
        just_now
    }

    fn release(&self) -> Lanes {
        let mut state = self.lock();
        state.waiting_since = Some(Instant::now());
        state.permit = None;
        self.lanes.clone()
    }

    fn resume(&self, permit: LanePermit) {
        let mut state = self.lock();
        (state.permit, state.acquired, state.progress) = (permit, Instant::now(), Progress::Regular);
        let wait = state.waiting_since.take().map(|since| since.elapsed()).unwrap_or_default();
        state.waited += wait;
    }
}

/// Awaits `work` without the task's permit, which others may use meanwhile, and acquires one again afterwards. Outside of
/// [`WorkerPermit::run`] it only awaits.
pub(crate) async fn without_permit<F: Future>(work: F) -> F::Output {
    let Ok(lanes) = PERMIT.try_with(WorkerPermit::release) else { return work.await };
    let output = work.await;
    let permit = lanes.acquire(Pace::Regular).await;
    // It fails only in a task that is being torn down.
    let _: Result<_, _> = PERMIT.try_with(|own| own.resume(permit));
    output
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_waiting_reconcile_releases_its_permit_and_acquires_one_again() {
        let permits = WorkerPermits::new(1);
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let first = permits.acquire().await;
        let first = tokio::spawn(first.run(
            Duration::from_secs(1),
            async {
                without_permit(gone).await.unwrap();
            },
            || {},
        ));
        // The first holds the only permit until it waits.
        let second = permits.acquire().await;
        go.send(()).unwrap();
        tokio::task::yield_now().await;
        assert!(!first.is_finished(), "it continued without a permit");
        drop(second);
        assert_eq!(first.await.unwrap(), Some(()));
        assert_eq!(permits.0.available().0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_does_not_count_towards_the_limit() {
        let permits = WorkerPermits::new(1);
        let second = Duration::from_secs(1);
        let long = without_permit(tokio::time::sleep(100 * second));
        assert_eq!(permits.acquire().await.run(second, long, || {}).await, Some(()));
        let slow = async {
            without_permit(tokio::time::sleep(100 * second)).await;
            tokio::time::sleep(2 * second).await;
        };
        assert_eq!(permits.acquire().await.run(second, slow, || {}).await, None);
        assert_eq!(permits.0.available().0, 1, "a timeout releases the permit, too");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_work_moves_to_the_slow_lane_while_that_has_room() {
        let permits = WorkerPermits::new(2);
        let slow = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut stuck = tokio::task::JoinSet::new();
        let begun = Instant::now();
        for _ in 0..5 {
            let (permit, slow) = (permits.acquire().await, slow.clone());
            stuck.spawn(async move {
                let on_slow = || _ = slow.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                permit.run(60 * SLOW_AFTER, std::future::pending::<()>(), on_slow).await
            });
            tokio::task::yield_now().await;
            if stuck.len() == 3 {
                assert!(
                    begun.elapsed() < 3 * SLOW_AFTER,
                    "the first moved to the slow lane: {:?}",
                    begun.elapsed()
                );
            }
        }
        // Two in the slow lane, two in the regular one: the fifth waits until one of them times out.
        assert!(begun.elapsed() >= 59 * SLOW_AFTER, "{:?}", begun.elapsed());
        assert!(slow.load(std::sync::atomic::Ordering::Relaxed) >= 4);
        while let Some(ended) = stuck.join_next().await {
            assert_eq!(ended.unwrap(), None);
        }
        assert_eq!(permits.0.available(), (2, 2));
    }
}
