//! The clients: each creates one Job after the other, changes it, and ends it.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    fixtures::{ChaosFixture, NAMESPACES},
    job_bodies::{ChaosJob, finished, labels, relabel},
};

const CLIENTS: usize = 20;
/// Names per client and namespace, so that each is soon used again.
const NAMES: usize = 3;
/// Longer than the API server's request timeout: no answer arrives after that.
const CALL_TIMEOUT: Duration = Duration::from_secs(45);
/// Seconds after which a Job that no client ends any more is deleted: its create was answered with an error, but stored.
const ABANDONED_AFTER: i64 = 25;

/// How refusals of a limit begin; the second is that of a limit of one per group.
const LIMIT_MESSAGES: [&str; 2] = ["concurrent job limit reached: ", "duplicate job: "];

/// What the clients did, and how they were answered.
#[derive(Clone, Debug, Default)]
pub struct ClientFigures {
    /// Successful calls by what they did.
    pub done: BTreeMap<&'static str, usize>,
    /// Calls that failed, by status code.
    pub refused: BTreeMap<&'static str, usize>,
    /// Calls without an answer.
    pub unanswered: usize,
    /// The first refusal for another reason than a limit.
    pub unexpected: Option<String>,
}

struct ChaosClient {
    /// By API server and namespace.
    apis: Vec<[Api<Job>; 2]>,
    namespace: usize,
    calls: usize,
    /// Whether to suspend Jobs that run. Who resumes and suspends one faster than its controller looks can still be beyond a
    /// limit (webhook/README.md), which only a soak may show.
    suspends: bool,
    random: StdRng,
    figures: ClientFigures,
}

