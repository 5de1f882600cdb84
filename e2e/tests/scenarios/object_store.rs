//! Full logs over a result's budget in an object store (an S3-compatible server and a folder), outages of the store,
//! and the deletion of objects with their results.

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
    log_content::{job_without_retries, manifest, peak_memory, text, wait_result},
};

const KEY: &str = "access-key";
const SECRET: &str = "open-sesame-open-sesame";
const BUDGET: usize = 8 << 10;

/// An S3-compatible server whose bucket `logs` is a local folder. It can be started and stopped.
struct ObjectStoreServer {
    program: Program,
    bucket: PathBuf,
    ca: String,
    port: u16,
}

impl ObjectStoreServer {
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
            // Not every file system supports extended attributes.
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

/// All files below a folder: the stored objects.
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

/// Reads the full log that a result refers to, and checks length and digest.
fn read_full_log(log: &Value, prefix: &str, folder: &Path) -> Vec<u8> {
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

fn stored_logs(result: &ConfigMap) -> &str {
    &result.data.as_ref().unwrap()["logs"]
}

async fn wait_empty(fixture: &Fixture, folder: &Path) {
    fixture
        .wait(&format!("{} to be empty", folder.display()), || async {
            let remaining = objects(folder);
            if remaining.is_empty() { Ok(()) } else { Err(format!("{remaining:?}")) }
        })
        .await;
}

#[test]
fn logs_over_the_budget_are_stored_in_full_in_an_s3_compatible_store() {
    exclusive_scenario_with_own_cluster(async || {
        let folder = tempfile::tempdir().unwrap();
        let server = ObjectStoreServer::new(folder.path());
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
        let ns = fixture.cluster.namespace("full-logs").await.unwrap();
        let logs_policy = json!({"maxBytesPerContainer": BUDGET, "maxBytesPerJob": 2 * BUDGET});
        fixture.apply_policy(&ns, "p", json!({"results": {"logs": logs_policy}})).await;
        let (prefix, bucket) = ("s3://logs/", server.bucket.as_path());

        // Three containers, and a budget for two of them; one log fits.
        let mut many = job_without_retries("many", &[("run", "300ms"), ("log-bytes", "64Ki")]);
        many["spec"]["template"]["spec"]["containers"] =
            json!(["a", "b", "c"].map(|name| { json!({"name": name, "image": "busybox"}) }));
        fixture.create(&ns, &many).await.unwrap();
        let result = wait_result(fixture, &ns, "many").await;
        let manifest_json = manifest(&result);
        assert_eq!(manifest_json["completeness"], json!({"complete": true}), "{manifest_json}");
        let all = logs(&manifest_json);
        for log in &all {
            assert!(read_full_log(log, prefix, bucket) == text(64 << 10), "every byte: {log}");
        }
        assert_eq!(
            all.iter().map(|log| log["leftOut"].as_u64().unwrap()).max(),
            Some(64 << 10),
            "{manifest_json}"
        );
        assert_eq!(manifest_json["objects"]["count"], 3);
        // The ConfigMap has head and tail, and the location of the full log.
        let gap = format!(
            "[... {} of {} bytes left out; all of it, gzipped: s3://logs/of/jobs/{}/",
            (64 << 10) - BUDGET,
            64 << 10,
            ns.name()
        );
        assert!(
            stored_logs(&result).contains(&gap) && stored_logs(&result).contains("\n000000001 "),
            "{}",
            stored_logs(&result)
        );

        // Uploaded in parts, in bounded memory.
        let before = peak_memory(fixture.pair.sink());
        fixture
            .create(&ns, &job_without_retries("huge", &[("run", "100ms"), ("log-bytes", "128Mi")]))
            .await
            .unwrap();
        let result = wait_result(fixture, &ns, "huge").await;
        let log = &logs(&manifest(&result))[0];
        assert!(read_full_log(log, prefix, bucket) == text(128 << 20), "every byte: {log}");
        assert!(log["whole"]["bytes"].as_u64().unwrap() > 5 << 20, "more than one part: {log}");
        let grown = peak_memory(fixture.pair.sink()) - before;
        eprintln!(
            "a log of 128 MiB, stored in full: the sink's peak memory grew by {grown} MiB, from {before} MiB"
        );
        assert!(grown < 80, "{grown} MiB more than {before} MiB");

        // The followed log of a pod that is deleted before the Job finishes has its last line.
        let simulation =
            [("end", "Hang"), ("log-bytes", "64Ki"), ("log-every", "100ms"), ("termination-delay", "2s")];
        let mut late = job_without_retries("late", &simulation);
        late["spec"]["activeDeadlineSeconds"] = json!(4);
        fixture.create(&ns, &late).await.unwrap();
        let result = wait_result(fixture, &ns, "late").await;
        let log = logs(&manifest(&result)).remove(0);
        let followed = read_full_log(&log, prefix, bucket);
        assert!(followed.starts_with(&text(64 << 10)), "{log}");
        let end = String::from_utf8_lossy(&followed[64 << 10..]).into_owned();
        assert!(
            end.contains("tick 1\n") && end.trim_end().lines().last().unwrap().contains("after tick"),
            "{end}"
        );

        // The store hangs: only Jobs that need it wait, until the timeout.
        running.stop().unwrap();
        fixture
            .create(&ns, &job_without_retries("hanging", &[("run", "100ms"), ("log-bytes", "64Ki")]))
            .await
            .unwrap();
        fixture
            .create(&ns, &job_without_retries("small-log", &[("run", "100ms"), ("log", "small\n")]))
            .await
            .unwrap();
        assert_eq!(
            manifest(&wait_result(fixture, &ns, "small-log").await)["completeness"],
            json!({"complete": true})
        );
        let hanging = manifest(&wait_result(fixture, &ns, "hanging").await);
        let lost = logs(&hanging)[0]["lost"].as_str().unwrap().to_owned();
        assert!(lost.starts_with("the full log could not be stored: "), "{lost}");

        // While the store is down, logs are truncated as without a store, and the result has the reason.
        drop(running);
        fixture
            .create(&ns, &job_without_retries("truncated", &[("run", "100ms"), ("log-bytes", "64Ki")]))
            .await
            .unwrap();
        fixture
            .create(&ns, &job_without_retries("small", &[("run", "100ms"), ("log", "small\n")]))
            .await
            .unwrap();
        let small = wait_result(fixture, &ns, "small").await;
        assert_eq!(manifest(&small)["completeness"], json!({"complete": true}));
        let truncated = wait_result(fixture, &ns, "truncated").await;
        let manifest_json = manifest(&truncated);
        let log = &logs(&manifest_json)[0];
        assert!(log["lost"].as_str().unwrap().starts_with("the full log could not be stored: "), "{log}");
        assert_eq!(log["leftOut"], (64 << 10) - BUDGET, "{log}");
        assert_eq!(manifest_json["completeness"]["complete"], false);
        assert!(
            stored_logs(&truncated).contains("\n000000001 "),
            "head and tail are stored: {}",
            stored_logs(&truncated)
        );
        assert!(!fixture.pair.sink().process().log_since_start().contains(SECRET));

        // The store is used again after it has recovered.
        let _running = server.start();
        let mut n = 0;
        let mut store_log = async || {
            n += 1;
            let name = format!("recovered-{n}");
            fixture
                .create(&ns, &job_without_retries(&name, &[("run", "100ms"), ("log-bytes", "64Ki")]))
                .await
                .unwrap();
            logs(&manifest(&wait_result(fixture, &ns, &name).await)).remove(0)
        };
        let mut log = store_log().await;
        while log["whole"].is_null() {
            assert!(log["lost"].as_str().unwrap().contains("object store"), "{log}");
            log = store_log().await;
        }
        assert!(read_full_log(&log, prefix, bucket) == text(64 << 10));

        // The objects are deleted with their results.
        assert!(objects(&bucket.join("of/jobs").join(ns.name())).len() >= 6);
        fixture.apply_policy(&ns, "p", json!({"results": {"ttlSeconds": 1, "logs": logs_policy}})).await;
        wait_empty(fixture, &bucket.join("of/jobs").join(ns.name())).await;
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
        let logs_policy = json!({"maxBytesPerContainer": BUDGET});
        fixture.apply_policy(&ns, "p", json!({"results": {"logs": logs_policy}})).await;
        let (prefix, of_ns) = (format!("file://{}/", store.display()), store.join(ns.name()));

        // The run before a restart has its own log.
        let mut again =
            job_without_retries("again", &[("run", "200ms"), ("restarts", "1"), ("log-bytes", "64Ki")]);
        again["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
        again["spec"]["backoffLimit"] = json!(3);
        fixture.create(&ns, &again).await.unwrap();
        let result = wait_result(fixture, &ns, "again").await;
        let manifest_json = manifest(&result);
        let runs: BTreeSet<String> = logs(&manifest_json)
            .iter()
            .map(|log| String::from_utf8_lossy(&read_full_log(log, &prefix, &store)[..10]).into_owned())
            .collect();
        assert_eq!(
            runs,
            BTreeSet::from(["attempt 1\n".to_owned(), "attempt 2\n".to_owned()]),
            "{manifest_json}"
        );

        // Users who may only read results get the location of the full log.
        let user = super::kubectl_plugin::PluginUser::reader(fixture, &ns).await;
        let url = logs(&manifest_json)[0]["whole"]["url"].as_str().unwrap().to_owned();
        let show = user.ok(&["job-results", "show", "again"]).await;
        assert!(show.contains(&url) && show.contains("Full logs:  2 logs"), "{show}");
        let (output, errors) = user.output_and_errors(&["job-results", "logs", "again", "-c", "main"]).await;
        assert!(output.contains("bytes left out; all of it") && !output.contains("note:"), "{output}");
        let sha256 =
            logs(&manifest_json).iter().find(|log| log["previous"] == false).unwrap()["sha256"].clone();
        assert!(
            errors.contains("the full log is at file://") && errors.contains(sha256.as_str().unwrap()),
            "{errors}"
        );

        // The sink is killed after the upload, and the Job is deleted before the sink restarts.
        let proxy = fixture.pair.sink().proxy();
        let is_result = |call: &job_handler_e2e::net::fault_proxy::ApiCall| {
            call.path.ends_with("/configmaps")
                && call.is_write()
                && call.name.as_deref() == Some("orphaned-results")
        };
        let faults = proxy.add(Rule::new(ProxyFault::Refuse(500)).when(is_result));
        fixture
            .create(&ns, &job_without_retries("orphaned", &[("run", "100ms"), ("log-bytes", "64Ki")]))
            .await
            .unwrap();
        fixture
            .wait("the result to be refused", || async {
                if faults.count() > 0 { Ok(()) } else { Err("not yet") }
            })
            .await;
        let uid = fixture.jobs(&ns).get("orphaned").await.unwrap().metadata.uid.unwrap();
        let orphan = of_ns.join(&uid);
        assert_eq!(objects(&orphan).len(), 1, "objects are stored before the result");
        fixture.pair.sink().kill().unwrap();
        fixture.jobs(&ns).delete("orphaned", &DeleteParams::background()).await.unwrap();
        fixture.wait_job_deleted(&ns, "orphaned").await;
        proxy.clear();
        fixture.pair.sink().restart().unwrap();
        wait_empty(fixture, &orphan).await;
        let api: Api<ConfigMap> = fixture.config_maps(&ns);
        assert!(api.get_opt("orphaned-results").await.unwrap().is_none());
        for log in logs(&manifest_json) {
            read_full_log(&log, &prefix, &store);
        }

        // When a result is deleted, its objects are deleted once its Job is gone.
        fixture.jobs(&ns).delete("again", &DeleteParams::background()).await.unwrap();
        fixture.wait_job_deleted(&ns, "again").await;
        api.delete("again-results", &DeleteParams::default()).await.unwrap();
        wait_empty(fixture, &of_ns).await;
    });
}
