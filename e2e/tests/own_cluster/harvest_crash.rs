//! A harvest survives every failure between two of its writes: the sink is killed (SIGKILL) after each write, and each
//! write fails once in every way. There is always exactly one complete result, one Event, and one id per CloudEvent.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::Path,
    time::Duration,
};

use flate2::read::GzDecoder;
use job_handler_e2e::{
    Cluster, ClusterOptions, Pair, PairOptions, TestNamespace,
    harness::{ports, process::Process},
    net::{
        cloudevents_receiver,
        fault_proxy::{ApiCall, FaultCount, ProxyFault, RecordedWrite, Rule},
    },
    wait_for,
};
use job_handler_shared::policy::spec::JobPolicy;
use k8s_openapi::{
    ByteString,
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, Container},
        events::v1::Event,
    },
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const PATIENCE: Duration = Duration::from_secs(180);
/// A large Job's containers, and the log bytes of each. deflate finds no repetition beyond its window of 32 KiB, so the
/// gzipped logs need two ConfigMaps.
const CONTAINERS: usize = 8;
const LOG_BYTES: usize = 190_000;

/// The kind of a Job: the value of its label `kind`, and the name of its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum JobKind {
    /// The Job is kept.
    Kept,
    /// A small log, and the Job is deleted.
    Deleted,
    /// Logs in shards, and the Job is deleted.
    Large,
}

impl JobKind {
    const ALL: [Self; 3] = [Self::Kept, Self::Deleted, Self::Large];

    fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Deleted => "deleted",
            Self::Large => "large",
        }
    }

    fn policy(self) -> Value {
        let select = json!({"matchLabels": {"kind": self.name()}});
        match self {
            Self::Kept => json!({"jobSelector": select, "results": {}, "cloudEventSinks": [{"name": "ci"}],
                "stamp": {"ttlSecondsAfterFinished": {"default": 7200}}}),
            Self::Deleted => {
                json!({"jobSelector": select, "results": {}, "cloudEventSinks": [{"name": "ci"}],
                "cleanup": {"succeededPolicy": "AfterHarvest"}})
            }
            Self::Large => json!({"jobSelector": select, "cleanup": {"succeededPolicy": "AfterHarvest"},
                "results": {}, "cloudEventSinks": [{"name": "ci"}]}),
        }
    }
}

/// A write of a harvest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteStep {
    Shard(usize),
    Manifest,
    JobAnnotation,
    Event,
    ResultUpdate,
    Delete,
}

impl WriteStep {
    /// The writes of a harvest, in order.
    fn for_kind(kind: JobKind) -> Vec<Self> {
        let shards = if kind == JobKind::Large { 2 } else { 0 };
        let mut steps: Vec<_> = (0..shards).map(Self::Shard).collect();
        steps.extend([Self::Manifest, Self::JobAnnotation, Self::Event, Self::ResultUpdate]);
        steps.extend((kind != JobKind::Kept).then_some(Self::Delete));
        steps
    }

    /// Whether a call is this step of a Job's harvest, in any attempt.
    fn matches(self, call: &ApiCall, job: &str) -> bool {
        let name = call.name.as_deref().unwrap_or_default();
        let (resource, method, own) = match self {
            // An existing shard is overwritten.
            Self::Shard(n) => ("/configmaps", &["POST", "PUT"][..], {
                name.starts_with(&format!("{job}-results-")) && name.ends_with(&format!("-{n}"))
            }),
            Self::Manifest => ("/configmaps", &["POST", "PUT"][..], name == format!("{job}-results")),
            Self::JobAnnotation => ("/jobs/", &["PATCH"][..], name == job),
            Self::Event => ("/events", &["POST"][..], name.starts_with(&format!("{job}."))),
            Self::ResultUpdate => ("/configmaps/", &["PATCH"][..], name == format!("{job}-results")),
            Self::Delete => ("/jobs/", &["DELETE"][..], name == job),
        };
        own && call.path.contains(resource) && method.contains(&call.method.as_str())
    }
}

/// One Job and its fault.
struct TestCase {
    name: String,
    kind: JobKind,
    faults: FaultCount,
}

