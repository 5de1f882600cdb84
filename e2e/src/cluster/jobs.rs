//! Jobs for tests: creates them and waits for them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};

use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};
use crate::harness::wait::wait_for;

/// Prefix of the annotations that control a simulated pod; `e2e/README.md` has the table.
pub const PREFIX: &str = "e2e.job-handler.io/";
/// The condition with the exact times of a simulated pod's run.
const CLOCK: &str = "e2e.job-handler.io/clock";

/// The shortest possible Job, with one container `main`. The annotations for its simulated pods are given without their
/// [`PREFIX`]: `job("build", &[("run", "300ms"), ("exit-code", "3")])`.
pub fn job(name: &str, pod: &[(&str, &str)]) -> Job {
    let annotations: Map<String, Value> =
        pod.iter().map(|(key, value)| (format!("{PREFIX}{key}"), Value::from(*value))).collect();
    let job = json!({
        "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": annotations},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox:1.37"}]},
        }},
    });
    #[expect(clippy::expect_used, reason = "the literal above is a Job, whatever the strings in it")]
    serde_json::from_value(job).expect("the literal is a Job")
}

impl Cluster {
    /// Creates a Job.
    ///
    /// # Errors
    /// If the API server refuses.
    pub async fn create_job(&self, namespace: &str, job: &Job) -> Result<Job> {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        Api::<Job>::namespaced(self.client(), namespace)
            .create(&PostParams::default(), job)
            .await
            .map_err(Error::api(format!("creating the Job {namespace}/{name}")))
    }

    /// Waits until a Job is finished (its condition `Complete` or `Failed` is True) and returns it.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the Job's last status.
    pub async fn wait_job_finished(&self, namespace: &str, name: &str, within: Duration) -> Result<Job> {
        let jobs: Api<Job> = Api::namespaced(self.client(), namespace);
        wait_for(within, &format!("the Job {namespace}/{name} to finish"), || async {
            let job = jobs.get(name).await.map_err(|error| error.to_string())?;
            match finished(&job) {
                Some(_) => Ok(job),
                None => Err(format!("{:?}", job.status)),
            }
        })
        .await
    }

    /// The current pods of a Job.
    ///
    /// # Errors
    /// If the API server refuses.
    pub async fn pods_of(&self, namespace: &str, job: &str) -> Result<Vec<Pod>> {
        let selector = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
        Api::<Pod>::namespaced(self.client(), namespace)
            .list(&selector)
            .await
            .map(|list| list.items)
            .map_err(Error::api(format!("listing the pods of the Job {namespace}/{job}")))
    }

    /// Waits until the Job has a pod that passes the test, and returns it. The test returns what is missing.
    ///
    /// # Errors
    /// [`Error::Timeout`] with what was missing last.
    pub async fn wait_pod_of(
        &self,
        namespace: &str,
        job: &str,
        within: Duration,
        test: impl Fn(&Pod) -> Result<(), String>,
    ) -> Result<Pod> {
        wait_for(within, &format!("a pod of the Job {namespace}/{job}"), || async {
            let pods = self.pods_of(namespace, job).await.map_err(|error| error.to_string())?;
            let mut missing = "it has no pod".to_owned();
            for pod in pods {
                match test(&pod) {
                    Ok(()) => return Ok(pod),
                    Err(why) => missing = why,
                }
            }
            Err(missing)
        })
        .await
    }

    /// Lets the simulated pod of a Job end now, however long its annotations let it run. Waits until it has started.
    ///
    /// # Errors
    /// If it does not start, or the API server refuses.
    pub async fn end_pod_of(&self, namespace: &str, job: &str, within: Duration) -> Result<()> {
        let started = |pod: &Pod| clock(pod).map(drop).ok_or_else(|| "it has not started".to_owned());
        let pod = self.wait_pod_of(namespace, job, within, started).await?;
        let Some(mut clock) = clock(&pod).filter(|clock| clock.get("ended").is_none()) else { return Ok(()) };
        clock.insert("until".to_owned(), Timestamp::now().to_string().into());
        let condition = json!({"type": CLOCK, "status": "True", "message": Value::from(clock).to_string()});
        Api::<Pod>::namespaced(self.client(), namespace)
            .patch_status(
                pod.metadata.name.as_deref().unwrap_or_default(),
                &PatchParams::default(),
                &Patch::Strategic(json!({"status": {"conditions": [condition]}})),
            )
            .await
            .map(drop)
            .map_err(Error::api(format!("ending the pod of the Job {namespace}/{job}")))
    }
}

/// The times that the simulated node keeps of a pod's run.
pub fn clock(pod: &Pod) -> Option<Map<String, Value>> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == CLOCK)?;
    serde_json::from_str(condition.message.as_deref()?).ok()
}

/// The condition of a finished Job: (`Complete` or `Failed`, reason).
pub fn finished(job: &Job) -> Option<(String, String)> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| {
            matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
        })
        .map(|condition| (condition.type_.clone(), condition.reason.clone().unwrap_or_default()))
}

/// A test for [`Cluster::wait_pod_of`]: whether a pod is in this phase.
///
/// # Errors
/// The phase of the pod.
pub fn in_phase(phase: &'static str) -> impl Fn(&Pod) -> Result<(), String> {
    move |pod| {
        let seen = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if seen == phase { Ok(()) } else { Err(format!("it is {seen}")) }
    }
}
