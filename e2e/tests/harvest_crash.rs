//! A harvest survives every failure between two of its writes: the sink is killed (SIGKILL) after each single write, and each write fails once in every way. There is always exactly one complete result, one Event, and one id of each CloudEvent.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

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
/// A large Job's containers and what each of them writes: further apart than deflate's window of 32 KiB, the same noise
/// is noise again, so that the gzip of all needs two ConfigMaps.
const CONTAINERS: usize = 8;
const NOISE: usize = 190_000;

/// What is asked of a Job's harvest; the label `kind` of the Job, and the policy's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The Job stays.
    Stays,
    /// A small log, and the Job is deleted.
    Goes,
    /// Logs in shards, and the Job is deleted.
    Large,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Stays, Self::Goes, Self::Large];

    fn word(self) -> &'static str {
        match self {
            Self::Stays => "stays",
            Self::Goes => "goes",
            Self::Large => "large",
        }
    }

    fn policy(self) -> Value {
        let select = json!({"matchLabels": {"kind": self.word()}});
        match self {
            Self::Stays => json!({"jobSelector": select, "results": {}, "cloudEventSinks": [{"name": "ci"}],
                "stamp": {"ttlSecondsAfterFinished": {"default": 7200}}}),
            Self::Goes => json!({"jobSelector": select, "results": {}, "cloudEventSinks": [{"name": "ci"}],
                "cleanup": {"succeededPolicy": "AfterHarvest"}}),
            Self::Large => json!({"jobSelector": select, "cleanup": {"succeededPolicy": "AfterHarvest"},
                "results": {}, "cloudEventSinks": [{"name": "ci"}]}),
        }
    }
}

/// A write of a harvest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Shard(usize),
    Manifest,
    Mark,
    Event,
    Note,
    Delete,
}

impl Step {
    /// In order.
    fn of(kind: Kind) -> Vec<Self> {
        let shards = if kind == Kind::Large { 2 } else { 0 };
        let mut steps: Vec<_> = (0..shards).map(Self::Shard).collect();
        steps.extend([Self::Manifest, Self::Mark, Self::Event, Self::Note]);
        steps.extend((kind != Kind::Stays).then_some(Self::Delete));
        steps
    }

    /// Whether a call is this step of a Job's harvest, at whatever try.
    fn is(self, call: &ApiCall, job: &str) -> bool {
        let name = call.name.as_deref().unwrap_or_default();
        let (resource, method, own) = match self {
            // A shard that is there already is written over.
            Self::Shard(n) => ("/configmaps", &["POST", "PUT"][..], {
                name.starts_with(&format!("{job}-results-")) && name.ends_with(&format!("-{n}"))
            }),
            Self::Manifest => ("/configmaps", &["POST", "PUT"][..], name == format!("{job}-results")),
            Self::Mark => ("/jobs/", &["PATCH"][..], name == job),
            Self::Event => ("/events", &["POST"][..], name.starts_with(&format!("{job}."))),
            Self::Note => ("/configmaps/", &["PATCH"][..], name == format!("{job}-results")),
            Self::Delete => ("/jobs/", &["DELETE"][..], name == job),
        };
        own && call.path.contains(resource) && method.contains(&call.method.as_str())
    }
}

/// One Job and its fault.
struct Case {
    name: String,
    kind: Kind,
    faults: FaultCount,
}

struct Fixture {
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
    let fixture = Fixture { ns, pair, cluster };
    for kind in Kind::ALL {
        fixture.apply_policy(kind).await;
    }

    // Undisturbed first: these are the writes, there are no others.
    let mut cases = Vec::new();
    for kind in Kind::ALL {
        let name = format!("calm-{}", kind.word());
        let faults = fixture.sink().add(Rule::new(ProxyFault::Disconnect).times(0));
        fixture.create(&name, kind).await;
        cases.push(Case { name, kind, faults });
    }
    for case in &cases {
        fixture.ended(case).await;
        let about = |write: &RecordedWrite| {
            write.call.name.as_ref().is_some_and(|name| {
                name == &case.name
                    || name.starts_with(&format!("{}-results", case.name))
                    || name.starts_with(&format!("{}.", case.name))
            })
        };
        // Whatever the Job controller writes to the Job at the same time costs a 409, and another try.
        let took_effect = |write: &RecordedWrite| write.answer.is_some_and(|code| code < 300);
        let all = fixture.sink().writes().into_iter();
        let writes: Vec<_> = all.filter(|write| about(write) && took_effect(write)).collect();
        let steps = Step::of(case.kind);
        assert_eq!(writes.len(), steps.len(), "{}: {writes:#?}", case.name);
        for (write, step) in writes.iter().zip(&steps) {
            assert!(step.is(&write.call, &case.name), "{}: {step:?} is {write:?}", case.name);
        }
    }