/// Runs all clients until they are stopped.
pub async fn run_clients(fixture: &ChaosFixture, seed: u64, stop: &CancellationToken) -> ClientFigures {
    let clients = (0..CLIENTS).map(|number| async move {
        let mut client = ChaosClient::new(fixture, number, seed);
        while !stop.is_cancelled() {
            client.one_job(number).await;
        }
        client.figures
    });
    let janitor = async {
        let mut client = ChaosClient::new(fixture, 0, seed);
        while !stop.is_cancelled() {
            client.delete_abandoned().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    let (all, ()) = tokio::join!(join_all(clients), janitor);
    all.into_iter().fold(ClientFigures::default(), |mut sum, one| {
        one.done.into_iter().for_each(|(what, n)| *sum.done.entry(what).or_default() += n);
        one.refused.into_iter().for_each(|(what, n)| *sum.refused.entry(what).or_default() += n);
        sum.unanswered += one.unanswered;
        sum.unexpected = sum.unexpected.or(one.unexpected);
        sum
    })
}

impl ChaosClient {
    fn new(fixture: &ChaosFixture, number: usize, seed: u64) -> Self {
        let api = |client: &kube::Client, namespace| Api::namespaced(client.clone(), namespace);
        let clients = fixture.clients();
        Self {
            apis: clients.iter().map(|client| NAMESPACES.map(|namespace| api(client, namespace))).collect(),
            namespace: 0,
            calls: number,
            suspends: crate::number("SOAK").is_some_and(|soak| soak > 0),
            random: StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number as u64)),
            figures: ClientFigures::default(),
        }
    }

    /// The next API server's, in turn.
    fn jobs(&mut self) -> Api<Job> {
        self.calls += 1;
        self.apis[self.calls % self.apis.len()][self.namespace].clone()
    }

    async fn one_job(&mut self, number: usize) {
        self.namespace = self.random.random_range(0..NAMESPACES.len());
        let name = format!("c{number}-{}", self.random.random_range(0..NAMES));
        let mut job = ChaosJob::random(name, &mut self.random);
        if !self.create(&mut job).await {
            self.pause(20..200).await;
            // It may be stored although the answer says otherwise, or be an earlier one that is in the way.
            if self.random.random_bool(0.2) {
                self.delete(&job.name).await;
            }
            return;
        }
        for _ in 0..self.random.random_range(0..4) {
            self.pause(0..400).await;
            self.change(&mut job).await;
        }
        self.pause(0..1_000).await;
        if !job.real && self.random.random_bool(0.7) {
            let failed = self.random.random_bool(0.3);
            self.finish(&job.name, failed).await;
        }
        if self.random.random_bool(0.3) {
            self.pause(0..3_000).await;
        }
        self.delete(&job.name).await;
    }

    async fn create(&mut self, job: &mut ChaosJob) -> bool {
        let jobs = self.jobs();
        let method = self.random.random_range(0..3);
        let created = match method {
            0 => self.call("created", jobs.create(&PostParams::default(), &job.typed())).await,
            1 => {
                let mut body = job.typed();
                body.metadata.generate_name = body.metadata.name.take().map(|name| format!("{name}-"));
                self.call("created with generateName", jobs.create(&PostParams::default(), &body)).await
            }
            _ => self.apply("created by server-side apply", job).await,
        };
        let Some(created) = created else { return false };
        job.name = created.name_any();
        job.body["metadata"]["name"] = job.name.clone().into();
        true
    }

    /// Creates or changes: with server-side apply the client cannot know which.
    async fn apply(&mut self, what: &'static str, job: &ChaosJob) -> Option<Job> {
        let (jobs, params) = (self.jobs(), PatchParams::apply("chaos").force());
        self.call(what, jobs.patch(&job.name, &params, &Patch::Apply(&job.body))).await
    }

    async fn change(&mut self, job: &mut ChaosJob) {
        let (what, patch) = match self.random.random_range(0..6) {
            0 if self.suspends => ("suspended", json!({"spec": {"suspend": true}})),
            0..3 => ("resumed", json!({"spec": {"suspend": false}})),
            3 => ("relabelled", relabel(&mut self.random)),
            4 => {
                let parallelism = self.random.random_range(0..3);
                ("parallelism changed", json!({"spec": {"parallelism": parallelism}}))
            }
            _ => {
                job.body["metadata"]["labels"] = labels(&mut self.random).into();
                job.body["spec"]["suspend"] = (self.suspends && self.random.random_bool(0.3)).into();
                self.apply("applied again with other labels", job).await;
                return;
            }
        };
        self.merge(what, &job.name, patch).await;
    }

    async fn merge(&mut self, what: &'static str, name: &str, patch: Value) {
        let jobs = self.jobs();
        self.call(what, jobs.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await;
    }

    async fn finish(&mut self, name: &str, failed: bool) {
        let (jobs, patch) = (self.jobs(), Patch::Merge(finished(failed)));
        let what = if failed { "failed" } else { "completed" };
        self.call(what, jobs.patch_status(name, &PatchParams::default(), &patch)).await;
    }

    async fn delete(&mut self, name: &str) {
        let ways = [
            ("deleted, Foreground", PropagationPolicy::Foreground),
            ("deleted, Background", PropagationPolicy::Background),
            ("deleted, Orphan", PropagationPolicy::Orphan),
        ];
        let (what, policy) = ways.choose(&mut self.random).unwrap().clone();
        let jobs = self.jobs();
        let params = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
        self.call(what, jobs.delete(name, &params)).await;
    }

    async fn delete_abandoned(&mut self) {
        for namespace in 0..NAMESPACES.len() {
            self.namespace = namespace;
            let jobs = self.jobs();
            let Some(list) = self.call("listed", jobs.list_metadata(&ListParams::default())).await else {
                continue;
            };
            for job in list {
                let created = job.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
                if created.is_some_and(|at| jiff::Timestamp::now().as_second() - at > ABANDONED_AFTER) {
                    self.delete(&job.name_any()).await;
                }
            }
        }
    }

    /// The answer of a call that succeeded. Some callers give up early.
    async fn call<T>(
        &mut self,
        what: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Option<T> {
        let patience = if self.random.random_bool(0.1) {
            Duration::from_millis(self.random.random_range(20..3_000))
        } else {
            CALL_TIMEOUT
        };
        match tokio::time::timeout(patience, call).await {
            Ok(Ok(answer)) => {
                *self.figures.done.entry(what).or_default() += 1;
                return Some(answer);
            }
            Ok(Err(kube::Error::Api(status))) => {
                let kind = match status.code {
                    403 if LIMIT_MESSAGES.iter().any(|start| status.message.contains(start)) => "403",
                    403 => {
                        self.figures.unexpected.get_or_insert_with(|| format!("{what}: {}", status.message));
                        "403, unexpected"
                    }
                    // The name is in use, or the Job changed meanwhile.
                    409 => "409",
                    404 => "404",
                    422 => "422",
                    429 => "429",
                    _ => "5xx and others",
                };
                *self.figures.refused.entry(kind).or_default() += 1;
            }
            Ok(Err(_)) | Err(_) => self.figures.unanswered += 1,
        }
        None
    }

    async fn pause(&mut self, milliseconds: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.random.random_range(milliseconds))).await;
    }
}