struct CrashFixture {
    // Dropped in this order.
    ns: TestNamespace,
    pair: Pair,
    cluster: Cluster,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_harvest_survives_a_kill_after_each_write_and_every_failure_of_each_write() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (port, out) = (ports::free().unwrap(), cloudevents_receiver::received(folder.path()));
    let configuration =
        json!({"cloudEventSinks": [{"name": "ci", "url": format!("http://127.0.0.1:{port}/in")}]});
    let options = PairOptions {
        sink_proxy: true,
        sink_configuration: Some(configuration.to_string()),
        ..PairOptions::default()
    };
    let pair = Pair::install(&cluster, options).await.unwrap();
    let ns = cluster.namespace("crash").await.unwrap();
    let fixture = CrashFixture { ns, pair, cluster };
    for kind in JobKind::ALL {
        fixture.apply_policy(kind).await;
    }

    // Without faults first: these are all writes.
    let mut cases = Vec::new();
    for kind in JobKind::ALL {
        let name = format!("undisturbed-{}", kind.name());
        let faults = fixture.sink().add(Rule::new(ProxyFault::Disconnect).times(0));
        fixture.create(&name, kind).await;
        cases.push(TestCase { name, kind, faults });
    }
    for case in &cases {
        fixture.wait_harvested(case).await;
        let is_about_job = |write: &RecordedWrite| {
            write.call.name.as_ref().is_some_and(|name| {
                name == &case.name
                    || name.starts_with(&format!("{}-results", case.name))
                    || name.starts_with(&format!("{}.", case.name))
            })
        };
        // A concurrent write of the Job controller causes a 409 and a retry.
        let took_effect = |write: &RecordedWrite| write.answer.is_some_and(|code| code < 300);
        let all = fixture.sink().writes().into_iter();
        let writes: Vec<_> = all.filter(|write| is_about_job(write) && took_effect(write)).collect();
        let steps = WriteStep::for_kind(case.kind);
        assert_eq!(writes.len(), steps.len(), "{}: {writes:#?}", case.name);
        for (write, step) in writes.iter().zip(&steps) {
            assert!(step.matches(&write.call, &case.name), "{}: {step:?} is {write:?}", case.name);
        }
    }

    // From now on there is a receiver, which adds a write: the manifest's record of pending CloudEvents is removed.
    let receiver = Process::start(cloudevents_receiver::program(folder.path(), port, []).unwrap()).unwrap();

    // Each write fails once in each way, all concurrently.
    let faults = [
        ("timeout", ProxyFault::Timeout),
        ("c409", ProxyFault::Refuse(409)),
        ("c429", ProxyFault::Refuse(429)),
        ("c500", ProxyFault::Refuse(500)),
        ("disconnect", ProxyFault::Disconnect),
        ("disconnect-after", ProxyFault::DisconnectAfter),
        ("delay", ProxyFault::DelayAnswer(Duration::from_secs(5))),
    ];
    let mut failing = Vec::new();
    for kind in JobKind::ALL {
        for (n, step) in WriteStep::for_kind(kind).into_iter().enumerate() {
            for (fault_name, fault) in &faults {
                // Only the writes of shards differ from those of a small log.
                if kind == JobKind::Large && !matches!(step, WriteStep::Shard(_)) {
                    continue;
                }
                failing.push(
                    fixture
                        .create_with_fault(
                            &format!("{fault_name}-{}-{n}", kind.name()),
                            kind,
                            step,
                            fault.clone(),
                        )
                        .await,
                );
            }
        }
    }
    for case in &failing {
        assert!(fixture.wait_harvested(case).await >= 1, "{}: the fault was not injected", case.name);
    }
    eprintln!("{} single failures, each with one complete result and one Event", failing.len());

