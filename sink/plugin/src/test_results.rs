//! Results for unit tests.

use std::collections::BTreeMap;

use job_handler_shared::{
    keys,
    result::{
        manifest::{KEY, Manifest},
        storage_kind::StorageKind,
    },
    testing::apiserver::Apiserver,
};
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use crate::result_source::{JobResult, ResultSource, StorageObject};

/// A manifest of Job `ci/NAME`, created and finished in this minute.
pub(crate) fn manifest(name: &str, uid: &str, minute: u8) -> Value {
    let time = format!("2026-01-01T00:{minute:02}:00Z");
    json!({"schemaVersion": 1, "outcome": "failed", "pods": [], "completeness": {"complete": true},
        "job": {"namespace": "ci", "name": name, "uid": uid, "created": time, "finished": time,
            "succeededPods": 0, "failedPods": 1}})
}

/// A result with this manifest, in ConfigMap `ci/build-results`.
pub(crate) fn result_of(manifest: &Value) -> JobResult {
    let object = StorageObject {
        kind: StorageKind::ConfigMap,
        namespace: "ci".into(),
        name: "build-results".into(),
        labels: BTreeMap::new(),
        data: BTreeMap::new(),
    };
    let manifest = Manifest::parse("ci", manifest.to_string().as_bytes()).unwrap();
    JobResult { object, manifest, size: 0 }
}

/// Stores a result.
pub(crate) fn put_result(apiserver: &Apiserver, kind: StorageKind, name: &str, manifest: &Value) {
    put_object(apiserver, kind, name, &[(keys::CREATED, "true")], KEY, manifest.to_string().as_bytes());
}

/// Stores an object in namespace `ci`.
pub(crate) fn put_object(
    apiserver: &Apiserver,
    kind: StorageKind,
    name: &str,
    labels: &[(&str, &str)],
    key: &str,
    content: &[u8],
) {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    let data = match kind {
        StorageKind::ConfigMap => "binaryData",
        StorageKind::Secret => "data",
    };
    let content = serde_json::to_value(ByteString(content.to_vec())).unwrap();
    apiserver.put(
        &format!("{}s", kind.resource()),
        json!({"apiVersion": "v1", "kind": kind.kind(),
            "metadata": {"name": name, "namespace": "ci", "labels": labels}, data: {key: content}}),
    );
}

/// The results of namespace `ci`.
pub(crate) fn source(apiserver: &Apiserver) -> ResultSource {
    ResultSource::new(apiserver.client(), Some("ci".into()), None)
}

/// The next GET of a path that contains `path` fails with this code.
pub(crate) fn refuse_get(apiserver: &Apiserver, path: &str, code: u16) {
    // The default method is GET.
    apiserver.refuse_once(Default::default(), path, code);
}
