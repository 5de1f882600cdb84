//! The ledger: which tries to make a Job active were granted, as long as nobody has seen what became of them.
//!
//! One [`JobLedger`] per namespace of Jobs, and one for limits that count over the cluster, all in the pair's own
//! namespace. What it holds is a [`LedgerContents`]; webhook replicas change it by resourceVersion only, so that their decisions
//! stand in one line.
//!
//! The schema says little on purpose: an older apiserver schema must not prune what a newer version wrote. What is read
//! is judged here instead, strictly: a contents that is not understood in full is an error, and nothing is granted by it.

use std::{borrow::Cow, collections::BTreeMap};

use jiff::Timestamp;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ledger::failure_streak::FailureStreak;

/// The format that is spoken. A version that gives other meaning to what is here raises it.
pub const FORMAT: u64 = 1;
/// Name of the ledger for limits that count over the cluster. With dots, which no namespace has in its name.
pub const CLUSTER_LEDGER: &str = "cluster.job-handler.io";

const FORMAT_FIELD: &str = "format";
const PENDING: &str = "pending";
const OBSERVED_THROUGH: &str = "observedThrough";
/// The sink's field: how groups have fared, by [`crate::ledger::failure_streak::group_key`].
pub const BACKOFF: &str = "backoff";

/// Fields of a ledger, as they are stored. Those that are not ours to write (`backoff` is the sink's) are carried along.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "job-handler.io",
    version = "v1alpha1",
    kind = "JobLedger",
    plural = "jobledgers",
    category = "job-handler",
    namespaced,
    derive = "PartialEq",
    doc = "Tries to start Jobs that were granted and whose outcome nobody has seen yet. Kept by job-handler; not to be edited.",
    printcolumn(
        name = "ObservedThrough",
        type_ = "integer",
        json_path = ".spec.observedThrough",
        description = "resourceVersion of the last Job by which a try was taken out"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct JobLedgerSpec {
    /// All of them.
    #[serde(flatten)]
    pub fields: BTreeMap<String, Value>,
}

/// What the webhook decides by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LedgerContents {
    /// `namespace/name` of a Job -> `request.uid` -> what was granted.
    pub pending: BTreeMap<String, BTreeMap<String, GrantedAttempt>>,
    /// Attempts were taken out because of Jobs seen up to this resourceVersion: a view that is older may not decide.
    pub observed_through: u64,
}

/// A granted try to make a Job active.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantedAttempt {
    /// `metadata.uid` that the Job has or will have.
    pub job_uid: String,
    /// What kind of try.
    pub kind: AttemptKind,
    /// The policies by which its scopes were found.
    pub revision: String,
    /// Where it takes a slot.
    pub scopes: Vec<String>,
    /// When, by the clock of whoever granted it; for people only.
    pub since: Timestamp,
}

/// The kinds of tries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum AttemptKind {
    /// A new Job.
    Create,
    /// A change of a stored Job by which it takes a slot: it is un-suspended, or relabelled.
    Unsuspend {
        /// `metadata.resourceVersion` of the Job as it was before. The change is written only onto that.
        from: u64,
    },
}

/// A ledger that cannot be gone by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Written by a later version.
    #[error(
        "it has format {found}, this version knows {FORMAT}: bring all replicas to the version that wrote it"
    )]
    NewerFormat {
        /// The format.
        found: u64,
    },
    /// Somebody edited it, or a fault did.
    #[error(
        "spec.{field} is not as job-handler writes it ({why}): delete the ledger, a minute later a new one is made"
    )]
    Malformed {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl LedgerContents {
    /// Every attempt: the Job's `namespace/name`, `request.uid`, what was granted.
    pub fn attempts(&self) -> impl Iterator<Item = (&str, &str, &GrantedAttempt)> {
        self.pending.iter().flat_map(|(name, tries)| {
            tries.iter().map(move |(request, granted)| (&**name, &**request, granted))
        })
    }

    /// Takes out one attempt.
    pub fn remove(&mut self, name: &str, request: &str) -> Option<GrantedAttempt> {
        let tries = self.pending.get_mut(name)?;
        let removed = tries.remove(request);
        if tries.is_empty() {
            self.pending.remove(name);
        }
        removed
    }
}

impl JobLedgerSpec {
    /// An empty one.
    pub fn empty() -> Self {
        let mut spec = Self::default();
        spec.set(&LedgerContents::default());
        spec
    }

    /// What is in it.
    ///
    /// # Errors
    /// Where it was written by a later version, or is not understood in full.
    pub fn contents(&self) -> Result<LedgerContents, LedgerError> {
        let malformed = |field, why: String| LedgerError::Malformed { field, why };
        match self.fields.get(FORMAT_FIELD).map(|format| (format, format.as_u64())) {
            Some((_, Some(FORMAT))) => {}
            Some((_, Some(found))) if found > FORMAT => return Err(LedgerError::NewerFormat { found }),
            found => {
                let found =
                    found.map_or_else(|| "nothing".to_owned(), |(value, _)| short(&value.to_string()));
                return Err(malformed(FORMAT_FIELD, format!("expected {FORMAT}, found {found}")));
            }
        }
        let pending: BTreeMap<String, BTreeMap<String, GrantedAttempt>> = match self.fields.get(PENDING) {
            None => BTreeMap::new(),
            Some(value) => {
                Deserialize::deserialize(value).map_err(|e| malformed(PENDING, short(&e.to_string())))?
            }
        };
        let observed_through = match self.fields.get(OBSERVED_THROUGH) {
            None => 0,
            Some(value) => value.as_u64().ok_or_else(|| {
                malformed(OBSERVED_THROUGH, format!("expected a number, found {}", short(&value.to_string())))
            })?,
        };
        Ok(LedgerContents { pending, observed_through })
    }

    /// How groups have fared. What is not understood is as if it were not there: the sink writes it anew from the Jobs
    /// that are there, and no limit hangs on it.
    pub fn streaks(&self) -> BTreeMap<String, FailureStreak> {
        let entries = self.fields.get(BACKOFF).and_then(Value::as_object).into_iter().flatten();
        entries
            .filter_map(|(key, value)| Some((key.clone(), FailureStreak::deserialize(value).ok()?)))
            .collect()
    }

    /// How one group has fared.
    pub fn streak(&self, key: &str) -> Option<FailureStreak> {
        FailureStreak::deserialize(self.fields.get(BACKOFF)?.get(key)?).ok()
    }

    /// Writes a contents into it; other fields stay.
    pub fn set(&mut self, contents: &LedgerContents) {
        self.fields.insert(FORMAT_FIELD.to_owned(), FORMAT.into());
        self.fields.insert(OBSERVED_THROUGH.to_owned(), contents.observed_through.into());
        let pending = contents.pending.iter().map(|(name, tries)| {
            let tries = tries.iter().map(|(request, granted)| (request.clone(), granted.to_json()));
            (name.clone(), Value::Object(tries.collect()))
        });
        self.fields.insert(PENDING.to_owned(), Value::Object(pending.collect()));
    }
}

impl GrantedAttempt {
    fn to_json(&self) -> Value {
        let kind = match self.kind {
            AttemptKind::Create => Value::from("create"),
            AttemptKind::Unsuspend { from } => serde_json::json!({"unsuspend": {"from": from}}),
        };
        serde_json::json!({
            "jobUid": self.job_uid, "kind": kind, "revision": self.revision, "scopes": self.scopes,
            "since": self.since.to_string(),
        })
    }
}

impl JsonSchema for JobLedgerSpec {
    fn schema_name() -> Cow<'static, str> {
        "JobLedgerSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "What was granted and not seen yet. Judged by who reads it: later versions may say more.",
            "required": [FORMAT_FIELD],
            "properties": {
                FORMAT_FIELD: {"type": "integer", "minimum": 1, "description": "Version of this layout."},
            },
            "x-kubernetes-preserve-unknown-fields": true,
        })
    }
}

