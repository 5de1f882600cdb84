//! Completes the Jobs that it manages (`spec.managedBy`) 50 to 100 ms after they became active. A limit counts them
//! like all other Jobs.

use std::{collections::HashSet, time::Duration};

use jiff::Timestamp;
use job_handler_e2e::etcd_history::{ObjectChange, StoredJobState};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::fixtures::BurstFixture;

/// `spec.managedBy` of its Jobs.
pub const RUNNER: &str = "e2e.job-handler.io/runner";

/// Runs until it is dropped.
pub struct Runner(JoinHandle<()>);

impl Runner {
    pub fn start(fixture: &BurstFixture, namespace: &str, from: usize, seed: u64) -> Self {
        let (jobs, prefix) = (fixture.jobs(namespace), format!("{namespace}/"));
        let history = fixture.history.reader();
        Self(tokio::spawn(async move {
            let (mut random, mut started, mut read) = (StdRng::seed_from_u64(seed), HashSet::new(), from);
            loop {
                let enattempts = history.since(read);
                read += enattempts.len();
                for entry in enattempts {
                    let ObjectChange::Job { key, state: StoredJobState::Active, managed_by, .. } =
                        entry.change
                    else {
                        continue;
                    };
                    let Some(name) = key.strip_prefix(&prefix) else { continue };
                    if managed_by.as_deref() == Some(RUNNER) && started.insert(name.to_owned()) {
                        let run_time = Duration::from_millis(random.random_range(50..=100));
                        tokio::spawn(run(jobs.clone(), name.to_owned(), run_time));
                    }
                }
                if history.wait_for_more(read).await.is_err() {
                    // Waiting for the history fails with the reason.
                    return;
                }
            }
        }))
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(jobs: Api<Job>, name: String, run_time: Duration) {
    tokio::time::sleep(run_time).await;
    // Whole seconds, as they are stored: otherwise a retry would change an immutable field.
    let now = Timestamp::from_second(Timestamp::now().as_second())
        .expect("the current time in seconds is valid")
        .to_string();
    let condition = |kind: &str| {
        json!({"type": kind, "status": "True", "reason": "Ran", "message": "by the test",
            "lastProbeTime": now, "lastTransitionTime": now})
    };
    let status = json!({"status": {
        "startTime": now, "completionTime": now, "succeeded": 1,
        "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
    }});
    let mut attempts = 0;
    while let Err(error) = jobs.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await {
        attempts += 1;
        assert!(attempts < 600, "the status of {name}: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
