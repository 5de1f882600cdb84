//! Bounds what memory keeps of a Job: tenants can write a megabyte into the labels and annotations of each.
//!
//! Labels that no policy names are dropped, up to a few that a caller may spare. A trimmed Job remembers by which keys it
//! was trimmed: when policies name further keys, it must not be judged by its labels any more until it was read again
//! ([`JobSnapshot::knows_labels`]).

use std::sync::Arc;

use crate::{job::snapshot::JobSnapshot, keys, policy::label_keys::LabelKeys, text::truncate};

/// Longest text of annotation `job-handler/stamped`, bytes. The webhook's own is longer only for policies that stamp dozens
/// of labels; what is behind this end is lost to the sink.
const MAX_STAMPED: usize = 4 << 10;
/// Most keys and values of labels that policies name, bytes. Usual Jobs have some hundred; a Job with more is not admitted
/// under a limit ([`JobSnapshot::has_cut_labels`]).
pub const MAX_NAMED_LABELS: usize = 4 << 10;
/// Longest value of the other annotations, bytes. They hold a name, a time, a number or a few words: a longer one is none
/// of ours.
const MAX_ANNOTATION: usize = 512;
/// Longest message of the condition that finished the Job, bytes.
const MAX_MESSAGE: usize = 1024;
/// Longest reason of that condition, bytes.
const MAX_REASON: usize = 128;

/// How many labels may stay besides those that policies name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpareLabels {
    /// Their number.
    pub entries: usize,
    /// Their keys and values together, bytes.
    pub bytes: usize,
}

impl SpareLabels {
    /// None.
    pub const NONE: Self = Self { entries: 0, bytes: 0 };
    /// All labels of usual Jobs, which have five to ten.
    pub const SOME: Self = Self { entries: 32, bytes: 2 << 10 };
}

impl JobSnapshot {
    /// Whether all labels with these keys are there.
    pub fn knows_labels(&self, keys: &Arc<LabelKeys>) -> bool {
        self.kept_labels.as_ref().is_none_or(|kept| Arc::ptr_eq(kept, keys) || kept.covers(keys))
    }

    /// Drops the labels that neither `keys` names nor `spare` allows, and bounds what tenants wrote elsewhere.
    pub fn trim(&mut self, keys: &Arc<LabelKeys>, spare: SpareLabels) {
        self.trim_labels(keys, spare);
        self.annotations.retain(|key, value| key == keys::STAMPED || value.len() <= MAX_ANNOTATION);
        if let Some(stamped) = self.annotations.get_mut(keys::STAMPED) {
            cut(stamped, MAX_STAMPED);
        }
        if let Some(finished) = &mut self.finished {
            cut(&mut finished.reason, MAX_REASON);
            cut(&mut finished.message, MAX_MESSAGE);
        }
    }

    fn trim_labels(&mut self, keys: &Arc<LabelKeys>, mut spare: SpareLabels) {
        let before = self.labels.len();
        let mut named = MAX_NAMED_LABELS;
        let keep = |(key, value): &(String, String)| {
            let size = key.len() + value.len();
            if keys.contains(key) {
                let fits = size <= named;
                self.has_cut_labels |= !fits;
                named -= if fits { size } else { 0 };
                return fits;
            }
            let is_spared = spare.entries > 0 && size <= spare.bytes;
            if is_spared {
                spare = SpareLabels { entries: spare.entries - 1, bytes: spare.bytes - size };
            }
            is_spared
        };
        // Collected anew: a map from which most entries are removed keeps their space, half of it in any case.
        self.labels = std::mem::take(&mut self.labels).into_iter().filter(keep).collect();
        if self.labels.len() == before {
            return;
        }
        self.kept_labels = Some(match self.kept_labels.take() {
            // It was trimmed by fewer keys before.
            Some(kept) if !kept.covers(keys) => Arc::new(kept.intersection(keys)),
            _ => keys.clone(),
        });
    }
}

