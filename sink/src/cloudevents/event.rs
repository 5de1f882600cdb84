//! CloudEvents 1.0, structured JSON: what is told of a Job, and under which id. Pure.
//!
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    ledger::refusal::Refusal,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{model::manifest::Manifest, result::storage::Kind};

/// Content type of a structured event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";
/// Bytes of labels that go along with a Job.
const LABELS_MAX: usize = 16 << 10;

/// What happened to a Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It was started.
    Started,
    /// It succeeded.
    Completed,
    /// It failed.
    Failed,
    /// Its creation, or its start, was refused.
    Refused,
}

impl Phase {
    /// All.
    pub const ALL: [Self; 4] = [Self::Started, Self::Completed, Self::Failed, Self::Refused];

    /// Its word: in ids, manifests, metrics and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

impl From<Outcome> for Phase {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Completed => Self::Completed,
            Outcome::Failed => Self::Failed,
        }
    }
}

/// The `type` of each phase's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Types([String; 4]);

impl Default for Types {
    fn default() -> Self {
        Self(Phase::ALL.map(|phase| format!("io.job-handler.job.{}", phase.as_str())))
    }
}

impl Types {
    /// The type of this phase's events.
    pub fn of(&self, phase: Phase) -> &str {
        &self.0[phase as usize]
    }

    /// Sets it.
    pub fn set(&mut self, phase: Phase, to: String) {
        self.0[phase as usize] = to;
    }
}

/// What is pending of one Job: receiver -> phases, in their order.
pub type Pending = BTreeMap<String, Vec<Phase>>;

/// What is pending of a Job that has just finished. That it was started comes first, but where it is known that
/// the receiver has been told: `told`.
pub fn pending<'a>(
    job: &JobSnapshot,
    sinks: impl IntoIterator<Item = &'a String>,
    told: &BTreeSet<String>,
) -> Pending {
    let Some(finished) = &job.finished else { return Pending::new() };
    let phases = |sink: &String| {
        let mut phases = Vec::new();
        if job.started.is_some() && !told.contains(sink) {
            phases.push(Phase::Started);
        }
        phases.push(finished.outcome.into());
        phases
    };
    sinks.into_iter().map(|sink| (sink.clone(), phases(sink))).collect()
}

/// The labels of a Job that go along; receivers tell by them whose Job it was.
pub fn labels_of(job: &JobSnapshot) -> BTreeMap<String, String> {
    let mut room = LABELS_MAX;
    let fits = |(key, value): &(&String, &String)| {
        room = room.saturating_sub(key.len() + value.len());
        room > 0
    };
    job.labels.iter().take_while(fits).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What of an event does not depend on the receiver.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// What happened.
    pub phase: Phase,
    id: String,
    subject: String,
    time: Timestamp,
    data: Value,
}

impl Told {
    /// A Job that runs was started.
    pub fn started(job: &JobSnapshot, group: Option<&str>) -> Option<Self> {
        let started = job.started?;
        let facts = json!({"created": job.created, "started": started, "labels": labels_of(job)});
        Some(Self::of(Phase::Started, &job.namespace, &job.name, &job.uid, group, started, facts))
    }

    /// What a manifest tells, held in a `kind` under the name `result`.
    pub fn of_manifest(phase: Phase, manifest: &Manifest, kind: Kind, result: &str) -> Self {
        let job = &manifest.job;
        let mut facts = json!({"created": job.created, "labels": job.labels});
        if let Some(started) = job.started {
            facts["started"] = json!(started);
        }
        let mut time = job.started.unwrap_or(job.created);
        if phase != Phase::Started {
            time = job.finished;
            let more = json!({
                "finished": job.finished,
                "durationSeconds": job.duration_seconds,
                "outcome": manifest.outcome,
                "reason": manifest.reason,
                "cause": manifest.cause,
                "message": manifest.line_to_tell(),
                "succeededPods": job.succeeded_pods,
                "failedPods": job.failed_pods,
                "result": {"kind": kind.name(), "namespace": job.namespace, "name": result},
                "complete": manifest.completeness.complete,
            });
            merge(&mut facts, more);
        }
        Self::of(phase, &job.namespace, &job.name, &job.uid, job.group.as_deref(), time, facts)
    }

    /// A Job was refused. Each try has a uid of its own.
    pub fn refused(refusal: &Refusal) -> Self {
        let facts = json!({
            "policy": refusal.policy,
            "limit": refusal.limit,
            "message": refusal.message,
            "owner": refusal.owner,
        });
        let Refusal { namespace, job, uid, at, .. } = refusal;
        // Webhooks of before did not tell it.
        let id = if uid.is_empty() { format!("{namespace}/{job}/{at}") } else { uid.clone() };
        let mut told = Self::of(Phase::Refused, namespace, job, uid, None, *at, facts);
        told.id = format!("{id}-{}", Phase::Refused.as_str());
        told
    }

    fn of(
        phase: Phase,
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

    /// The event as it is sent.
    pub fn to_json(&self, source: &str, types: &Types) -> Value {
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
    fn that_it_was_started_comes_first_where_nobody_knows_that_it_was_told() {
        let sinks = ["a".to_owned(), "b".to_owned()];
        let told = ["a".to_owned()].into();
        let found = pending(&job(), &sinks, &told);
        assert_eq!(found["a"], [Phase::Failed]);
        assert_eq!(found["b"], [Phase::Started, Phase::Failed]);
        let never_started = JobSnapshot { started: None, ..job() };
        assert_eq!(pending(&never_started, &sinks, &told)["b"], [Phase::Failed]);
        assert!(pending(&JobSnapshot { finished: None, ..job() }, &sinks, &told).is_empty());
    }

    /// Whether it is told while it runs or from its manifest: receivers see one event.
    #[test]
    fn started_is_the_same_event_from_wherever_it_is_told() {
        let facts = crate::model::manifest::JobFacts {
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
            cause: Some(crate::model::manifest::Cause::Timeout),
            failure: None,
            decisive: "too late".into(),
            told: None,
            pods: vec![],
            pods_not_listed: 0,
            indexes_not_listed: String::new(),
            completeness: Default::default(),
            logs: None,
            objects: None,
            announcements_pending: vec![],
            cloud_events_pending: Pending::new(),
        };
        let live = Told::started(&job(), None).unwrap();
        assert_eq!(live, Told::of_manifest(Phase::Started, &manifest, Kind::ConfigMap, "build-results"));
        let types = Types::default();
        let failed = Told::of_manifest(Phase::Failed, &manifest, Kind::ConfigMap, "build-results")
            .to_json("/s", &types);
        assert_eq!(failed["id"], "u-failed");
        assert_eq!(failed["type"], "io.job-handler.job.failed");
        assert_eq!(failed["data"]["cause"], "timeout");
        assert_eq!(failed["data"]["result"]["name"], "build-results");
        assert_eq!(failed["data"]["labels"]["app"], "x");
    }
}