    // From now on there is a receiver, which adds a write: the manifest's record of pending CloudEvents is removed.
    let receiver = Process::start(cloudevents_receiver::program(folder.path(), port, []).unwrap()).unwrap();

    // Each write fails once in each way, all of them side by side.
    let faults = [
        ("silent", ProxyFault::Timeout),
        ("c409", ProxyFault::Refuse(409)),
        ("c429", ProxyFault::Refuse(429)),
        ("c500", ProxyFault::Refuse(500)),
        ("cut", ProxyFault::Disconnect),
        ("cutafter", ProxyFault::DisconnectAfter),
        ("late", ProxyFault::DelayAnswer(Duration::from_secs(5))),
    ];
    let mut failing = Vec::new();
    for kind in Kind::ALL {
        for (n, step) in Step::of(kind).into_iter().enumerate() {
            for (word, fault) in &faults {
                // A large log for each way would only take time: its shards are what is different.
                if kind == Kind::Large && !matches!(step, Step::Shard(_)) {
                    continue;
                }
                failing.push(
                    fixture.disturb(&format!("{word}-{}-{n}", kind.word()), kind, step, fault.clone()).await,
                );
            }
        }
    }
    for case in &failing {
        assert!(fixture.ended(case).await >= 1, "{}: nothing went wrong", case.name);
    }
    eprintln!("{} single failures, each with one whole result and one Event", failing.len());

    // Killed after each write, one after the other.
    let mut killed = Vec::new();
    for kind in Kind::ALL {
        for (n, step) in Step::of(kind).into_iter().enumerate() {
            let sink = fixture.pair.sink().kill_handle();
            let fault = ProxyFault::callback(move |_| sink.kill().unwrap());
            let case = fixture.disturb(&format!("killed-{}-{n}", kind.word()), kind, step, fault).await;
            // Wait for the exit: the kill follows the call, and must not hit the next sink.
            let dead = || async {
                let dead = fixture.pair.sink().process().exit_status().is_some();
                if dead { Ok(()) } else { Err(format!("faults {} times", case.faults.count())) }
            };
            let what = format!("{} to kill the sink after {step:?}", case.name);
            wait_for(PATIENCE, &what, dead).await.unwrap();
            fixture.pair.sink().restart().unwrap();
            fixture.ended(&case).await;
            killed.push(case);
        }
    }
    eprintln!("{} kills, each with one whole result and one Event", killed.len());

    cases.push(fixture.full_store().await);
    cases.push(fixture.without_rights().await);

    // And still so after all of that, for every one of them.
    cases.extend(failing);
    cases.extend(killed);
    fixture.pair.sink().restart().unwrap();
    fixture.pair.wait_ready(PATIENCE).await.unwrap();
    for case in &cases {
        fixture.ended(case).await;
    }
    let shards: BTreeSet<_> =
        fixture.list::<ConfigMap>("job-handler/shard").await.iter().map(ResourceExt::name_any).collect();
    for case in &cases {
        fixture.told(case, &out).await;
    }
    drop(receiver);
    let large = cases.iter().filter(|case| case.kind == Kind::Large).count();
    assert_eq!(shards.len(), 2 * large, "no shard is left over: {shards:?}");
}

impl Fixture {
    fn sink(&self) -> &job_handler_e2e::FaultProxy {
        self.pair.sink().proxy()
    }

    async fn disturb(&self, name: &str, kind: Kind, step: Step, fault: ProxyFault) -> Case {
        let own = name.to_owned();
        let faults = self.sink().add(Rule::new(fault).when(move |call| step.is(call, &own)).times(1));
        self.create(name, kind).await;
        Case { name: name.to_owned(), kind, faults }
    }

