//! The policy reference of `shared/README.md`, generated from the schemas of the CRDs.

use job_handler_shared::policy::spec::{ClusterJobPolicy, JobPolicy};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

/// Starts the list of an enum's values in a description, as in Kubernetes' own API reference.
const VALUES: &str = "\n\nPossible enum values:\n";

/// A field of a spec: its path, and its schema.
struct Field<'a> {
    path: String,
    required: bool,
    schema: &'a JSONSchemaProps,
}

/// A table of fields for each object of the policies' spec, as Markdown.
pub fn policy_reference() -> String {
    let (cluster, namespaced) = (ClusterJobPolicy::crd(), JobPolicy::crd());
    let (Some(cluster), Some(namespaced)) = (spec(&cluster), spec(&namespaced)) else { return String::new() };
    let (mut simple, mut objects) = (Vec::new(), Vec::new());
    for field in fields(cluster, "") {
        match nested(field.schema).is_empty() || is_selector(field.schema) {
            true => simple.push(field),
            false => objects.push(field),
        }
    }
    let mut text = table("spec", "", &simple);
    let only_cluster: Vec<_> = fields(cluster, "")
        .into_iter()
        .filter(|field| !fields(namespaced, "").iter().any(|other| other.path == field.path))
        .map(|field| format!("`{}`", field.path))
        .collect();
    text += &format!("\nOnly a `ClusterJobPolicy` has {}.\n", only_cluster.join(", "));
    for object in objects {
        let (meaning, _) = split(object.schema);
        let all = all_fields(object.schema, &prefix(&object));
        text += &table(&format!("spec.{}", object.path), &meaning, &all);
    }
    text
}

/// The values of an enum that a schema's description explains, with their meanings.
pub fn described_values(schema: &JSONSchemaProps) -> Vec<(String, String)> {
    split(schema).1
}

fn spec(crd: &CustomResourceDefinition) -> Option<&JSONSchemaProps> {
    let schema = crd.spec.versions.first()?.schema.as_ref()?.open_api_v3_schema.as_ref()?;
    schema.properties.as_ref()?.get("spec")
}

fn fields<'a>(schema: &'a JSONSchemaProps, prefix: &str) -> Vec<Field<'a>> {
    let required = schema.required.as_deref().unwrap_or_default();
    let properties = schema.properties.iter().flatten();
    properties
        .map(|(name, schema)| Field {
            path: format!("{prefix}{name}"),
            required: required.contains(name),
            schema,
        })
        .collect()
}

/// The schema's fields and those of its nested objects.
fn all_fields<'a>(schema: &'a JSONSchemaProps, prefix_of_all: &str) -> Vec<Field<'a>> {
    let mut all = Vec::new();
    for object in nested(schema) {
        for field in fields(object, prefix_of_all) {
            let deeper = all_fields(field.schema, &prefix(&field));
            all.push(field);
            all.extend(deeper);
        }
    }
    all
}

fn prefix(field: &Field<'_>) -> String {
    let list = if field.schema.items.is_some() { "[]" } else { "" };
    format!("{}{list}.", field.path)
}

/// The object that a schema describes, or that it is a list of.
fn nested(schema: &JSONSchemaProps) -> Vec<&JSONSchemaProps> {
    let inner = match &schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => item,
        _ => schema,
    };
    inner.properties.iter().map(|_| inner).collect()
}

fn is_selector(schema: &JSONSchemaProps) -> bool {
    schema.properties.as_ref().is_some_and(|fields| fields.contains_key("matchExpressions"))
}

fn table(title: &str, meaning: &str, fields: &[Field<'_>]) -> String {
    let mut text = format!("\n### `{title}`\n\n");
    if !meaning.is_empty() {
        text += &format!("{meaning}\n\n");
    }
    text += "| field | type | default | meaning |\n| --- | --- | --- | --- |\n";
    for Field { path, required, schema } in fields {
        let default = match (&schema.default, required) {
            (_, true) => "required".to_owned(),
            // An object's default is that of its fields.
            (Some(default), _) if !default.0.is_object() => {
                format!("`{}`", default.0.as_str().map_or_else(|| default.0.to_string(), str::to_owned))
            }
            _ => String::new(),
        };
        let (meaning, values) = split(schema);
        let values: String =
            values.iter().map(|(value, meaning)| format!("<br>`{value}` {meaning}")).collect();
        text += &format!("| `{path}` | {} | {default} | {meaning}{values} |\n", type_of(schema));
    }
    text
}

fn type_of(schema: &JSONSchemaProps) -> String {
    let kind = schema.type_.as_deref().unwrap_or_default();
    match (kind, &schema.items, &schema.additional_properties) {
        _ if schema.enum_.is_some() => "enum".to_owned(),
        _ if is_selector(schema) => "label selector".to_owned(),
        _ if schema.x_kubernetes_int_or_string == Some(true) => "amount, such as `64Mi`".to_owned(),
        (_, Some(JSONSchemaPropsOrArray::Schema(item)), _) => format!("list of {}s", type_of(item)),
        (_, _, Some(JSONSchemaPropsOrBool::Schema(value))) => match value.x_kubernetes_int_or_string {
            Some(true) => "map of quantities".to_owned(),
            _ => "map of strings".to_owned(),
        },
        ("integer", ..) => format!("integer{}", bounds(schema)),
        _ => kind.to_owned(),
    }
}

fn bounds(schema: &JSONSchemaProps) -> String {
    // Larger maxima are those of the integer's type.
    let max = schema.maximum.filter(|max| *max < f64::from(i32::MAX));
    match (schema.minimum, max) {
        (Some(min), Some(max)) => format!(", {min} to {max}"),
        (Some(min), None) => format!(", at least {min}"),
        _ => String::new(),
    }
}

/// A description without its values, and the values with their meanings.
fn split(schema: &JSONSchemaProps) -> (String, Vec<(String, String)>) {
    let description = schema.description.as_deref().unwrap_or_default();
    let (meaning, values) = description.split_once(VALUES).unwrap_or((description, ""));
    let values = values.lines().filter_map(|line| {
        let (value, meaning) = line.strip_prefix(" - `\"")?.split_once("\"` ")?;
        Some((value.to_owned(), meaning.to_owned()))
    });
    (meaning.replace('\n', " "), values.collect())
}
