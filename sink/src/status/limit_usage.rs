//! How many slots of a limit are in use. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use job_handler_shared::{
    job::{group::GroupId, snapshot::JobSnapshot},
    policy::{
        limit::{Limit, Scope},
        status::LimitStatus,
    },
};

use crate::observe::ledger_index::HeldInScope;

/// An unfinished Job that a policy selects, with the group that all its policies give it.
#[derive(Clone, Debug)]
pub(crate) struct SelectedJob {
    pub(crate) job: Arc<JobSnapshot>,
    pub(crate) group: Option<GroupId>,
}

/// Slots and Jobs in a scope.
#[derive(Clone, Copy, Default)]
struct ScopeCounts {
    active: u32,
    orphaned: u32,
    queued: u32,
    pending: u32,
    never_stored: u32,
}

/// The usage of a limit in its fullest scope by used slots, then by queued Jobs.
pub(crate) fn fullest_scope(
    limit: &Limit,
    jobs: &[SelectedJob],
    pending: &BTreeMap<(String, String), (u32, u32)>,
    held: &[HeldInScope],
) -> LimitStatus {
    let mut scopes: HashMap<String, ScopeCounts> = HashMap::new();
    for SelectedJob { job, group } in jobs {
        let Some(scope) = scope_of(limit.scope, job, group.as_ref()) else { continue };
        let counts = scopes.entry(scope).or_default();
        counts.active += u32::from(job.is_active());
        counts.queued += u32::from(job.is_queued());
    }
    let counts = |slot: &HeldInScope| {
        let is_it = |selected: &SelectedJob| {
            let SelectedJob { job, group } = selected;
            job.uid == slot.job && scope_of(limit.scope, job, group.as_ref()).as_ref() == Some(&slot.scope)
        };
        jobs.iter().any(is_it)
    };
    for slot in held.iter().filter(|slot| slot.limit == limit.name && !counts(slot)) {
        let counts = scopes.entry(slot.scope.clone()).or_default();
        counts.active += u32::from(slot.runs);
        counts.orphaned += u32::from(!slot.runs);
    }
    for ((name, scope), (admitted, never_stored)) in pending {
        if *name == limit.name {
            let counts = scopes.entry(scope.clone()).or_default();
            counts.pending += admitted;
            counts.never_stored += never_stored;
        }
    }
    let rank = |counts: &ScopeCounts| (counts.active + counts.orphaned + counts.pending, counts.queued);
    let most =
        scopes.into_iter().max_by(|(a_name, a), (b_name, b)| rank(a).cmp(&rank(b)).then(b_name.cmp(a_name)));
    let (fullest, counts) =
        most.map_or((None, ScopeCounts::default()), |(name, counts)| (Some(name), counts));
    let ScopeCounts { active, orphaned, queued, pending, never_stored } = counts;
    LimitStatus {
        name: limit.name.clone(),
        scope: limit.scope,
        max: limit.max_active_jobs,
        active,
        orphaned,
        queued,
        pending,
        never_stored,
        fullest,
    }
}

/// The number of Jobs that a limit queues, in all of its scopes.
pub(crate) fn queued_jobs(limit: &Limit, jobs: &[SelectedJob]) -> usize {
    let is_queued = |selected: &&SelectedJob| {
        selected.job.is_queued() && scope_of(limit.scope, &selected.job, selected.group.as_ref()).is_some()
    };
    jobs.iter().filter(is_queued).count()
}

fn scope_of(scope: Scope, job: &JobSnapshot, group: Option<&GroupId>) -> Option<String> {
    match scope {
        Scope::Cluster => Some("cluster".to_owned()),
        Scope::Namespace => Some(job.namespace.clone()),
        Scope::Group => group.map(|group| format!("{}/{}", job.namespace, group.value)),
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::keys;

    use super::*;

    #[test]
    fn the_fullest_scope_has_the_most_used_slots_then_the_most_queued_jobs() {
        let limit: Limit =
            serde_json::from_value(serde_json::json!({"name": "l", "maxActiveJobs": 2})).unwrap();
        let job = |namespace: &str, queued: bool| {
            let mut job =
                JobSnapshot { namespace: namespace.into(), suspended: queued, ..JobSnapshot::default() };
            if queued {
                job.annotations.insert(keys::QUEUED_AT.into(), "2026-01-01T00:00:00Z".into());
                job.annotations.insert(keys::STAMPED.into(), "queued: waits for a slot".into());
            }
            SelectedJob { job: Arc::new(job), group: None }
        };
        let pending =
            [(("l".to_owned(), "c".to_owned()), (5, 2)), (("other".to_owned(), "a".to_owned()), (9, 0))]
                .into();
        let nothing = BTreeMap::new();
        let mut jobs = vec![job("a", false), job("b", false), job("b", true)];
        let usage = fullest_scope(&limit, &jobs, &nothing, &[]);
        assert_eq!((usage.fullest.as_deref(), usage.active, usage.queued), (Some("b"), 1, 1));
        let held =
            |job: &str, runs| HeldInScope { limit: "l".into(), scope: "a".into(), job: job.into(), runs };
        let usage = fullest_scope(&limit, &jobs, &nothing, &[held("gone", false), held("elsewhere", true)]);
        assert_eq!((usage.fullest.as_deref(), usage.active, usage.orphaned), (Some("a"), 2, 1));
        // The Jobs here have no uid: one that still counts in the scope is not counted again.
        let usage = fullest_scope(&limit, &jobs, &nothing, &[held("", true)]);
        assert_eq!((usage.active, usage.orphaned), (1, 0));
        let usage = fullest_scope(&limit, &jobs, &pending, &[]);
        assert_eq!(
            (usage.fullest.as_deref(), usage.usage()),
            (Some("c"), "5/2 (3 just admitted, 2 never stored)".to_owned())
        );
        assert_eq!(queued_jobs(&limit, &jobs), 1);
        jobs.clear();
        let usage = fullest_scope(&limit, &jobs, &pending, &[]);
        assert_eq!((usage.fullest.as_deref(), usage.pending, usage.never_stored), (Some("c"), 5, 2));
    }
}
