//! The Lease lists the enforced revisions, changes at once, and a replica without a valid Lease is not live.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests; clippy knows only #[test] itself"
)]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{builds, policy};
use http::{Method, Request, Response};
use job_handler_shared::{policy::set::PolicySet, process::admin::Readiness};
use job_handler_webhook::{
    cache::policies::Policies,
    presence_lease::{Liveness, PresenceLease, WithheldPolicies},
};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Records writes; answers 403 while `refuses` is set.
fn apiserver(refuses: Arc<AtomicBool>) -> (Client, mpsc::UnboundedReceiver<(Method, String, Value)>) {
    let (sender, seen) = mpsc::unbounded_channel();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (sender, refuses) = (sender.clone(), refuses.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let (status, answer) = if refuses.load(Ordering::SeqCst) {
                (
                    403,
                    json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "leases \"x\" is forbidden: User \"u\" cannot patch resource \"leases\""}),
                )
            } else {
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                sender.send((head.method, head.uri.to_string(), body)).unwrap();
                (
                    200,
                    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "x"}}),
                )
            };
            let body = Body::from(answer.to_string().into_bytes());
            Ok::<_, std::convert::Infallible>(Response::builder().status(status).body(body).unwrap())
        }
    });
    (Client::new(service, "default"), seen)
}

#[derive(Default)]
struct FakeLedgers(Mutex<Option<BTreeMap<&'static str, &'static str>>>, watch::Sender<u64>);

impl FakeLedgers {
    fn set(&self, withheld: Option<BTreeMap<&'static str, &'static str>>) {
        *self.0.lock() = withheld;
        self.1.send_modify(|n| *n += 1);
    }
}

impl WithheldPolicies for FakeLedgers {
    fn withheld(&self, _: &PolicySet) -> Option<BTreeMap<String, String>> {
        let withheld = self.0.lock().clone()?;
        Some(withheld.into_iter().map(|(uid, why)| (uid.to_owned(), why.to_owned())).collect())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.1.subscribe()
    }
}

async fn next<T>(seen: &mut mpsc::UnboundedReceiver<T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), seen.recv()).await.expect("a call").unwrap()
}

#[tokio::test]
async fn the_lease_lists_enforced_revisions_and_is_deleted_at_the_end() {
    let (client, mut seen) = apiserver(Arc::default());
    let policies = Policies::fixed(PolicySet::new([policy("builds", builds())]), []);
    let ledgers = Arc::new(FakeLedgers::default());
    let (readiness, liveness, token) = (Readiness::default(), Liveness::default(), CancellationToken::new());
    let lease = PresenceLease::new(
        client,
        "job-handler-system",
        "pod-1",
        policies,
        ledgers.clone(),
        liveness.clone(),
        readiness.register("lease"),
    );
    assert!(!liveness.is_live(), "not live before the Lease is written");
    let lease = Arc::new(lease);
    let (renewed, shutdown) = (lease.clone(), token.clone());
    let task = tokio::spawn(async move { renewed.run(shutdown).await });
    let waits = tokio::time::timeout(Duration::from_secs(10), async {
        while !readiness.not_ready().iter().any(|why| why.contains("waiting for the JobLedgers")) {
            tokio::task::yield_now().await;
        }
    });
    waits.await.expect("readiness names the JobLedgers");
    assert!(seen.try_recv().is_err() && !liveness.is_live(), "not written while the ledgers are unknown");
    ledgers.set(Some([("uid-builds", "its ledger is missing")].into()));
    let (_, _, written) = next(&mut seen).await;
    let annotation =
        |lease: &Value, key: &str| lease["metadata"]["annotations"][key].as_str().unwrap().to_owned();
    assert_eq!(annotation(&written, "job-handler/enforces"), "{}");
    assert_eq!(annotation(&written, "job-handler/withheld"), r#"{"uid-builds":"its ledger is missing"}"#);
    ledgers.set(Some(BTreeMap::new()));
    let (method, uri, written) = next(&mut seen).await;
    assert_eq!(method, Method::PATCH);
    assert!(uri.contains("/namespaces/job-handler-system/leases/job-handler-webhook-pod-1?"), "{uri}");
    assert_eq!(annotation(&written, "job-handler/enforces"), r#"{"uid-builds":1}"#);
    assert_eq!(annotation(&written, "job-handler/withheld"), "{}");
    assert_eq!(written["metadata"]["labels"]["job-handler/component"], "webhook");
    assert_eq!(
        (&written["spec"]["leaseDurationSeconds"], &written["spec"]["holderIdentity"]),
        (&json!(15), &json!("pod-1"))
    );
    token.cancel();
    task.await.unwrap();
    assert!(liveness.is_live() && readiness.not_ready().is_empty());
    lease.release().await;
    assert_eq!(next(&mut seen).await.0, Method::DELETE);
}

#[tokio::test]
async fn without_rights_the_replica_is_not_live_and_readiness_says_why() {
    let refuses = Arc::new(AtomicBool::new(true));
    let (client, mut seen) = apiserver(refuses.clone());
    let (readiness, liveness, token) = (Readiness::default(), Liveness::default(), CancellationToken::new());
    let policies = Policies::fixed(PolicySet::default(), []);
    let ledgers = Arc::new(FakeLedgers::default());
    ledgers.set(Some(BTreeMap::new()));
    let lease = PresenceLease::new(
        client,
        "ns",
        "pod-1",
        policies,
        ledgers,
        liveness.clone(),
        readiness.register("lease"),
    );
    let shutdown = token.clone();
    let task = tokio::spawn(async move { lease.run(shutdown).await });
    let why = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match readiness.not_ready().pop() {
                Some(why) if !why.ends_with("starting") => return why,
                _ => tokio::task::yield_now().await,
            }
        }
    });
    let why = why.await.expect("a reason");
    assert!(why.contains("no right to write Leases") && why.contains("manifests/base"), "{why}");
    assert!(!liveness.is_live());
    refuses.store(false, Ordering::SeqCst);
    next(&mut seen).await;
    token.cancel();
    task.await.unwrap();
    assert!(liveness.is_live() && readiness.not_ready().is_empty(), "the renewal is retried");
}
