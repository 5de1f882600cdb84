//! The commands against an in-memory apiserver: stored results are read back, and damage is reported.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

#[path = "../../tests/common/mod.rs"]
mod common;

use clap::Parser;
use common::{Apiserver, build::noise};
use flate2::{Compression, write::GzEncoder};
use job_handler_plugin::{PluginCli, PluginError, ResultSource, run_on};
use job_handler_shared::{
    job::snapshot::{Finished, JobSnapshot, Outcome},
    policy::results::Logs,
    result::pods::{ContainerFacts, LogFacts, PodFacts},
};
use job_handler_sink::harvest::{
    captured::{CapturedLog, CapturedPod, CapturedPods},
    log_buffer::HeadTail,
    pack::pack,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Pod, container, whether it is the previous run, content.
type RunLog<'a> = (&'a str, &'a str, bool, &'a [u8]);

fn job(name: &str, uid: &str, minute: u8) -> JobSnapshot {
    JobSnapshot {
        namespace: "ci".into(),
        name: name.into(),
        uid: uid.into(),
        created: format!("2026-01-01T00:{minute:02}:00Z").parse().unwrap(),
        started: Some(format!("2026-01-01T00:{minute:02}:00Z").parse().unwrap()),
        finished: Some(Finished {
            outcome: Outcome::Failed,
            reason: "BackoffLimitExceeded".into(),
            message: "Job has \u{1b}[31mfailed".into(),
            at: format!("2026-01-01T00:{minute:02}:42Z").parse().unwrap(),
        }),
        ..JobSnapshot::default()
    }
}

/// Packs and stores a result as the sink does.
fn store(apiserver: &Apiserver, job: &JobSnapshot, logs: &[RunLog<'_>]) {
    let mut pods: Vec<CapturedPod> = Vec::new();
    for (pod, container, previous, content) in logs {
        if pods.last().is_none_or(|known| known.facts.name != *pod) {
            let facts = PodFacts { name: (*pod).into(), uid: (*pod).into(), ..PodFacts::default() };
            pods.push(CapturedPod { facts, ..CapturedPod::default() });
        }
        let known = pods.last_mut().unwrap();
        let mut log = HeadTail::new(content.len() * 2 + 2);
        log.push(content);
        let excerpt = log.finish();
        let facts = LogFacts { previous: *previous, length: excerpt.length, ..LogFacts::default() };
        let containers = &mut known.facts.containers;
        if containers.last().is_none_or(|last| last.name != *container) {
            containers.push(ContainerFacts { name: (*container).into(), ..ContainerFacts::default() });
        }
        containers.last_mut().unwrap().logs.push(facts);
        known.logs.push(CapturedLog {
            run_id: String::new(),
            container: (*container).into(),
            previous: *previous,
            excerpt,
            ..CapturedLog::default()
        });
    }
    let captured = CapturedPods { pods, ..CapturedPods::default() };
    let mut packed = pack(job, None, captured, &Logs::default()).unwrap();
    let name = format!("{}-results", job.name);
    let name =
        if apiserver.get("configmaps", "ci", &name).is_some() { format!("{name}-{}", job.uid) } else { name };
    let map = packed.map(&name, None).unwrap();
    for map in packed.shards.iter().chain([&map]) {
        apiserver.put("configmaps", serde_json::to_value(map).unwrap());
    }
}

struct PluginOutput {
    out: Vec<u8>,
    notes: String,
    error: Option<PluginError>,
}

impl PluginOutput {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    fn error(&self) -> String {
        self.error.as_ref().unwrap_or_else(|| panic!("no error; {}", self.text())).to_string()
    }
}

async fn run(apiserver: &Apiserver, words: &[&str]) -> PluginOutput {
    let cli = PluginCli::try_parse_from([&["kubectl-job_results"], words].concat()).unwrap();
    let source = ResultSource::new(apiserver.client(), Some("ci".into()), None);
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let error = run_on(&source, &cli, &mut out, &mut notes).await.err();
    PluginOutput { out, notes: String::from_utf8(notes).unwrap(), error }
}

#[tokio::test]
async fn results_are_listed_shown_and_their_logs_printed() {
    let apiserver = Apiserver::default();
    store(&apiserver, &job("build-1", "aaaaaaaa-1", 1), &[("p", "main", false, b"hello\n")]);
    store(&apiserver, &job("build-2", "bbbbbbbb-1", 2), &[("q", "main", false, b"\x1b[2Jgone?\xff\n")]);
    let output = run(&apiserver, &["list"]).await;
    let rows: Vec<Vec<&str>> = output.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "OUTCOME", "REASON", "DURATION", "FINISHED", "SIZE", "LOST", "TRUNCATED"]);
    assert_eq!(&rows[1][..4], ["build-2", "failed", "BackoffLimitExceeded", "42s"], "newest first");
    assert_eq!(rows[2][0], "build-1");
    let listed: Value = serde_json::from_slice(&run(&apiserver, &["list", "-o", "json"]).await.out).unwrap();
    assert_eq!(listed["items"][1]["job"]["name"], "build-1");
    assert_eq!(
        run(&apiserver, &["list", "-o", "name"]).await.text(),
        "configmap/build-2-results\nconfigmap/build-1-results\n"
    );
    let shown: Value =
        serde_json::from_slice(&run(&apiserver, &["show", "build-1", "-o", "json"]).await.out).unwrap();
    assert_eq!(shown["storedIn"]["name"], "build-1-results");
    assert_eq!(shown["job"]["uid"], "aaaaaaaa-1");
    let yaml = run(&apiserver, &["show", "job/build-1", "-o", "yaml"]).await;
    assert!(yaml.text().contains("name: build-1-results") && !yaml.text().contains('\u{1b}'));
    let shown = run(&apiserver, &["show", "build-1-results"]).await;
    assert!(shown.text().contains("Message:    Job has \\x1b[31mfailed\n"), "{}", shown.text());
    assert!(shown.text().contains("Stored in:  ConfigMap ci/build-1-results"), "{}", shown.text());
    let escaped = run(&apiserver, &["logs", "build-2", "-c", "main"]).await;
    assert_eq!(escaped.text(), "\\x1b[2Jgone?\\xff\n");
    let raw = run(&apiserver, &["logs", "build-2", "-c", "main", "--raw"]).await;
    assert_eq!(raw.out, b"\x1b[2Jgone?\xff\n");
    assert_eq!(
        run(&apiserver, &["logs", "build-1"]).await.text(),
        "=== Pod: p / Container: main ===\nhello\n"
    );
}

