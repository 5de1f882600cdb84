//! The matchConditions of the webhook entry for updates, in CEL. Every field is tested with `has()` first, or read as an
//! optional one, because an evaluation error rejects the request under `failurePolicy: Fail`
//! (`apiserver/pkg/admission/plugin/webhook/matchconditions/matcher.go`). Pure.

use std::collections::BTreeSet;

use job_handler_shared::{
    keys::ORPHAN_FINALIZER,
    policy::{
        limit::Scope,
        spec::{GroupBy, PolicySpec},
    },
};
use k8s_openapi::{
    api::admissionregistration::v1::MatchCondition, apimachinery::pkg::apis::meta::v1::LabelSelector,
};

/// The fields of a Job that decide whether it counts for a policy's limits, and in which group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DecidingFields {
    /// Label keys of the policy's selector and group.
    pub(crate) labels: BTreeSet<String>,
    /// Every label. A policy that counts by group and sets none uses that of another policy, whose keys must not appear
    /// in its entry: too many of them would make it invalid.
    pub(crate) all_labels: bool,
    /// A group is named after the owner.
    pub(crate) owner: bool,
}

impl DecidingFields {
    /// The fields that a policy uses.
    pub(crate) fn of(spec: &PolicySpec) -> Self {
        let mut deciding = Self::default();
        deciding.labels.extend(spec.job_selector.iter().flat_map(selector_keys));
        let by_group =
            spec.failure_backoff.is_some() || spec.limits.iter().any(|limit| limit.scope == Scope::Group);
        match &spec.group {
            Some(group) if group.by == GroupBy::Owner => deciding.owner = true,
            Some(group) => deciding.labels.extend(group.label_keys.iter().cloned()),
            None => (deciding.all_labels, deciding.owner) = (by_group, by_group),
        }
        deciding
    }
}

fn selector_keys(selector: &LabelSelector) -> Vec<String> {
    let labels = selector.match_labels.iter().flatten().map(|(key, _)| key.clone());
    labels.chain(selector.match_expressions.iter().flatten().map(|e| e.key.clone())).collect()
}

/// Matches updates that un-suspend a Job, let it go while its pods run on, or change a deciding field, unless the Job has
/// finished.
pub(crate) fn build(deciding: &DecidingFields) -> Vec<MatchCondition> {
    let mut changes = vec![
        format!("({} && !{})", suspended("oldObject"), suspended("object")),
        format!("({} && !({}))", orphans("oldObject"), orphans("object")),
    ];
    if deciding.all_labels {
        changes.push("oldObject.metadata.?labels != object.metadata.?labels".to_owned());
    } else {
        changes.extend(deciding.labels.iter().map(|key| {
            let key = quote(key);
            format!("{} != {}", label("oldObject", &key), label("object", &key))
        }));
    }
    if deciding.owner {
        changes.push(format!("{} != {}", owners("oldObject"), owners("object")));
    }
    let condition = |name: &str, expression: String| MatchCondition { name: name.to_owned(), expression };
    vec![
        condition("decides", changes.join(" || ")),
        condition("not-finished", format!("!{}", finished("oldObject"))),
    ]
}

fn suspended(object: &str) -> String {
    format!("(has({object}.spec) && has({object}.spec.suspend) && {object}.spec.suspend == true)")
}

/// Who removes this finalizer from a Job that is being deleted lets it go while its pods run on. Every entry has this text,
/// and a configuration holds fewer of longer ones: hence an optional field.
fn orphans(object: &str) -> String {
    format!("'{ORPHAN_FINALIZER}' in {object}.metadata.?finalizers.orValue([])")
}

/// A label as a list of zero or one value, so that a missing label differs from an empty one.
fn label(object: &str, key: &str) -> String {
    let labels = format!("{object}.metadata.labels");
    format!("(has({labels}) && {key} in {labels} ? [{labels}[{key}]] : [])")
}

/// The controlling owners, with all that makes up their groups. The apiserver requires these fields of every reference.
fn owners(object: &str) -> String {
    let owners = format!("{object}.metadata.ownerReferences");
    format!(
        "(has({owners}) ? {owners}.filter(o, has(o.controller) && o.controller == true)\
         .map(o, [o.apiVersion, o.kind, o.name, o.uid]) : [])"
    )
}

