//! CloudEvents still to be delivered for a Job that has just finished.

use std::collections::{BTreeMap, BTreeSet};

use job_handler_shared::{
    job::{snapshot::JobSnapshot, trim::SpareLabels},
    result::pending_events::{JobPhase, PendingEvents},
};

/// The CloudEvents to deliver for a Job that has just finished. The start comes first, except to the receivers in `notified`,
/// which know it already.
pub(crate) fn pending<'a>(
    job: &JobSnapshot,
    sinks: impl IntoIterator<Item = &'a String>,
    notified: &BTreeSet<String>,
) -> PendingEvents {
    let Some(finished) = &job.finished else { return PendingEvents::new() };
    let phases = |sink: &String| {
        let mut phases = Vec::new();
        if job.started.is_some() && !notified.contains(sink) {
            phases.push(JobPhase::Started);
        }
        phases.push(finished.outcome.into());
        phases
    };
    sinks.into_iter().map(|sink| (sink.clone(), phases(sink))).collect()
}

/// The labels of a Job that its manifest and CloudEvents contain: the first ones, as many as memory keeps of every Job
/// ([`SpareLabels::SOME`]), so that they do not depend on which policies there are.
pub(crate) fn labels_of(job: &JobSnapshot) -> BTreeMap<String, String> {
    let SpareLabels { entries, bytes: mut room } = SpareLabels::SOME;
    let fits = |(key, value): &(&String, &String)| {
        room = room.saturating_sub(key.len() + value.len());
        room > 0
    };
    job.labels
        .iter()
        .take(entries)
        .take_while(fits)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}