    // Kill the sink after each write, one after the other.
    let mut killed = Vec::new();
    for kind in JobKind::ALL {
        for (n, step) in WriteStep::for_kind(kind).into_iter().enumerate() {
            let sink = fixture.pair.sink().kill_handle();
            let fault = ProxyFault::callback(move |_| sink.kill().unwrap());
            let case =
                fixture.create_with_fault(&format!("killed-{}-{n}", kind.name()), kind, step, fault).await;
            // Wait for the exit: the kill follows the call, and must not hit the next sink.
            let exited = || async {
                let exited = fixture.pair.sink().process().exit_status().is_some();
                if exited { Ok(()) } else { Err(format!("{} faults injected", case.faults.count())) }
            };
            let condition = format!("{} to kill the sink after {step:?}", case.name);
            wait_for(PATIENCE, &condition, exited).await.unwrap();
            fixture.pair.sink().restart().unwrap();
            fixture.wait_harvested(&case).await;
            killed.push(case);
        }
    }
    eprintln!("{} kills, each with one complete result and one Event", killed.len());

    cases.push(fixture.with_full_etcd().await);
    cases.push(fixture.without_rights().await);

    // All results are still complete at the end.
    cases.extend(failing);
    cases.extend(killed);
    fixture.pair.sink().restart().unwrap();
    fixture.pair.wait_ready(PATIENCE).await.unwrap();
    for case in &cases {
        fixture.wait_harvested(case).await;
    }
    let shards: BTreeSet<_> =
        fixture.list::<ConfigMap>("job-handler/shard").await.iter().map(ResourceExt::name_any).collect();
    for case in &cases {
        fixture.wait_cloud_events(case, &out).await;
    }
    drop(receiver);
    let large = cases.iter().filter(|case| case.kind == JobKind::Large).count();
    assert_eq!(shards.len(), 2 * large, "orphaned shards: {shards:?}");
}

impl CrashFixture {
    fn sink(&self) -> &job_handler_e2e::FaultProxy {
        self.pair.sink().proxy()
    }

    async fn create_with_fault(
        &self,
        name: &str,
        kind: JobKind,
        step: WriteStep,
        fault: ProxyFault,
    ) -> TestCase {
        let own = name.to_owned();
        let faults = self.sink().add(Rule::new(fault).when(move |call| step.matches(call, &own)).times(1));
        self.create(name, kind).await;
        TestCase { name: name.to_owned(), kind, faults }
    }

    /// etcd refuses writes for a while.
    async fn with_full_etcd(&self) -> TestCase {
        let full = "etcdserver: mvcc: database space exceeded";
        let (name, kind) = ("full".to_owned(), JobKind::Deleted);
        let ns = self.ns.name().to_owned();
        let rule = Rule::new(ProxyFault::RefuseWith(500, full.to_owned())).writes();
        let faults = self.sink().add(rule.when(move |call| call.path.contains(&ns)));
        self.create(&name, kind).await;
        self.wait_logged(full).await;
        self.sink().clear();
        let case = TestCase { name, kind, faults };
        self.wait_harvested(&case).await;
        case
    }

    /// The sink's rights are removed while it runs, and restored.
    async fn without_rights(&self) -> TestCase {
        let (name, kind) = ("no-rights".to_owned(), JobKind::Deleted);
        let faults = self.sink().add(Rule::new(ProxyFault::Disconnect).times(0));
        let binding = "job-handler-sink";
        let saved =
            self.cluster.kubectl(&["get", "clusterrolebinding", binding, "-o", "json"]).await.unwrap();
        self.cluster.kubectl(&["delete", "clusterrolebinding", binding]).await.unwrap();
        self.create(&name, kind).await;
        self.wait_logged("no right to").await;
        let mut saved: Value = serde_json::from_str(&saved).unwrap();
        saved["metadata"] = json!({"name": binding});
        self.cluster.kubectl_with_input(&["create", "-f", "-"], &saved.to_string()).await.unwrap();
        let case = TestCase { name, kind, faults };
        self.wait_harvested(&case).await;
        case
    }

    async fn wait_logged(&self, text: &str) {
        wait_for(PATIENCE, &format!("the sink to log «{text}»"), || async {
            let log = self.pair.sink().process().log_since_start();
            if log.contains(text) { Ok(()) } else { Err(log) }
        })
        .await
        .unwrap();
    }

