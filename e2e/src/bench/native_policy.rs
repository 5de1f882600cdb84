//! The same stamps without a webhook: a `MutatingAdmissionPolicy` (served as v1 since Kubernetes 1.36), whose JSON
//! patch is written in CEL and evaluated by the apiserver. It omits what CEL cannot do: the hash of long group values,
//! and the warning about a maximum.

use serde_json::{Value, json};

/// The stamps of `samples/builds.yaml` as one expression; see the variables below.
const PATCH: &str = r#"
[
  JSONPatch{op: "add", path: "/spec/ttlSecondsAfterFinished", value: variables.ttl > 604800 ? variables.ttl : 604800},
  JSONPatch{op: "add", path: "/spec/activeDeadlineSeconds", value: variables.deadline},
  JSONPatch{op: "add", path: "/spec/backoffLimit", value: variables.backoffLimit}
] + (has(object.metadata.annotations) ? [
  JSONPatch{op: "add", path: "/metadata/annotations/" + jsonpatch.escapeKey("job-handler/ttl-seconds-after-finished"), value: string(variables.ttl)},
  JSONPatch{op: "add", path: "/metadata/annotations/" + jsonpatch.escapeKey("job-handler/stamped"), value: variables.stamped}
] : [
  JSONPatch{op: "add", path: "/metadata/annotations", value: {
    "job-handler/ttl-seconds-after-finished": string(variables.ttl), "job-handler/stamped": variables.stamped}}
]) + (has(object.metadata.labels.team) ? [] : [
  JSONPatch{op: "add", path: "/metadata/labels/team", value: "build"}
]) + [
  JSONPatch{op: "add", path: "/metadata/labels/" + jsonpatch.escapeKey("job-handler/group"), value: variables.group}
] + (has(object.spec.template.metadata.labels) ? (has(object.spec.template.metadata.labels.team) ? [] : [
  JSONPatch{op: "add", path: "/spec/template/metadata/labels/team", value: "build"}
]) + [
  JSONPatch{op: "add", path: "/spec/template/metadata/labels/" + jsonpatch.escapeKey("job-handler/group"), value: variables.group}
] : [
  JSONPatch{op: "add", path: "/spec/template/metadata/labels", value: {"team": "build", "job-handler/group": variables.group}}
])
"#;

/// The policy and its binding to one namespace: (kind, object).
pub fn objects(namespace: &str) -> [(&'static str, Value); 2] {
    let variable = |name: &str, expression: &str| json!({"name": name, "expression": expression});
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": "bench-stamps"},
        "spec": {
            "matchConstraints": {"resourceRules": [
                {"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"], "operations": ["CREATE"]},
            ]},
            "matchConditions": [{
                "name": "image-build",
                "expression": "has(object.metadata.labels) && object.metadata.labels.?app.orValue('') == 'image-build'",
            }],
            "variables": [
                variable("ttl", "has(object.spec.ttlSecondsAfterFinished) ? \
                    (object.spec.ttlSecondsAfterFinished > 604800 ? 604800 : object.spec.ttlSecondsAfterFinished) : 86400"),
                variable("deadline", "has(object.spec.activeDeadlineSeconds) ? \
                    (object.spec.activeDeadlineSeconds > 7200 ? 7200 : object.spec.activeDeadlineSeconds) : 1800"),
                variable("backoffLimit", "object.spec.backoffLimit == 6 ? 0 : \
                    (object.spec.backoffLimit > 3 ? 3 : object.spec.backoffLimit)"),
                variable("group", "object.metadata.labels['build.notifi.network/third-party-id'] + '.' + \
                    object.metadata.labels['build.notifi.network/parser-id']"),
                variable("stamped", "'ttlSecondsAfterFinished: ' + string(variables.ttl) + \
                    ', once the result is stored; activeDeadlineSeconds: ' + string(variables.deadline) + \
                    '; backoffLimit: ' + string(variables.backoffLimit) + \
                    '; label team: build on the Job and its pods; group: ' + variables.group"),
            ],
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": PATCH}}],
            "failurePolicy": "Fail",
            // With IfNeeded a second call would treat the TTL of the first as set by the author.
            "reinvocationPolicy": "Never",
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": "bench-stamps"},
        "spec": {
            "policyName": "bench-stamps",
            "matchResources": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            },
        },
    });
    [("MutatingAdmissionPolicy", policy), ("MutatingAdmissionPolicyBinding", binding)]
}
