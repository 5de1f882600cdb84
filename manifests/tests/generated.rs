//! Generated files are what the code would write now.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

#[path = "../../shared/tests/house/mod.rs"]
mod house;
mod readme;

use std::{collections::BTreeSet, env, fs, path::Path};

use job_handler_manifests::{UPDATE_COMMAND, crds, described_values, policy_reference};
use job_handler_shared::{
    keys,
    policy::spec::{ClusterJobPolicy, JobPolicy},
    process::telemetry::Metrics,
};
use job_handler_sink::metrics::SinkMetrics;
use job_handler_webhook::metrics::WebhookMetrics;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

#[test]
fn generated_files_are_up_to_date_and_installed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let update = env::var_os("UPDATE_MANIFESTS").is_some();
    let mut stale = Vec::new();
    for file in crds().unwrap() {
        let path = root.join(&file.path);
        if update {
            fs::write(&path, &file.text).unwrap();
        } else if fs::read_to_string(&path).ok().as_deref() != Some(&file.text) {
            stale.push(file.path);
        }
    }
    assert!(stale.is_empty(), "these files differ from the types: {stale:?}. Rewrite them: {UPDATE_COMMAND}");

    // A CRD of a type that is gone must not stay behind, and each one has to be installed.
    let folder = root.join("crds");
    let mut found: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("crd-"))
        .collect();
    found.sort();
    let mut generated: Vec<String> =
        crds().unwrap().into_iter().map(|file| file.path.replace("crds/", "")).collect();
    generated.sort();
    assert_eq!(found, generated);
    let kustomization = fs::read_to_string(folder.join("kustomization.yaml")).unwrap();
    for file in generated {
        assert!(kustomization.contains(&file), "crds/kustomization.yaml does not list {file}");
    }
}

#[test]
fn the_policy_reference_is_up_to_date() {
    readme::assert_section("shared/README.md", "policy reference", &policy_reference());
}

/// `kubectl explain` shows the description of a field. Without an explanation there, users have to guess what a value
/// does.
#[test]
fn every_enum_value_of_a_policy_is_explained() {
    fn check(schema: &JSONSchemaProps, path: &str, enums: &mut usize) {
        if let Some(values) = &schema.enum_ {
            *enums += 1;
            let values: Vec<&str> = values.iter().map(|value| value.0.as_str().unwrap()).collect();
            let described = described_values(schema);
            let names: Vec<&str> = described.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, values, "{path}");
            assert!(described.iter().all(|(_, meaning)| meaning.len() > 10), "{path}: {described:?}");
        }
        for (name, field) in schema.properties.iter().flatten() {
            check(field, &format!("{path}.{name}"), enums);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
            check(item, &format!("{path}[]"), enums);
        }
    }
    for crd in [ClusterJobPolicy::crd(), JobPolicy::crd()] {
        let mut enums = 0;
        let schema = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap();
        check(&schema, &crd.spec.names.kind, &mut enums);
        assert!(enums >= 12, "{enums} enums found");
        let policy = &schema.properties.unwrap()["spec"].properties.clone().unwrap()["cleanup"];
        let description = policy.properties.as_ref().unwrap()["succeededPolicy"].description.clone().unwrap();
        assert!(description.contains("`\"AfterHarvest\"` deletes the Job"), "{description}");
    }
}

/// Name, type and help of all metrics: those that the programs register at their start, and those in the source that they
/// register later.
#[test]
fn the_table_of_metrics_is_up_to_date() {
    let metrics = [Metrics::default(), Metrics::default()];
    drop((WebhookMetrics::new(&metrics[0]), SinkMetrics::new(&metrics[1])));
    let mut text = "\n| metric | type | meaning |\n| --- | --- | --- |\n".to_owned();
    for (program, metrics) in ["webhook", "sink"].into_iter().zip(metrics) {
        // The encoded text leaves out metrics that have no value yet.
        let registry = metrics.register(|registry| format!("{registry:?}"));
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(program).join("src");
        let sources = house::rust_files(&root);
        let of_metrics = sources.iter().filter(|(path, _)| path.starts_with(root.join("metrics")));
        let metrics_source: String = of_metrics.map(|(_, source)| source.as_str()).collect();
        let mut rows = BTreeSet::new();
        for part in registry.split("prefix: ").skip(1) {
            let prefix =
                part.strip_prefix("Some(Prefix(\"").map_or("", |rest| rest.split('"').next().unwrap());
            let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}_") };
            for descriptor in part.split("Descriptor { name: \"").skip(1) {
                let (name, rest) = descriptor.split_once("\", help: \"").unwrap();
                let help = rest.split("\", unit: ").next().unwrap();
                let kind = metric_type(&metrics_source, name);
                let suffix = if kind == "counter" { "_total" } else { "" };
                let suffix = if kind == "info" { "_info" } else { suffix };
                rows.insert(format!("| `{prefix}{name}{suffix}` | {kind} | {help} |\n"));
            }
        }
        assert!(rows.len() > 10, "{registry}");
        let at_start = Vec::from_iter(rows.clone()).concat();
        for (path, source) in &sources {
            for (name, help) in metric_literals(source) {
                let exists = ["", "_total", "_info"]
                    .iter()
                    .any(|suffix| at_start.contains(&format!("| `{name}{suffix}`")));
                if !exists {
                    let kind = if source.contains("ConstGauge") { "gauge" } else { field_type(source, name) };
                    let suffix = if kind == "counter" { "_total" } else { "" };
                    let condition = condition(&path.display().to_string());
                    rows.insert(format!("| `{name}{suffix}` | {kind} | {help}. Only {condition}. |\n"));
                }
            }
        }
        text += &Vec::from_iter(rows).concat();
    }
    readme::assert_section("manifests/README.md", "metrics", &(text + "\n"));
}

