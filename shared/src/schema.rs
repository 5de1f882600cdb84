//! The parts of the CRDs' schemas that a derive does not write: label selectors and keys with the checks that the
//! apiserver makes for built-in types, list maps, ranges.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::policy::Limit;

// The rules of `k8s.io/apimachinery/pkg/util/validation`: IsQualifiedName and IsValidLabelValue.
const LABEL_KEY: &str = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
const LABEL_VALUE: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";

/// A label selector with the checks that the apiserver makes for built-in types, and that a CRD has to state.
pub(crate) fn selector_schema(_: &mut SchemaGenerator) -> Schema {
    let key = format!("self.matches('{LABEL_KEY}')");
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
                            "x-kubernetes-validations": [{"rule": key, "message": "selector key is not a valid label key"}],
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

fn label_map() -> serde_json::Value {
    serde_json::json!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
        "x-kubernetes-validations": [{
            "rule": format!("self.all(k, k.size() <= 317 && k.matches('{LABEL_KEY}'))"),
            "message": "a key is not a valid label key",
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
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{LABEL_KEY}')"),
                "message": "group.labelKeys: not a valid label key",
            }],
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
