//! The parts of the CRDs' schemas that a derive does not write: label selectors and keys with the checks that the
//! apiserver makes for built-in types, list maps, ranges.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::policy::{
    bytes::Bytes,
    spec::{Limit, Logs},
};

// The rules of `k8s.io/apimachinery/pkg/util/validation`: IsQualifiedName and IsValidLabelValue.
const LABEL_KEY: &str = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
const LABEL_VALUE: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";

/// An amount that is not negative (`k8s.io/apimachinery/pkg/api/resource`).
const QUANTITY: &str = "^[+]?([0-9]+[.]?[0-9]*|[.][0-9]+)(m|[kMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$";

const NO_LABEL_KEY: &str = "not a valid label key, expected [prefix/]name such as example.com/app";

/// A label selector with the checks that the apiserver makes for built-in types, and that a CRD has to state.
pub(crate) fn selector_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "description": "A label selector; all of its parts must hold.",
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": label_map(),
            "matchExpressions": {
                "type": "array",
                "maxItems": 16,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {
                            "type": "string",
                            "maxLength": 317,
                            "x-kubernetes-validations": [label_key()],
                        },
                        "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                        "values": {
                            "type": "array",
                            "maxItems": 64,
                            "x-kubernetes-list-type": "atomic",
                            "items": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0",
                        "message": "selector matchExpressions[].values: operators In and NotIn need values, Exists and DoesNotExist take none",
                    }],
                },
            },
        },
    })
}

/// One key. The apiserver quotes the value of a field; keys of a map it does not, so that their message has to.
fn label_key() -> serde_json::Value {
    serde_json::json!({
        "rule": format!("self.matches('{LABEL_KEY}')"),
        "message": NO_LABEL_KEY,
    })
}

fn label_map() -> serde_json::Value {
    let valid = format!("k.size() <= 317 && k.matches('{LABEL_KEY}')");
    serde_json::json!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
        "x-kubernetes-validations": [{
            "rule": format!("self.all(k, {valid})"),
            "message": NO_LABEL_KEY,
            "messageExpression": format!("'\"' + self.filter(k, !({valid}))[0] + '\": {NO_LABEL_KEY}'"),
        }],
    })
}

pub(crate) fn labels_schema(_: &mut SchemaGenerator) -> Schema {
    let mut map = label_map();
    if let Some(rules) = map["x-kubernetes-validations"].as_array_mut() {
        rules.push(serde_json::json!({
            "rule": "self.all(k, !k.startsWith('job-handler/'))",
            "message": "stamp.labels: keys that begin with job-handler/ are ours to set",
        }));
    }
    map["description"] = "Labels for the Job and its pods, where they have no such label.".into();
    Schema::try_from(map).unwrap_or_default()
}

pub(crate) fn label_keys_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "description": "With type Labels: Jobs with the same values of all of these are one group.",
        "items": {
            "type": "string",
            "maxLength": 317,
            "x-kubernetes-validations": [label_key()],
        },
    })
}

/// `limits` is a list map by name, so that two authors of one policy (and server-side apply) merge it.
pub(crate) fn limits_schema(generator: &mut SchemaGenerator) -> Schema {
    let item = Limit::json_schema(generator);
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "description": "How many Jobs may be active at once; all of them hold.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": item,
    })
}

pub(crate) fn bytes_per_container_schema(generator: &mut SchemaGenerator) -> Schema {
    at_most(generator, Logs::PER_CONTAINER_MAX)
}

pub(crate) fn bytes_per_job_schema(generator: &mut SchemaGenerator) -> Schema {
    at_most(generator, Logs::PER_JOB_MAX)
}

/// An amount of bytes with a maximum. The units of [`Bytes`] are among those of a Kubernetes quantity.
fn at_most(generator: &mut SchemaGenerator, max: Bytes) -> Schema {
    let mut schema = Bytes::json_schema(generator);
    let rule =
        format!("type(self) == int ? self <= {} : quantity(self).compareTo(quantity('{max}')) <= 0", max.0);
    let message = format!("must be at most {max}");
    schema.insert(
        "x-kubernetes-validations".to_owned(),
        serde_json::json!([{"rule": rule, "message": message}]),
    );
    schema
}

/// Requests and limits, as a container has them: what the apiserver would refuse in each Job is refused here once.
pub(crate) fn container_resources_schema(_: &mut SchemaGenerator) -> Schema {
    // `k8s.io/kubernetes/pkg/apis/core/validation`: ValidateContainerResourceName.
    let known =
        "k in ['cpu', 'memory', 'ephemeral-storage'] || k.startsWith('hugepages-') || k.contains('/')";
    let amounts = |description: &str| {
        serde_json::json!({
            "type": "object",
            "description": description,
            "maxProperties": 16,
            "additionalProperties": {
                "x-kubernetes-int-or-string": true,
                "maxLength": 32,
                "pattern": QUANTITY,
            },
            "x-kubernetes-validations": [{
                "rule": format!("self.all(k, {known})"),
                "message": "stamp.containerResources: resources are cpu, memory, ephemeral-storage, hugepages-* or example.com/name",
            }, {
                "rule": "self.all(k, quantity(string(self[k])).compareTo(quantity('0')) >= 0)",
                "message": "stamp.containerResources: amounts must not be negative",
            }],
        })
    };
    let amount = |of: &str| format!("quantity(string(self.{of}[k]))");
    json_schema!({
        "type": "object",
        "nullable": true,
        "description": "Requests and limits for containers that state neither.",
        "properties": {
            "limits": amounts("The most that a container may use."),
            "requests": amounts("What is set aside for a container; as its limits where absent."),
        },
        "x-kubernetes-validations": [{
            "rule": format!(
                "!has(self.limits) || !has(self.requests) || self.requests.all(k, !(k in self.limits) || {}.compareTo({}) <= 0)",
                amount("requests"),
                amount("limits"),
            ),
            "message": "stamp.containerResources.requests must not be above stamp.containerResources.limits",
        }],
    })
}

pub(crate) fn range_schema(_: &mut SchemaGenerator) -> Schema {
    range(0)
}

pub(crate) fn positive_range_schema(_: &mut SchemaGenerator) -> Schema {
    range(1)
}

fn range(minimum: i64) -> Schema {
    let value = |description: &str| serde_json::json!({"type": "integer", "format": "int64", "minimum": minimum, "maximum": i32::MAX, "description": description});
    json_schema!({
        "type": "object",
        "nullable": true,
        "properties": {
            "default": value("Set where the Job states none."),
            "max": value("Never more than this, whoever states it."),
        },
        "x-kubernetes-validations": [{
            "rule": "!has(self.default) || !has(self.max) || self.default <= self.max",
            "message": "default must not be above max",
        }],
    })
}
