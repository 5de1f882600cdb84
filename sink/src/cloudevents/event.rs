//! CloudEvents 1.0 about Jobs in structured JSON. Pure.
//!
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    ledger::refusal::Refusal,
    result::{manifest::Manifest, pending_events::JobPhase, storage_kind::StorageKind},
};
use serde_json::{Value, json};

use crate::{config::event_types::EventTypes, model::pending_events::labels_of};

/// Content type of a structured event.
pub(crate) const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";

/// An event, without the parts that the configuration sets (source and types).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CloudEvent {
    pub(crate) phase: JobPhase,
    id: String,
    subject: String,
    time: Timestamp,
    data: Value,
}

impl CloudEvent {
    /// The start of a running Job.
    pub(crate) fn started(job: &JobSnapshot, group: Option<&str>) -> Option<Self> {
        let started = job.started?;
        let facts = json!({"created": job.created, "started": started, "labels": labels_of(job)});
        Some(Self::of(JobPhase::Started, &job.namespace, &job.name, &job.uid, group, started, facts))
    }

    /// An event about a Job from its manifest, which is stored in the object `result` of this kind.
    pub(crate) fn of_manifest(phase: JobPhase, manifest: &Manifest, kind: StorageKind, result: &str) -> Self {
        let job = &manifest.job;
        let mut facts = json!({"created": job.created, "labels": job.labels});
        if let Some(started) = job.started {
            facts["started"] = json!(started);
        }
        let mut time = job.started.unwrap_or(job.created);
        if phase != JobPhase::Started {
            time = job.finished;
            let more = json!({
                "finished": job.finished,
                "durationSeconds": job.duration_seconds,
                "outcome": manifest.outcome,
                "reason": manifest.reason,
                "cause": manifest.cause,
                "message": manifest.public_line(),
                "succeededPods": job.succeeded_pods,
                "failedPods": job.failed_pods,
                "result": {"kind": kind.kind(), "namespace": job.namespace, "name": result},
                "complete": manifest.completeness.complete,
                "lost": manifest.completeness.lost.len(),
                "truncated": manifest.completeness.truncated_count(),
            });
            merge(&mut facts, more);
        }
        Self::of(phase, &job.namespace, &job.name, &job.uid, job.group.as_deref(), time, facts)
    }

    /// A refused Job. Each attempt to create it has a uid of its own.
    pub(crate) fn refused(refusal: &Refusal) -> Self {
        let facts = json!({
            "policy": refusal.policy,
            "limit": refusal.limit,
            "message": refusal.message,
            "owner": refusal.owner,
        });
        let Refusal { namespace, job, uid, at, .. } = refusal;
        // Older webhooks send no uid.
        let id = if uid.is_empty() { format!("{namespace}/{job}/{at}") } else { uid.clone() };
        let mut event = Self::of(JobPhase::Refused, namespace, job, uid, None, *at, facts);
        event.id = format!("{id}-{}", JobPhase::Refused.as_str());
        event
    }

    fn of(
        phase: JobPhase,
        namespace: &str,
        name: &str,
        uid: &str,
        group: Option<&str>,
        time: Timestamp,
        facts: Value,
    ) -> Self {
        let mut data = json!({"namespace": namespace, "name": name, "uid": uid, "group": group});
        merge(&mut data, facts);
        Self {
            phase,
            id: format!("{uid}-{}", phase.as_str()),
            subject: format!("{namespace}/{name}"),
            time,
            data,
        }
    }

    pub(crate) fn to_json(&self, source: &str, types: &EventTypes) -> Value {
        json!({
            "specversion": "1.0",
            "id": self.id,
            "source": source,
            "type": types.of(self.phase),
            "subject": self.subject,
            "time": self.time,
            "datacontenttype": "application/json",
            "data": self.data,
        })
    }
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more.into_iter().filter(|(_, value)| !value.is_null()));
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::job::snapshot::Finished;

    use super::*;
    use crate::model::pending_events::pending;
    use job_handler_shared::job::snapshot::Outcome;
    use job_handler_shared::result::pending_events::PendingEvents;

    fn job() -> JobSnapshot {
        JobSnapshot {
            namespace: "ci".into(),
            name: "build".into(),
            uid: "u".into(),
            labels: [("app".to_owned(), "x".to_owned())].into(),
            started: Some(Timestamp::UNIX_EPOCH),
            finished: Some(Finished {
                outcome: Outcome::Failed,
                reason: "DeadlineExceeded".into(),
                message: String::new(),
                at: Timestamp::UNIX_EPOCH,
            }),
            ..JobSnapshot::default()
        }
    }

    #[test]
    fn started_is_pending_first_unless_it_was_delivered() {
        let sinks = ["a".to_owned(), "b".to_owned()];
        let delivered = ["a".to_owned()].into();
        let found = pending(&job(), &sinks, &delivered);
        assert_eq!(found["a"], [JobPhase::Failed]);
        assert_eq!(found["b"], [JobPhase::Started, JobPhase::Failed]);
        let never_started = JobSnapshot { started: None, ..job() };
        assert_eq!(pending(&never_started, &sinks, &delivered)["b"], [JobPhase::Failed]);
        assert!(pending(&JobSnapshot { finished: None, ..job() }, &sinks, &delivered).is_empty());
    }

    /// Sent while the Job runs or from its manifest, receivers see one event.
    #[test]
    fn started_is_the_same_event_from_the_job_and_from_its_manifest() {
        let facts = job_handler_shared::result::manifest::JobFacts {
            namespace: "ci".into(),
            name: "build".into(),
            uid: "u".into(),
            labels: labels_of(&job()),
            started: job().started,
            ..Default::default()
        };
        let manifest = Manifest {
            schema_version: 1,
            job: facts,
            outcome: Outcome::Failed,
            reason: "DeadlineExceeded".into(),
            message: String::new(),
            cause: Some(job_handler_shared::result::failure::Cause::Timeout),
            failure: None,
            decisive: "too late".into(),
            public_line: None,
            pods: vec![],
            pods_not_listed: 0,
            indexes_not_listed: String::new(),
            completeness: Default::default(),
            logs: None,
            objects: None,
            announcements_pending: vec![],
            cloud_events_pending: PendingEvents::new(),
        };
        let live = CloudEvent::started(&job(), None).unwrap();
        assert_eq!(
            live,
            CloudEvent::of_manifest(JobPhase::Started, &manifest, StorageKind::ConfigMap, "build-results")
        );
        let types = EventTypes::default();
        let failed =
            CloudEvent::of_manifest(JobPhase::Failed, &manifest, StorageKind::ConfigMap, "build-results")
                .to_json("/s", &types);
        assert_eq!(failed["id"], "u-failed");
        assert_eq!(failed["type"], "io.job-handler.job.failed");
        assert_eq!(failed["data"]["cause"], "timeout");
        assert_eq!(failed["data"]["result"]["name"], "build-results");
        assert_eq!(failed["data"]["labels"]["app"], "x");
    }
}