/// When the file at `path` registers its metrics.
fn condition(path: &str) -> &'static str {
    match path {
        path if path.contains("/certificate_expiry") => "with a certificate",
        path if path.contains("/path_overdue") => "where secrets are replaced",
        path if path.contains("/object_store/") => "with an object store",
        _ => panic!("{path} has a metric that is not registered at the start: state the condition here"),
    }
}

/// The full names of metrics in the source that a help text follows, with that text.
fn metric_literals(source: &str) -> Vec<(&str, &str)> {
    let starts = source.match_indices("\"job_handler_").map(|(at, _)| &source[at + 1..]);
    starts
        .filter_map(|start| {
            let (name, rest) = start.split_once('"').filter(|(name, _)| !name.contains([' ', '{']))?;
            let (help, _) = rest.strip_prefix(',')?.trim_start().strip_prefix('"')?.split_once('"')?;
            Some((name, help))
        })
        .collect()
}

/// The type of a metric: that of the field that `source` registers under this name.
fn metric_type(source: &str, name: &str) -> &'static str {
    let squeezed: String = source.split_whitespace().collect();
    if squeezed.contains(&format!("register(\"{name}\",")) {
        return "info";
    }
    field_type(source, name)
}

fn field_type(source: &str, name: &str) -> &'static str {
    let squeezed: String = source.split_whitespace().collect();
    let added = ["add", "create"]
        .iter()
        .find_map(|function| squeezed.split_once(&format!(":metrics.{function}(\"{name}\",")));
    let (before, _) = added.unwrap_or_else(|| panic!("{name} is not registered"));
    let field = before.rsplit([',', '{', '.']).next().unwrap();
    let declared = |line: &&str| line.split(':').next().unwrap().split(' ').next_back() == Some(field);
    let types = [("Counter", "counter"), ("Histogram", "histogram"), ("Gauge", "gauge")];
    let lines = source.lines().map(str::trim).filter(declared);
    let mut found = lines.flat_map(|line| types.into_iter().filter(move |(of, _)| line.contains(of)));
    found.next().unwrap_or_else(|| panic!("type of {field} not found")).1
}

/// The tables of labels, annotations and Event reasons have a row for each key and reason of the code.
#[test]
fn every_key_and_reason_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let readme = read("shared/README.md");
    let rows = |heading: &str| -> BTreeSet<String> {
        let (_, rest) = readme.split_once(heading).unwrap();
        let section = rest.split("\n## ").next().unwrap();
        let first = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        first.map(|(key, _)| key.to_owned()).collect()
    };
    let strings = |texts: &[String]| -> BTreeSet<String> {
        let constants = texts.iter().flat_map(|text| text.split("const ").skip(1));
        constants.filter_map(|rest| rest.split(';').next()?.split('"').nth(1).map(str::to_owned)).collect()
    };
    let keys: BTreeSet<String> = strings(
        &["shared/src/keys.rs", "shared/src/result/metadata.rs", "webhook/src/ledger/client.rs"].map(read),
    )
    .into_iter()
    .filter(|value| value.starts_with("job-handler/") || value == keys::JOB_NAME)
    .collect();
    assert_eq!(rows("\n## Labels and annotations\n"), keys);
    let reasons: BTreeSet<String> = read("shared/src/keys.rs")
        .split("pub const REASON_")
        .skip(1)
        .filter_map(|rest| rest.split('"').nth(1).map(str::to_owned))
        .collect();
    assert_eq!(rows("\n## Events\n"), reasons);
}