    /// etcd takes no more writes for a while.
    async fn full_store(&self) -> Case {
        let full = "etcdserver: mvcc: database space exceeded";
        let (name, kind) = ("full".to_owned(), Kind::Goes);
        let ns = self.ns.name().to_owned();
        let rule = Rule::new(ProxyFault::RefuseWith(500, full.to_owned())).writes();
        let faults = self.sink().add(rule.when(move |call| call.path.contains(&ns)));
        self.create(&name, kind).await;
        self.says(full).await;
        self.sink().clear();
        let case = Case { name, kind, faults };
        self.ended(&case).await;
        case
    }

    /// The sink's rights are removed while it runs, and restored.
    async fn without_rights(&self) -> Case {
        let (name, kind) = ("no-rights".to_owned(), Kind::Goes);
        let faults = self.sink().add(Rule::new(ProxyFault::Disconnect).times(0));
        let binding = "job-handler-sink-local";
        let saved =
            self.cluster.kubectl(&["get", "clusterrolebinding", binding, "-o", "json"]).await.unwrap();
        self.cluster.kubectl(&["delete", "clusterrolebinding", binding]).await.unwrap();
        self.create(&name, kind).await;
        self.says("no right to").await;
        let mut saved: Value = serde_json::from_str(&saved).unwrap();
        saved["metadata"] = json!({"name": binding});
        self.cluster.kubectl_with_input(&["create", "-f", "-"], &saved.to_string()).await.unwrap();
        let case = Case { name, kind, faults };
        self.ended(&case).await;
        case
    }

    async fn says(&self, words: &str) {
        wait_for(PATIENCE, &format!("the sink to say «{words}»"), || async {
            let log = self.pair.sink().process().log_since_start();
            if log.contains(words) { Ok(()) } else { Err(log) }
        })
        .await
        .unwrap();
    }

    async fn create(&self, name: &str, kind: Kind) {
        let text = if kind == Kind::Large { noise() } else { format!("output of {name}\n") };
        let mut job = job_handler_e2e::cluster::jobs::job(name, &[("run", "300ms"), ("log", text.as_str())]);
        if kind == Kind::Large {
            let containers = &mut job.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers;
            let main = containers[0].clone();
            containers
                .extend((1..CONTAINERS).map(|n| Container { name: format!("more-{n}"), ..main.clone() }));
        }
        job.labels_mut().insert("kind".into(), kind.word().into());
        self.cluster.create_job(&self.ns, &job).await.unwrap();
    }

    /// Waits until the Job's harvest is over and checks what it left; gives how often something went wrong.
    async fn ended(&self, case: &Case) -> usize {
        let see = || async { self.look(case).await };
        if let Err(error) = wait_for(PATIENCE, &format!("the harvest of {}", case.name), see).await {
            panic!("{error}\n{}", self.pair.sink().process().log_since_start());
        }
        case.faults.count()
    }

