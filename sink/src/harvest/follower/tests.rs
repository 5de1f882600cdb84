use std::io;

use http::{Request, Response};
use http_body_util::BodyExt;
use job_handler_shared::{
    job::snapshot::{Finished, Outcome},
    process::{admin::Readiness, telemetry::Metrics},
    result::storage_kind::StorageKind,
    testing::apiserver::Apiserver,
};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::{
    metrics::SinkMetrics,
    model::result_ref::ResultRef,
    observe::{key::Key, store::Store},
    test_support::set_policy,
};

mod captures;
mod tracking;

/// The current run of each container.
const RUN: &str = "containerd://1";
/// The run before the restart.
const RUN_BEFORE: &str = "containerd://0";

/// What the node answers to one call for a log.
#[derive(Clone, Copy)]
enum ScriptedLog {
    /// This text, then the end of the stream.
    Complete(&'static str),
    /// This text, then the connection breaks.
    Broken(&'static str),
    /// This text, and the stream stays open.
    Open(&'static str),
    Refused(u16),
}

/// A follower of the Job `ci/build`, whose uid is `u`.
struct FollowerTest {
    apiserver: Apiserver,
    follower: Follower,
    /// The query of each call for a log.
    log_calls: Arc<Mutex<Vec<String>>>,
    queue: Queue<FollowerKey>,
    captures: JoinSet<()>,
}

/// A client that gets these logs, one per call and the last one repeatedly, and everything else from the apiserver.
fn client(apiserver: &Apiserver, logs: &'static [ScriptedLog], calls: Arc<Mutex<Vec<String>>>) -> Client {
    let apiserver = apiserver.client();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (apiserver, calls) = (apiserver.clone(), calls.clone());
        async move {
            if !request.uri().path().ends_with("/log") {
                let response = apiserver.send(request).await?;
                return Ok(response.map(|body| body.map_err(io::Error::other).boxed_unsync()));
            }
            let call = {
                let mut calls = calls.lock();
                calls.push(request.uri().query().unwrap_or_default().trim_start_matches('&').to_owned());
                calls.len() - 1
            };
            let script = logs[call.min(logs.len() - 1)];
            let (code, text) = match script {
                ScriptedLog::Complete(text) | ScriptedLog::Broken(text) | ScriptedLog::Open(text) => {
                    (200, text.to_owned())
                }
                ScriptedLog::Refused(code) => {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": "refused", "reason": "Test", "code": code});
                    (code, status.to_string())
                }
            };
            let end = async move {
                match script {
                    ScriptedLog::Complete(_) | ScriptedLog::Refused(_) => None,
                    ScriptedLog::Broken(_) => Some(Err(io::Error::other("connection reset"))),
                    ScriptedLog::Open(_) => std::future::pending().await,
                }
            };
            let body =
                Body::from(text.into_bytes()).map_err(io::Error::other).with_trailers(end).boxed_unsync();
            Ok::<_, kube::Error>(Response::builder().status(code).body(body).unwrap())
        }
    });
    Client::new(service, "default")
}

impl FollowerTest {
    /// Policy `p` has this spec, and the Job is known.
    fn new(spec: Value, logs: &'static [ScriptedLog]) -> Self {
        let (apiserver, log_calls) = (Apiserver::default(), Arc::default());
        let client = client(&apiserver, logs, Arc::clone(&log_calls));
        let store = Store::default();
        store.put_namespace("ci", Default::default());
        set_policy(&store, 1, spec);
        store.put_job(job());
        let context = Context {
            client: client.clone(),
            queue: Key::queue(&store),
            store,
            namespace: "job-handler".into(),
            resync: Arc::default(),
            metrics: SinkMetrics::new(&Metrics::default()),
        };
        let collector = Collector::new(client);
        let follower = Follower { context, collector, pod_tracker: PodTracker::default() };
        Self { apiserver, follower, log_calls, queue: Queue::default(), captures: JoinSet::new() }
    }

    fn store(&self) -> &Store {
        &self.follower.context.store
    }

    fn start(&self) {
        tokio::spawn(self.follower.clone().run(Readiness::default().register("pods")));
    }

    /// Waits in paused time.
    async fn until(&self, mut is_done: impl FnMut(&Self) -> bool) {
        let polls = async {
            while !is_done(self) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(2 * RESYNC, polls).await.expect("it never happened");
    }

    /// Processes one key of the queue; returns whether that succeeded.
    async fn process(&mut self, key: FollowerKey) -> bool {
        self.follower.process(&key, &self.queue, &mut self.captures).await
    }

    fn tracks(&self, pod: &str) -> bool {
        self.follower.pod_tracker.view(pod).is_some()
    }

    fn calls(&self) -> usize {
        self.log_calls.lock().len()
    }

    /// The captured log of a run.
    fn captured(&self, run: &str) -> Option<EarlyLog> {
        let (pods, _) = self.follower.pod_tracker.captured_pods("ci", "u");
        pods.get("x")?.logs.get(run).cloned()
    }

    /// Text of the log of the current run once it is captured, and why a part of it is missing.
    async fn capture(&self) -> (String, Option<String>) {
        self.until(|test| test.captured(RUN).is_some()).await;
        let log = self.captured(RUN).unwrap();
        let mut text = Vec::new();
        log.excerpt.write_to(&mut text);
        (String::from_utf8(text).unwrap(), log.lost)
    }
}

fn job() -> JobSnapshot {
    JobSnapshot {
        namespace: "ci".into(),
        name: "build".into(),
        uid: "u".into(),
        started: Some("2026-01-01T00:00:00Z".parse().unwrap()),
        active_pods: 1,
        ..JobSnapshot::default()
    }
}

fn finished() -> JobSnapshot {
    let at = "2026-01-01T00:01:00Z".parse().unwrap();
    let (outcome, reason) = (Outcome::Failed, "BackoffLimitExceeded".to_owned());
    JobSnapshot { finished: Some(Finished { outcome, reason, message: String::new(), at }), ..job() }
}

/// Pod `x` of the Job, whose only container is in this state.
fn pod(state: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "x", "namespace": "ci", "uid": "x", "labels": {CONTROLLER_UID: "u"},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "build", "uid": "u",
                "controller": true}]},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "main", "image": "", "imageID": "",
            "ready": false, "restartCount": 0, "containerID": RUN, "state": state}]},
    })
}

fn ended() -> Value {
    json!({"terminated": {"exitCode": 1, "containerID": RUN}})
}

fn running() -> Value {
    json!({"running": {}})
}

fn typed(pod: Value) -> Pod {
    serde_json::from_value(pod).unwrap()
}

fn delete_gracefully(pod: &mut Value) {
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z".into();
}
