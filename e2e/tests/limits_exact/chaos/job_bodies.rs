//! The Jobs of the clients.

use k8s_openapi::api::batch::v1::Job;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, Value, json};

use super::fixtures::{APP, FEW, OVERLAP, SOME};
use crate::job_runner::RUNNER;

/// Groups per namespace. Few, so that clients compete for each.
const APPS: [&str; 3] = ["web", "db", "mail"];

/// A Job as a client creates it.
pub struct ChaosJob {
    pub name: String,
    /// Whether the Job controller runs it; otherwise its client finishes it.
    pub real: bool,
    pub body: Value,
}

impl ChaosJob {
    pub fn random(name: String, random: &mut StdRng) -> Self {
        // Few real ones: each costs the scheduler and a node some writes.
        let real = random.random_bool(0.3);
        let exit_code = if random.random_bool(0.3) { "1" } else { "0" };
        let run_time = format!("{}ms", random.random_range(50..1500));
        let mut body = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": name, "labels": labels(random)},
            "spec": {
                "suspend": random.random_bool(0.15), "backoffLimit": 0,
                "parallelism": i32::from(random.random_bool(0.9)),
                "template": {
                    "metadata": {"annotations": {
                        "e2e.job-handler.io/run": run_time, "e2e.job-handler.io/exit-code": exit_code}},
                    "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]},
                },
            },
        });
        if !real {
            body["spec"]["managedBy"] = RUNNER.into();
        }
        Self { name, real, body }
    }

    pub fn typed(&self) -> Job {
        serde_json::from_value(self.body.clone()).unwrap()
    }
}

/// Labels that bring a Job under one limit or several. A Job that only one limit selects cannot be refused by others, so
/// that each limit is reached.
pub fn labels(random: &mut StdRng) -> Map<String, Value> {
    let app = (APP, *APPS.choose(random).unwrap());
    let all = [(FEW, "yes"), (SOME, "yes"), (OVERLAP, "yes"), app];
    let some: Vec<_> = if random.random_bool(0.5) {
        vec![*all.choose(random).unwrap()]
    } else {
        all.into_iter().filter(|_| random.random_bool(0.5)).collect()
    };
    some.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
}

/// A merge patch that replaces the labels of a Job.
pub fn relabel(random: &mut StdRng) -> Value {
    let mut changed: Map<String, Value> =
        [FEW, SOME, OVERLAP, APP].map(|key| (key.to_owned(), Value::Null)).into_iter().collect();
    changed.extend(labels(random));
    json!({"metadata": {"labels": changed}})
}

/// The status of a Job that its client completes or fails.
pub fn finished(failed: bool) -> Value {
    // Whole seconds, as they are stored: otherwise a retry would change an immutable field.
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap().to_string();
    let condition = |kind: &str| {
        json!({"type": kind, "status": "True", "reason": "Ran", "message": "by the test",
            "lastProbeTime": now, "lastTransitionTime": now})
    };
    if failed {
        let conditions = [condition("FailureTarget"), condition("Failed")];
        json!({"status": {"startTime": now, "failed": 1, "conditions": conditions}})
    } else {
        let conditions = [condition("SuccessCriteriaMet"), condition("Complete")];
        json!({"status": {"startTime": now, "completionTime": now, "succeeded": 1, "conditions": conditions}})
    }
}
