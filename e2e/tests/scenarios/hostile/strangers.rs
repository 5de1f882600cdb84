//! A stranger who reaches the webhook's port, and a tenant who knows all that a tenant can read, send reviews of their own.

use std::{
    cell::RefCell,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use job_handler_e2e::{HttpsClient, PairOptions, net::metrics, pair::review_path};
use job_handler_shared::{keys, ledger::crd::JobLedger};
use k8s_openapi::api::{batch::v1::Job, core::v1::Secret};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};

use super::super::fixtures::{
    Fixture, PATIENCE, annotation, exclusive_scenario, exclusive_scenario_with_options, job, refusal,
    scenario,
};

const ENDPOINTS: [&str; 3] = [keys::MUTATE_PATH, keys::VALIDATE_PATH, keys::WARN_PATH];

/// A client on the network. It even trusts the right CA.
pub(super) async fn stranger(fixture: &Fixture) -> HttpsClient {
    let secrets: Api<Secret> = Api::namespaced(fixture.client(), keys::NAMESPACE);
    let ca = secrets.get(keys::CA_SECRET).await.unwrap().data.unwrap()["ca.crt"].0.clone();
    let port = fixture.pair.webhook(0).port();
    HttpsClient::new(ca, SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap()
}

/// The review of a create that nobody asked the apiserver for.
fn forged_review(namespace: &str, name: &str, number: usize) -> String {
    let mut object = job(name, &[("app", "build")], &[]);
    object["metadata"]["namespace"] = namespace.into();
    object["metadata"]["uid"] = format!("00000000-0000-4000-8000-{number:012}").into();
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": format!("11111111-0000-4000-8000-{number:012}"), "operation": "CREATE", "namespace": namespace,
        "kind": {"group": "batch", "version": "v1", "kind": "Job"}, "name": name, "dryRun": false, "object": object}})
    .to_string()
}

/// All that a stranger may guess: no secret, and a secret of the right form.
fn guessed_paths(endpoint: &str) -> Vec<String> {
    let secret = format!("7fffffff-0-{}", "0".repeat(64));
    vec![
        endpoint.to_owned(),
        format!("/{secret}{endpoint}"),
        format!("/x{endpoint}"),
        format!("//{endpoint}"),
    ]
}

fn limit(max: u32) -> Value {
    json!({"jobSelector": {"matchLabels": {"app": "build"}}, "limits": [{"name": "few", "maxActiveJobs": max}]})
}

fn build(name: &str) -> Value {
    job(name, &[("app", "build")], &[("end", "Hang")])
}

/// Creates through a client that reports every failure.
async fn create_once(fixture: &Fixture, namespace: &str, job: &Value) -> kube::Result<Job> {
    let mut config = fixture.cluster.config().clone();
    config.default_retry = false;
    let jobs: Api<Job> = Api::namespaced(Client::try_from(config).unwrap(), namespace);
    jobs.create(&PostParams::default(), &serde_json::from_value(job.clone()).unwrap()).await
}

#[test]
fn reviews_of_a_stranger_hold_no_slot_stop_no_namespace_and_poison_no_ledger() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("stranger").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(2)).await;
        let stranger = stranger(fixture).await;
        // Two hold the limit, 16 stop the namespace, a name of 900 KB makes the ledger too large to write.
        let names = (0..20).map(|n| format!("forged-{n}")).chain([format!("long-{}", "x".repeat(900_000))]);
        for (n, name) in names.enumerate() {
            for path in ENDPOINTS.iter().flat_map(|endpoint| guessed_paths(endpoint)) {
                let answer = stranger.post(&path, forged_review(&ns, &name, n)).await;
                // A large body that nobody reads may end in a closed connection.
                assert!(
                    answer.as_ref().map_or(name.len() > 1000, |answer| answer.status == 404),
                    "{path}: {answer:?}"
                );
            }
        }
        for name in ["one", "two"] {
            create_once(fixture, &ns, &build(name)).await.unwrap();
        }
        let (code, message) = refusal(create_once(fixture, &ns, &build("three")).await);
        assert!(code == 403 && message.contains("2 active jobs"), "{code} {message}");
        assert!(!message.contains("forged"), "{message}");
        let ledgers: Api<JobLedger> = Api::namespaced(fixture.client(), keys::NAMESPACE);
        let ledger = serde_json::to_string(&ledgers.get(&ns).await.unwrap().spec).unwrap();
        assert!(!ledger.contains("forged-") && !ledger.contains("long-"), "{ledger}");
        let (_, text) = fixture.pair.webhook(0).get("/metrics").await.unwrap();
        assert!(metrics::sum(&text, "job_handler_unknown_paths_total", &[]) >= 20.0 * 12.0, "{text}");
    });
}

