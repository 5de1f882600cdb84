//! Enqueues everything that is not done.

use crate::{
    jobs::plan,
    observe::{key::Key, store::Store},
    runtime::work_queue::Queue,
};

/// Enqueues every group, every Job that has a next step, every result with pending Events, and every deleted Job whose
/// result is not stored.
pub(crate) fn enqueue_all(store: &Store, queue: &Queue<Key>) {
    for job in store.jobs() {
        let has_next_step = |effective| plan::next_step(&job, &effective, &store.results_of(&job)).is_some();
        if job.finished.is_some() && store.effective(&job).is_some_and(has_next_step) {
            queue.add(Key::Job(job.uid.clone()));
        }
    }
    store.groups().into_iter().for_each(|group| queue.add(Key::Group(group)));
    store.pending_results().into_iter().chain(store.deleted_jobs()).for_each(|uid| queue.add(Key::Job(uid)));
}
