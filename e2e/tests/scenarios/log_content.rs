//! The stored logs: head and tail within the budgets, with length and digest of the full log; binary logs, and a log of
//! one huge line.

use std::time::Duration;

use job_handler_e2e::{Member, wait_for};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::fixtures::{Fixture, exclusive_scenario, job, scenario};

/// The longest wait on a loaded machine, for a hundred MiB or a thousand pods.
const TIMEOUT: Duration = Duration::from_secs(240);

pub async fn wait_result(fixture: &Fixture, namespace: &str, job: &str) -> ConfigMap {
    let (api, name) = (fixture.config_maps(namespace), format!("{job}-results"));
    let poll = || async { api.get(&name).await.map_err(|e| e.to_string()) };
    wait_for(TIMEOUT, &format!("the result {namespace}/{name}"), poll).await.unwrap()
}

pub fn manifest(result: &ConfigMap) -> Value {
    serde_json::from_str(&result.data.as_ref().unwrap()["result.json"]).unwrap()
}

pub fn job_without_retries(name: &str, simulation: &[(&str, &str)]) -> Value {
    let mut job = job(name, &[], simulation);
    job["spec"]["backoffLimit"] = json!(0);
    job
}

fn digest(bytes: impl IntoIterator<Item = Vec<u8>>) -> String {
    let mut digest = Sha256::new();
    bytes.into_iter().for_each(|piece| digest.update(&piece));
    format!("{:x}", digest.finalize())
}

/// What `log-bytes` writes: numbered lines of 80 characters.
pub fn text(size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(size + 80);
    for number in 1.. {
        if out.len() >= size {
            break;
        }
        let mut line = format!("{number:09} ").into_bytes();
        while line.len() < 79 {
            line.push(b"abcdefghijklmnopqrstuvwxyz"[(line.len() + number) % 26]);
        }
        line.push(b'\n');
        out.extend(line);
    }
    out.truncate(size);
    out
}

/// Assembles a result's logs as a reader does, and compares them with the manifest.
async fn read_logs(fixture: &Fixture, result: &ConfigMap) -> Vec<u8> {
    let manifest = manifest(result);
    let storage = &manifest["logs"];
    let key = storage["key"].as_str().unwrap();
    let mut bytes = Vec::new();
    for shard in storage["shards"].as_array().into_iter().flatten() {
        let map = fixture
            .config_maps(&result.namespace().unwrap())
            .get(shard["name"].as_str().unwrap())
            .await
            .unwrap();
        let piece = map.binary_data.unwrap()[key].0.clone();
        assert_eq!(json!(digest([piece.clone()])), shard["sha256"]);
        bytes.extend(piece);
    }
    if bytes.is_empty() {
        let text = result.data.as_ref().unwrap().get(key).map(|text| text.clone().into_bytes());
        bytes = text.unwrap_or_else(|| result.binary_data.as_ref().unwrap()[key].0.clone());
    }
    if storage["encoding"] == "gzip" {
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut plain).unwrap();
        bytes = plain;
    }
    assert_eq!(
        (json!(digest([bytes.clone()])), json!(bytes.len())),
        (storage["sha256"].clone(), storage["bytes"].clone())
    );
    bytes
}

#[test]
fn a_long_log_keeps_head_and_tail_and_counts_the_omitted_bytes() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("ends").await.unwrap();
        fixture
            .apply_policy(&ns, "results", json!({"results": {"logs": {"maxBytesPerContainer": "8Ki"}}}))
            .await;
        fixture
            .create(&ns, &job_without_retries("long", &[("run", "300ms"), ("log-bytes", "1Mi")]))
            .await
            .unwrap();
        let result = wait_result(fixture, &ns, "long").await;
        let (full_log, facts) = (text(1 << 20), &manifest(&result)["pods"][0]["containers"][0]["logs"][0]);
        assert_eq!((&facts["length"], &facts["leftOut"]), (&json!(1 << 20), &json!((1 << 20) - 8192)));
        assert_eq!(facts["sha256"], digest([full_log.clone()]));
        let stored_log = String::from_utf8(read_logs(fixture, &result).await).unwrap();
        let (_, log) = stored_log.split_once(" ===\n").unwrap();
        let (head, rest) = log.split_once("\n[... ").unwrap();
        let (gap, tail) = rest.split_once(" ...]\n").unwrap();
        assert_eq!(gap, format!("{} of {} bytes left out", (1 << 20) - 8192, 1 << 20));
        assert!(full_log.starts_with(head.as_bytes()) && full_log.ends_with(tail.as_bytes()));
        assert_eq!(head.len() + tail.len(), 8192);
    });
}

