//! Full logs over a result's budget in an object store (an S3-compatible server and a folder), outages of the store, and the deletion of objects with their results.

use std::{
    collections::BTreeSet,
    io::Read,
    path::{Path, PathBuf},
};

use job_handler_e2e::{
    Cluster, ClusterOptions, Pair, PairOptions, build,
    harness::{
        ports,
        process::{Process, Program},
    },
    net::fault_proxy::{ProxyFault, Rule},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::DeleteParams};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    fixtures::{Fixture, exclusive_scenario_with_own_cluster},
    log_content::{manifest, once, peak, stored, text},
};

const KEY: &str = "someone";
const SECRET: &str = "open-sesame-open-sesame";
const KEPT: usize = 8 << 10;

/// A server whose bucket `logs` is a folder of ours; started and stopped at will.
struct BenchServer {
    program: Program,
    bucket: PathBuf,
    ca: String,
    port: u16,
}

impl BenchServer {
    fn new(folder: &Path) -> Self {
        let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
            folder.join(name).display().to_string()
        };
        let (root, sidecar) = (folder.join("buckets"), folder.join("metadata"));
        std::fs::create_dir_all(root.join("logs")).unwrap();
        std::fs::create_dir_all(&sidecar).unwrap();
        let port = ports::free().unwrap();
        let arguments = [
            format!("--port=127.0.0.1:{port}"),
            format!("--cert={}", file("cert.pem", &pair.cert.pem())),
            format!("--key={}", file("key.pem", &pair.signing_key.serialize_pem())),
            "posix".to_owned(),
            // Extended attributes are not to be had everywhere.
            format!("--sidecar={}", sidecar.display()),
            root.display().to_string(),
        ];
        let environment = [("ROOT_ACCESS_KEY", KEY), ("ROOT_SECRET_KEY", SECRET)];
        let program = Program {
            name: "object store".to_owned(),
            executable: build::object_store().unwrap(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: environment.map(|(name, value)| (name.into(), value.into())).into(),
            log: folder.join("server.log"),
        };
        Self { program, bucket: root.join("logs"), ca: pair.cert.pem(), port }
    }

    fn start(&self) -> Process {
        Process::start(self.program.clone()).unwrap()
    }
}

async fn fixture(options: PairOptions) -> Fixture {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let pair = Pair::install(&cluster, options).await.unwrap();
    Fixture { cluster, pair }
}

