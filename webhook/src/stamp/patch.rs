//! Decision -> JSON Patch on the raw object, one operation for each difference.
//!
//! A diff between typed Jobs would delete fields that are newer than the type.

use std::collections::BTreeMap;

use job_handler_shared::policy::reference::Labels;
use json_patch::{AddOperation, PatchOperation, RemoveOperation, jsonptr::PointerBuf};
use serde_json::{Map, Value};

use crate::{
    job_view::JobView,
    stamp::decide::{FieldValue, StampDecision},
};

/// The operations that apply the decision; empty if the Job already matches it.
pub fn patch(job: &JobView, decision: &StampDecision) -> Vec<PatchOperation> {
    let mut ops = Vec::with_capacity(16);
    let have = &job.snapshot;
    field(&mut ops, "ttlSecondsAfterFinished", have.ttl.map(i64::from), decision.ttl);
    field(&mut ops, "activeDeadlineSeconds", have.deadline, decision.deadline);
    field(&mut ops, "backoffLimit", have.backoff_limit.map(i64::from), decision.backoff_limit);
    if decision.suspend && !have.suspended {
        add(&mut ops, ["spec", "suspend"], true);
    }
    map(&mut ops, &["metadata", "labels"], job.has_labels, &have.labels, &decision.labels);
    map(
        &mut ops,
        &["metadata", "annotations"],
        job.has_annotations,
        &have.annotations,
        &decision.annotations,
    );
    if let Some(stamped) = &decision.containers {
        for at in &stamped.containers {
            let index = at.index.to_string();
            let path = ["spec", "template", "spec", at.list, &index, "resources"];
            if at.has_resources {
                // `resources` may also hold claims.
                for (field, amounts) in &stamped.resources {
                    add(&mut ops, path.into_iter().chain([field.as_str()]), amounts.clone());
                }
            } else {
                add(&mut ops, path, Value::Object(stamped.resources.clone()));
            }
        }
    }
    let template = &job.template;
    if template.exists {
        let wanted = &decision.pod_labels;
        let path = ["spec", "template", "metadata", "labels"];
        if template.has_metadata {
            map(&mut ops, &path, template.has_labels, &template.labels, wanted);
        } else if let Some(labels) = full_map(wanted) {
            add(
                &mut ops,
                path.into_iter().take(3),
                Value::Object(Map::from_iter([("labels".to_owned(), labels)])),
            );
        }
    }
    ops
}

fn field(ops: &mut Vec<PatchOperation>, name: &str, have: Option<i64>, want: FieldValue) {
    let FieldValue::Set(want) = want else { return };
    if have == want {
        return;
    }
    match want {
        Some(value) => add(ops, ["spec", name], value),
        None => remove(ops, ["spec", name]),
    }
}

fn map<K: AsRef<str> + Ord>(
    ops: &mut Vec<PatchOperation>,
    path: &[&str],
    exists: bool,
    have: &Labels,
    want: &BTreeMap<K, Option<String>>,
) {
    if !exists {
        if let Some(map) = full_map(want) {
            add(ops, path.iter().copied(), map);
        }
        return;
    }
    for (key, value) in want {
        let key = key.as_ref();
        let path = || path.iter().copied().chain([key]);
        match (have.get(key), value) {
            (Some(have), Some(want)) if have == want => {}
            (_, Some(want)) => add(ops, path(), want.as_str()),
            (Some(_), None) => remove(ops, path()),
            (None, None) => {}
        }
    }
}

/// All keys as one map; none if it would be empty.
fn full_map<K: AsRef<str>>(want: &BTreeMap<K, Option<String>>) -> Option<Value> {
    let map: Map<String, Value> = want
        .iter()
        .filter_map(|(key, value)| {
            value.as_ref().map(|value| (key.as_ref().to_owned(), value.as_str().into()))
        })
        .collect();
    (!map.is_empty()).then_some(Value::Object(map))
}

/// In a JSON Patch, `add` also replaces an existing value.
fn add<'a>(ops: &mut Vec<PatchOperation>, path: impl IntoIterator<Item = &'a str>, value: impl Into<Value>) {
    ops.push(PatchOperation::Add(AddOperation { path: pointer(path), value: value.into() }));
}

fn remove<'a>(ops: &mut Vec<PatchOperation>, path: impl IntoIterator<Item = &'a str>) {
    ops.push(PatchOperation::Remove(RemoveOperation { path: pointer(path) }));
}

/// Escapes `~` and `/` in keys such as `job-handler/group` (RFC 6901). jsonptr would allocate each token.
fn pointer<'a>(path: impl IntoIterator<Item = &'a str>) -> PointerBuf {
    let mut text = String::with_capacity(64);
    for token in path {
        text.push('/');
        let mut rest = token;
        while let Some((before, special)) = rest.find(['~', '/']).and_then(|at| rest.split_at_checked(at)) {
            text.push_str(before);
            text.push_str(if special.starts_with('~') { "~0" } else { "~1" });
            rest = special.get(1..).unwrap_or_default();
        }
        text.push_str(rest);
    }
    #[expect(clippy::expect_used, reason = "each token begins with a slash and has its tildes escaped")]
    PointerBuf::parse(text).expect("a JSON pointer")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pointers_match_the_library(tokens in proptest::collection::vec("[a-z~/0-9ä.]{0,12}", 0..5)) {
            let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
            prop_assert_eq!(pointer(tokens.iter().copied()), PointerBuf::from_tokens(tokens));
        }
    }
}
