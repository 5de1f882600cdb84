//! Tests `manifests/monitoring`: the alerts with `promtool test rules`, the dashboard by running each of its queries in
//! a Prometheus that scrapes the pair while Jobs complete, fail and are refused.

use std::{path::Path, process::Command, time::Duration};

use job_handler_e2e::{
    Cluster, ClusterOptions, Pair, PairOptions, build,
    cluster::E2E_KUBECONFIG,
    harness::{
        ports,
        process::{Process, Program},
    },
    net::http_probe,
    wait_for,
};
use job_handler_shared::policy::spec::JobPolicy;
use k8s_openapi::api::batch::v1::Job;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

const MONITORING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/monitoring");
const PATIENCE: Duration = Duration::from_secs(120);

/// The groups of the PrometheusRule, as a rule file.
fn rules(folder: &Path) {
    let text = std::fs::read_to_string(format!("{MONITORING}/prometheusrule.yaml")).unwrap();
    let rule: Value = serde_norway::from_str(&text).unwrap();
    let file = serde_norway::to_string(&rule["spec"]).unwrap();
    std::fs::write(folder.join("rules.yaml"), file).unwrap();
}

#[test]
fn each_alert_fires_when_it_should_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    rules(folder.path());
    std::fs::copy(format!("{MONITORING}/alerts_test.yaml"), folder.path().join("alerts_test.yaml")).unwrap();
    let promtool = build::prometheus_tools().unwrap().promtool;
    for arguments in [["check", "rules", "rules.yaml"], ["test", "rules", "alerts_test.yaml"]] {
        let output = Command::new(&promtool).current_dir(folder.path()).args(arguments).output().unwrap();
        let messages = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "promtool {arguments:?}: {messages}");
    }
    // Every alert has a test and a description.
    let tests = std::fs::read_to_string(format!("{MONITORING}/alerts_test.yaml")).unwrap();
    let text = std::fs::read_to_string(format!("{MONITORING}/prometheusrule.yaml")).unwrap();
    let rule: Value = serde_norway::from_str(&text).unwrap();
    for group in rule["spec"]["groups"].as_array().unwrap() {
        for alert in group["rules"].as_array().unwrap() {
            let name = alert["alert"].as_str().unwrap();
            assert!(tests.contains(name), "{name} has no test");
            assert!(alert["annotations"]["description"].is_string(), "{name} does not say what to do");
        }
    }
}