/// All objects below a folder, as they are on the server's disk.
fn objects(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(objects(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

fn logs(manifest: &Value) -> Vec<Value> {
    let pods = manifest["pods"].as_array().unwrap().iter();
    let containers = pods.flat_map(|pod| pod["containers"].as_array().unwrap());
    containers.flat_map(|container| container["logs"].as_array().unwrap().clone()).collect()
}

/// Reads a full log from its place in the result, and checks length and digest.
fn whole(log: &Value, prefix: &str, folder: &Path) -> Vec<u8> {
    let url = log["whole"]["url"].as_str().unwrap_or_else(|| panic!("{log}"));
    let path = folder.join(url.strip_prefix(prefix).unwrap_or_else(|| panic!("{url}")));
    assert_eq!(log["whole"]["bytes"], std::fs::metadata(&path).unwrap().len(), "{log}");
    let mut bytes = Vec::new();
    let file = std::fs::File::open(&path).unwrap();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    assert_eq!(log["length"], bytes.len(), "{log}");
    assert_eq!(log["sha256"], format!("{:x}", Sha256::digest(&bytes)), "{log}");
    bytes
}

fn shown(result: &ConfigMap) -> &str {
    &result.data.as_ref().unwrap()["logs"]
}

async fn emptied(fixture: &Fixture, folder: &Path) {
    fixture
        .wait(&format!("{} to be empty", folder.display()), || async {
            let left = objects(folder);
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
}

#[test]
fn logs_over_the_budget_are_stored_in_full_in_an_s3_compatible_store() {
    exclusive_scenario_with_own_cluster(async || {
        let folder = tempfile::tempdir().unwrap();
        let server = BenchServer::new(folder.path());
        let configuration = json!({"objectStore": {
            "url": "s3://logs/of/jobs",
            "options": {"endpoint": format!("https://127.0.0.1:{}", server.port), "region": "us-east-1"},
            "tls": {"ca": server.ca},
            "spool": {"folder": folder.path().join("spool"), "maxBytes": "256Mi"},
            "timeoutSeconds": 5,
            "sweepSeconds": 2,
        }});
        let running = server.start();
        let credentials = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)];
        let fixture = fixture(PairOptions {
            sink_configuration: Some(configuration.to_string()),
            sink_environment: credentials.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..PairOptions::default()
        })
        .await;
        let fixture = &fixture;
        let ns = fixture.cluster.namespace("whole").await.unwrap();
        let logs_policy = json!({"maxBytesPerContainer": KEPT, "maxBytesPerJob": 2 * KEPT});
        fixture.apply_policy(&ns, "p", json!({"results": {"logs": logs_policy}})).await;
        let (prefix, bucket) = ("s3://logs/", server.bucket.as_path());

        // Three containers, and a budget for two of them; one log fits.
        let mut many = once("many", &[("run", "300ms"), ("log-bytes", "64Ki")]);
        many["spec"]["template"]["spec"]["containers"] =
            json!(["a", "b", "c"].map(|name| { json!({"name": name, "image": "busybox"}) }));
        fixture.create(&ns, &many).await.unwrap();
        let result = stored(fixture, &ns, "many").await;
        let told = manifest(&result);
        assert_eq!(told["completeness"], json!({"complete": true}), "{told}");
        let all = logs(&told);
        for log in &all {
            assert!(whole(log, prefix, bucket) == text(64 << 10), "every byte: {log}");
        }
        assert_eq!(all.iter().map(|log| log["leftOut"].as_u64().unwrap()).max(), Some(64 << 10), "{told}");
        assert_eq!(told["objects"]["count"], 3);
        // The ConfigMap still shows head and tail, and where the rest is.
        let gap = format!(
            "[... {} of {} bytes left out; all of it, gzipped: s3://logs/of/jobs/{}/",
            (64 << 10) - KEPT,
            64 << 10,
            ns.name()
        );
        assert!(
            shown(&result).contains(&gap) && shown(&result).contains("\n000000001 "),
            "{}",
            shown(&result)
        );

        // Uploaded in parts, in bounded memory.
        let before = peak(fixture.pair.sink());
        fixture.create(&ns, &once("huge", &[("run", "100ms"), ("log-bytes", "128Mi")])).await.unwrap();
        let result = stored(fixture, &ns, "huge").await;
        let log = &logs(&manifest(&result))[0];
        assert!(whole(log, prefix, bucket) == text(128 << 20), "every byte: {log}");
        assert!(log["whole"]["bytes"].as_u64().unwrap() > 5 << 20, "more than one part: {log}");
        let grown = peak(fixture.pair.sink()) - before;
        eprintln!(
            "a log of 128 MiB, stored whole: the sink's peak memory grew by {grown} MiB, from {before} MiB"
        );
        assert!(grown < 80, "{grown} MiB more than {before} MiB");

        // A followed log, whose pod is deleted before the Job finishes, has its last line.
        let play =
            [("end", "Hang"), ("log-bytes", "64Ki"), ("log-every", "100ms"), ("termination-delay", "2s")];
        let mut late = once("late", &play);
        late["spec"]["activeDeadlineSeconds"] = json!(4);
        fixture.create(&ns, &late).await.unwrap();
        let result = stored(fixture, &ns, "late").await;
        let log = logs(&manifest(&result)).remove(0);
        let followed = whole(&log, prefix, bucket);
        assert!(followed.starts_with(&text(64 << 10)), "{log}");
        let end = String::from_utf8_lossy(&followed[64 << 10..]).into_owned();
        assert!(
            end.contains("tick 1\n") && end.trim_end().lines().last().unwrap().contains("after tick"),
            "{end}"
        );

        // The store hangs: only Jobs that need it wait, and not for long.
        running.stop().unwrap();
        fixture.create(&ns, &once("hung", &[("run", "100ms"), ("log-bytes", "64Ki")])).await.unwrap();
        fixture.create(&ns, &once("beside", &[("run", "100ms"), ("log", "small\n")])).await.unwrap();
        assert_eq!(
            manifest(&stored(fixture, &ns, "beside").await)["completeness"],
            json!({"complete": true})
        );
        let hung = manifest(&stored(fixture, &ns, "hung").await);
        let lost = logs(&hung)[0]["lost"].as_str().unwrap().to_owned();
        assert!(lost.starts_with("the whole log could not be stored: "), "{lost}");

        // While the store is down, logs are cut as without a store, and the result says why.
        drop(running);
        fixture.create(&ns, &once("cut", &[("run", "100ms"), ("log-bytes", "64Ki")])).await.unwrap();
        fixture.create(&ns, &once("small", &[("run", "100ms"), ("log", "small\n")])).await.unwrap();
        let small = stored(fixture, &ns, "small").await;
        assert_eq!(manifest(&small)["completeness"], json!({"complete": true}));
        let cut = stored(fixture, &ns, "cut").await;
        let told = manifest(&cut);
        let log = &logs(&told)[0];
        assert!(log["lost"].as_str().unwrap().starts_with("the whole log could not be stored: "), "{log}");
        assert_eq!(log["leftOut"], (64 << 10) - KEPT, "{log}");
        assert_eq!(told["completeness"]["complete"], false);
        assert!(shown(&cut).contains("\n000000001 "), "its ends are there: {}", shown(&cut));
        assert!(!fixture.pair.sink().process().log_since_start().contains(SECRET));

        // And once it is back, it is used again.
        let _running = server.start();
        let mut n = 0;
        let mut back = async || {
            n += 1;
            let name = format!("back-{n}");
            fixture.create(&ns, &once(&name, &[("run", "100ms"), ("log-bytes", "64Ki")])).await.unwrap();
            logs(&manifest(&stored(fixture, &ns, &name).await)).remove(0)
        };
        let mut log = back().await;
        while log["whole"].is_null() {
            assert!(log["lost"].as_str().unwrap().contains("object store"), "{log}");
            log = back().await;
        }
        assert!(whole(&log, prefix, bucket) == text(64 << 10));

        // Results take their objects along.
        assert!(objects(&bucket.join("of/jobs").join(ns.name())).len() >= 6);
        fixture.apply_policy(&ns, "p", json!({"results": {"ttlSeconds": 1, "logs": logs_policy}})).await;
        emptied(fixture, &bucket.join("of/jobs").join(ns.name())).await;
    });
}

#[test]
fn a_folder_has_full_logs_and_nothing_of_failed_harvests() {
    exclusive_scenario_with_own_cluster(async || {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let configuration = json!({"objectStore": {
            "url": format!("file://{}", store.display()),
            "spool": {"folder": folder.path().join("spool")},
            "sweepSeconds": 2,
        }});
        let fixture = fixture(PairOptions {
            sink_configuration: Some(configuration.to_string()),
            sink_proxy: true,
            ..PairOptions::default()
        })
        .await;
        let fixture = &fixture;
        let ns = fixture.cluster.namespace("folder").await.unwrap();
        let logs_policy = json!({"maxBytesPerContainer": KEPT});
        fixture.apply_policy(&ns, "p", json!({"results": {"logs": logs_policy}})).await;
        let (prefix, of_ns) = (format!("file://{}/", store.display()), store.join(ns.name()));

        // The run before a restart has a log of its own.
        let mut again = once("again", &[("run", "200ms"), ("restarts", "1"), ("log-bytes", "64Ki")]);
        again["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
        again["spec"]["backoffLimit"] = json!(3);
        fixture.create(&ns, &again).await.unwrap();
        let result = stored(fixture, &ns, "again").await;
        let told = manifest(&result);
        let runs: BTreeSet<String> = logs(&told)
            .iter()
            .map(|log| String::from_utf8_lossy(&whole(log, &prefix, &store)[..10]).into_owned())
            .collect();
        assert_eq!(runs, BTreeSet::from(["attempt 1\n".to_owned(), "attempt 2\n".to_owned()]), "{told}");

        // Users who may only read results get the location of the full log.
        let person = super::kubectl_plugin::Person::reader(fixture, &ns).await;
        let url = logs(&told)[0]["whole"]["url"].as_str().unwrap().to_owned();
        let show = person.ok(&["job-results", "show", "again"]).await;
        assert!(show.contains(&url) && show.contains("Full logs:  2 logs"), "{show}");
        let (out, remarks) = person.both(&["job-results", "logs", "again", "-c", "main"]).await;
        assert!(out.contains("bytes left out; all of it") && !out.contains("note:"), "{out}");
        let sha256 = logs(&told).iter().find(|log| log["previous"] == false).unwrap()["sha256"].clone();
        assert!(
            remarks.contains("the full log is at file://") && remarks.contains(sha256.as_str().unwrap()),
            "{remarks}"
        );

        // The sink dies between the upload and the result, and when it is back, its Job is gone.
        let proxy = fixture.pair.sink().proxy();
        let own = |call: &job_handler_e2e::net::fault_proxy::ApiCall| {
            call.path.ends_with("/configmaps")
                && call.is_write()
                && call.name.as_deref() == Some("doomed-results")
        };
        let faults = proxy.add(Rule::new(ProxyFault::Refuse(500)).when(own));
        fixture.create(&ns, &once("doomed", &[("run", "100ms"), ("log-bytes", "64Ki")])).await.unwrap();
        fixture
            .wait("the result to be refused", || async {
                if faults.count() > 0 { Ok(()) } else { Err("not yet") }
            })
            .await;
        let uid = fixture.jobs(&ns).get("doomed").await.unwrap().metadata.uid.unwrap();
        let orphan = of_ns.join(&uid);
        assert_eq!(objects(&orphan).len(), 1, "objects come first");
        fixture.pair.sink().kill().unwrap();
        fixture.jobs(&ns).delete("doomed", &DeleteParams::background()).await.unwrap();
        fixture.wait_job_deleted(&ns, "doomed").await;
        proxy.clear();
        fixture.pair.sink().restart().unwrap();
        emptied(fixture, &orphan).await;
        let api: Api<ConfigMap> = fixture.config_maps(&ns);
        assert!(api.get_opt("doomed-results").await.unwrap().is_none());
        for log in logs(&told) {
            whole(&log, &prefix, &store);
        }

        // When a result is deleted, its objects are deleted once its Job is gone.
        fixture.jobs(&ns).delete("again", &DeleteParams::background()).await.unwrap();
        fixture.wait_job_deleted(&ns, "again").await;
        api.delete("again-results", &DeleteParams::default()).await.unwrap();
        emptied(fixture, &of_ns).await;
    });
}
