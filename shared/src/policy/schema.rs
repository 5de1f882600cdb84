//! Parts of the CRDs' schemas that no derive generates: enum values, label selectors, label keys, resources, ranges.

use schemars::{Schema, SchemaGenerator, json_schema};

// The rules of `k8s.io/apimachinery/pkg/util/validation`: IsQualifiedName and IsValidLabelValue.
const LABEL_KEY: &str = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
const LABEL_VALUE: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";
/// The name of a label key has at most 63 characters (above), its prefix, a DNS subdomain, at most 253.
const LABEL_PREFIX_MAX: usize = 253;
/// The same for an extended resource: quotas know it as `requests.<name>` (`pkg/apis/core/helper`, IsExtendedResourceName).
pub(super) const RESOURCE_PREFIX_MAX: usize = LABEL_PREFIX_MAX - "requests.".len();

/// A quantity without a minus sign (`k8s.io/apimachinery/pkg/api/resource`).
const QUANTITY: &str = "^[+]?([0-9]+[.]?[0-9]*|[.][0-9]+)(m|[kMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$";

/// Resources whose request must equal their limit (`pkg/apis/core/helper`, IsOvercommitAllowed): hugepages and extended ones.
const NO_OVERCOMMIT: &str =
    "k.startsWith('hugepages-') || (k.contains('/') && !k.contains('kubernetes.io/'))";

const NO_LABEL_KEY: &str = "not a valid label key, expected [prefix/]name such as example.com/app";

/// Appends the values of each enum, with the doc comments of its variants, to the description of every field that has
/// the enum as its type, in the format of Kubernetes' own API reference. A CRD's schema has no other place for them.
pub(crate) fn describe_enum_values(schema: &mut Schema) {
    schemars::transform::transform_subschemas(&mut describe_enum_values, schema);
    let Some(variants) = schema.get("oneOf").and_then(serde_json::Value::as_array) else { return };
    let values: Vec<String> = variants
        .iter()
        .filter_map(|variant| {
            let value = variant.get("const")?.as_str()?;
            let meaning = variant.get("description")?.as_str()?;
            Some(format!(" - `\"{value}\"` {}", meaning.replace('\n', " ")))
        })
        .collect();
    let description = schema.get("description").and_then(serde_json::Value::as_str).unwrap_or_default();
    let text = format!("{description}\n\nPossible enum values:\n{}", values.join("\n"));
    schema.insert("description".to_owned(), text.into());
}

/// A label selector with the checks that the apiserver makes for built-in types; a CRD has to state them.
pub(crate) fn selector_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": described(label_map(), "Labels that the object must have, with these values."),
            "matchExpressions": {
                "type": "array",
                "description": "Requirements that must all hold.",
                "maxItems": 16,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {
                            "type": "string",
                            "description": "Label key.",
                            "maxLength": 317,
                            "x-kubernetes-validations": [label_key()],
                        },
                        "operator": {
                            "description": "How the label is compared.",
                            "oneOf": [
                                operator("In", "requires the label to have one of the values."),
                                operator("NotIn", "requires the label to be absent or to have none of the values."),
                                operator("Exists", "requires the label to be present."),
                                operator("DoesNotExist", "requires the label to be absent."),
                            ],
                        },
                        "values": {
                            "type": "array",
                            "description": "Values for the operators In and NotIn.",
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

fn operator(value: &str, meaning: &str) -> serde_json::Value {
    serde_json::json!({"type": "string", "const": value, "description": meaning})
}

fn described(mut schema: serde_json::Value, description: &str) -> serde_json::Value {
    schema["description"] = description.into();
    schema
}

/// A label key. The apiserver quotes the value of a field in its message, but not the key of a map.
fn label_key() -> serde_json::Value {
    serde_json::json!({
        "rule": format!("self.indexOf('/') <= {LABEL_PREFIX_MAX} && self.matches('{LABEL_KEY}')"),
        "message": NO_LABEL_KEY,
    })
}

fn label_map() -> serde_json::Value {
    let valid =
        format!("k.size() <= 317 && k.indexOf('/') <= {LABEL_PREFIX_MAX} && k.matches('{LABEL_KEY}')");
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
            "message": "stamp.labels: the prefix job-handler/ is reserved",
        }));
        rules.push(serde_json::json!({
            "rule": "self.all(k, !(k in ['job-name', 'controller-uid']) && !k.startsWith('batch.kubernetes.io/'))",
            "message": "stamp.labels: job-name, controller-uid and batch.kubernetes.io/* belong to the Job controller",
        }));
    }
    Schema::try_from(map).unwrap_or_default()
}

