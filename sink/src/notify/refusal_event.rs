//! The Events of a refusal: on the policy, on the Job's owner and on the refused Job's name. Pure.
//!
//! `kubectl describe` finds Events by the uid of the regarded object (`kubectl/pkg/describe/describe.go`,
//! `searchEvents`), `kubectl events --for` by kind, apiVersion and name (`kubectl/pkg/cmd/events/events.go`).

use job_handler_shared::{
    keys,
    ledger::refusal::{Refusal, RefusalKind},
    names,
    policy::reference::{PolicyKind, PolicyRef},
};
use k8s_openapi::api::core::v1::ObjectReference;

use crate::notify::recorder::{EventSpec, EventType, job_reference};

/// Seconds of the wall clock that share one Event about a policy or an owner, so that several sinks write the same.
const BUCKET: i64 = 600;

/// The object that an Event regards.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RefusalTarget {
    Policy,
    Owner,
    Job { namespace: String, name: String },
}

/// The targets of a refusal: the policy, the owner if any, and the Job's name if it is known.
pub(crate) fn targets(refusal: &Refusal) -> Vec<(RefusalTarget, ObjectReference)> {
    let mut targets = vec![(RefusalTarget::Policy, policy_reference(&refusal.policy))];
    if let Some(owner) = &refusal.owner {
        let reference = ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            namespace: Some(refusal.namespace.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            ..ObjectReference::default()
        };
        targets.push((RefusalTarget::Owner, reference));
    }
    // A name that is not generated yet cannot be queried. Events on queued Jobs come from
    // `queueing::position_events`, which knows their position.
    if !refusal.job.is_empty() && refusal.decision != RefusalKind::Queued {
        let target = RefusalTarget::Job { namespace: refusal.namespace.clone(), name: refusal.job.clone() };
        // `kubectl describe` asks by uid; a Job whose create was refused has no uid that anybody could ask for.
        let uid = refusal.stored.then_some(refusal.uid.as_str());
        targets.push((target, job_reference(&refusal.namespace, &refusal.job, uid)));
    }
    targets
}

/// Refers to a policy.
pub(crate) fn policy_reference(policy: &PolicyRef) -> ObjectReference {
    let kind = match policy.kind {
        PolicyKind::JobPolicy => "JobPolicy",
        PolicyKind::ClusterJobPolicy => "ClusterJobPolicy",
    };
    ObjectReference {
        api_version: Some(format!("{}/{}", keys::API_GROUP, keys::API_VERSION)),
        kind: Some(kind.to_owned()),
        namespace: policy.namespace.clone(),
        name: Some(policy.name.clone()),
        uid: Some(policy.uid.clone()),
        ..ObjectReference::default()
    }
}

/// The Event of a refusal on one target. `owner` is the uid of the owner that the target's series belongs to.
pub(crate) fn event(
    refusal: &Refusal,
    target: &RefusalTarget,
    owner: Option<&str>,
    regarding: ObjectReference,
) -> EventSpec {
    let (event_type, reason, action) = match refusal.decision {
        RefusalKind::Refused => (EventType::Warning, keys::REASON_REFUSED, "Refused"),
        RefusalKind::Queued => (EventType::Normal, keys::REASON_QUEUED, "Queued"),
        RefusalKind::WouldRefuse => (EventType::Normal, keys::REASON_WOULD_REFUSE, "Admitted"),
    };
    let about = regarding.name.clone().unwrap_or_default();
    let hash = identity_hash(refusal, target, owner.unwrap_or_default(), reason);
    let note = match target {
        RefusalTarget::Job { .. } => refusal.message.clone(),
        RefusalTarget::Policy | RefusalTarget::Owner => {
            format!("Job {}/{}: {}", refusal.namespace, refusal.job, refusal.message)
        }
    };
    EventSpec {
        namespace: regarding.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name: names::object_name(&about, &format!(".{hash}")),
        event_type,
        reason,
        action,
        note,
        related: match target {
            RefusalTarget::Policy => Some(job_reference(&refusal.namespace, &refusal.job, None)),
            RefusalTarget::Owner | RefusalTarget::Job { .. } => Some(policy_reference(&refusal.policy)),
        },
        regarding,
    }
}

/// The same in every sink that receives the refusal: it holds the Job's uid, or the time rounded to [`BUCKET`].
fn identity_hash(refusal: &Refusal, target: &RefusalTarget, owner: &str, reason: &str) -> String {
    let bucket = refusal.at.as_second().div_euclid(BUCKET).to_string();
    let (kind, namespace, name, instance) = match target {
        RefusalTarget::Policy => ("policy", "", "", &bucket),
        RefusalTarget::Owner => ("owner", "", "", &bucket),
        RefusalTarget::Job { namespace, name } => ("job", namespace.as_str(), name.as_str(), &refusal.uid),
    };
    names::short_hash([&refusal.policy.uid, &refusal.limit, owner, kind, namespace, name, reason, instance])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::refusal_series::tests::refusal;

    /// Sinks of two versions run side by side during an upgrade: a changed name is a second Event about one refusal.
    #[test]
    fn event_names_do_not_change_between_versions() {
        let refusal = refusal("a", Some("nightly"));
        let names: Vec<String> = targets(&refusal)
            .into_iter()
            .map(|(target, regarding)| event(&refusal, &target, Some("nightly"), regarding).name)
            .collect();
        assert_eq!(names, ["builds.e6162cd423", "nightly.a58b55cfa3", "a.30656e1fff"]);
    }
}
