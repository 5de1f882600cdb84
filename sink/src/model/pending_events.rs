//! CloudEvents still to be delivered for a Job that has just finished.

use std::collections::{BTreeMap, BTreeSet};

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    result::pending_events::{JobPhase, PendingEvents},
};

/// Bytes of labels that go along with a Job.
pub(crate) const LABELS_MAX: usize = 16 << 10;

/// What is pending of a Job that has just finished. That it was started comes first, but where it is known that
/// the receiver has been told: `told`.
pub fn pending<'a>(
    job: &JobSnapshot,
    sinks: impl IntoIterator<Item = &'a String>,
    told: &BTreeSet<String>,
) -> PendingEvents {
    let Some(finished) = &job.finished else { return PendingEvents::new() };
    let phases = |sink: &String| {
        let mut phases = Vec::new();
        if job.started.is_some() && !told.contains(sink) {
            phases.push(JobPhase::Started);
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