#[tokio::test]
async fn every_query_of_the_dashboard_has_a_result() {
    if std::env::var_os(E2E_KUBECONFIG).is_some_and(|path| !path.is_empty()) {
        eprintln!("skipped: it needs a cluster of its own");
        return;
    }
    // Before the cluster starts, because a build needs much memory.
    let programs = build::prometheus_tools().unwrap();
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let pair = Pair::install(&cluster, PairOptions::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (_prometheus, port) = prometheus(folder.path(), &programs.prometheus, &pair);
    // Rates need a sample from before the first Job.
    let up = || async { result(port, "count(up == 1)").await.and_then(|all| at_least(&all, 2.0)) };
    wait_for(PATIENCE, "Prometheus to scrape both programs", up).await.unwrap();
    let ns = cluster.namespace("dashboard").await.unwrap();
    let policy: JobPolicy = serde_json::from_value(json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
        "metadata": {"name": "builds"},
        "spec": {
            "results": {}, "limits": [{"name": "one", "maxActiveJobs": 1}],
            "group": {"type": "Labels", "labelKeys": ["app"]}, "cleanup": {"keep": {"newest": 1}},
        },
    }))
    .unwrap();
    // No queued Job is ever released.
    let queue_namespace = cluster.namespace("queue").await.unwrap();
    let queue: JobPolicy = serde_json::from_value(json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy", "metadata": {"name": "builds"},
        "spec": {"limits": [{"name": "none", "maxActiveJobs": 0, "whenFull": "Queue"}]},
    }))
    .unwrap();
    for (ns, policy) in [(&ns, &policy), (&queue_namespace, &queue)] {
        Api::namespaced(cluster.client(), ns).create(&PostParams::default(), policy).await.unwrap();
        let ready = ["wait", "jobpolicy/builds", "-n", ns.name(), "--for=condition=Ready", "--timeout=60s"];
        cluster.kubectl(&ready).await.unwrap();
    }
    let queued: Api<Job> = Api::namespaced(cluster.client(), &queue_namespace);
    for name in ["queued-1", "queued-2"] {
        queued.create(&PostParams::default(), &job(name, "0")).await.unwrap();
    }
    let jobs: Api<Job> = Api::namespaced(cluster.client(), &ns);
    for (name, exit) in [("good", "0"), ("bad", "1"), ("last", "0")] {
        jobs.create(&PostParams::default(), &job(name, exit)).await.unwrap();
        assert!(jobs.create(&PostParams::default(), &job("refused", "0")).await.is_err(), "the limit is one");
        wait_for(PATIENCE, "the Job to end", || async {
            let ended = jobs.get_opt(name).await.unwrap().is_none_or(|job| {
                let status = job.status.unwrap_or_default();
                status
                    .conditions
                    .is_some_and(|all| all.iter().any(|c| ["Complete", "Failed"].contains(&&*c.type_)))
            });
            if ended { Ok(()) } else { Err("active") }
        })
        .await
        .unwrap();
    }
    // The metrics after these Jobs.
    for (query, least) in [
        ("sum(k8s_job_creation_total{status=\"created\"})", 3.0),
        ("sum(job_handler_limit_queued)", 2.0),
        ("sum(k8s_job_creation_total{status=\"refused\"})", 3.0),
        ("sum(k8s_job_duration_seconds_count{status=\"completed\"})", 2.0),
        ("sum(k8s_job_duration_seconds_count{status=\"failed\"})", 1.0),
        ("sum(k8s_job_failures_total{reason=\"error\"})", 1.0),
        ("sum(job_handler_results_total)", 3.0),
        ("sum(job_handler_stored_results)", 3.0),
        ("sum(job_handler_stored_result_bytes)", 100.0),
        ("sum(job_handler_pruned_jobs_total)", 1.0),
    ] {
        let poll = || async { result(port, query).await.and_then(|found| at_least(&found, least)) };
        wait_for(PATIENCE, query, poll).await.unwrap();
    }
    for (panel, query) in queries() {
        let poll = || async {
            let found = result(port, &query).await?;
            let values = found.as_array().map_or(0, Vec::len);
            if values == 0 { Err("no result".to_owned()) } else { Ok(()) }
        };
        wait_for(PATIENCE, &format!("panel «{panel}»: {query}"), poll).await.unwrap();
    }
    // No label has the name of a Job, so that more Jobs do not add series.
    for member in [pair.sink(), pair.webhook(0)] {
        let (_, text) = member.get("/metrics").await.unwrap();
        for name in ["good", "bad", "last", "refused-"] {
            assert!(!text.contains(&format!("\"{name}\"")), "{name} in {text}");
        }
    }
}

fn queries() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(format!("{MONITORING}/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            queries.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    assert!(queries.len() > 20, "{queries:?}");
    queries
}

fn prometheus(folder: &Path, executable: &Path, pair: &Pair) -> (Process, u16) {
    rules(folder);
    let targets = [pair.sink().admin_port(), pair.webhook(0).admin_port()].map(|p| format!("127.0.0.1:{p}"));
    let configuration = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "5s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "job-handler", "static_configs": [{"targets": targets}]}],
    });
    std::fs::write(folder.join("prometheus.yml"), configuration.to_string()).unwrap();
    let port = ports::free().unwrap();
    let process = Process::start(Program {
        name: "prometheus".to_owned(),
        executable: executable.to_owned(),
        arguments: [
            format!("--config.file={}", folder.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", folder.join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ]
        .into_iter()
        .map(Into::into)
        .collect(),
        environment: Vec::new(),
        log: folder.join("prometheus.log"),
    })
    .unwrap();
    (process, port)
}

/// The result of an instant query.
async fn result(port: u16, query: &str) -> Result<Value, String> {
    let escaped: String = query.bytes().map(|b| format!("%{b:02X}")).collect();
    let path = format!("/api/v1/query?query={escaped}");
    let (code, body) =
        http_probe::get(([127, 0, 0, 1], port).into(), &path).await.map_err(|error| error.to_string())?;
    let answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
    // Status 400 is an invalid query: do not retry.
    assert_ne!(code, 400, "{query}: {body}");
    if answer["status"] == "success" { Ok(answer["data"]["result"].clone()) } else { Err(body) }
}

fn at_least(found: &Value, least: f64) -> Result<(), String> {
    let value = found[0]["value"][1].as_str().and_then(|text| text.parse::<f64>().ok());
    if value.is_some_and(|value| value >= least) { Ok(()) } else { Err(format!("{found}, not {least}")) }
}

fn job(name: &str, exit: &str) -> Job {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"app": "shop"}},
        "spec": {"backoffLimit": 0, "template": {
            "metadata": {"annotations": {"e2e.job-handler.io/run": "3s", "e2e.job-handler.io/exit-code": exit}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]},
        }},
    }))
    .unwrap()
}
