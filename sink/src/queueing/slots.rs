//! Jobs with the scopes in which they take slots.

use std::sync::Arc;

use job_handler_shared::job::{
    scope::{ScopeKey, scopes},
    snapshot::JobSnapshot,
};

use crate::observe::store::Store;

/// A Job, and the scopes in which it takes a slot, each with its number of slots.
#[derive(Clone, Debug)]
pub(crate) struct LimitedJob {
    pub(crate) job: Arc<JobSnapshot>,
    pub(crate) scopes: Vec<(ScopeKey, u32)>,
}

/// All unfinished Jobs with their scopes; empty where none is queued.
pub(crate) fn limited_jobs(store: &Store) -> Vec<LimitedJob> {
    let jobs = store.unfinished();
    if !jobs.iter().any(|job| job.is_queued()) {
        return Vec::new();
    }
    jobs.into_iter()
        .filter_map(|job| {
            let policies = store.matching(&job)?;
            let policies: Vec<_> = policies.iter().collect();
            let scopes = scopes(&policies, &job).into_iter().map(|(key, limit)| (key, limit.max_active_jobs));
            let scopes = scopes.collect();
            Some(LimitedJob { job, scopes })
        })
        .collect()
}

/// The order of the queue: by creation, then by uid.
pub(crate) fn sort_by_age(jobs: &mut [&LimitedJob]) {
    jobs.sort_by(|a, b| (a.job.created, &a.job.uid).cmp(&(b.job.created, &b.job.uid)));
}

#[cfg(test)]
pub(crate) mod tests {
    use job_handler_shared::{
        job::scope::ScopeDomain,
        keys,
        policy::reference::{PolicyKind, PolicyRef},
    };

    use super::*;

    /// A Job under limit "few" of JobPolicy ci/p, in these scopes: namespaces, or "cluster".
    pub(crate) fn limited_job(uid: &str, queued: bool, scopes: &[(&str, u32)]) -> LimitedJob {
        let mut job = JobSnapshot {
            uid: uid.into(),
            name: uid.into(),
            namespace: "ci".into(),
            suspended: queued,
            ..JobSnapshot::default()
        };
        if queued {
            job.annotations.insert(keys::QUEUED_AT.into(), "2026-01-01T00:00:00Z".into());
            job.annotations.insert(keys::STAMPED.into(), "queued: waits for a slot".into());
        }
        let scope = |name: &str| ScopeKey {
            policy: PolicyRef {
                kind: PolicyKind::JobPolicy,
                namespace: Some("ci".into()),
                name: "p".into(),
                uid: "p".into(),
            },
            limit: "few".into(),
            domain: if name == "cluster" {
                ScopeDomain::Cluster
            } else {
                ScopeDomain::Namespace(name.into())
            },
        };
        LimitedJob {
            job: Arc::new(job),
            scopes: scopes.iter().map(|(name, max)| (scope(name), *max)).collect(),
        }
    }
}
