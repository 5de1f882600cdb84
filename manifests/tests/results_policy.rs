//! The policies that let only the sink make results, and say on Jobs that it did, name every key of these, and the sink's
//! account. What their expressions mean is tried on a real apiserver (`e2e/tests/scenarios/hostile/results.rs`).
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod files;

use files::object;
use job_handler_shared::{
    keys,
    result::metadata::{RESERVED_ANNOTATIONS, RESERVED_LABELS},
};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};

const FILE: &str = "base/validatingadmissionpolicy.yaml";

/// A list as CEL has it.
fn list(keys: &[&str]) -> String {
    format!("['{}']", keys.join("', '"))
}

#[test]
fn the_policy_names_every_key_of_results() {
    let policy: ValidatingAdmissionPolicy =
        object(FILE, "ValidatingAdmissionPolicy", keys::RESULTS_ADMISSION_POLICY);
    let spec = policy.spec.unwrap();
    assert_eq!(spec.failure_policy.as_deref(), Some("Fail"));
    let rules = spec.match_constraints.unwrap().resource_rules.unwrap();
    let [rule] = rules.as_slice() else { panic!("{rules:?}") };
    assert_eq!(rule.resources.as_ref().unwrap(), &["configmaps", "secrets"]);
    assert_eq!(rule.operations.as_ref().unwrap(), &["CREATE", "UPDATE"], "deleting is free");

    let (labels, annotations) = (list(&RESERVED_LABELS), list(&RESERVED_ANNOTATIONS));
    let conditions = spec.match_conditions.unwrap();
    let expressions = [
        &conditions.iter().find(|condition| condition.name == "a-result").unwrap().expression,
        &spec.validations.as_ref().unwrap()[1].expression,
    ];
    for expression in expressions {
        // Lines are folded at spaces.
        assert!(expression.contains(&labels) && expression.contains(&annotations), "{expression}");
    }
    for validation in spec.validations.unwrap() {
        assert_eq!(validation.reason.as_deref(), Some("Forbidden"), "403: {}", validation.expression);
        assert!(validation.message_expression.unwrap().contains("only job-handler"));
    }
    assert_denies_everywhere(keys::RESULTS_ADMISSION_POLICY);
}

/// Also through the status: whoever may write that may send annotations with it.
#[test]
fn the_policy_of_marks_names_each_of_them() {
    let policy: ValidatingAdmissionPolicy =
        object(FILE, "ValidatingAdmissionPolicy", keys::MARKS_ADMISSION_POLICY);
    let spec = policy.spec.unwrap();
    assert_eq!(spec.failure_policy.as_deref(), Some("Fail"));
    let rules = spec.match_constraints.unwrap().resource_rules.unwrap();
    let [rule] = rules.as_slice() else { panic!("{rules:?}") };
    assert_eq!(rule.resources.as_ref().unwrap(), &["jobs", "jobs/status"]);
    assert_eq!(rule.operations.as_ref().unwrap(), &["UPDATE"], "the webhook removes them from new Jobs");
    let validations = spec.validations.unwrap();
    let [validation, of_group] = validations.as_slice() else { panic!("{validations:?}") };
    assert!(of_group.expression.contains(&format!("object.metadata.?labels[?'{}']", keys::GROUP)));
    assert_eq!(of_group.reason.as_deref(), Some("Forbidden"));
    assert!(of_group.message_expression.as_ref().unwrap().contains(keys::GROUP));
    assert!(
        validation.expression.contains(&format!("{}.all(", list(&keys::MARKS))),
        "{}",
        validation.expression
    );
    assert_eq!(validation.reason.as_deref(), Some("Forbidden"));
    let message = validation.message_expression.as_ref().unwrap();
    assert!(message.contains("only job-handler") && keys::MARKS.iter().all(|mark| message.contains(mark)));
    assert_denies_everywhere(keys::MARKS_ADMISSION_POLICY);
}

fn assert_denies_everywhere(name: &str) {
    let binding: ValidatingAdmissionPolicyBinding = object(FILE, "ValidatingAdmissionPolicyBinding", name);
    let binding = binding.spec.unwrap();
    assert_eq!(binding.policy_name.as_deref(), Some(name));
    assert_eq!(binding.validation_actions.unwrap(), ["Deny"]);
    assert_eq!((binding.match_resources, binding.param_ref), (None, None), "in every namespace");
}

#[test]
fn the_policies_let_the_account_of_the_sink_pass() {
    for name in [keys::RESULTS_ADMISSION_POLICY, keys::MARKS_ADMISSION_POLICY] {
        let policy: ValidatingAdmissionPolicy = object(FILE, "ValidatingAdmissionPolicy", name);
        let condition = &policy.spec.unwrap().match_conditions.unwrap()[0];
        let user = format!("system:serviceaccount:{}:{}", keys::NAMESPACE, keys::SINK_ACCOUNT);
        assert_eq!(condition.expression, format!("!(request.userInfo.username in ['{user}'])"), "{name}");
    }
}