    async fn create(&self, name: &str, kind: JobKind) {
        let text = if kind == JobKind::Large { incompressible_log() } else { format!("output of {name}\n") };
        let mut job = job_handler_e2e::cluster::jobs::job(name, &[("run", "300ms"), ("log", text.as_str())]);
        if kind == JobKind::Large {
            let containers = &mut job.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers;
            let main = containers[0].clone();
            containers
                .extend((1..CONTAINERS).map(|n| Container { name: format!("more-{n}"), ..main.clone() }));
        }
        job.labels_mut().insert("kind".into(), kind.name().into());
        self.cluster.create_job(&self.ns, &job).await.unwrap();
    }

    /// Waits until the Job's harvest is over, checks its objects, and returns the number of injected faults.
    async fn wait_harvested(&self, case: &TestCase) -> usize {
        let poll = || async { self.check(case).await };
        if let Err(error) = wait_for(PATIENCE, &format!("the harvest of {}", case.name), poll).await {
            panic!("{error}\n{}", self.pair.sink().process().log_since_start());
        }
        case.faults.count()
    }

    /// Waits until the receiver got the Job's started and completed events, each under one id (duplicates are allowed),
    /// and until the manifest has no pending CloudEvents.
    async fn wait_cloud_events(&self, case: &TestCase, out: &Path) {
        let subject = format!("{}/{}", self.ns.name(), case.name);
        wait_for(PATIENCE, &format!("all CloudEvents about {subject}"), || async {
            let text = std::fs::read_to_string(out).map_err(|error| error.to_string())?;
            let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            // The last line may be incomplete.
            for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                assert_eq!(line["invalid"], Value::Null, "{line}");
                let event = &line["event"];
                if event["subject"] == subject.as_str() {
                    let text = |key: &str| event[key].as_str().unwrap().to_owned();
                    ids.entry(text("type")).or_default().insert(text("id"));
                }
            }
            assert!(ids.values().all(|ids| ids.len() == 1), "{subject}: {ids:?}");
            let types: Vec<&str> = ids.keys().map(String::as_str).collect();
            if types != ["io.job-handler.job.completed", "io.job-handler.job.started"] {
                return Err(format!("{types:?}"));
            }
            let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client(), &self.ns);
            let result =
                maps.get(&format!("{}-results", case.name)).await.map_err(|error| error.to_string())?;
            let Some(pending) = result.annotations().get("job-handler/cloudevents") else { return Ok(()) };
            let counts = match self.pair.sink().get("/metrics").await {
                Ok((_, metrics)) => {
                    metrics.lines().filter(|line| line.contains("cloudevents")).collect::<Vec<_>>().join("\n")
                }
                Err(error) => error.to_string(),
            };
            let log = self.pair.sink().process().log_since_start();
            let manifest = &result.data.as_ref().unwrap()["result.json"];
            Err(format!("pending: {pending}: {manifest:?}\n{log}\n{counts}"))
        })
        .await
        .unwrap();
    }

    async fn check(&self, case: &TestCase) -> Result<(), String> {
        let TestCase { name, kind, .. } = case;
        let maps = self.list::<ConfigMap>(&format!("job-name={name}")).await;
        let results: Vec<_> =
            maps.iter().filter(|m| m.labels().contains_key("job-handler/created")).collect();
        let [result] = results[..] else { return Err(format!("{} results", results.len())) };
        let data = result.data.as_ref().unwrap();
        let manifest: Value = serde_json::from_str(&data["result.json"]).unwrap();
        if result.labels().contains_key("job-handler/announce")
            || manifest["announcementsPending"] != json!([])
        {
            return Err("announcements are pending".into());
        }
        let job = Api::<Job>::namespaced(self.cluster.client(), &self.ns).get_opt(name).await.unwrap();
        match (&job, kind) {
            (Some(job), JobKind::Kept) => {
                if job.annotations().get("job-handler/results") != Some(&result.name_any()) {
                    return Err("not annotated".into());
                }
                let ttl = job.spec.as_ref().unwrap().ttl_seconds_after_finished;
                assert_eq!(ttl, Some(7200), "{name}: the TTL of the policy");
            }
            (None, JobKind::Deleted | JobKind::Large) => {}
            _ => return Err(format!("the Job {}", if job.is_some() { "exists" } else { "is deleted" })),
        }
        let events: Vec<_> = self.events(name).await;
        let [event] = &events[..] else { return Err(format!("{} Events", events.len())) };
        assert!(
            event.series.is_none()
                && event.regarding.as_ref().unwrap().uid.as_deref() == manifest["job"]["uid"].as_str()
        );
        assert_eq!(manifest["completeness"]["complete"], true, "{name}: {manifest}");
        let listed: BTreeSet<_> = manifest["logs"]["shards"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|s| s["name"].as_str().unwrap())
            .collect();
        let stored: BTreeSet<_> = maps
            .iter()
            .filter(|m| !m.labels().contains_key("job-handler/created"))
            .map(ResourceExt::name_any)
            .collect();
        assert_eq!(stored.iter().map(String::as_str).collect::<BTreeSet<_>>(), listed, "{name}: shards");
        let logs = unpack(result, &maps, &manifest);
        match kind {
            JobKind::Large => {
                assert!(
                    logs.len() > CONTAINERS * LOG_BYTES && listed.len() == 2,
                    "{name}: {} bytes",
                    logs.len()
                );
            }
            _ => assert!(logs.ends_with(format!("output of {name}\n").as_bytes()), "{name}"),
        }
        Ok(())
    }

    async fn list<K>(&self, labels: &str) -> Vec<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.cluster.client(), &self.ns);
        api.list(&ListParams::default().labels(labels)).await.unwrap().items
    }

    async fn events(&self, job: &str) -> Vec<Event> {
        let api: Api<Event> = Api::namespaced(self.cluster.client(), &self.ns);
        let mut all = api.list(&ListParams::default().fields("reason=JobProcessing")).await.unwrap().items;
        all.retain(|event| event.regarding.as_ref().is_some_and(|r| r.name.as_deref() == Some(job)));
        all
    }

    async fn apply_policy(&self, kind: JobKind) {
        let policy = json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
            "metadata": {"name": kind.name(), "namespace": self.ns.name()}, "spec": kind.policy(),
        });
        let api: Api<JobPolicy> = Api::namespaced(self.cluster.client(), &self.ns);
        api.patch(kind.name(), &PatchParams::apply("test").force(), &Patch::Apply(&policy)).await.unwrap();
        wait_for(PATIENCE, "the policy to be Ready", || async {
            let status = api.get(kind.name()).await.map_err(|e| e.to_string())?.status.unwrap_or_default();
            match status.conditions.iter().find(|c| c.type_ == "Ready") {
                Some(ready) if ready.status == "True" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
        .unwrap();
    }
}

/// Letters and digits that do not compress well; the same text each time.
fn incompressible_log() -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut state = 88_172_645_463_325_252_u64;
    let letters = (0..LOG_BYTES).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(LETTERS[usize::try_from(state % 64).unwrap()])
    });
    letters.collect()
}