    /// Waits until the receiver got the Job's started and completed events, each under one id, however often; and until the manifest has no pending CloudEvents.
    async fn told(&self, case: &Case, out: &Path) {
        let about = format!("{}/{}", self.ns.name(), case.name);
        wait_for(PATIENCE, &format!("all CloudEvents about {about}"), || async {
            let text = std::fs::read_to_string(out).map_err(|error| error.to_string())?;
            let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            // The last line may be half written.
            for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                assert_eq!(line["invalid"], Value::Null, "{line}");
                let event = &line["event"];
                if event["subject"] == about.as_str() {
                    let text = |key: &str| event[key].as_str().unwrap().to_owned();
                    ids.entry(text("type")).or_default().insert(text("id"));
                }
            }
            assert!(ids.values().all(|ids| ids.len() == 1), "{about}: {ids:?}");
            let types: Vec<&str> = ids.keys().map(String::as_str).collect();
            if types != ["io.job-handler.job.completed", "io.job-handler.job.started"] {
                return Err(format!("{types:?}"));
            }
            let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client(), &self.ns);
            let result =
                maps.get(&format!("{}-results", case.name)).await.map_err(|error| error.to_string())?;
            let Some(to) = result.annotations().get("job-handler/cloudevents") else { return Ok(()) };
            let counts = match self.pair.sink().get("/metrics").await {
                Ok((_, metrics)) => {
                    metrics.lines().filter(|line| line.contains("cloudevents")).collect::<Vec<_>>().join("\n")
                }
                Err(error) => error.to_string(),
            };
            let log = self.pair.sink().process().log_since_start();
            let manifest = &result.data.as_ref().unwrap()["result.json"];
            Err(format!("still to be told: {to}: {manifest:?}\n{log}\n{counts}"))
        })
        .await
        .unwrap();
    }

    async fn look(&self, case: &Case) -> Result<(), String> {
        let Case { name, kind, .. } = case;
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
            (Some(job), Kind::Stays) => {
                if job.annotations().get("job-handler/results") != Some(&result.name_any()) {
                    return Err("not marked".into());
                }
                let ttl = job.spec.as_ref().unwrap().ttl_seconds_after_finished;
                assert_eq!(ttl, Some(7200), "{name}: armed as it was asked for");
            }
            (None, Kind::Goes | Kind::Large) => {}
            _ => return Err(format!("the Job is {}", if job.is_some() { "there" } else { "gone" })),
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
        let there: BTreeSet<_> = maps
            .iter()
            .filter(|m| !m.labels().contains_key("job-handler/created"))
            .map(ResourceExt::name_any)
            .collect();
        assert_eq!(there.iter().map(String::as_str).collect::<BTreeSet<_>>(), listed, "{name}: shards");
        let logs = unpack(result, &maps, &manifest);
        match kind {
            Kind::Large => {
                assert!(logs.len() > CONTAINERS * NOISE && listed.len() == 2, "{name}: {} bytes", logs.len());
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

    async fn apply_policy(&self, kind: Kind) {
        let policy = json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
            "metadata": {"name": kind.word(), "namespace": self.ns.name()}, "spec": kind.policy(),
        });
        let api: Api<JobPolicy> = Api::namespaced(self.cluster.client(), &self.ns);
        api.patch(kind.word(), &PatchParams::apply("test").force(), &Patch::Apply(&policy)).await.unwrap();
        wait_for(PATIENCE, "the policy to be Ready", || async {
            let status = api.get(kind.word()).await.map_err(|e| e.to_string())?.status.unwrap_or_default();
            match status.conditions.iter().find(|c| c.type_ == "Ready") {
                Some(ready) if ready.status == "True" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
        .unwrap();
    }
}

/// Letters and digits that do not compress well, the same each time.
fn noise() -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut state = 88_172_645_463_325_252_u64;
    let letters = (0..NOISE).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(LETTERS[usize::try_from(state % 64).unwrap()])
    });
    letters.collect()
}

/// Puts the logs together again, as a reader does, and holds them against the digests.
fn unpack(result: &ConfigMap, maps: &[ConfigMap], manifest: &Value) -> Vec<u8> {
    let place = &manifest["logs"];
    let key = place["key"].as_str().unwrap();
    let binary = |map: &ConfigMap| -> Vec<u8> {
        let held: Option<&BTreeMap<String, ByteString>> = map.binary_data.as_ref();
        held.and_then(|data| data.get(key)).map(|bytes| bytes.0.clone()).unwrap_or_default()
    };
    let mut stored: Vec<u8> = match result.data.as_ref().and_then(|data| data.get(key)) {
        Some(text) => text.clone().into_bytes(),
        None => binary(result),
    };
    for shard in place["shards"].as_array().into_iter().flatten() {
        let map = maps.iter().find(|map| map.name_any() == shard["name"].as_str().unwrap()).unwrap();
        let piece = binary(map);
        assert_eq!(format!("{:x}", Sha256::digest(&piece)), shard["sha256"].as_str().unwrap());
        stored.extend(piece);
    }
    if place["encoding"] == "gzip" {
        let mut plain = Vec::new();
        GzDecoder::new(&stored[..]).read_to_end(&mut plain).unwrap();
        stored = plain;
    }
    assert_eq!(format!("{:x}", Sha256::digest(&stored)), place["sha256"].as_str().unwrap());
    stored
}