#[test]
fn a_jobs_budget_is_shared_by_its_containers() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("budget").await.unwrap();
        let logs = json!({"maxBytesPerContainer": "6Ki", "maxBytesPerJob": "8Ki"});
        fixture.apply_policy(&ns, "results", json!({"results": {"logs": logs}})).await;
        let mut many = job_without_retries("many", &[("run", "300ms"), ("log-bytes", "64Ki")]);
        let containers = ["a", "b", "c"].map(|name| json!({"name": name, "image": "busybox"}));
        many["spec"]["template"]["spec"]["containers"] = json!(containers);
        fixture.create(&ns, &many).await.unwrap();
        let result = wait_result(fixture, &ns, "many").await;
        let manifest = manifest(&result);
        let facts = |n: usize| manifest["pods"][0]["containers"][n]["logs"][0].clone();
        let kept_bytes =
            |n: usize| facts(n)["length"].as_u64().unwrap() - facts(n)["leftOut"].as_u64().unwrap();
        assert_eq!((kept_bytes(0), kept_bytes(1)), (6 << 10, 2 << 10), "{manifest}");
        // Over the budget is not lost.
        assert_eq!(
            (0..3).map(|n| facts(n)["truncated"].clone()).collect::<Vec<_>>(),
            [true; 3],
            "{manifest}"
        );
        assert!(facts(2)["lost"].is_null(), "{manifest}");
        let completeness = &manifest["completeness"];
        assert_eq!((&completeness["complete"], &completeness["lost"]), (&json!(false), &Value::Null));
        assert_eq!(completeness["truncated"].as_array().unwrap().len(), 3, "{manifest}");
        for n in 0..2 {
            assert_eq!(
                (facts(n)["sha256"].clone(), facts(n)["length"].clone()),
                (json!(digest([text(64 << 10)])), json!(64 << 10))
            );
        }
    });
}

#[test]
fn large_logs_are_stored_in_shards_and_read_back_byte_for_byte() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("shards").await.unwrap();
        let logs = json!({"maxBytesPerContainer": "16Mi", "maxBytesPerJob": "64Mi"});
        fixture.apply_policy(&ns, "results", json!({"results": {"logs": logs}})).await;
        let mut large = job_without_retries("large", &[("run", "300ms"), ("log-bytes", "15Mi")]);
        large["spec"]["template"]["spec"]["containers"] =
            json!([{"name": "one", "image": "busybox"}, {"name": "two", "image": "busybox"}]);
        fixture.create(&ns, &large).await.unwrap();
        let result = wait_result(fixture, &ns, "large").await;
        let manifest = manifest(&result);
        assert!(manifest["logs"]["shards"].as_array().unwrap().len() > 1, "{}", manifest["logs"]);
        assert_eq!(manifest["completeness"]["complete"], true);
        let pod = manifest["pods"][0]["name"].as_str().unwrap();
        let full_log = text(15 << 20);
        let section = |name: &str| format!("=== Pod: {pod} / Container: {name} ===\n").into_bytes();
        let expected = [section("one"), full_log.clone(), section("two"), full_log].concat();
        assert!(read_logs(fixture, &result).await == expected, "every byte");
    });
}

