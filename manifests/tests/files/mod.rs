//! Reads the manifests.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::{fs, path::Path};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// The documents of a file below `manifests/`.
pub fn documents(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|e| panic!("{path}: {e}"));
    parse(&text, path)
}

/// The documents of a YAML text, which is at `path`.
pub fn parse(text: &str, path: &str) -> Vec<Value> {
    serde_norway::Deserializer::from_str(text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap_or_else(|e| panic!("{path}: {e}")))
        .collect()
}

/// Every document of every YAML file in a folder, with its file, except kustomizations.
pub fn folder(path: &str) -> Vec<(String, Value)> {
    let mut files: Vec<String> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml") && name != "kustomization.yaml")
        .collect();
    files.sort();
    files
        .into_iter()
        .flat_map(|name| {
            let path = format!("{path}/{name}");
            documents(&path).into_iter().map(move |document| (path.clone(), document))
        })
        .collect()
}

/// The one document of `kind` and `name` in `path`, as its type; a field that the type does not know is an error.
pub fn object<T: DeserializeOwned + serde::Serialize>(path: &str, kind: &str, name: &str) -> T {
    let found: Vec<Value> = documents(path)
        .into_iter()
        .filter(|document| document["kind"] == kind && document["metadata"]["name"] == name)
        .collect();
    assert_eq!(found.len(), 1, "{path}: one {kind} {name} expected");
    typed(&found[0], &format!("{path}: {kind} {name}"))
}

/// A document as its type; a field that the type does not know is an error.
pub fn typed<T: DeserializeOwned + serde::Serialize>(document: &Value, at: &str) -> T {
    let typed: T = serde_json::from_value(document.clone()).unwrap_or_else(|e| panic!("{at}: {e}"));
    lost(document, &serde_json::to_value(&typed).unwrap(), at);
    typed
}

/// Fails if `written` has a field that `read` lacks, such as a misspelt one.
fn lost(written: &Value, read: &Value, at: &str) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (key, value) in written {
                let kept = read.get(key).unwrap_or_else(|| panic!("{at}: no such field: {key}"));
                lost(value, kept, &format!("{at}.{key}"));
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            assert_eq!(written.len(), read.len(), "{at}");
            for (n, (written, read)) in written.iter().zip(read).enumerate() {
                lost(written, read, &format!("{at}[{n}]"));
            }
        }
        _ => assert_eq!(written, read, "{at}"),
    }
}