#[test]
fn reviews_of_a_stranger_write_no_events() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("free-text").await.unwrap();
        fixture.apply_policy(&ns, "none", limit(0)).await;
        let stranger = stranger(fixture).await;
        for path in ENDPOINTS.iter().flat_map(|endpoint| guessed_paths(endpoint)) {
            assert_eq!(
                stranger.post(&path, forged_review(&ns, "call-0800-free-text", 1)).await.unwrap().status,
                404
            );
        }
        // The Event of a real refusal shows that the others would have been written by now.
        assert_eq!(refusal(create_once(fixture, &ns, &build("refused")).await).0, 403);
        fixture
            .wait("the Event of the real refusal", || async {
                match fixture.events(&ns, keys::REASON_REFUSED, "refused").await.len() {
                    0 => Err("none"),
                    _ => Ok(()),
                }
            })
            .await;
        let events = fixture.cluster.kubectl(&["get", "events", "-n", &ns, "-o", "yaml"]).await.unwrap();
        assert!(!events.contains("0800"), "{events}");
        assert!(fixture.events(&ns, keys::REASON_REFUSED, "call-0800-free-text").await.is_empty());
    });
}

#[test]
fn a_tenant_reads_the_secret_nowhere() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("tenant").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(1)).await;
        let user = format!("tenant-of-{}", ns.name());
        let bind =
            ["create", "rolebinding", "tenant", "--clusterrole=edit", &format!("--user={user}"), "-n", &ns];
        fixture.cluster.kubectl(&bind).await.unwrap();
        let tenant = format!("--as={user}");
        fixture
            .wait("the rights of the tenant", || async {
                let get = ["get", "jobs", "-n", &ns, &tenant];
                fixture.cluster.kubectl(&get).await.map_err(|error| error.to_string())
            })
            .await;
        let hidden: [&[&str]; 6] = [
            &["mutatingwebhookconfigurations"],
            &["validatingwebhookconfigurations"],
            &["secrets", "-n", keys::NAMESPACE],
            &["leases", "-n", keys::NAMESPACE],
            &["jobledgers", "-n", keys::NAMESPACE],
            &["pods", "-n", keys::NAMESPACE],
        ];
        for what in hidden {
            let get = [&["get"], what, &[&*tenant]].concat();
            let answer = fixture.cluster.try_kubectl(&get, b"").await.unwrap();
            assert!(!answer.success && answer.stderr.contains("orbidden"), "{what:?}: {answer:?}");
        }
        let path = review_path(fixture.client(), "").await.unwrap();
        let secret = path.trim_start_matches('/');
        create_once(fixture, &ns, &build("one")).await.unwrap();
        let (_, message) = refusal(create_once(fixture, &ns, &build("two")).await);
        assert!(!message.contains(secret), "{message}");
        let all = "jobs,pods,configmaps,jobpolicies,clusterjobpolicies,events";
        let readable = fixture.cluster.kubectl(&["get", all, "-n", &ns, "-o", "yaml"]).await.unwrap();
        assert!(readable.contains("builds") && !readable.contains(secret), "{readable}");
    });
}

/// Waits until the webhook answers a path with 404.
async fn wait_unused(fixture: &Fixture, path: &str) {
    let stranger = stranger(fixture).await;
    fixture
        .wait(&format!("{path} to be unknown"), || async {
            let status = stranger.post(path, "no review").await.map_err(|error| error.to_string())?.status;
            if status == 404 { Ok(()) } else { Err(format!("{status}")) }
        })
        .await;
}

/// Waits until the path has not been replaced for longer than it takes while it may have leaked.
async fn wait_settled(fixture: &Fixture) -> String {
    let seen = RefCell::new((String::new(), Instant::now()));
    fixture
        .wait("a path that is not replaced early", || async {
            let path = review_path(fixture.client(), keys::VALIDATE_PATH)
                .await
                .map_err(|error| error.to_string())?;
            if seen.borrow().0 != path {
                seen.replace((path.clone(), Instant::now()));
            }
            let age = seen.borrow().1.elapsed();
            if age > Duration::from_secs(30) { Ok(path) } else { Err(format!("{age:?} old")) }
        })
        .await
}

