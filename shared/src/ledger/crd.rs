//! The JobLedger: admitted attempts to make a Job active whose outcome is not known yet.
//!
//! There is one [`JobLedger`] per namespace with Jobs, and one for limits that count over the cluster, all in the namespace
//! of job-handler. Webhook replicas change the [`LedgerContents`] by resourceVersion only, so that their decisions are
//! serialized.
//!
//! The schema is loose on purpose: the schema of an older version must not prune what a newer version wrote. Reading is
//! strict instead: contents that are not fully understood are an error, and nothing is admitted by them.

use std::{borrow::Cow, collections::BTreeMap};

use jiff::Timestamp;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ledger::failure_streak::FailureStreak;

/// Format version. A change of meaning increments it.
pub(crate) const FORMAT: u64 = 1;
/// Name of the ledger for limits of scope `Cluster`. It has dots, which names of namespaces do not.
pub const CLUSTER_LEDGER: &str = "cluster.job-handler.io";

const FORMAT_FIELD: &str = "format";
const PENDING: &str = "pending";
const OBSERVED_THROUGH: &str = "observedThrough";
const REFUSED: &str = "refused";
/// Slots held by Job uid. The webhook adds entries, the sink removes them. Versions that do not know the field preserve it.
pub const HELD: &str = "held";
/// Field that the sink owns: failure streaks, by [`crate::ledger::failure_streak::group_key`].
pub const BACKOFF: &str = "backoff";

/// Fields of a ledger as stored. Fields of other writers (`backoff` is the sink's) are preserved.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "job-handler.io",
    version = "v1alpha1",
    kind = "JobLedger",
    plural = "jobledgers",
    category = "job-handler",
    namespaced,
    derive = "PartialEq",
    doc = "Admitted attempts to start Jobs whose outcome is not known yet, slots of deleted Jobs whose pods run on, and failure streaks. Written by job-handler; do not edit.",
    printcolumn(
        name = "ObservedThrough",
        type_ = "integer",
        json_path = ".spec.observedThrough",
        description = "resourceVersion of the last Job that resolved an attempt"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct JobLedgerSpec {
    /// All fields.
    #[serde(flatten)]
    pub fields: BTreeMap<String, Value>,
}

/// The part of a ledger by which the webhook decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LedgerContents {
    /// Attempts: `namespace/name` of the Job, then `request.uid`.
    pub pending: BTreeMap<String, BTreeMap<String, GrantedAttempt>>,
    /// Attempts were resolved by Jobs up to this resourceVersion. A view of Jobs that is older must not decide.
    pub observed_through: u64,
    /// Uids of the Jobs whose creation was refused a moment ago, and when (informational). A second call about the same
    /// create must not grant it a slot.
    pub refused: BTreeMap<String, Timestamp>,
    /// Slots that are held for pods, by the uid of the Job that started them.
    pub held: BTreeMap<String, HeldSlot>,
}

/// Slots that stay held although no Job counts for them: the Job was deleted and its pods run on, or it was relabelled out
/// of a limit while it ran.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeldSlot {
    /// `namespace/name` of the Job.
    pub name: String,
    /// Scopes in which the slots are held.
    pub scopes: Vec<String>,
    /// `metadata.resourceVersion` of the Job before the change by which it stopped to count.
    pub from: u64,
    /// When the Job was created.
    pub since: Timestamp,
}

/// An admitted attempt to make a Job active.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantedAttempt {
    /// `metadata.uid` that the Job has or will have.
    pub job_uid: String,
    /// Kind of the attempt.
    pub kind: AttemptKind,
    /// Revision of the policies that determined the scopes.
    pub revision: String,
    /// Scopes in which the Job takes a slot.
    pub scopes: Vec<String>,
    /// Time by the clock of the replica that admitted it; informational.
    pub since: Timestamp,
}

/// Kind of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum AttemptKind {
    /// A new Job.
    Create,
    /// A change of a stored Job by which it takes a slot: it is un-suspended or relabelled.
    Unsuspend {
        /// `metadata.resourceVersion` of the Job before the change. The apiserver writes the change only onto it.
        from: u64,
    },
}