#[tokio::test]
async fn logs_are_selected_by_container_pod_and_run() {
    let apiserver = Apiserver::default();
    let forged = b"=== Pod: p / Container: helper ===\nforged\n";
    store(
        &apiserver,
        &job("many", "cccccccc-1", 1),
        &[
            ("p", "main", false, forged),
            ("p", "main", true, b"before"),
            ("p", "helper", false, b"helps\n"),
            ("q", "main", false, b"of q"),
            ("q", "helper", false, b""),
        ],
    );
    for (words, text) in [
        (&["-c", "helper", "--pod", "p"][..], "helps\n"),
        (&["-c", "main", "--pod", "p"], "=== Pod: p / Container: helper ===\nforged\n"),
        (&["-c", "main", "--previous"], "before"),
        (&["-p"], "before"),
        (&["--pod", "q"], "=== Pod: q / Container: main ===\nof q\n=== Pod: q / Container: helper ===\n"),
        (&["--pod", "q", "-c", "helper"], ""),
    ] {
        let output = run(&apiserver, &[&["logs", "many"], words].concat()).await;
        assert_eq!(output.text(), text, "{words:?}");
        assert!(output.error.is_none());
    }
    let error = run(&apiserver, &["logs", "many", "-c", "nobody"]).await.error();
    assert!(
        error.contains("no log of container nobody") && error.contains("p/main (previous), p/helper"),
        "{error}"
    );
}

