//! `kubectl job-results` against an apiserver in memory: what was packed is read, and whatever was tampered with is told.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

#[path = "../../tests/common/mod.rs"]
mod common;

use clap::Parser;
use common::{Apiserver, build::noise};
use flate2::{Compression, write::GzEncoder};
use job_handler_plugin::{
    self as plugin, ReadError,
    cli::Cli,
    source::{Source, StorageKind},
};
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

/// One run's log: pod, container, previous, content.
type Log<'a> = (&'a str, &'a str, bool, &'a [u8]);

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

/// Stores a result as the sink does.
fn store(apiserver: &Apiserver, job: &JobSnapshot, logs: &[Log<'_>]) {
    let mut pods: Vec<CapturedPod> = Vec::new();
    for (pod, container, previous, content) in logs {
        if pods.last().is_none_or(|known| known.facts.name != *pod) {
            let facts = PodFacts { name: (*pod).into(), uid: (*pod).into(), ..PodFacts::default() };
            pods.push(CapturedPod { facts, ..CapturedPod::default() });
        }
        let known = pods.last_mut().unwrap();
        let mut log = HeadTail::new(content.len() * 2 + 2);
        log.push(content);
        let kept = log.finish();
        let facts = LogFacts { previous: *previous, length: kept.length, ..LogFacts::default() };
        let containers = &mut known.facts.containers;
        if containers.last().is_none_or(|last| last.name != *container) {
            containers.push(ContainerFacts { name: (*container).into(), ..ContainerFacts::default() });
        }
        containers.last_mut().unwrap().logs.push(facts);
        known.logs.push(CapturedLog {
            run_id: String::new(),
            container: (*container).into(),
            previous: *previous,
            excerpt: kept,
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

fn source(apiserver: &Apiserver) -> Source {
    Source {
        client: apiserver.client(),
        namespace: Some("ci".into()),
        kinds: vec![StorageKind::ConfigMap, StorageKind::Secret],
        asked: false,
    }
}

struct Answer {
    out: Vec<u8>,
    remarks: String,
    error: Option<ReadError>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    fn error(&self) -> String {
        self.error.as_ref().unwrap_or_else(|| panic!("no error; {}", self.text())).to_string()
    }
}

async fn ask(apiserver: &Apiserver, words: &[&str]) -> Answer {
    let cli = Cli::try_parse_from([&["kubectl-job_results"], words].concat()).unwrap();
    let (mut out, mut remarks) = (Vec::new(), Vec::new());
    let error = plugin::answer(&source(apiserver), &cli.command, &mut out, &mut remarks).await.err();
    Answer { out, remarks: String::from_utf8(remarks).unwrap(), error }
}

#[tokio::test]
async fn lists_shows_and_reads() {
    let apiserver = Apiserver::default();
    store(&apiserver, &job("build-1", "aaaaaaaa-1", 1), &[("p", "main", false, b"hello\n")]);
    store(&apiserver, &job("build-2", "bbbbbbbb-1", 2), &[("q", "main", false, b"\x1b[2Jgone?\xff\n")]);
    let answer = ask(&apiserver, &["list"]).await;
    let rows: Vec<Vec<&str>> = answer.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "OUTCOME", "REASON", "DURATION", "FINISHED", "SIZE"]);
    assert_eq!(&rows[1][..4], ["build-2", "failed", "BackoffLimitExceeded", "42s"], "the newest first");
    assert_eq!(rows[2][0], "build-1");
    let listed: Value = serde_json::from_slice(&ask(&apiserver, &["list", "-o", "json"]).await.out).unwrap();
    assert_eq!(listed["items"][1]["job"]["name"], "build-1");
    assert_eq!(
        ask(&apiserver, &["list", "-o", "name"]).await.text(),
        "configmap/build-2-results\nconfigmap/build-1-results\n"
    );
    let shown: Value =
        serde_json::from_slice(&ask(&apiserver, &["show", "build-1", "-o", "json"]).await.out).unwrap();
    assert_eq!(shown["storedIn"]["name"], "build-1-results");
    assert_eq!(shown["job"]["uid"], "aaaaaaaa-1");
    let yaml = ask(&apiserver, &["show", "job/build-1", "-o", "yaml"]).await;
    assert!(yaml.text().contains("name: build-1-results") && !yaml.text().contains('\u{1b}'));
    let shown = ask(&apiserver, &["show", "build-1-results"]).await;
    assert!(shown.text().contains("Message:    Job has \\x1b[31mfailed\n"), "{}", shown.text());
    assert!(shown.text().contains("Stored in:  ConfigMap ci/build-1-results"), "{}", shown.text());
    let escaped = ask(&apiserver, &["logs", "build-2", "-c", "main"]).await;
    assert_eq!(escaped.text(), "\\x1b[2Jgone?\\xff\n");
    let raw = ask(&apiserver, &["logs", "build-2", "-c", "main", "--raw"]).await;
    assert_eq!(raw.out, b"\x1b[2Jgone?\xff\n");
    assert_eq!(
        ask(&apiserver, &["logs", "build-1"]).await.text(),
        "=== Pod: p / Container: main ===\nhello\n"
    );
}

#[tokio::test]
async fn picks_containers_pods_and_runs() {
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
        let answer = ask(&apiserver, &[&["logs", "many"], words].concat()).await;
        assert_eq!(answer.text(), text, "{words:?}");
        assert!(answer.error.is_none());
    }
    let error = ask(&apiserver, &["logs", "many", "-c", "nobody"]).await.error();
    assert!(
        error.contains("no log of a container nobody") && error.contains("p/main (previous), p/helper"),
        "{error}"
    );
}

#[tokio::test]
async fn shards_are_put_together_and_damage_is_told() {
    let apiserver = Apiserver::default();
    let content = noise(3_500_000);
    store(&apiserver, &job("large", "dddddddd-1", 1), &[("p", "main", false, &content)]);
    let read = ask(&apiserver, &["logs", "large", "-c", "main", "--raw"]).await;
    assert!(read.error.is_none() && read.out == content, "{:?}", read.error);

    let shard = "large-results-dddddddd-1";
    let whole = apiserver.get("configmaps", "ci", shard).unwrap();
    // Nobody notices a bit but by the digest: gzip's own checksum stands in the last shard.
    let mut changed = whole.clone();
    let data = changed["binaryData"]["logs.gz"].as_str().unwrap().to_owned();
    let other = if data.as_bytes()[400_000] == b'A' { "B" } else { "A" };
    changed["binaryData"]["logs.gz"] = format!("{}{other}{}", &data[..400_000], &data[400_001..]).into();
    apiserver.put("configmaps", changed);
    let read = ask(&apiserver, &["logs", "large", "--raw"]).await;
    assert!(
        read.error().contains("shard 2 of 4, ConfigMap ci/large-results-dddddddd-1, is not what was stored")
    );
    assert!(read.error().contains("the digest doesn't match"), "{}", read.error());
    assert!(read.out.len() > 900_000, "what there is is written: {}", read.out.len());

    apiserver.remove("configmaps", "ci", shard);
    let read = ask(&apiserver, &["logs", "large", "--raw"]).await;
    assert!(read.error().contains("is gone: the logs end before it"), "{}", read.error());
    assert!(read.out.len() > 900_000 && content.starts_with(&read.out[33..read.out.len()]));
}

#[tokio::test]
async fn a_result_edited_by_hand_is_told() {
    let apiserver = Apiserver::default();
    store(&apiserver, &job("edited", "eeeeeeee-1", 1), &[("p", "main", false, b"the truth\n")]);
    let mut map = apiserver.get("configmaps", "ci", "edited-results").unwrap();
    map["data"]["logs"] = "another story\n".into();
    apiserver.put("configmaps", map.clone());
    let answer = ask(&apiserver, &["logs", "edited"]).await;
    assert_eq!(answer.text(), "another story\n");
    assert!(answer.error().contains("the digest doesn't match (stored were 43 bytes, these are 14)"));
    map["data"].as_object_mut().unwrap().remove("logs");
    apiserver.put("configmaps", map.clone());
    assert!(ask(&apiserver, &["logs", "edited"]).await.error().contains("has no `logs`: the logs are gone"));
    map["data"]["result.json"] = "{\"job\": 7".into();
    apiserver.put("configmaps", map);
    let answer = ask(&apiserver, &["list"]).await;
    assert!(answer.remarks.contains("the `result.json` of ConfigMap ci/edited-results cannot be read"));
    let error = ask(&apiserver, &["show", "edited"]).await.error();
    assert!(error.contains("kubectl get configmap -n ci edited-results -o yaml"), "{error}");
}

#[tokio::test]
async fn names_what_there_is() {
    let apiserver = Apiserver::default();
    let error = ask(&apiserver, &["show", "build-9"]).await.error();
    assert!(
        error.contains("no result of a Job build-9 in namespace ci; there are no results in it"),
        "{error}"
    );
    assert_eq!(ask(&apiserver, &["list"]).await.remarks, "No results found in namespace ci.\n");
    for n in 0..12_u8 {
        store(&apiserver, &job(&format!("nightly-{n}"), &format!("{n}-uid"), n), &[]);
    }
    store(&apiserver, &job("build-1", "first", 1), &[]);
    let error = ask(&apiserver, &["logs", "build-9"]).await.error();
    assert!(error.contains("there are 13 results in it, of build-1, nightly-11, nightly-10"), "{error}");
    assert!(ask(&apiserver, &["logs", "build-1"]).await.error.is_none(), "an empty log is one");
    // A second run of the name.
    store(&apiserver, &job("build-1", "second", 5), &[("p", "main", false, b"again\n")]);
    assert!(ask(&apiserver, &["logs", "build-1"]).await.text().contains("again"), "the newest");
    assert_eq!(ask(&apiserver, &["logs", "build-1", "--run", "fir"]).await.text(), "");
    assert!(ask(&apiserver, &["show", "build-1"]).await.text().contains("--run first"));
    let error = ask(&apiserver, &["show", "build-1", "--run", "third"]).await.error();
    assert!(error.contains("there are second, first"), "{error}");
}

#[tokio::test]
async fn a_secret_holds_a_result_as_well() {
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
    assert_eq!(ask(&apiserver, &["logs", "hidden", "-c", "main"]).await.text(), "secret\n");
    assert!(
        ask(&apiserver, &["show", "hidden"]).await.text().contains("Stored in:  Secret ci/hidden-results")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever is stored under the name of a result: an answer or an error, never a panic, and nothing for a terminal
    /// to act on.
    #[test]
    fn no_content_is_too_bad(manifest in ".{0,60}", logs in prop::collection::vec(any::<u8>(), 0..200), gzip: bool, whole: bool) {
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
                let answer = ask(&apiserver, words).await;
                let text = format!("{}{}", std::str::from_utf8(&answer.out).unwrap(), answer.remarks);
                prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n' && c != '\t' && c != '\r'), "{:?}", text);
            }
            Ok(())
        })?;
    }
}