#[test]
fn binary_logs_and_terminal_escapes_are_stored_byte_for_byte() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("bytes").await.unwrap();
        fixture.apply_policy(&ns, "results", json!({"results": {}})).await;
        // All byte values: NULs, invalid UTF-8, and terminal control characters.
        fixture
            .create(&ns, &job_without_retries("binary", &[("run", "300ms"), ("log-binary", "1000")]))
            .await
            .unwrap();
        let escapes = "\u{1b}[31mred\u{1b}[0m \u{7}\u{1b}]0;title\u{7}\r\n";
        let simulation = [("run", "300ms"), ("exit-code", "1"), ("log", escapes)];
        // Names of maximum length.
        let long = format!("escapes-{}", "x".repeat(55));
        let mut bad = job_without_retries(&long, &simulation);
        bad["spec"]["template"]["spec"]["containers"] = json!([{"name": "c".repeat(63), "image": "busybox"}]);
        fixture.create(&ns, &bad).await.unwrap();

        let binary = wait_result(fixture, &ns, "binary").await;
        let expected: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let bytes = read_logs(fixture, &binary).await;
        assert!(bytes.ends_with(&expected), "byte for byte");
        assert!(binary.binary_data.unwrap().contains_key("logs"));

        let escaped = wait_result(fixture, &ns, &long).await;
        assert!(escaped.data.as_ref().unwrap()["logs"].ends_with(escapes), "unchanged");
        let decisive = manifest(&escaped)["decisive"].as_str().unwrap().to_owned();
        assert!(decisive.contains("red") && !decisive.contains(|c: char| c.is_control()), "{decisive:?}");
        let event = fixture
            .wait("the Event", || async {
                fixture.events(&ns, "JobProcessing", &long).await.pop().ok_or("none")
            })
            .await;
        assert!(!event.note.unwrap().contains(|c: char| c.is_control()), "no terminal control characters");
    });
}

#[test]
fn a_result_without_logs_has_states_and_messages() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("nologs").await.unwrap();
        fixture.apply_policy(&ns, "results", json!({"results": {"logs": {"mode": "None"}}})).await;
        let simulation =
            [("run", "300ms"), ("exit-code", "7"), ("log", "secret\n"), ("termination-message", "disk full")];
        fixture.create(&ns, &job_without_retries("no-logs", &simulation)).await.unwrap();
        let result = wait_result(fixture, &ns, "no-logs").await;
        let manifest = manifest(&result);
        let data = result.data.unwrap();
        assert!(!data.contains_key("logs") && result.binary_data.is_none() && manifest["logs"].is_null());
        assert!(!data.values().any(|value| value.contains("secret")));
        assert_eq!(data["result"], "disk full");
        let container = &manifest["pods"][0]["containers"][0];
        assert_eq!(
            (&container["state"]["exitCode"], &container["state"]["message"]),
            (&json!(7), &json!("disk full"))
        );
        for key in ["image", "imageId", "ready", "restartCount", "started"] {
            assert!(!container[key].is_null(), "{key} in {container}");
        }
        assert!(container["state"]["started"].is_string() && container["state"]["finished"].is_string());
        let failure = &manifest["failure"];
        assert_eq!(
            (&failure["job"]["reason"], &failure["container"]["cause"], &failure["container"]["exitCode"]),
            (&json!("BackoffLimitExceeded"), &json!("error"), &json!(7))
        );
        assert!(manifest["decisive"].as_str().unwrap().ends_with("exit code 7: disk full"), "{manifest}");
    });
}

/// Peak resident memory of a program in MiB.
pub fn peak_memory(member: &Member) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", member.process().id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn a_log_line_of_a_hundred_mib_is_not_held_in_memory() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("oneline").await.unwrap();
        fixture.apply_policy(&ns, "results", json!({"results": {}})).await;
        fixture.create(&ns, &job_without_retries("small", &[("run", "100ms")])).await.unwrap();
        wait_result(fixture, &ns, "small").await;
        let before = peak_memory(fixture.pair.sink());
        fixture
            .create(&ns, &job_without_retries("huge", &[("run", "100ms"), ("log-one-line", "100Mi")]))
            .await
            .unwrap();
        let result = wait_result(fixture, &ns, "huge").await;
        let facts = &manifest(&result)["pods"][0]["containers"][0]["logs"][0];
        assert_eq!((&facts["length"], &facts["lost"]), (&json!(100 << 20), &Value::Null), "{facts}");
        let piece = b"0123456789abcdef".repeat(1 << 16);
        assert_eq!(facts["sha256"], digest((0..100).map(|_| piece.clone())));
        let grown = peak_memory(fixture.pair.sink()) - before;
        eprintln!("a log of 100 MiB: the sink's peak memory grew by {grown} MiB, from {before} MiB");
        assert!(grown < 50, "{grown} MiB more than {before} MiB");
    });
}

