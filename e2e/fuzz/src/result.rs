//! The objects of a stored result, as whoever may edit ConfigMaps can leave them: the kubectl plugin prints what it can
//! read, and nothing that a terminal interprets.
//!
//! The bytes are JSON documents, each a ConfigMap or a Secret. The first is the result of Job `build`, the others may be
//! its shards or other results.

use job_handler_shared::{keys, names::is_object_name, testing::apiserver::Apiserver};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Resource, ResourceExt};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    harness::{assert_printable, block_on, documents},
    plugin,
};

const OBJECT: &str = "build-results";
/// More objects reach no other code.
const MAX_OBJECTS: usize = 8;
const COMMANDS: [&[&str]; 14] = [
    &["list"],
    &["list", "-o", "wide", "--sort-by", "size"],
    &["list", "-o", "json"],
    &["list", "-o", "yaml"],
    &["list", "-o", "name"],
    &["show", "build"],
    &["show", "build", "-o", "json"],
    &["show", OBJECT, "-o", "yaml"],
    &["show", "build", "--run", "0"],
    &["logs", "build"],
    &["logs", OBJECT, "-c", "main"],
    &["logs", "build", "--previous"],
    &["logs", "build", "--pod", "build-x"],
    &["logs", "build", "--raw"],
];

/// Checks one input.
pub fn check(bytes: &[u8]) {
    let apiserver = Apiserver::default();
    for (n, document) in documents(bytes).take(MAX_OBJECTS).enumerate() {
        match document["kind"].as_str() {
            Some("ConfigMap") => put::<ConfigMap>(&apiserver, "configmaps", document, n == 0),
            Some("Secret") => put::<Secret>(&apiserver, "secrets", document, n == 0),
            _ => {}
        }
    }
    block_on(async {
        for words in COMMANDS {
            let printed = plugin::run(&apiserver, words).await;
            assert_printable(&printed.notes);
            if words.contains(&"--raw") {
                continue;
            }
            assert_printable(&printed.out);
            if words.contains(&"json") && printed.error.is_none() {
                serde_json::from_slice::<Value>(&printed.out).unwrap();
            }
        }
    });
}

/// Stores an object, if it is one that an apiserver would store.
fn put<K>(apiserver: &Apiserver, resource: &str, document: Value, is_first: bool)
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Serialize,
{
    let Ok(mut object) = serde_json::from_value::<K>(document) else { return };
    if is_first {
        object.meta_mut().name = Some(OBJECT.to_owned());
        object.labels_mut().insert(keys::CREATED.to_owned(), "true".to_owned());
    } else if !is_object_name(&object.name_any()) || object.name_any() == OBJECT {
        return;
    }
    object.meta_mut().namespace = Some("ci".to_owned());
    apiserver.put(resource, serde_json::to_value(&object).unwrap());
}