#[tokio::test]
async fn shards_are_reassembled_and_damage_is_reported() {
    let apiserver = Apiserver::default();
    let content = noise(3_500_000);
    store(&apiserver, &job("large", "dddddddd-1", 1), &[("p", "main", false, &content)]);
    let read = run(&apiserver, &["logs", "large", "-c", "main", "--raw"]).await;
    assert!(read.error.is_none() && read.out == content, "{:?}", read.error);

    let shard = "large-results-dddddddd-1";
    let original = apiserver.get("configmaps", "ci", shard).unwrap();
    // Only the digest of the shard can show this: the checksum of gzip is in the last shard.
    let mut changed = original.clone();
    let data = changed["binaryData"]["logs.gz"].as_str().unwrap().to_owned();
    let other = if data.as_bytes()[400_000] == b'A' { "B" } else { "A" };
    changed["binaryData"]["logs.gz"] = format!("{}{other}{}", &data[..400_000], &data[400_001..]).into();
    apiserver.put("configmaps", changed);
    let read = run(&apiserver, &["logs", "large", "--raw"]).await;
    assert!(
        read.error()
            .contains("shard 2 of 4, ConfigMap ci/large-results-dddddddd-1, differs from what was stored")
    );
    assert!(read.error().contains("the digest doesn't match"), "{}", read.error());
    assert!(read.out.len() > 900_000, "readable parts are printed: {}", read.out.len());

    apiserver.remove("configmaps", "ci", shard);
    let read = run(&apiserver, &["logs", "large", "--raw"]).await;
    assert!(read.error().contains("is missing: the logs end before it"), "{}", read.error());
    assert!(read.out.len() > 900_000 && content.starts_with(&read.out[33..read.out.len()]));
}

#[tokio::test]
async fn a_result_edited_by_hand_is_reported() {
    let apiserver = Apiserver::default();
    store(&apiserver, &job("edited", "eeeeeeee-1", 1), &[("p", "main", false, b"the truth\n")]);
    let mut map = apiserver.get("configmaps", "ci", "edited-results").unwrap();
    map["data"]["logs"] = "another story\n".into();
    apiserver.put("configmaps", map.clone());
    let output = run(&apiserver, &["logs", "edited"]).await;
    assert_eq!(output.text(), "another story\n");
    assert!(output.error().contains("the digest doesn't match (43 bytes were stored, 14 were read)"));
    map["data"].as_object_mut().unwrap().remove("logs");
    apiserver.put("configmaps", map.clone());
    assert!(
        run(&apiserver, &["logs", "edited"])
            .await
            .error()
            .contains("has no key `logs`: the logs are missing")
    );
    map["data"]["result.json"] = "{\"job\": 7".into();
    apiserver.put("configmaps", map);
    let output = run(&apiserver, &["list"]).await;
    assert!(output.notes.contains("the `result.json` of ConfigMap ci/edited-results cannot be read"));
    let error = run(&apiserver, &["show", "edited"]).await.error();
    assert!(error.contains("kubectl get configmap -n ci edited-results -o yaml"), "{error}");
}

/// Found by fuzz target `result`.
#[tokio::test]
async fn whatever_a_manifest_states_nothing_reaches_the_terminal() {
    let apiserver = Apiserver::default();
    store(&apiserver, &job("forged", "ffffffff-2", 1), &[("p", "main", false, b"x")]);
    let original = apiserver.get("configmaps", "ci", "forged-results").unwrap();
    let forge = |change: &dyn Fn(&mut Value)| {
        let mut map = original.clone();
        let mut manifest: Value = serde_json::from_str(map["data"]["result.json"].as_str().unwrap()).unwrap();
        change(&mut manifest);
        map["data"]["result.json"] = manifest.to_string().into();
        apiserver.put("configmaps", map);
    };
    forge(&|manifest| manifest["outcome"] = "\u{1b}[2J".into());
    let notes = run(&apiserver, &["list"]).await.notes;
    assert!(notes.contains("unknown variant `\\x1b[2J`"), "{notes}");
    forge(&|manifest| manifest["reason"] = "admin\u{202e}txt".into());
    for words in [&["list", "-o", "yaml"][..], &["show", "forged", "-o", "yaml"]] {
        let output = run(&apiserver, words).await;
        assert!(output.text().contains("admin\\u202etxt"), "{}", output.text());
    }
    forge(&|manifest| {
        let shard = json!({"name": "s", "bytes": u64::MAX, "sha256": ""});
        manifest["logs"]["shards"] = json!([shard, shard]);
    });
    assert!(run(&apiserver, &["show", "forged"]).await.text().contains("in 2 shards"));
}