fn finished(object: &str) -> String {
    let conditions = format!("{object}.status.conditions");
    format!(
        "(has({object}.status) && has({conditions}) && {conditions}.exists(c, \
         c.type in ['Complete', 'Failed'] && c.status == 'True'))"
    )
}

/// A CEL string. Valid label keys need no escaping; a key that bypassed the CRD's validation may.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'").replace('\n', r"\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deciding(spec: Value) -> DecidingFields {
        DecidingFields::of(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn the_label_keys_are_those_of_the_policy() {
        let limit = json!([{"name": "l", "maxActiveJobs": 1}]);
        let own = deciding(json!({
            "jobSelector": {"matchLabels": {"app": "build"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]},
            "group": {"type": "Labels", "labelKeys": ["repo"]}, "limits": limit,
        }));
        assert_eq!(own.labels.iter().map(String::as_str).collect::<Vec<_>>(), ["app", "repo", "tier"]);
        assert!(!own.owner && !own.all_labels);
        let owner = deciding(json!({"group": {"type": "Owner"}, "limits": limit}));
        assert!(owner.owner && owner.labels.is_empty() && !owner.all_labels);
    }

    #[test]
    fn where_another_policy_sets_the_group_every_label_and_the_owner_decide() {
        let by_group = deciding(json!({"limits": [{"name": "l", "maxActiveJobs": 1, "scope": "Group"}]}));
        assert!(by_group.all_labels && by_group.owner);
        let text = build(&by_group)[0].expression.clone();
        assert!(text.contains(" || oldObject.metadata.?labels != object.metadata.?labels || "), "{text}");
        let backoff = deciding(json!({"failureBackoff": {"initialSeconds": 1, "maxSeconds": 2}}));
        assert!(backoff.all_labels && backoff.owner);
    }

    /// CEL texts have at most 100,000 characters (cel-go's default), and longer ones are rejected.
    #[test]
    fn the_largest_policy_has_a_valid_expression() {
        let key = |n: usize| format!("{n:03}{}/{}", "p".repeat(250), "k".repeat(63));
        let labels: serde_json::Map<String, Value> = (0..32).map(|n| (key(n), "v".into())).collect();
        let expressions: Vec<Value> =
            (32..48).map(|n| json!({"key": key(n), "operator": "Exists"})).collect();
        let keys: Vec<String> = (48..56).map(key).collect();
        let largest = deciding(json!({
            "jobSelector": {"matchLabels": labels, "matchExpressions": expressions},
            "group": {"type": "Labels", "labelKeys": keys}, "limits": [{"name": "l", "maxActiveJobs": 1}],
        }));
        assert_eq!(largest.labels.len(), 56);
        let text = build(&largest)[0].expression.clone();
        assert!(text.len() < 100_000, "{}", text.len());
    }

    #[test]
    fn the_expressions_are_stable() {
        let deciding = DecidingFields { labels: ["app".to_owned()].into(), ..DecidingFields::default() };
        let text: Vec<_> =
            build(&deciding).into_iter().map(|c| format!("{}: {}", c.name, c.expression)).collect();
        assert_eq!(
            text,
            [
                "decides: ((has(oldObject.spec) && has(oldObject.spec.suspend) && \
                 oldObject.spec.suspend == true) && !(has(object.spec) && has(object.spec.suspend) && \
                 object.spec.suspend == true)) || ('orphan' in oldObject.metadata.?finalizers.orValue([]) && \
                 !('orphan' in object.metadata.?finalizers.orValue([]))) || (has(oldObject.metadata.labels) && 'app' in \
                 oldObject.metadata.labels ? [oldObject.metadata.labels['app']] : []) != \
                 (has(object.metadata.labels) && 'app' in object.metadata.labels ? \
                 [object.metadata.labels['app']] : [])",
                "not-finished: !(has(oldObject.status) && \
                 has(oldObject.status.conditions) && oldObject.status.conditions.exists(c, \
                 c.type in ['Complete', 'Failed'] && c.status == 'True'))",
            ]
        );
    }

    #[test]
    fn quotes_are_escaped() {
        assert_eq!(quote(r"a'\b"), r"'a\'\\b'");
    }
}
