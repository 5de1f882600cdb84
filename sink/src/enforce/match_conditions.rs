//! The matchConditions of the webhook entry for updates, in CEL. Every field is tested with `has()` first, because an
//! evaluation error rejects the request under `failurePolicy: Fail`
//! (`apiserver/pkg/admission/plugin/webhook/matchconditions/matcher.go`). Pure.

use std::collections::BTreeSet;

use job_handler_shared::policy::{
    parsed::Policy,
    spec::{GroupBy, PolicySpec},
};
use k8s_openapi::{
    api::admissionregistration::v1::MatchCondition, apimachinery::pkg::apis::meta::v1::LabelSelector,
};

/// The fields of a Job that decide whether it counts for a limit, and in which group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DecidingFields {
    /// Label keys of selectors and groups.
    pub(crate) labels: BTreeSet<String>,
    /// A group is named after the owner.
    pub(crate) owner: bool,
}

impl DecidingFields {
    /// The fields that `policy` and the policies that can apply to the same Jobs use.
    pub(crate) fn of<'a>(policy: &Policy, all: impl IntoIterator<Item = &'a Policy>) -> Self {
        let mut deciding = Self::default();
        let overlaps = |other: &Policy| {
            let (own, other) = (&policy.reference.namespace, &other.reference.namespace);
            own.is_none() || other.is_none() || own == other
        };
        for other in all.into_iter().filter(|other| overlaps(other)) {
            deciding.add(&other.spec);
        }
        deciding.add(&policy.spec);
        deciding
    }

    fn add(&mut self, spec: &PolicySpec) {
        self.labels.extend(spec.job_selector.iter().flat_map(selector_keys));
        if let Some(group) = &spec.group {
            match group.by {
                GroupBy::Labels => self.labels.extend(group.label_keys.iter().cloned()),
                GroupBy::Owner => self.owner = true,
            }
        }
    }
}

fn selector_keys(selector: &LabelSelector) -> Vec<String> {
    let labels = selector.match_labels.iter().flatten().map(|(key, _)| key.clone());
    labels.chain(selector.match_expressions.iter().flatten().map(|e| e.key.clone())).collect()
}

/// Matches updates that un-suspend a Job or change a deciding field, unless the Job has finished.
pub(crate) fn build(deciding: &DecidingFields) -> Vec<MatchCondition> {
    let mut changes = vec![format!("({} && !{})", suspended("oldObject"), suspended("object"))];
    changes.extend(deciding.labels.iter().map(|key| {
        let key = quote(key);
        format!("{} != {}", label("oldObject", &key), label("object", &key))
    }));
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

/// A label as a list of zero or one value, so that a missing label differs from an empty one.
fn label(object: &str, key: &str) -> String {
    let labels = format!("{object}.metadata.labels");
    format!("(has({labels}) && {key} in {labels} ? [{labels}[{key}]] : [])")
}

fn owners(object: &str) -> String {
    let owners = format!("{object}.metadata.ownerReferences");
    format!(
        "(has({owners}) ? {owners}.filter(o, has(o.controller) && o.controller == true).map(o, o.uid) : [])"
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
    use job_handler_shared::testing::policies::job_policy;
    use serde_json::json;

    use super::*;

    #[test]
    fn label_keys_of_other_policies_of_the_namespace_decide_too() {
        let policy = |namespace: &str, spec| job_policy(json!({"name": "p", "namespace": namespace}), spec);
        let own = policy("ci", json!({"jobSelector": {"matchLabels": {"app": "build"}}}));
        let near = policy(
            "ci",
            json!({"group": {"type": "Labels", "labelKeys": ["repo"]},
            "jobSelector": {"matchExpressions": [{"key": "tier", "operator": "Exists"}]}}),
        );
        let far = policy("other", json!({"group": {"type": "Owner"}}));
        let deciding = DecidingFields::of(&own, [&*own, &near, &far]);
        assert_eq!(deciding.labels.iter().map(String::as_str).collect::<Vec<_>>(), ["app", "repo", "tier"]);
        assert!(!deciding.owner);
    }

    #[test]
    fn the_expressions_are_stable() {
        let deciding = DecidingFields { labels: ["app".to_owned()].into(), owner: false };
        let text: Vec<_> =
            build(&deciding).into_iter().map(|c| format!("{}: {}", c.name, c.expression)).collect();
        assert_eq!(
            text,
            [
                "decides: ((has(oldObject.spec) && has(oldObject.spec.suspend) && \
                 oldObject.spec.suspend == true) && !(has(object.spec) && has(object.spec.suspend) && \
                 object.spec.suspend == true)) || (has(oldObject.metadata.labels) && 'app' in \
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