#[tokio::test]
async fn errors_list_what_exists() {
    let apiserver = Apiserver::default();
    let error = run(&apiserver, &["show", "build-9"]).await.error();
    assert!(
        error.contains("no result of Job build-9 in namespace ci; the namespace has no results"),
        "{error}"
    );
    assert_eq!(run(&apiserver, &["list"]).await.notes, "No results found in namespace ci.\n");
    for n in 0..12_u8 {
        store(&apiserver, &job(&format!("nightly-{n}"), &format!("{n}-uid"), n), &[]);
    }
    store(&apiserver, &job("build-1", "first", 1), &[]);
    let error = run(&apiserver, &["logs", "build-9"]).await.error();
    assert!(
        error.contains("the namespace has 13 results, of Jobs build-1, nightly-11, nightly-10"),
        "{error}"
    );
    assert!(run(&apiserver, &["logs", "build-1"]).await.error.is_none(), "empty logs are logs");
    // A second Job of this name.
    store(&apiserver, &job("build-1", "second", 5), &[("p", "main", false, b"again\n")]);
    assert!(run(&apiserver, &["logs", "build-1"]).await.text().contains("again"), "newest run");
    assert_eq!(run(&apiserver, &["logs", "build-1", "--run", "fir"]).await.text(), "");
    assert!(run(&apiserver, &["show", "build-1"]).await.text().contains("--run first"));
    let error = run(&apiserver, &["show", "build-1", "--run", "third"]).await.error();
    assert!(error.contains("it has results of second, first"), "{error}");
}

#[tokio::test]
async fn results_in_secrets_are_read() {
    let apiserver = Apiserver::default();
    store(&apiserver, &job("hidden", "ffffffff-1", 1), &[("p", "main", false, b"secret\n")]);
    let map = apiserver.get("configmaps", "ci", "hidden-results").unwrap();
    apiserver.remove("configmaps", "ci", "hidden-results");
    let data: serde_json::Map<String, Value> = map["data"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, text)| {
            let bytes = k8s_openapi::ByteString(text.as_str().unwrap().as_bytes().to_vec());
            (key.clone(), serde_json::to_value(bytes).unwrap())
        })
        .collect();
    apiserver.put(
        "secrets",
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": map["metadata"], "data": data}),
    );
    assert_eq!(run(&apiserver, &["logs", "hidden", "-c", "main"]).await.text(), "secret\n");
    assert!(
        run(&apiserver, &["show", "hidden"]).await.text().contains("Stored in:  Secret ci/hidden-results")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever an object with the labels of a result contains: output or an error, never a panic or control characters.
    #[test]
    fn any_content_is_handled_and_escaped(manifest in ".{0,60}", logs in prop::collection::vec(any::<u8>(), 0..200), gzip: bool, whole: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let apiserver = Apiserver::default();
            store(&apiserver, &job("bad", "uid", 1), &[("p", "main", false, b"x")]);
            let mut map = apiserver.get("configmaps", "ci", "bad-results").unwrap();
            let mut bytes = logs;
            if gzip {
                let mut manifest: Value = serde_json::from_str(map["data"]["result.json"].as_str().unwrap()).unwrap();
                manifest["logs"]["encoding"] = "gzip".into();
                map["data"]["result.json"] = manifest.to_string().into();
                if whole {
                    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                    std::io::Write::write_all(&mut encoder, &bytes).unwrap();
                    bytes = encoder.finish().unwrap();
                }
            } else if whole {
                map["data"]["result.json"] = manifest.into();
            }
            map["data"].as_object_mut().unwrap().remove("logs");
            map["binaryData"] = json!({"logs": serde_json::to_value(k8s_openapi::ByteString(bytes)).unwrap()});
            apiserver.put("configmaps", map);
            let words: [&[&str]; 4] = [&["logs", "bad"], &["logs", "bad", "-c", "main"], &["list"], &["show", "bad"]];
            for words in words {
                let output = run(&apiserver, words).await;
                let text = format!("{}{}", std::str::from_utf8(&output.out).unwrap(), output.notes);
                prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n' && c != '\t' && c != '\r'), "{:?}", text);
            }
            Ok(())
        })?;
    }
}
