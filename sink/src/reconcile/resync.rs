//! Enqueues everything that is not done yet.

use crate::{
    jobs::plan,
    observe::{key::Key, store::Store},
    runtime::work_queue::Queue,
};

/// Asks for a look at every Job about which something remains to be done, there or gone, every group, and every result
/// with pending announcements.
pub fn enqueue_all(store: &Store, queue: &Queue<Key>) {
    for job in store.jobs() {
        let remains = |effective| plan::next(&job, &effective, &store.places(&job)).is_some();
        if job.finished.is_some() && store.effective(&job).is_some_and(remains) {
            queue.add(Key::Job(job.uid.clone()));
        }
    }
    store.groups().into_iter().for_each(|group| queue.add(Key::Group(group)));
    store.pending_results().into_iter().chain(store.deleted_jobs()).for_each(|uid| queue.add(Key::Job(uid)));
}
