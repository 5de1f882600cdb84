//! Counts the Jobs that hold slots after each write of a Job, by the rules of the documents. Pure, and implemented
//! apart from the code that it checks.

use std::collections::{BTreeMap, HashMap};

use job_handler_e2e::etcd_history::{StoredJobState, StoredWrite};
use serde_json::Value;

use super::fixtures::{APP, ChaosLimit, LIMITS, NAMESPACES};

/// Violations that are kept in full; more are counted.
const MAX_DESCRIBED: usize = 10;

/// A limit, and the domain in which it counts: all namespaces, one, or a group of one.
pub type ChaosScope = (&'static str, String);

/// What became of the limits so far. Holds what is stored now, not what was.
#[derive(Debug, Default)]
pub struct SlotCheck {
    jobs: HashMap<String, CountedJob>,
    /// By scope, the number of holders. A scope without one has no entry.
    holders: BTreeMap<ChaosScope, usize>,
    pub limits: BTreeMap<&'static str, LimitFigures>,
    /// Writes of Jobs that were checked.
    pub revisions: usize,
    /// How Jobs became active, or changed their scopes while active.
    pub causes: BTreeMap<&'static str, usize>,
    pub violations: usize,
    pub described: Vec<String>,
}

/// What is known about one limit.
#[derive(Clone, Debug, Default)]
pub struct LimitFigures {
    /// The most holders in one scope, at any revision.
    pub max_active: usize,
    /// Writes after which a scope that they changed was full.
    pub full: usize,
    /// The scopes that were full at least once.
    pub full_scopes: std::collections::BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct CountedJob {
    uid: String,
    state: StoredJobState,
    suspended: bool,
    scopes: Vec<ChaosScope>,
    /// Why and at which revision it holds the slots it holds.
    since: (&'static str, u64),
}

impl SlotCheck {
    /// Counts after a write.
    pub fn see(&mut self, write: &StoredWrite) {
        let Some(key) = write.key.strip_prefix("/registry/jobs/") else { return };
        self.revisions += 1;
        let before = self.jobs.remove(key);
        let now = write.object.as_ref().map(|job| CountedJob::of(key, job, before.as_ref(), write.revision));
        let held = |job: Option<&CountedJob>| job.map(|job| job.scopes.clone()).unwrap_or_default();
        let (old, new) = (held(before.as_ref()), held(now.as_ref()));
        for scope in &old {
            if let Some(count) = self.holders.get_mut(scope) {
                *count -= 1;
            }
        }
        self.holders.retain(|_, count| *count > 0);
        for scope in &new {
            *self.holders.entry(scope.clone()).or_default() += 1;
        }
        if let Some(job) = now {
            if job.since.1 == write.revision && !job.scopes.is_empty() {
                *self.causes.entry(job.since.0).or_default() += 1;
            }
            self.jobs.insert(key.to_owned(), job);
        }
        for scope in new.iter().filter(|scope| !old.contains(*scope)) {
            self.check(scope, key, write.revision);
        }
    }

    /// Whether this Job is stored, by what was seen.
    pub fn knows(&self, key: &str) -> bool {
        self.jobs.contains_key(key)
    }

    /// The limits that were not full in the cluster or in each namespace yet, and in how many scopes they were.
    pub fn unreached(&self) -> Vec<(&'static str, usize)> {
        let full =
            |limit: &ChaosLimit| self.limits.get(limit.name).map_or(0, |found| found.full_scopes.len());
        let wanted = |limit: &ChaosLimit| if limit.scope == "Cluster" { 1 } else { NAMESPACES.len() };
        let unreached = LIMITS.iter().filter(|limit| full(limit) < wanted(limit));
        unreached.map(|limit| (limit.name, full(limit))).collect()
    }

    fn check(&mut self, scope: &ChaosScope, key: &str, revision: u64) {
        let count = self.holders.get(scope).copied().unwrap_or_default();
        let max = LIMITS.iter().find(|limit| limit.name == scope.0).map_or(0, |limit| limit.max);
        let figures = self.limits.entry(scope.0).or_default();
        figures.max_active = figures.max_active.max(count);
        if count >= max {
            figures.full += 1;
            figures.full_scopes.insert(scope.1.clone());
        }
        if count > max {
            self.violations += 1;
            if self.described.len() < MAX_DESCRIBED {
                let holders: Vec<String> = self
                    .jobs
                    .iter()
                    .filter(|(_, job)| job.scopes.contains(scope))
                    .map(|(key, job)| format!("{key} ({}, {} at {})", job.uid, job.since.0, job.since.1))
                    .collect();
                self.described.push(format!(
                    "resourceVersion {revision}: {count} hold slots of {scope:?}, the limit is {max}; the last is {key}; \
                     {}",
                    holders.join(", ")
                ));
            }
        }
    }
}

impl CountedJob {
    fn of(key: &str, job: &Value, before: Option<&Self>, revision: u64) -> Self {
        let uid = job["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let (state, suspended) = (StoredJobState::of(job), job["spec"]["suspend"] == true);
        let before = before.filter(|before| before.uid == uid);
        // The Job controller may be about to create pods by what it read before; the Jobs that it leaves to others get none.
        let may_get_pods = before.is_some_and(|before| !before.scopes.is_empty())
            && job["spec"]["managedBy"].is_null()
            && state == StoredJobState::Suspended
            && !has_seen_suspension(job);
        let holds = state == StoredJobState::Active || may_get_pods;
        let scopes = if holds { slots_of(key, job) } else { Vec::new() };
        let since = match before {
            None => ("created", revision),
            Some(old) if old.scopes == scopes => old.since,
            Some(old) if old.state == StoredJobState::Active => ("relabelled", revision),
            Some(old) if old.suspended && !suspended => ("resumed", revision),
            // No update of the Job, so nothing that is admitted: the Job controller reports pods of a Job that was
            // suspended before it had reported them.
            Some(_) if suspended => ("pods of a suspended Job were reported", revision),
            Some(_) => ("otherwise", revision),
        };
        Self { uid, state, suspended, scopes, since }
    }
}

/// Whether the Job controller says that it has stopped the Job.
fn has_seen_suspension(job: &Value) -> bool {
    let conditions = job["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Suspended" && c["status"] == "True"))
}

/// The slots that a Job needs while it may have pods.
fn slots_of(key: &str, job: &Value) -> Vec<ChaosScope> {
    let namespace = key.split('/').next().unwrap_or_default();
    if !NAMESPACES.contains(&namespace) {
        return Vec::new();
    }
    LIMITS.iter().filter_map(|limit| Some((limit.name, domain(limit, namespace, job)?))).collect()
}

/// Where a limit counts a Job; `None` if it does not.
fn domain(limit: &ChaosLimit, namespace: &str, job: &Value) -> Option<String> {
    let label = |key: &str| job["metadata"]["labels"][key].as_str();
    let selected = label(limit.label)?;
    match limit.scope {
        "Cluster" => Some(String::new()),
        "Namespace" => Some(namespace.to_owned()),
        // A Job with an empty label has no group.
        _ => (limit.label == APP && !selected.is_empty()).then(|| format!("{namespace}/{selected}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::chaos::fixtures::{FEW, SOME};

    struct Script(SlotCheck, u64);

    impl Script {
        fn job(&mut self, key: &str, uid: &str, labels: &[(&str, &str)], rest: Value) {
            let labels: BTreeMap<_, _> = labels.iter().copied().collect();
            let mut job = json!({"metadata": {"uid": uid, "labels": labels}});
            job.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            self.write(key, Some(job));
        }

        fn write(&mut self, key: &str, object: Option<Value>) {
            self.1 += 1;
            self.0.see(&StoredWrite { revision: self.1, key: format!("/registry/jobs/{key}"), object });
        }

        fn max(&self, limit: &str) -> usize {
            self.0.limits.get(limit).map_or(0, |figures| figures.max_active)
        }
    }

    #[test]
    fn one_job_too_many_is_a_violation_of_its_own_scope_only() {
        let mut script = Script(SlotCheck::default(), 0);
        let app = [(APP, "web")];
        script.job("chaos-a/a", "1", &app, json!({}));
        script.job("chaos-b/a", "2", &app, json!({}));
        script.job("chaos-a/b", "3", &[(APP, "other"), (SOME, "yes")], json!({}));
        script.job("other/c", "4", &app, json!({}));
        assert_eq!((script.0.violations, script.max("one-per-group"), script.max("some")), (0, 1, 1));
        // Relabelled into the group of another.
        script.job("chaos-a/b", "3", &app, json!({}));
        assert_eq!((script.0.violations, script.max("one-per-group")), (1, 2));
        let why = &script.0.described[0];
        assert!(why.contains("resourceVersion 5") && why.contains("relabelled at 5"), "{why}");
        // It stays over the limit, which is not another violation; then it is full again.
        script.job("chaos-a/b", "3", &app, json!({"status": {"active": 1}}));
        script.write("chaos-a/a", None);
        assert_eq!((script.0.violations, script.0.jobs.len()), (1, 3));
        script.job("chaos-a/d", "5", &app, json!({}));
        assert_eq!(script.0.violations, 2);
    }

    #[test]
    fn a_job_holds_its_slots_until_it_is_finished_suspended_or_gone() {
        let mut script = Script(SlotCheck::default(), 0);
        let few = [(FEW, "yes")];
        let holders = |script: &Script| script.0.holders.values().sum::<usize>();
        script.job("chaos-a/a", "1", &few, json!({"spec": {"suspend": true}}));
        assert_eq!(holders(&script), 0);
        script.job("chaos-a/a", "1", &few, json!({"spec": {"suspend": false}}));
        script.job("chaos-a/a", "1", &few, json!({"spec": {"suspend": true}, "status": {"active": 1}}));
        script.job("chaos-b/b", "2", &few, json!({}));
        assert_eq!((holders(&script), script.0.causes["resumed"]), (2, 1));
        script.job("chaos-a/a", "1", &few, json!({"spec": {"suspend": true}, "status": {"terminating": 0}}));
        assert_eq!(holders(&script), 2, "its controller may be about to create pods");
        let stopped = json!({"conditions": [{"type": "Suspended", "status": "True"}]});
        script.job("chaos-a/a", "1", &few, json!({"spec": {"suspend": true}, "status": stopped}));
        assert_eq!(holders(&script), 1);
        script.job("chaos-a/a", "1", &few, json!({"spec": {"suspend": true}, "status": {"active": 1}}));
        assert_eq!(script.0.causes["pods of a suspended Job were reported"], 1);
        let finished = json!({"status": {"conditions": [{"type": "Failed", "status": "True"}]}});
        script.job("chaos-a/a", "1", &few, finished);
        // The same name again.
        script.job("chaos-a/a", "3", &few, json!({}));
        script.job("chaos-b/b", "2", &[(FEW, "")], json!({}));
        assert_eq!((holders(&script), script.0.causes["created"]), (2, 2));
        script.write("chaos-b/b", None);
        script.write("chaos-a/a", None);
        assert_eq!((holders(&script), script.0.violations, script.max("few")), (0, 0, 2));
    }
}