fn short(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn spec(value: Value) -> JobLedgerSpec {
        serde_json::from_value(value).unwrap()
    }

    fn granted(kind: AttemptKind) -> GrantedAttempt {
        GrantedAttempt {
            job_uid: "u".into(),
            kind,
            revision: "r".into(),
            scopes: vec!["p/l".into()],
            since: "2026-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_the_rest_stays() {
        let tries = [
            ("r1".to_owned(), granted(AttemptKind::Create)),
            ("r2".to_owned(), granted(AttemptKind::Unsuspend { from: 7 })),
        ];
        let contents =
            LedgerContents { pending: [("ci/a".to_owned(), tries.into())].into(), observed_through: 12 };
        let mut ledger = spec(json!({"format": 1, "backoff": {"g": {"failures": 2}}, "later": [1]}));
        ledger.set(&contents);
        let stored = serde_json::to_value(&ledger).unwrap();
        assert_eq!((&stored["backoff"]["g"]["failures"], &stored["later"]), (&json!(2), &json!([1])));
        assert_eq!(spec(stored).contents().unwrap(), contents);
        assert_eq!(JobLedgerSpec::empty().contents().unwrap(), LedgerContents::default());
        assert_eq!(contents.attempts().count(), 2);
        let mut left = contents.clone();
        assert!(left.remove("ci/a", "r1").is_some() && left.remove("ci/a", "r1").is_none());
        assert!(left.remove("ci/a", "r2").is_some() && left.pending.is_empty());
    }

    #[test]
    fn streaks_are_read_and_garbage_is_passed_by() {
        let good = json!({"failures": 2, "job": "a", "ended": "2026-01-01T00:00:00Z", "uids": ["u"]});
        let ledger = spec(json!({"format": 1, "backoff": {"labels:id=7": good, "labels:id=8": 3}}));
        let streaks = ledger.streaks();
        assert_eq!(streaks.keys().collect::<Vec<_>>(), ["labels:id=7"]);
        assert_eq!(streaks["labels:id=7"].failures, 2);
        assert!(spec(json!({"format": 1, "backoff": "x"})).streaks().is_empty());
    }

    #[rstest]
    #[case::newer(json!({"format": 2}), "format 2, this version knows 1")]
    #[case::none(json!({}), "spec.format")]
    #[case::text(json!({"format": "x"}), "spec.format")]
    #[case::zero(json!({"format": 0}), "spec.format")]
    #[case::pending(json!({"format": 1, "pending": "none"}), "spec.pending")]
    #[case::kind(json!({"format": 1, "pending": {"ci/a": {"r": {"jobUid": "u", "kind": "resize", "revision": "r",
        "scopes": [], "since": "2026-01-01T00:00:00Z"}}}}), "spec.pending")]
    #[case::more(json!({"format": 1, "pending": {"ci/a": {"r": {"jobUid": "u", "kind": "create", "revision": "r",
        "scopes": [], "since": "2026-01-01T00:00:00Z", "weight": 2}}}}), "spec.pending")]
    #[case::from(json!({"format": 1, "pending": {"ci/a": {"r": {"jobUid": "u", "kind": {"unsuspend": {}}, "revision": "r",
        "scopes": [], "since": "2026-01-01T00:00:00Z"}}}}), "spec.pending")]
    #[case::version(json!({"format": 1, "observedThrough": -1}), "spec.observedThrough")]
    fn what_is_not_understood_is_refused(#[case] value: Value, #[case] word: &str) {
        let why = spec(value).contents().unwrap_err().to_string();
        assert!(why.contains(word), "{why}");
    }
}
