//! What no apiserver sends: validating webhooks are called after Kubernetes has validated names and labels
//! (`registry.Store.Create`), so that a review beyond these limits comes from a stranger, whose texts must enter neither a
//! ledger nor an Event.

use job_handler_shared::{
    job::snapshot::{JobSnapshot, MAX_UID},
    names::{OBJECT_NAME_MAX, is_label_key, is_label_value},
};

/// Longest name of a namespace (`k8s.io/apimachinery/pkg/util/validation`, DNS1123LabelMaxLength).
const NAMESPACE_MAX: usize = 63;
/// Longest `spec.managedBy` (`k8s.io/kubernetes/pkg/apis/batch/validation`, maxManagedByLength).
const MANAGED_BY_MAX: usize = 63;

/// The field of a review that is beyond the limits of Kubernetes; none if all are within. `request` is `request.uid`.
pub(super) fn impossible_field(request: &str, job: &JobSnapshot) -> Option<&'static str> {
    let is_uid = |uid: &str| uid.len() <= MAX_UID && uid.bytes().all(|b| b.is_ascii_graphic());
    let checks = [
        ("request.uid", is_uid(request)),
        ("metadata.uid", is_uid(&job.uid)),
        ("namespace", is_dns(&job.namespace, NAMESPACE_MAX, "-")),
        ("metadata.name", is_dns(&job.name, OBJECT_NAME_MAX, "-.")),
        // Opaque; a number of at most 20 digits.
        ("metadata.resourceVersion", is_uid(&job.resource_version)),
        ("spec.managedBy", job.managed_by.as_ref().is_none_or(|text| text.len() <= MANAGED_BY_MAX)),
        ("metadata.labels", job.labels.iter().all(|(key, value)| is_label_key(key) && is_label_value(value))),
    ];
    checks.into_iter().find(|(_, is_within)| !is_within).map(|(field, _)| field)
}

fn is_dns(text: &str, max: usize, marks: &str) -> bool {
    text.len() <= max
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || marks.contains(c))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn job() -> JobSnapshot {
        JobSnapshot {
            namespace: "ci".into(),
            name: "build-7.x".into(),
            uid: "6d2a1c9e-6f0f-4c8e-9d4f-0b7f5a1c2d3e".into(),
            labels: [("example.com/app".to_owned(), "A_b.c-9".to_owned()), ("app".to_owned(), String::new())]
                .into(),
            ..JobSnapshot::default()
        }
    }

    #[test]
    fn what_an_apiserver_sends_is_within() {
        assert_eq!(impossible_field("6d2a1c9e-6f0f-4c8e-9d4f-0b7f5a1c2d3e", &job()), None);
        let longest = JobSnapshot { name: "a".repeat(253), namespace: "n".repeat(63), ..job() };
        assert_eq!(impossible_field("r", &longest), None);
    }

    #[rstest]
    #[case("metadata.name", |job: &mut JobSnapshot| job.name = "a".repeat(900_000))]
    #[case("metadata.name", |job: &mut JobSnapshot| job.name = "a/b".into())]
    #[case("metadata.name", |job: &mut JobSnapshot| job.name = "a\u{1b}[2J".into())]
    #[case("namespace", |job: &mut JobSnapshot| job.namespace = "n".repeat(64))]
    #[case("namespace", |job: &mut JobSnapshot| job.namespace = "a.b".into())]
    #[case("metadata.uid", |job: &mut JobSnapshot| job.uid = "u".repeat(64))]
    #[case("metadata.uid", |job: &mut JobSnapshot| job.uid = "a b".into())]
    #[case("metadata.resourceVersion", |job: &mut JobSnapshot| job.resource_version = "7".repeat(900_000))]
    #[case("spec.managedBy", |job: &mut JobSnapshot| job.managed_by = Some("example.com/".repeat(80_000)))]
    #[case("metadata.labels", |job: &mut JobSnapshot| _ = job.labels.insert("a".into(), "v".repeat(64)))]
    #[case("metadata.labels", |job: &mut JobSnapshot| _ = job.labels.insert("k".repeat(64), "v".into()))]
    #[case("metadata.labels", |job: &mut JobSnapshot| _ = job.labels.insert(format!("{}/k", "p".repeat(254)), "v".into()))]
    fn what_is_beyond_is_named(#[case] field: &str, #[case] change: fn(&mut JobSnapshot)) {
        let mut job = job();
        change(&mut job);
        assert_eq!(impossible_field("r", &job), Some(field));
    }

    #[test]
    fn the_uid_of_a_request_is_bounded() {
        assert_eq!(impossible_field(&"r".repeat(64), &job()), Some("request.uid"));
    }
}