/// The number of pods; `E2E_MANY_PODS` overrides it.
fn pod_count() -> usize {
    std::env::var("E2E_MANY_PODS").ok().and_then(|number| number.parse().ok()).unwrap_or(120)
}

#[test]
fn a_job_with_many_pods_stores_failed_pods_first_within_its_budget() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("indexed").await.unwrap();
        // Room for some forty of their logs.
        let logs = json!({"maxBytesPerContainer": "2Ki", "maxBytesPerJob": "80Ki"});
        fixture.apply_policy(&ns, "results", json!({"results": {"logs": logs}})).await;
        let number = pod_count();
        let mut array = job_without_retries("array", &[("end", "Hang"), ("log-bytes", "2Ki")]);
        let spec = &mut array["spec"];
        spec["completionMode"] = json!("Indexed");
        spec["completions"] = json!(number);
        spec["parallelism"] = json!(number);
        spec["backoffLimit"] = Value::Null;
        spec["backoffLimitPerIndex"] = json!(0);
        fixture.create(&ns, &array).await.unwrap();
        let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(fixture.client(), &ns);
        let poll = || async {
            let all = pods.list(&ListParams::default()).await.map_err(|e| e.to_string())?.items;
            let running =
                all.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
            if running.count() == number { Ok(all) } else { Err("not all pods run") }.map_err(str::to_owned)
        };
        let all = wait_for(TIMEOUT, "all pods to run", poll).await.unwrap();
        // The pods with indexes 3 to 5 fail.
        let index = |name: &str| name.split('-').nth(1).unwrap().parse::<usize>().unwrap();
        for pod in all {
            let name = pod.name_any();
            let failed = (3..=5).contains(&index(&name));
            let code = if failed { 9 } else { 0 };
            let mut statuses = serde_json::to_value(&pod.status.unwrap().container_statuses).unwrap();
            let id = statuses[0]["containerID"].clone();
            statuses[0]["ready"] = json!(false);
            statuses[0]["state"] = json!({"terminated": {"exitCode": code, "reason": if failed { "Error" } else { "Completed" },
                "startedAt": statuses[0]["state"]["running"]["startedAt"], "finishedAt": "2030-01-01T00:00:00Z", "containerID": id}});
            let phase = if failed { "Failed" } else { "Succeeded" };
            let status = json!({"status": {"phase": phase, "containerStatuses": statuses}});
            pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        }
        let result = wait_result(fixture, &ns, "array").await;
        let manifest = manifest(&result);
        assert_eq!((&manifest["outcome"], &manifest["reason"]), (&json!("failed"), &json!("FailedIndexes")));
        let listed = manifest["pods"].as_array().unwrap();
        let indexes: Vec<u64> = listed.iter().map(|pod| pod["index"].as_u64().unwrap()).collect();
        let mut first = indexes[..3].to_vec();
        first.sort_unstable();
        assert_eq!(first, [3, 4, 5], "failed pods come first: {indexes:?}");
        for pod in &listed[..3] {
            let log = &pod["containers"][0]["logs"][0];
            assert_eq!(
                (&log["lost"], &log["leftOut"]),
                (&Value::Null, &json!(0)),
                "their logs are stored in full: {pod}"
            );
        }
        assert_eq!(
            listed.len() + manifest["podsNotListed"].as_u64().unwrap() as usize,
            number,
            "all pods are listed or counted"
        );
        let truncated = manifest["completeness"]["truncated"].to_string();
        let without = format!("logs of main of {} pods with index ", number - 40);
        assert!(truncated.contains(&without) && truncated.contains("budget"), "{truncated}");
        assert!(manifest["completeness"]["lost"].is_null(), "{manifest}");
        let stored_log = read_logs(fixture, &result).await;
        let sections = String::from_utf8(stored_log).unwrap().matches("\n000000001 ").count();
        assert_eq!(sections, 40, "the budget is used up");
        assert!(serde_json::to_vec(&result).unwrap().len() < 1 << 20);
        eprintln!(
            "{number} pods: {} listed, the others are of index {}; {truncated}",
            listed.len(),
            manifest["indexesNotListed"]
        );
    });
}
