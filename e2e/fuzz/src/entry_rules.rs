//! What the apiserver requires of policies and of webhook entries, as far as that is known offline
//! (Kubernetes 1.36, `pkg/apis/admissionregistration/validation/validation.go`,
//! `apimachinery/pkg/apis/meta/v1/validation` and `apimachinery/pkg/util/validation`).

use job_handler_shared::names::{is_label_value, is_object_name};
use k8s_openapi::{
    api::admissionregistration::v1::{MatchCondition, ValidatingWebhook},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use serde::Deserialize;
use serde_json::Value;

/// Most matchConditions of an entry.
const MAX_CONDITIONS: usize = 64;
/// Longest CEL expression, in characters (cel-go, `parser.ExpressionSizeCodePointLimit`).
const MAX_EXPRESSION: usize = 100_000;
/// Longest prefix of a label key, and longest name behind it.
const LABEL_KEY_MAX: (usize, usize) = (253, 63);
/// Longer than a UUID.
const UID_MAX: usize = 63;
/// Longest name of a namespace (a DNS label).
const NAMESPACE_MAX: usize = 63;

/// Whether the apiserver stores this policy, with regard to the parts that entries are made of.
pub fn is_valid_policy(policy: &Value) -> bool {
    let text = |pointer: &str| policy.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let uid = text("/metadata/uid");
    let is_named = is_object_name(text("/metadata/name")) && is_object_name(uid) && uid.len() <= UID_MAX;
    let namespace = text("/metadata/namespace");
    let has_namespace =
        is_object_name(namespace) && namespace.len() <= NAMESPACE_MAX && !namespace.contains('.');
    let selector = |field: &str| match &policy["spec"][field] {
        Value::Null => true,
        selector => LabelSelector::deserialize(selector).is_ok_and(|s| selector_faults(&s).is_empty()),
    };
    let group_keys = policy["spec"]["group"]["labelKeys"].as_array();
    let has_valid_keys = group_keys.into_iter().flatten().all(|key| key.as_str().is_some_and(is_label_key));
    is_named
        && has_namespace == (policy["kind"] == "JobPolicy")
        && selector("jobSelector")
        && selector("namespaceSelector")
        && has_valid_keys
}

/// The rules that an entry breaks.
pub fn broken_rules(entry: &ValidatingWebhook) -> Vec<String> {
    let conditions = entry.match_conditions.as_deref().unwrap_or_default();
    let timeout = entry.timeout_seconds.unwrap_or_default();
    let mut broken = Vec::new();
    if !is_object_name(&entry.name) || entry.name.split('.').count() < 3 {
        broken.push("its name is not a DNS subdomain of three segments or more".to_owned());
    }
    if !(1..=30).contains(&timeout) {
        broken.push(format!("its timeout is {timeout} s"));
    }
    for selector in [&entry.namespace_selector, &entry.object_selector] {
        broken.extend(selector.iter().flat_map(selector_faults));
    }
    if conditions.len() > MAX_CONDITIONS {
        broken.push(format!("it has {} matchConditions", conditions.len()));
    }
    broken.extend(conditions.iter().filter_map(condition_fault));
    broken.iter().map(|rule| format!("{}: {rule}", entry.name)).collect()
}

fn selector_faults(selector: &LabelSelector) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |key: &str, values: &[String]| {
        if !is_label_key(key) {
            faults.push(format!("`{key}` is not a label key"));
        }
        let wrong = values.iter().filter(|value| !is_label_value(value));
        faults.extend(wrong.map(|value| format!("`{value}` is not a label value")));
    };
    for (key, value) in selector.match_labels.iter().flatten() {
        check(key, std::slice::from_ref(value));
    }
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    for expression in expressions {
        check(&expression.key, expression.values.as_deref().unwrap_or_default());
    }
    for expression in expressions {
        let has_values = expression.values.as_ref().is_some_and(|values| !values.is_empty());
        let needs_values = match expression.operator.as_str() {
            "In" | "NotIn" => true,
            "Exists" | "DoesNotExist" => false,
            operator => {
                faults.push(format!("`{operator}` is not an operator"));
                continue;
            }
        };
        if has_values != needs_values {
            faults.push(format!("{} with values: {has_values}", expression.operator));
        }
    }
    faults
}

/// `IsQualifiedName`: a name, after an optional DNS subdomain and a slash.
fn is_label_key(key: &str) -> bool {
    let (prefix_max, name_max) = LABEL_KEY_MAX;
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(|prefix| prefix.len() <= prefix_max && is_object_name(prefix))
        && (1..=name_max).contains(&name.len())
        && is_label_value(name)
}

fn condition_fault(condition: &MatchCondition) -> Option<String> {
    let MatchCondition { name, expression } = condition;
    let length = expression.chars().count();
    if !is_label_key(name) {
        Some(format!("`{name}` is not a name of a condition"))
    } else if length > MAX_EXPRESSION {
        Some(format!("condition {name} has {length} characters"))
    } else {
        (!is_well_formed(expression)).then(|| format!("condition {name} cannot be parsed: {expression}"))
    }
}

/// Whether the strings of a CEL expression end where they should: outside of them is nothing but names and operators,
/// and each bracket is closed.
fn is_well_formed(expression: &str) -> bool {
    let mut open = Vec::new();
    let mut characters = expression.chars();
    while let Some(c) = characters.next() {
        let is_expected = match c {
            '\'' => ends_string(&mut characters),
            '(' | '[' => {
                open.push(c);
                true
            }
            ')' => open.pop() == Some('('),
            ']' => open.pop() == Some('['),
            c => c.is_ascii_alphabetic() || " .,!=&|?:".contains(c),
        };
        if !is_expected {
            return false;
        }
    }
    !expression.is_empty() && open.is_empty()
}

/// Reads up to the end of a string in single quotes.
fn ends_string(characters: &mut std::str::Chars<'_>) -> bool {
    while let Some(c) = characters.next() {
        match c {
            '\'' => return true,
            '\\' if !matches!(characters.next(), Some('\\' | '\'' | 'n')) => return false,
            '\n' | '\r' => return false,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys_have_the_bounds_of_kubernetes() {
        let prefix = "p".repeat(253);
        for key in ["a", "A.b_c-9", "example.com/app", &format!("{prefix}/{}", "n".repeat(63))] {
            assert!(is_label_key(key), "{key}");
        }
        let long = [format!("{prefix}p/a"), format!("a/{}", "n".repeat(64))];
        for key in ["", "/a", "a/", "a/b/c", "-a", "A/b", "a b", &long[0], &long[1]] {
            assert!(!is_label_key(key), "{key}");
        }
    }

    #[test]
    fn strings_of_expressions_must_end() {
        for good in ["(has(object.spec))", r"'a\'b\\' in object.labels ? [x['é']] : []", "a == b || !c"] {
            assert!(is_well_formed(good), "{good}");
        }
        for bad in ["", "(a", "a)", "(a]", "'a", r"'a\'", r"'a\b'", "'a\n'", "a; b", "\"a\""] {
            assert!(!is_well_formed(bad), "{bad}");
        }
    }
}