/// A ledger that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// A newer version wrote it.
    #[error(
        "it has format {found}, this version knows {FORMAT}: upgrade all replicas to the version that wrote it"
    )]
    NewerFormat {
        /// Its format.
        found: u64,
    },
    /// A field has unexpected content.
    #[error(
        "spec.{field} is malformed ({why}): delete the ledger; a new one is created, and after a minute its limits admit Jobs again"
    )]
    Malformed {
        /// Field below `spec`.
        field: &'static str,
        /// What is wrong with the field.
        why: String,
    },
}

impl LedgerContents {
    /// All attempts, with `namespace/name` of the Job and `request.uid`.
    pub fn attempts(&self) -> impl Iterator<Item = (&str, &str, &GrantedAttempt)> {
        self.pending.iter().flat_map(|(name, attempts)| {
            attempts.iter().map(move |(request, granted)| (&**name, &**request, granted))
        })
    }

    /// Whether nobody holds a slot by this ledger.
    pub fn holds_nothing(&self) -> bool {
        self.pending.is_empty() && self.held.is_empty()
    }

    /// Holds slots for the pods of a Job, in addition to those that are held for it already.
    pub fn hold(&mut self, job_uid: &str, slot: HeldSlot) {
        let held = self.held.entry(job_uid.to_owned()).or_insert_with(|| slot.clone());
        held.from = slot.from;
        let more = slot.scopes.into_iter().filter(|scope| !held.scopes.contains(scope));
        let more: Vec<String> = more.collect();
        held.scopes.extend(more);
    }

    /// Removes an attempt.
    pub fn remove(&mut self, name: &str, request: &str) -> Option<GrantedAttempt> {
        let attempts = self.pending.get_mut(name)?;
        let removed = attempts.remove(request);
        if attempts.is_empty() {
            self.pending.remove(name);
        }
        removed
    }
}

impl JobLedgerSpec {
    /// A ledger without attempts.
    pub fn empty() -> Self {
        let mut spec = Self::default();
        spec.set(&LedgerContents::default());
        spec
    }