fn cut(text: &mut String, max: usize) {
    truncate(text, max);
    // It would keep the memory of the whole text.
    text.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::{
        job::snapshot::{Finished, Outcome},
        testing::policies::{labels, namespaced},
    };

    fn by(key: &str) -> Arc<LabelKeys> {
        let policy = namespaced("p", json!({"group": {"type": "Labels", "labelKeys": [key]}}));
        Arc::new(LabelKeys::of([&policy.spec]))
    }

    fn job(count: usize) -> JobSnapshot {
        let mut all = labels(&[("app", "build"), ("zone", "1")]);
        all.extend((0..count).map(|n| (format!("l{n:05}"), String::new())));
        JobSnapshot { labels: all, ..JobSnapshot::default() }
    }

    #[test]
    fn of_ten_thousand_labels_only_the_named_and_a_few_others_stay() {
        for (spare, kept) in [(SpareLabels::NONE, 1), (SpareLabels::SOME, 33)] {
            let mut job = job(10_000);
            job.trim(&by("zone"), spare);
            assert_eq!((job.labels.len(), job.labels["zone"].as_str()), (kept, "1"));
            assert!(job.knows_labels(&by("zone")) && !job.knows_labels(&by("app")));
        }
        let mut small = job(10);
        small.trim(&by("zone"), SpareLabels::SOME);
        assert!(small.labels.len() == 12 && small.knows_labels(&by("app")), "nothing was dropped");
        let long = labels(&[("a", &"x".repeat(3000)), ("b", "y")]);
        let mut long = JobSnapshot { labels: long, ..JobSnapshot::default() };
        long.trim(&by("zone"), SpareLabels::SOME);
        assert_eq!(long.labels, labels(&[("b", "y")]));
    }

    #[test]
    fn named_labels_are_kept_up_to_a_bound() {
        let named: BTreeMap<String, String> =
            (0..64).map(|n| (format!("{n:02}{}", "k".repeat(60)), "v".repeat(60))).collect();
        let policy = namespaced("p", json!({"jobSelector": {"matchLabels": named}}));
        let keys = Arc::new(LabelKeys::of([&policy.spec]));
        let mut job = JobSnapshot { labels: named, ..JobSnapshot::default() };
        job.trim(&keys, SpareLabels::SOME);
        let size: usize = job.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert!(job.has_cut_labels && size <= MAX_NAMED_LABELS && size + 122 > MAX_NAMED_LABELS, "{size}");
        assert!(job.knows_labels(&keys), "it is not read again for them");
        let mut usual = JobSnapshot { labels: labels(&[("app", "build")]), ..JobSnapshot::default() };
        usual.trim(&by("app"), SpareLabels::NONE);
        assert!(!usual.has_cut_labels && usual.kept_labels.is_none());
    }

    #[test]
    fn a_job_that_is_trimmed_twice_knows_only_what_both_kept() {
        let mut job = job(10);
        job.trim(&by("zone"), SpareLabels::NONE);
        job.trim(&by("app"), SpareLabels::NONE);
        assert!(job.labels.is_empty());
        assert!(!job.knows_labels(&by("zone")) && !job.knows_labels(&by("app")));
        assert!(job.knows_labels(&Arc::default()));
    }

    #[test]
    fn other_texts_are_bounded() {
        let mut job = JobSnapshot {
            finished: Some(Finished {
                outcome: Outcome::Failed,
                reason: "r".repeat(9000),
                message: "m".repeat(9000),
                at: jiff::Timestamp::UNIX_EPOCH,
            }),
            ..JobSnapshot::default()
        };
        for key in keys::ON_JOBS {
            job.annotations.insert(key.to_owned(), "x".repeat(100_000));
        }
        job.trim(&Arc::default(), SpareLabels::NONE);
        assert_eq!(job.annotations.keys().collect::<Vec<_>>(), [keys::STAMPED]);
        assert_eq!(job.annotations[keys::STAMPED].len(), MAX_STAMPED);
        assert!(job.annotations[keys::STAMPED].capacity() < 2 * MAX_STAMPED, "the memory is free again");
        let finished = job.finished.unwrap();
        assert_eq!((finished.reason.len(), finished.message.len()), (MAX_REASON, MAX_MESSAGE));
        assert!(finished.message.capacity() < 2 * MAX_MESSAGE);
    }
}