pub(crate) fn label_keys_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "items": {
            "type": "string",
            "maxLength": 317,
            "x-kubernetes-validations": [label_key()],
        },
    })
}

/// Requests and limits of a container. Rejects in the policy what the apiserver would reject in each Job.
pub(crate) fn container_resources_schema(_: &mut SchemaGenerator) -> Schema {
    // `k8s.io/kubernetes/pkg/apis/core/validation`: validateContainerResourceName, validateResourceRequirements.
    let known = format!(
        "k in ['cpu', 'memory', 'ephemeral-storage'] || k.startsWith('hugepages-') || \
         (k.contains('/') && !k.startsWith('requests.') && k.indexOf('/') <= {RESOURCE_PREFIX_MAX} && \
         k.matches('{LABEL_KEY}'))"
    );
    let page = "quantity(k.substring(10))";
    let stated = "quantity(string(self[k]))";
    let whole_pages = format!(
        "isQuantity(k.substring(10)) && {page}.isInteger() && {page}.asInteger() > 0 && \
         {stated}.asInteger() % {page}.asInteger() == 0"
    );
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
                "rule": format!("self.all(k, {stated}.compareTo(quantity('0')) >= 0)"),
                "message": "stamp.containerResources: amounts must not be negative",
            }, {
                "rule": format!("self.all(k, !({NO_OVERCOMMIT}) || {stated}.isInteger())"),
                "message": "stamp.containerResources: amounts of hugepages-* and example.com/name must be whole numbers",
            }, {
                "rule": format!("self.all(k, !k.startsWith('hugepages-') || ({whole_pages}))"),
                "message": "stamp.containerResources: amounts of hugepages-SIZE must be multiples of SIZE, such as 2Mi",
            }],
        })
    };
    let amount = |of: &str| format!("quantity(string(self.{of}[k]))");
    let (requested, limit) = (amount("requests"), amount("limits"));
    json_schema!({
        "type": "object",
        "nullable": true,
        "properties": {
            "limits": amounts("Maximum amounts that a container may use."),
            "requests": amounts("Amounts reserved for a container; Kubernetes uses the limits where absent."),
        },
        "x-kubernetes-validations": [{
            "rule": format!(
                "!has(self.limits) || !has(self.requests) || \
                 self.requests.all(k, !(k in self.limits) || {requested}.compareTo({limit}) <= 0)"
            ),
            "message": "stamp.containerResources.requests must not be above stamp.containerResources.limits",
        }, {
            "rule": format!(
                "!has(self.requests) || self.requests.all(k, !({NO_OVERCOMMIT}) || \
                 (has(self.limits) && k in self.limits && {requested}.compareTo({limit}) == 0))"
            ),
            "message": "stamp.containerResources.requests: hugepages-* and example.com/name need an equal limit",
        }, {
            "rule": "!has(self.limits) || !self.limits.exists(k, k.startsWith('hugepages-')) || \
                     ['cpu', 'memory'].exists(k, k in self.limits || (has(self.requests) && k in self.requests))",
            "message": "stamp.containerResources: hugepages-* need cpu or memory beside them",
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
            "default": value("Value for Jobs that state none."),
            "max": value("Larger values are lowered to this maximum."),
        },
        "x-kubernetes-validations": [{
            "rule": "!has(self.default) || !has(self.max) || self.default <= self.max",
            "message": "default must not be above max",
        }],
    })
}