/// Assembles the logs, as a reader does, and compares them with the digests.
fn unpack(result: &ConfigMap, maps: &[ConfigMap], manifest: &Value) -> Vec<u8> {
    let storage = &manifest["logs"];
    let key = storage["key"].as_str().unwrap();
    let binary = |map: &ConfigMap| -> Vec<u8> {
        let data: Option<&BTreeMap<String, ByteString>> = map.binary_data.as_ref();
        data.and_then(|data| data.get(key)).map(|bytes| bytes.0.clone()).unwrap_or_default()
    };
    let mut stored: Vec<u8> = match result.data.as_ref().and_then(|data| data.get(key)) {
        Some(text) => text.clone().into_bytes(),
        None => binary(result),
    };
    for shard in storage["shards"].as_array().into_iter().flatten() {
        let map = maps.iter().find(|map| map.name_any() == shard["name"].as_str().unwrap()).unwrap();
        let piece = binary(map);
        assert_eq!(format!("{:x}", Sha256::digest(&piece)), shard["sha256"].as_str().unwrap());
        stored.extend(piece);
    }
    if storage["encoding"] == "gzip" {
        let mut plain = Vec::new();
        GzDecoder::new(&stored[..]).read_to_end(&mut plain).unwrap();
        stored = plain;
    }
    assert_eq!(format!("{:x}", Sha256::digest(&stored)), storage["sha256"].as_str().unwrap());
    stored
}
