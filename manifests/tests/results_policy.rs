//! The policy that lets only the sink make results names every key of results, and the sink's account. What its expressions
//! mean is tried on a real apiserver (`e2e/tests/scenarios/hostile/results.rs`).
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod files;

use files::{documents, object};
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
    let binding: ValidatingAdmissionPolicyBinding =
        object(FILE, "ValidatingAdmissionPolicyBinding", keys::RESULTS_ADMISSION_POLICY);
    let binding = binding.spec.unwrap();
    assert_eq!(binding.policy_name.as_deref(), Some(keys::RESULTS_ADMISSION_POLICY));
    assert_eq!(binding.validation_actions.unwrap(), ["Deny"]);
    assert_eq!((binding.match_resources, binding.param_ref), (None, None), "in every namespace");
}

#[test]
fn the_policy_lets_the_account_of_the_sink_pass() {
    let condition = &documents(FILE)[0]["spec"]["matchConditions"][0];
    let user = format!("system:serviceaccount:{}:{}", keys::NAMESPACE, keys::SINK_ACCOUNT);
    assert_eq!(condition["expression"], format!("!(request.userInfo.username in ['{user}'])"));
}
