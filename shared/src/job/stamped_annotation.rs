//! Content of annotation `job-handler/stamped`: what was set, lowered or moved, and by which policy.
//!
//! Users read it: `activeDeadlineSeconds: 9000 -> 7200 (maximum of JobPolicy ci/builds); …`. The webhook reads it too, when
//! it is called again on its own output (`reinvocationPolicy: IfNeeded`, or a copy of a stored Job), since `7200` alone does
//! not show what the author wrote. It trusts an entry only if deciding from it gives the very values that the object has, so
//! that a forged text can say nothing that its author could not have written in `spec`.

use std::fmt;

use crate::policy::range::UNSET;

/// Key of the entry about the TTL.
pub const TTL: &str = "ttlSecondsAfterFinished";
/// Key of the entry about the deadline.
pub const DEADLINE: &str = "activeDeadlineSeconds";
/// Key of the entry about the retries.
pub const BACKOFF: &str = "backoffLimit";
/// Key of the entry about requests and limits of containers.
pub const RESOURCES: &str = "containerResources";
/// Key of the entry about the group.
pub const GROUP: &str = "group";
/// Key of the entry of a Job that should have a group and has none.
pub const NO_GROUP: &str = "no group";
/// Key of the entry of a Job that waits for a slot.
pub use crate::job::queued_entry::QUEUED;
/// Prefix of the keys of entries about labels.
pub const LABEL: &str = "label ";
/// Key of the entry about the author's opt-out.
pub const OPT_OUT: &str = "opted out";
/// Key of the entry of a Job on which nothing had to be set.
pub const NOTHING: &str = "nothing to set";

const ON_BOTH: &str = "on the Job and its pods";
const ON_JOB: &str = "on the Job";
const ON_PODS: &str = "on its pods";

/// Entries of the annotation, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StampedAnnotation(Vec<(String, String)>);

/// A label that the annotation claims was added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedLabel {
    /// Key of the label.
    pub key: String,
    /// Value of the label.
    pub value: String,
    /// Whether it was added to the Job.
    pub on_job: bool,
    /// Whether it was added to the pod template.
    pub on_pods: bool,
}

impl StampedAnnotation {
    /// Parses a text; ignores what is not an entry.
    pub fn parse(text: &str) -> Self {
        Self(
            text.split("; ")
                .filter_map(|entry| entry.split_once(": "))
                .map(|(key, what)| (key.to_owned(), what.to_owned()))
                .collect(),
        )
    }

    /// Sets an entry; keeps its position if it exists.
    pub fn set(&mut self, key: &str, what: impl fmt::Display) {
        let what = what.to_string();
        match self.0.iter_mut().find(|(known, _)| known == key) {
            Some(entry) => entry.1 = what,
            None => self.0.push((key.to_owned(), what)),
        }
    }

    /// Removes an entry.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|(known, _)| known != key);
    }

    /// Whether the entry exists.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(known, _)| known == key)
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text of the annotation.
    pub fn text(&self) -> String {
        let length = self.0.iter().map(|(key, what)| key.len() + what.len() + 4).sum();
        let mut text = String::with_capacity(length);
        for (key, what) in &self.0 {
            let separator = if text.is_empty() { "" } else { "; " };
            for part in [separator, key, ": ", what] {
                text.push_str(part);
            }
        }
        text
    }

    /// Sets the entry about a label.
    pub fn set_label(
        &mut self,
        key: &str,
        value: &str,
        on_job: bool,
        on_pods: bool,
        policy: impl fmt::Display,
    ) {
        let place = match (on_job, on_pods) {
            (true, true) => ON_BOTH,
            (true, false) => ON_JOB,
            (false, _) => ON_PODS,
        };
        self.set(&format!("{LABEL}{key}"), format_args!("{value} {place} ({policy})"));
    }

    /// The value that the author wrote, according to the annotation: `None` without an entry, `Some(None)` for an absent
    /// value.
    pub fn original_value(&self, field: &str) -> Option<Option<i64>> {
        let (_, what) = self.0.iter().find(|(key, _)| key == field)?;
        // `before -> after (why)`, or `before (as stated)`.
        let (before, _) = what.split_once(' ')?;
        if before == UNSET { Some(None) } else { before.parse().ok().map(Some) }
    }

    /// Names of the containers whose requests and limits were set, according to the annotation.
    pub fn claimed_containers(&self) -> impl Iterator<Item = &str> {
        let what = self.0.iter().find(|(key, _)| key == RESOURCES).map_or("", |(_, what)| what.as_str());
        what.split_once(" (").map_or("", |(names, _)| names).split(", ").filter(|name| !name.is_empty())
    }

    /// Entries that `other` does not have in exactly this form.
    pub fn entries_not_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let known = |entry: &&(String, String)| !other.0.contains(entry);
        self.0.iter().filter(known).map(|(key, what)| (key.as_str(), what.as_str()))
    }

    /// Labels that were added, according to the annotation.
    pub fn claimed_labels(&self) -> Vec<ClaimedLabel> {
        let claim = |(key, what): &(String, String)| {
            let key = key.strip_prefix(LABEL)?.to_owned();
            // A label value has no space.
            let (value, place) = what.split_once(' ')?;
            let on_both = place.starts_with(ON_BOTH);
            Some(ClaimedLabel {
                key,
                value: value.to_owned(),
                on_job: on_both || place.starts_with(ON_JOB),
                on_pods: on_both || place.starts_with(ON_PODS),
            })
        };
        self.0.iter().filter_map(claim).collect()
    }
}

impl fmt::Display for StampedAnnotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries_round_trip() {
        let mut explanation = StampedAnnotation::default();
        explanation.set(TTL, "unset -> 86400 (default of JobPolicy ci/builds)");
        explanation.set(DEADLINE, "9000 -> 7200 (maximum of JobPolicy ci/builds)");
        explanation.set_label("example.org/team", "build", true, false, "JobPolicy ci/builds");
        explanation.set_label("empty", "", true, true, "JobPolicy ci/builds");
        let read = StampedAnnotation::parse(&explanation.to_string());
        assert_eq!(read, explanation);
        assert_eq!(read.original_value(TTL), Some(None));
        assert_eq!(read.original_value(DEADLINE), Some(Some(9000)));
        assert_eq!(read.original_value(BACKOFF), None);
        let claimed = read.claimed_labels();
        assert_eq!(
            (claimed[0].value.as_str(), claimed[0].on_job, claimed[0].on_pods),
            ("build", true, false)
        );
        assert_eq!((claimed[1].value.as_str(), claimed[1].on_job, claimed[1].on_pods), ("", true, true));
    }

    proptest! {
        #[test]
        fn any_text_can_be_parsed(text in ".{0,200}") {
            let read = StampedAnnotation::parse(&text);
            let _: (Option<Option<i64>>, Vec<ClaimedLabel>) = (read.original_value(TTL), read.claimed_labels());
            prop_assert_eq!(&StampedAnnotation::parse(&read.to_string()), &read);
        }
    }
}
