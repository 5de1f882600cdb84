//! Decides when a queued Job gets an Event about its position: once, and again as it moves up. Pure.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::{job::snapshot::JobSnapshot, keys, names};

use crate::{
    notify::{
        event_rate::EventRateLimiter,
        recorder::{EventSpec, EventType, job_reference},
        refusal_event::policy_reference,
    },
    queueing::queue_position::WaitReason,
};

/// Least time between two Events about one Job.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// Events per round.
const MAX_EVENTS: usize = 20;

/// What was published about the Jobs that still wait.
#[derive(Debug, Default)]
pub(crate) struct PositionEvents {
    published: HashMap<String, PublishedPosition>,
    rate: EventRateLimiter,
}

#[derive(Debug)]
struct PublishedPosition {
    position: usize,
    policy: String,
    at: Instant,
}

impl PositionEvents {
    /// The Jobs that get an Event now: new ones, and those that moved up to half their published position or changed
    /// their reason.
    pub(crate) fn due(
        &mut self,
        waiting: Vec<(Arc<JobSnapshot>, WaitReason)>,
        now: Instant,
    ) -> Vec<(Arc<JobSnapshot>, WaitReason)> {
        let uids: HashSet<&str> = waiting.iter().map(|(job, _)| job.uid.as_str()).collect();
        self.published.retain(|uid, _| uids.contains(uid.as_str()));
        drop(uids);
        let mut due = Vec::new();
        for (job, reason) in waiting {
            let published = self.published.get(&job.uid);
            if published.is_none_or(|published| published.is_outdated(&reason, now))
                && due.len() < MAX_EVENTS
                && self.rate.allow(&job.namespace, now)
            {
                let (position, policy) = (reason.position(), reason.policy().uid.clone());
                self.published.insert(job.uid.clone(), PublishedPosition { position, policy, at: now });
                due.push((job, reason));
            }
        }
        due
    }
}

impl PublishedPosition {
    fn is_outdated(&self, reason: &WaitReason, now: Instant) -> bool {
        let position = reason.position();
        let changed = self.policy != reason.policy().uid
            || (position == 0) != (self.position == 0)
            || (position < self.position && position <= self.position.div_ceil(2));
        changed && now.saturating_duration_since(self.at) >= MIN_INTERVAL
    }
}

pub(crate) fn event(job: &JobSnapshot, reason: &WaitReason) -> EventSpec {
    let name = names::event_name(&job.name, &job.uid, keys::REASON_QUEUED);
    let hash = names::short_hash([reason.policy().uid.as_str()]);
    EventSpec {
        namespace: job.namespace.clone(),
        // A note is immutable: each position is an Event of its own.
        name: names::object_name(&name, &format!(".{hash}.{}", reason.position())),
        event_type: EventType::Normal,
        reason: keys::REASON_QUEUED,
        action: "Queued",
        note: reason.note(jiff::Timestamp::now()),
        regarding: job_reference(&job.namespace, &job.name, Some(&job.uid)),
        related: Some(policy_reference(reason.policy())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queueing::slots::tests::limited_job;

    #[test]
    fn a_position_is_published_once_and_again_at_half_of_it() {
        let mut events = PositionEvents::default();
        let start = Instant::now();
        let at = |position| {
            let limited = limited_job("a", true, &[("ci", 1)]);
            let scope = limited.scopes[0].0.clone();
            let reason = WaitReason::Slot { scope, slots: 1, holders: vec![], position, behind: None };
            vec![(limited.job, reason)]
        };
        let mut is_due =
            |position, seconds| !events.due(at(position), start + Duration::from_secs(seconds)).is_empty();
        assert!(is_due(10, 0) && !is_due(10, 100) && !is_due(6, 100) && is_due(5, 100));
        assert!(!is_due(1, 105), "at most one Event every ten seconds");
        assert!(is_due(1, 111) && !is_due(1, 1000));
    }
}
