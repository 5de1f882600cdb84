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
    fixtures::{Fixture, PATIENCE},
    job_runner::RUNNER,
};

/// Longer than the apiserver's request timeout: a call without an answer by then is lost.
const LOST: Duration = Duration::from_secs(45);

/// How Jobs are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Create,
    GenerateName,
    Apply,
}

/// What half of the Jobs go through besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixed {
    Nothing,
    /// A dry run before each of them.
    DryRuns,
    /// They are created suspended, and then started.
    Suspended,
}

/// A Job that is wanted.
pub struct Wanted {
    pub number: usize,
    /// It runs as Jobs run; else the test runs it.
    pub real: bool,
    /// Whether `Mixed` applies to it.
    pub extra: bool,
}

/// The errors that clients got.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Refusals by status code.
    pub refused: BTreeMap<u16, usize>,
    /// Calls without an answer.
    pub lost: usize,
}

pub struct Client {
    jobs: Api<Job>,
    how: How,
    mixed: Mixed,
    random: StdRng,
    pub counts: Counts,
}

enum Call<'a> {
    Make(&'a Job),
    DryRun(&'a Job),
    Start,
}

impl Client {
    pub fn new(fixture: &Fixture, namespace: &str, how: How, mixed: Mixed, seed: u64) -> Self {
        let jobs = fixture.jobs(namespace);
        Self { jobs, how, mixed, random: StdRng::seed_from_u64(seed), counts: Counts::default() }
    }

    /// Until the Job is there, and active or finished.
    pub async fn make(&mut self, wanted: &Wanted) {
        let suspended = wanted.extra && self.mixed == Mixed::Suspended;
        let job = self.job(wanted, suspended);
        let name = format!("j{}", wanted.number);
        if wanted.extra && self.mixed == Mixed::DryRuns {
            self.insist(&name, Call::DryRun(&job)).await;
        }
        self.insist(&name, Call::Make(&job)).await;
        if suspended {
            self.insist(&name, Call::Start).await;
        }
    }

    async fn insist(&mut self, name: &str, call: Call<'_>) {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(30);
        loop {
            match tokio::time::timeout(LOST, self.call(name, &call)).await {
                Ok(Ok(_)) => return,
                Ok(Err(kube::Error::Api(status))) => {
                    *self.counts.refused.entry(status.code).or_default() += 1;
                    let message = &status.message;
                    match (status.code, status.reason.as_str()) {
                        // The answer to an earlier try was lost, and it was stored.
                        (409, "AlreadyExists") => return,
                        (403, _) => {
                            let known = ["concurrent job limit reached: ", "exceeded quota: "];
                            assert!(known.iter().any(|known| message.contains(known)), "{message}");
                        }
                        // 409: the quota's own count was written by somebody else meanwhile.
                        (409 | 429 | 500 | 503 | 504, _) => {}
                        (code, reason) => panic!("{code} {reason}: {message}"),
                    }
                    assert!(Instant::now() < deadline, "{name}: {} {message}", status.code);
                }
                Ok(Err(error)) => {
                    self.counts.lost += 1;
                    assert!(Instant::now() < deadline, "{name}: {error}");
                }
                Err(_) => {
                    self.counts.lost += 1;
                    assert!(Instant::now() < deadline, "{name}: no answer");
                }
            }
            tokio::time::sleep(pause.mul_f64(self.random.random_range(0.5..1.0))).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(400));
        }
    }

    async fn call(&self, name: &str, call: &Call<'_>) -> kube::Result<Job> {
        match call {
            Call::Start => {
                let start = Patch::Merge(json!({"spec": {"suspend": false}}));
                self.jobs.patch(name, &PatchParams::default(), &start).await
            }
            Call::Make(job) | Call::DryRun(job) => {
                let dry_run = matches!(call, Call::DryRun(_));
                if self.how == How::Apply {
                    let by = PatchParams { dry_run, ..PatchParams::apply("test").force() };
                    return self.jobs.patch(name, &by, &Patch::Apply(job)).await;
                }
                self.jobs.create(&PostParams { dry_run, ..PostParams::default() }, job).await
            }
        }
    }

    fn job(&self, wanted: &Wanted, suspended: bool) -> Job {
        let name = format!("j{}", wanted.number);
        let mut job: Value = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"labels": {NUMBER: wanted.number.to_string()}},
            "spec": {"suspend": suspended, "template": {
                "metadata": {"annotations": {"e2e.job-handler.io/run": "50ms"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]},
            }},
        });
        match self.how {
            How::GenerateName => job["metadata"]["generateName"] = format!("{name}-").into(),
            How::Create | How::Apply => job["metadata"]["name"] = name.into(),
        }
        if !wanted.real {
            job["spec"]["managedBy"] = RUNNER.into();
        }
        serde_json::from_value(job).unwrap()
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            one.refused.into_iter().for_each(|(code, n)| *sum.refused.entry(code).or_default() += n);
            sum.lost += one.lost;
            sum
        })
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "refusals by code {:?}, {} calls without an answer", self.refused, self.lost)
    }
}
