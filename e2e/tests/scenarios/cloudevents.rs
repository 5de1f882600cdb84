//! CloudEvents, received by the official Go SDK over TLS with a bearer token: no event is lost when the receiver is
//! down or the sink is killed, and each Job's events arrive in order.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use job_handler_e2e::{
    Cluster, ClusterOptions, Pair, PairOptions,
    harness::{
        ports,
        process::{Process, Program},
    },
    net::cloudevents_receiver,
};
use job_handler_shared::keys;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt, api::PostParams};
use serde_json::{Value, json};

use super::fixtures::{Fixture, exclusive_scenario_with_own_cluster, job, refusal};

const TOKEN: &str = "open-sesame";

/// A receiver that can be started and stopped, and stores the events that it accepts.
pub struct Receiver {
    program: Program,
    out: PathBuf,
}

impl Receiver {
    pub fn new(folder: &Path, port: u16) -> (Self, String) {
        let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
            folder.join(name).display().to_string()
        };
        let tls = [
            format!("-certificate={}", file("cert.pem", &pair.cert.pem())),
            format!("-key={}", file("key.pem", &pair.signing_key.serialize_pem())),
            format!("-token={TOKEN}"),
        ];
        let program = cloudevents_receiver::program(folder, port, tls).unwrap();
        (Self { program, out: cloudevents_receiver::received(folder) }, pair.cert.pem())
    }

    pub fn start(&self) -> Process {
        Process::start(self.program.clone()).unwrap()
    }

    /// The accepted events, which are all valid for the SDK.
    pub fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        // The last line may be incomplete.
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let events = lines.map(|line| {
            assert_eq!(line["invalid"], Value::Null, "{line}");
            line["event"].clone()
        });
        events.collect()
    }

    /// The types of the events about a Job, in the order of arrival.
    fn types_of(&self, job: &str) -> Vec<String> {
        let is_about =
            |event: &Value| event["subject"].as_str().is_some_and(|s| s.ends_with(&format!("/{job}")));
        self.events().iter().filter(|e| is_about(e)).map(|e| e["type"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn wait(&self, fixture: &Fixture, job: &str, types: &[&str]) {
        fixture
            .wait(&format!("{types:?} about {job}"), || async {
                let found = self.types_of(job);
                if found == types { Ok(()) } else { Err(format!("{found:?}")) }
            })
            .await;
    }
}

#[test]
fn the_receiver_keeps_running_after_aborted_requests() {
    let folder = tempfile::tempdir().unwrap();
    let port = ports::free().unwrap();
    let _receiver = Process::start(cloudevents_receiver::program(folder.path(), port, []).unwrap()).unwrap();
    let connect = || {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => return stream,
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    };
    let event = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}).to_string();
    let request = format!(
        "POST /in HTTP/1.1\r\nhost: r\r\nconnection: close\r\ncontent-type: application/cloudevents+json\r\n\
         content-length: {}\r\n\r\n{event}",
        event.len()
    );
    // Close each connection within the fraction of a millisecond before the answer.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for n in 0..500 {
                    let mut stream = connect();
                    stream.write_all(request.as_bytes()).unwrap();
                    std::thread::sleep(Duration::from_micros(n % 300));
                }
            });
        }
    });
    for _ in 0..10 {
        let mut stream = connect();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[test]
fn a_receiver_that_was_down_gets_every_event_once_and_in_order() {
    exclusive_scenario_with_own_cluster(async || {
        let folder = tempfile::tempdir().unwrap();
        let port = ports::free().unwrap();
        let (receiver, ca) = Receiver::new(folder.path(), port);
        let configuration = json!({"cloudEventSinks": [{
            "name": "ci",
            "url": format!("https://127.0.0.1:{port}/in"),
            "source": "/clusters/test",
            "types": {"completed": "build.complete", "failed": "build.failed"},
            "tls": {"ca": ca},
            "bearerToken": {"key": "ci"},
        }]});
        let fixture = with_receiver(&configuration).await;
        let ns = fixture.cluster.namespace("events").await.unwrap();
        let policy = json!({
            "results": {}, "cloudEventSinks": [{"name": "ci"}],
            "cleanup": {"succeededPolicy": "AfterHarvest", "failedPolicy": "AfterHarvest"},
        });
        fixture.apply_policy(&ns, "builds", policy).await;
        let limit = json!({
            "jobSelector": {"matchLabels": {"app": "limited"}}, "cloudEventSinks": [{"name": "ci"}],
            "limits": [{"name": "one", "maxActiveJobs": 1}],
        });
        fixture.apply_policy(&ns, "limited", limit).await;

        // While the receiver is down, harvest and cleanup continue.
        fixture.create(&ns, &job("good", &[("app", "shop")], &[])).await.unwrap();
        fixture.wait_job_deleted(&ns, "good").await;
        fixture
            .create(
                &ns,
                &job_without_retries("bad", &[("app", "limited")], &[("run", "6s"), ("exit-code", "3")]),
            )
            .await
            .unwrap();
        let (code, _) =
            refusal(fixture.create(&ns, &job_without_retries("refused", &[("app", "limited")], &[])).await);
        assert_eq!(code, 403);
        fixture.wait_job_deleted(&ns, "bad").await;
        let pending = fixture.config_maps(&ns).get("good-results").await.unwrap();
        assert_eq!(pending.annotations()["job-handler/cloudevents"], "ci");
        // The sink has received the refusal before it is killed.
        fixture
            .wait("the Event about the refusal", || async {
                let events = fixture.events(&ns, keys::REASON_REFUSED, "refused").await;
                if events.is_empty() { Err("no Event") } else { Ok(()) }
            })
            .await;
        fixture.pair.sink().restart().unwrap();

        let _process = receiver.start();
        receiver.wait(&fixture, "good", &["io.job-handler.job.started", "build.complete"]).await;
        receiver.wait(&fixture, "bad", &["io.job-handler.job.started", "build.failed"]).await;
        receiver.wait(&fixture, "refused", &["io.job-handler.job.refused"]).await;

        // While it is up, events arrive at once.
        fixture.create(&ns, &job("live", &[], &[("run", "6s")])).await.unwrap();
        receiver.wait(&fixture, "live", &["io.job-handler.job.started"]).await;
        assert!(fixture.jobs(&ns).get("live").await.unwrap().status.unwrap().completion_time.is_none());
        receiver.wait(&fixture, "live", &["io.job-handler.job.started", "build.complete"]).await;

        let events = receiver.events();
        let mut ids: Vec<&str> = events.iter().map(|e| e["id"].as_str().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), events.len(), "no duplicates");
        let good = events.iter().find(|e| e["type"] == "build.complete").unwrap();
        assert_eq!(good["source"], "/clusters/test");
        assert_eq!(good["subject"], format!("{}/good", ns.name()));
        assert_eq!(good["data"]["labels"]["app"], "shop");
        assert_eq!(good["data"]["result"]["name"], "good-results");
        assert_eq!(good["id"], format!("{}-completed", good["data"]["uid"].as_str().unwrap()));
        let bad = events.iter().find(|e| e["type"] == "build.failed").unwrap();
        assert_eq!(bad["data"]["reason"], "BackoffLimitExceeded");
        assert_eq!(bad["data"]["message"].as_str().map(|m| m.contains("3")), Some(true), "{bad}");

        // The results no longer list pending CloudEvents.
        fixture
            .wait("the results not to be pending any more", || async {
                let map = fixture.config_maps(&ns).get("good-results").await.map_err(|e| e.to_string())?;
                let manifest: Value =
                    serde_json::from_str(&map.data.clone().unwrap()["result.json"]).unwrap();
                match (map.annotations().get("job-handler/cloudevents"), &manifest["cloudEventsPending"]) {
                    (None, Value::Null) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        let (_, metrics) = fixture.pair.sink().get("/metrics").await.unwrap();
        for line in [
            "job_handler_cloudevents_total{sink=\"ci\",phase=\"completed\"} 2",
            "job_handler_cloudevents_total{sink=\"ci\",phase=\"refused\"} 1",
        ] {
            assert!(metrics.contains(line), "{line} in {metrics}");
        }
        a_receiver_that_is_not_configured_is_reported_on_the_policy(&fixture, &ns).await;
    });
}

fn job_without_retries(name: &str, labels: &[(&str, &str)], simulation: &[(&str, &str)]) -> Value {
    let mut job = job(name, labels, simulation);
    job["spec"]["backoffLimit"] = json!(0);
    job
}

/// A fixture whose sink has this configuration and the receiver's token.
pub async fn with_receiver(configuration: &Value) -> Fixture {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let options =
        PairOptions { sink_configuration: Some(configuration.to_string()), ..PairOptions::default() };
    let pair = Pair::install(&cluster, options).await.unwrap();
    let fixture = Fixture { cluster, pair };
    create_token_secret(&fixture).await;
    fixture
}

/// Stores the token in the Secret that the sink reads.
async fn create_token_secret(fixture: &Fixture) {
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": keys::SINK_CONFIGURATION},
        "stringData": {"ci": format!("{TOKEN}\n")},
    }))
    .unwrap();
    let api = Api::<Secret>::namespaced(fixture.client(), keys::NAMESPACE);
    api.create(&PostParams::default(), &secret).await.unwrap();
}

async fn a_receiver_that_is_not_configured_is_reported_on_the_policy(fixture: &Fixture, ns: &str) {
    let spec = json!({"results": {}, "cloudEventSinks": [{"name": "typo"}]});
    fixture.apply_policy(ns, "unknown", spec).await;
    fixture
        .wait("the policy to name it", || async {
            let status = fixture.policies(ns).get("unknown").await.unwrap().status.unwrap_or_default();
            let condition =
                status.conditions.into_iter().find(|c| c.type_ == "FullyEnforced").ok_or("none")?;
            let names =
                condition.message.contains("cloudEventSinks \"typo\" are not in the sink's configuration");
            if condition.status == "False" && names { Ok(()) } else { Err("not reported") }
        })
        .await;
}
