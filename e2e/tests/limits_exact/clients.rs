//! Clients that create Jobs and retry until each is created.

use std::{
    collections::BTreeMap,
    iter::Sum,
    time::{Duration, Instant},
};

use job_handler_e2e::etcd_history::NUMBER;
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    fixtures::{BurstFixture, PATIENCE},
    job_runner::RUNNER,
};

/// Longer than the apiserver's request timeout: no answer arrives after that.
const CALL_TIMEOUT: Duration = Duration::from_secs(45);

/// How Jobs are created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateMethod {
    Create,
    GenerateName,
    Apply,
}

/// Additional calls for half of the Jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraSteps {
    None,
    /// A dry run before the create.
    DryRuns,
    /// The Job is created suspended and resumed afterwards.
    Suspended,
}

/// A Job to create.
pub struct BurstJob {
    pub number: usize,
    /// Whether the Job controller runs it; otherwise the test completes it.
    pub real: bool,
    /// Whether [`ExtraSteps`] apply to it.
    pub extra: bool,
}

/// The errors that clients got.
#[derive(Clone, Debug, Default)]
pub struct ClientErrors {
    /// Refusals by status code.
    pub refused: BTreeMap<u16, usize>,
    /// Calls without an answer.
    pub unanswered: usize,
}

pub struct Client {
    jobs: Api<Job>,
    method: CreateMethod,
    extra_steps: ExtraSteps,
    random: StdRng,
    pub errors: ClientErrors,
}

enum JobCall<'a> {
    Create(&'a Job),
    DryRun(&'a Job),
    Resume,
}

impl Client {
    pub fn new(
        fixture: &BurstFixture,
        namespace: &str,
        method: CreateMethod,
        extra_steps: ExtraSteps,
        seed: u64,
    ) -> Self {
        let jobs = fixture.jobs(namespace);
        Self {
            jobs,
            method,
            extra_steps,
            random: StdRng::seed_from_u64(seed),
            errors: ClientErrors::default(),
        }
    }

    /// Returns once the Job is created and not suspended.
    pub async fn create(&mut self, burst_job: &BurstJob) {
        let suspended = burst_job.extra && self.extra_steps == ExtraSteps::Suspended;
        let job = self.job(burst_job, suspended);
        let name = format!("j{}", burst_job.number);
        if burst_job.extra && self.extra_steps == ExtraSteps::DryRuns {
            self.retry(&name, JobCall::DryRun(&job)).await;
        }
        self.retry(&name, JobCall::Create(&job)).await;
        if suspended {
            self.retry(&name, JobCall::Resume).await;
        }
    }

    async fn retry(&mut self, name: &str, call: JobCall<'_>) {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(30);
        loop {
            match tokio::time::timeout(CALL_TIMEOUT, self.call(name, &call)).await {
                Ok(Ok(_)) => return,
                Ok(Err(kube::Error::Api(status))) => {
                    *self.errors.refused.entry(status.code).or_default() += 1;
                    let message = &status.message;
                    match (status.code, status.reason.as_str()) {
                        // An earlier attempt created the Job, but its answer was lost.
                        (409, "AlreadyExists") => return,
                        (403, _) => {
                            let expected = ["concurrent job limit reached: ", "exceeded quota: "];
                            assert!(expected.iter().any(|expected| message.contains(expected)), "{message}");
                        }
                        // 409: another request updated the quota's status concurrently.
                        (409 | 429 | 500 | 503 | 504, _) => {}
                        (code, reason) => panic!("{code} {reason}: {message}"),
                    }
                    assert!(Instant::now() < deadline, "{name}: {} {message}", status.code);
                }
                Ok(Err(error)) => {
                    self.errors.unanswered += 1;
                    assert!(Instant::now() < deadline, "{name}: {error}");
                }
                Err(_) => {
                    self.errors.unanswered += 1;
                    assert!(Instant::now() < deadline, "{name}: no answer");
                }
            }
            tokio::time::sleep(pause.mul_f64(self.random.random_range(0.5..1.0))).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(400));
        }
    }

    async fn call(&self, name: &str, call: &JobCall<'_>) -> kube::Result<Job> {
        match call {
            JobCall::Resume => {
                let resume = Patch::Merge(json!({"spec": {"suspend": false}}));
                self.jobs.patch(name, &PatchParams::default(), &resume).await
            }
            JobCall::Create(job) | JobCall::DryRun(job) => {
                let dry_run = matches!(call, JobCall::DryRun(_));
                if self.method == CreateMethod::Apply {
                    let params = PatchParams { dry_run, ..PatchParams::apply("test").force() };
                    return self.jobs.patch(name, &params, &Patch::Apply(job)).await;
                }
                self.jobs.create(&PostParams { dry_run, ..PostParams::default() }, job).await
            }
        }
    }

    fn job(&self, burst_job: &BurstJob, suspended: bool) -> Job {
        let name = format!("j{}", burst_job.number);
        let mut job: Value = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"labels": {NUMBER: burst_job.number.to_string()}},
            "spec": {"suspend": suspended, "template": {
                "metadata": {"annotations": {"e2e.job-handler.io/run": "50ms"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]},
            }},
        });
        match self.method {
            CreateMethod::GenerateName => job["metadata"]["generateName"] = format!("{name}-").into(),
            CreateMethod::Create | CreateMethod::Apply => job["metadata"]["name"] = name.into(),
        }
        if !burst_job.real {
            job["spec"]["managedBy"] = RUNNER.into();
        }
        serde_json::from_value(job).unwrap()
    }
}

impl Sum for ClientErrors {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            one.refused.into_iter().for_each(|(code, n)| *sum.refused.entry(code).or_default() += n);
            sum.unanswered += one.unanswered;
            sum
        })
    }
}

impl std::fmt::Display for ClientErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "refusals by code {:?}, {} calls without an answer", self.refused, self.unanswered)
    }
}