    /// Parses the contents.
    ///
    /// # Errors
    /// Fails if a newer version wrote them or they are malformed.
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
        let held = match self.fields.get(HELD) {
            None => BTreeMap::new(),
            Some(value) => {
                Deserialize::deserialize(value).map_err(|e| malformed(HELD, short(&e.to_string())))?
            }
        };
        let observed_through = match self.fields.get(OBSERVED_THROUGH) {
            None => 0,
            Some(value) => value.as_u64().ok_or_else(|| {
                malformed(OBSERVED_THROUGH, format!("expected a number, found {}", short(&value.to_string())))
            })?,
        };
        let refused = match self.fields.get(REFUSED) {
            None => BTreeMap::new(),
            Some(value) => {
                Deserialize::deserialize(value).map_err(|e| malformed(REFUSED, short(&e.to_string())))?
            }
        };
        Ok(LedgerContents { pending, observed_through, refused, held })
    }

    /// All failure streaks. Ignores malformed ones: the sink rewrites them from the existing Jobs, and no limit depends on
    /// them.
    pub fn streaks(&self) -> BTreeMap<String, FailureStreak> {
        let entries = self.fields.get(BACKOFF).and_then(Value::as_object).into_iter().flatten();
        entries
            .filter_map(|(key, value)| Some((key.clone(), FailureStreak::deserialize(value).ok()?)))
            .collect()
    }

    /// The failure streak of one group.
    pub fn streak(&self, key: &str) -> Option<FailureStreak> {
        FailureStreak::deserialize(self.fields.get(BACKOFF)?.get(key)?).ok()
    }

    /// Replaces the contents; other fields stay.
    pub fn set(&mut self, contents: &LedgerContents) {
        self.fields.insert(FORMAT_FIELD.to_owned(), FORMAT.into());
        self.fields.insert(OBSERVED_THROUGH.to_owned(), contents.observed_through.into());
        let pending = contents.pending.iter().map(|(name, attempts)| {
            let attempts = attempts.iter().map(|(request, granted)| (request.clone(), granted.to_json()));
            (name.clone(), Value::Object(attempts.collect()))
        });
        self.fields.insert(PENDING.to_owned(), Value::Object(pending.collect()));
        if contents.refused.is_empty() {
            self.fields.remove(REFUSED);
        } else {
            let refused = contents.refused.iter().map(|(uid, at)| (uid.clone(), at.to_string().into()));
            self.fields.insert(REFUSED.to_owned(), Value::Object(refused.collect()));
        }
        if contents.held.is_empty() {
            self.fields.remove(HELD);
        } else {
            let held = contents.held.iter().map(|(uid, slot)| (uid.clone(), slot.to_json()));
            self.fields.insert(HELD.to_owned(), Value::Object(held.collect()));
        }
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

impl HeldSlot {
    fn to_json(&self) -> Value {
        serde_json::json!({
            "name": self.name, "scopes": self.scopes, "from": self.from, "since": self.since.to_string(),
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
            "description": "Admitted attempts and failure streaks. Validated when read: newer versions may add fields.",
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

    fn held(scopes: &[&str], from: u64) -> HeldSlot {
        let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        HeldSlot { name: "ci/z".into(), scopes, from, since: "2026-01-01T00:00:00Z".parse().unwrap() }
    }

    #[test]
    fn contents_round_trip_and_other_fields_stay() {
        let attempts = [
            ("r1".to_owned(), granted(AttemptKind::Create)),
            ("r2".to_owned(), granted(AttemptKind::Unsuspend { from: 7 })),
        ];
        let mut contents = LedgerContents {
            pending: [("ci/a".to_owned(), attempts.into())].into(),
            observed_through: 12,
            refused: [("u9".to_owned(), "2026-01-01T00:00:00Z".parse().unwrap())].into(),
            ..LedgerContents::default()
        };
        contents.hold("u9", held(&["p/l"], 4));
        let mut ledger = spec(json!({"format": 1, "backoff": {"g": {"failures": 2}}, "later": [1]}));
        ledger.set(&contents);
        let stored = serde_json::to_value(&ledger).unwrap();
        assert_eq!((&stored["backoff"]["g"]["failures"], &stored["later"]), (&json!(2), &json!([1])));
        assert_eq!(spec(stored).contents().unwrap(), contents);
        ledger.set(&LedgerContents { refused: BTreeMap::new(), ..contents.clone() });
        assert!(!ledger.fields.contains_key("refused"));
        assert_eq!(JobLedgerSpec::empty().contents().unwrap(), LedgerContents::default());
        assert_eq!(contents.attempts().count(), 2);
        let mut left = contents.clone();
        assert!(left.remove("ci/a", "r1").is_some() && left.remove("ci/a", "r1").is_none());
        assert!(left.remove("ci/a", "r2").is_some() && left.pending.is_empty() && !left.holds_nothing());
        left.held.clear();
        assert!(left.holds_nothing());
        let mut freed = spec(serde_json::to_value(&ledger).unwrap());
        freed.set(&left);
        assert!(freed.contents().unwrap().holds_nothing());
    }

    #[test]
    fn a_job_holds_the_slots_of_every_change_by_its_uid() {
        let mut contents = LedgerContents::default();
        contents.hold("u", held(&["p/a"], 4));
        contents.hold("u", held(&["p/a", "p/b"], 7));
        assert_eq!(contents.held, [("u".to_owned(), held(&["p/a", "p/b"], 7))].into());
    }

    #[test]
    fn streaks_are_read_and_malformed_ones_ignored() {
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
    #[case::held(json!({"format": 1, "held": {"u": {"name": "ci/a"}}}), "spec.held")]
    #[case::version(json!({"format": 1, "observedThrough": -1}), "spec.observedThrough")]
    #[case::refused(json!({"format": 1, "refused": ["u"]}), "spec.refused")]
    fn malformed_contents_are_an_error(#[case] value: Value, #[case] word: &str) {
        let why = spec(value).contents().unwrap_err().to_string();
        assert!(why.contains(word), "{why}");
    }
}