/// Each step waits until the path of the step before is replaced, and no longer replaced early: one cluster for all.
#[test]
fn a_leaked_path_is_of_no_use_soon_after() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("leak").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(50)).await;
        url_in_an_error(fixture, &ns).await;
        call_from_another_address(fixture).await;
        attempts_that_never_become_jobs(fixture, &ns).await;
        create_once(fixture, &ns, &build("after-all")).await.unwrap();
    });
}

/// An apiserver that gets no answer shows the URL to the user.
async fn url_in_an_error(fixture: &Fixture, namespace: &str) {
    // It would be replaced after five minutes, and would be of no use after ten.
    let path = wait_settled(fixture).await;
    // So that the apiserver has a connection to the webhook.
    create_once(fixture, namespace, &build("one")).await.unwrap();
    fixture.pair.webhook(0).stop().unwrap();
    let (code, message) = refusal(create_once(fixture, namespace, &build("two")).await);
    fixture.pair.webhook(0).cont().unwrap();
    assert_eq!(code, 500, "{message}");
    assert!(message.contains(&path), "the apiserver shows no URL any more, all the better: {message}");
    wait_unused(fixture, &path).await;
    create_once(fixture, namespace, &build("three")).await.unwrap();
}

/// All calls of the apiserver come from one address here, which is known by now.
async fn call_from_another_address(fixture: &Fixture) {
    let path = wait_settled(fixture).await;
    let elsewhere = stranger(fixture).await.local_address(Ipv4Addr::new(127, 0, 0, 2));
    assert_ne!(elsewhere.post(&path, "no review").await.unwrap().status, 404);
    wait_unused(fixture, &path).await;
}

async fn attempts_that_never_become_jobs(fixture: &Fixture, namespace: &str) {
    let path = wait_settled(fixture).await;
    let stranger = stranger(fixture).await;
    for n in 0..10 {
        let review = forged_review(namespace, &format!("forged-{n}"), n);
        let answer = stranger.post(&path, review).await.unwrap();
        assert!(answer.status == 200 && answer.body.contains("\"allowed\":true"), "{answer:?}");
    }
    wait_unused(fixture, &path).await;
}

#[test]
fn paths_are_replaced_without_a_failed_call_and_not_while_the_sink_is_away() {
    let options = PairOptions {
        webhooks: 2,
        sinks: Some(1),
        webhook_arguments: vec!["--path-rotation-seconds=20".to_owned()],
        ..PairOptions::default()
    };
    exclusive_scenario_with_options(options, async |fixture| {
        let ns = fixture.cluster.namespace("rotation").await.unwrap();
        let mut spec = limit(1000);
        spec["stamp"] = json!({"activeDeadlineSeconds": {"default": 600}});
        fixture.apply_policy(&ns, "builds", spec).await;
        let current = async || review_path(fixture.client(), keys::VALIDATE_PATH).await.unwrap();
        let (first, mut paths) = (current().await, Vec::new());
        let mut number = 0;
        let mut create_for = async |time: Duration, paths: &mut Vec<String>| {
            let end = Instant::now() + time;
            while Instant::now() < end {
                number += 1;
                let name = format!("j{number}");
                let created =
                    create_once(fixture, &ns, &job(&name, &[("app", "build")], &[("run", "100ms")])).await;
                let created = created.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert!(annotation(&created, keys::STAMPED).contains("activeDeadlineSeconds"), "{name}");
                let now = current().await;
                if paths.last() != Some(&now) {
                    paths.push(now);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        create_for(Duration::from_secs(75), &mut paths).await;
        assert!(paths.len() >= 3, "{paths:?}");
        wait_unused(fixture, &first).await;

        fixture.pair.sink().kill().unwrap();
        let mut meanwhile = Vec::new();
        create_for(Duration::from_secs(75), &mut meanwhile).await;
        // The one that the sink copied, and at most one that it did not.
        assert!(meanwhile.len() <= 2, "{meanwhile:?}");
        fixture.pair.sink().restart().unwrap();
        fixture.pair.sink().wait_ready(PATIENCE).await.unwrap();
        wait_unused(fixture, &meanwhile[0]).await;
        create_for(Duration::from_secs(5), &mut paths).await;
    });
}
