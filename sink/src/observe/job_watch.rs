//! The watch of Jobs outside excluded namespaces. Each Job is trimmed before the next one is read.

use std::{collections::BTreeSet, time::Duration};

use job_handler_shared::{
    job::{
        snapshot::JobSnapshot,
        watch::{self, JobObserver, WatchTiming},
    },
    process::admin::{self, ReadyHandle},
};

use crate::{
    model::job_change::{GroupKey, Uid},
    observe::{context::Context, key::Key, reflectors::WATCH_SECONDS},
};

/// As of the other watches: see [`WATCH_SECONDS`].
const TIMING: WatchTiming = WatchTiming {
    seconds: WATCH_SECONDS as u64,
    silence: Duration::from_secs(WATCH_SECONDS as u64 + 5),
    relist: Duration::from_secs(30),
};

/// Fills the store.
struct StoreObserver {
    context: Context,
    /// Uids of the Jobs of the list that is being read.
    seen: Option<BTreeSet<Uid>>,
}

/// Watches Jobs, for ever, once the watches of `policies` have listed them.
pub(crate) async fn run(context: Context, ready: ReadyHandle, policies: [ReadyHandle; 2]) {
    // Before, any list would have to be read again.
    admin::all_ready(&policies).await;
    let (client, changes) = (context.client.clone(), context.store.changes());
    match watch::run(client, TIMING, StoreObserver { context, seen: None }, changes, ready).await {}
}

impl StoreObserver {
    fn enqueue(&self, uid: Uid, group: Option<GroupKey>) {
        self.context.queue.add(Key::Job(uid));
        group.map(Key::Group).into_iter().for_each(|key| self.context.queue.add(key));
    }
}

impl JobObserver for StoreObserver {
    fn read(&self, json: &[u8]) -> serde_json::Result<JobSnapshot> {
        // The store trims it.
        JobSnapshot::from_json(json)
    }

    fn list_began(&mut self) {
        self.seen = Some(BTreeSet::new());
        self.context.store.list_began();
    }

    fn listed(&mut self, job: JobSnapshot) {
        if !self.context.is_excluded(&job.namespace) {
            self.seen.iter_mut().for_each(|seen| _ = seen.insert(job.uid.clone()));
            self.context.job_seen(job, true);
        }
    }

    fn list_ended(&mut self, _: u64) {
        for (uid, group) in self.context.store.retain_jobs(&self.seen.take().unwrap_or_default()) {
            self.enqueue(uid, group);
        }
    }

    fn changed(&mut self, job: JobSnapshot, _: u64) {
        if !self.context.is_excluded(&job.namespace) {
            self.context.job_seen(job, false);
        }
    }

    fn deleted(&mut self, job: JobSnapshot, _: u64) {
        let uid = job.uid.clone();
        if let Some(group) = self.context.store.remove_job(&uid, Some(job)) {
            self.enqueue(uid, group);
        }
    }

    fn reached(&mut self, _: u64) {}

    fn needs_list(&self) -> bool {
        self.context.store.lacks_labels()
    }
}
