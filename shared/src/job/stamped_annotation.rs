//! The text of annotation `job-handler/stamped`: what was set, clamped or relocated, and by which policy.
//!
//! Written for people: `activeDeadlineSeconds: 9000 -> 7200 (maximum of JobPolicy ci/builds); …`. Also read back: a
//! webhook may be called again on its own output (`reinvocationPolicy: IfNeeded`, copies of stored Jobs), where `7200`
//! alone would not tell what its author wrote. What is read back is only ever believed where deciding from it leads to
//! the very values that the object has; so a forged text says nothing that its author could not have written in `spec`.

use std::fmt;

use crate::policy::range::UNSET;

/// Entry of the TTL.
pub const TTL: &str = "ttlSecondsAfterFinished";
/// Entry of the deadline.
pub const DEADLINE: &str = "activeDeadlineSeconds";
/// Entry of the retries.
pub const BACKOFF: &str = "backoffLimit";
/// Entry of the containers' requests and limits.
pub const RESOURCES: &str = "containerResources";
/// Entry of the group.
pub const GROUP: &str = "group";
/// Entry where a policy asks for a group and the Job has none.
pub const NO_GROUP: &str = "no group";
/// Entry of a Job that waits for a slot.
pub use crate::job::queued_entry::QUEUED;
/// Prefix of the entry of one label.
pub const LABEL: &str = "label ";
/// Entry of the author's opt-out.
pub const OPT_OUT: &str = "opted out";
/// Entry where there was nothing to do.
pub const NOTHING: &str = "nothing to set";

/// Where a stamped label went.
const ON_BOTH: &str = "on the Job and its pods";
const ON_JOB: &str = "on the Job";
const ON_PODS: &str = "on its pods";

/// The entries, in the order they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StampedAnnotation(Vec<(String, String)>);

/// A label that an explanation claims was added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedLabel {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// On the Job.
    pub on_job: bool,
    /// On the pod template.
    pub on_pods: bool,
}

impl StampedAnnotation {
    /// Reads a text; what does not look like an entry is dropped.
    pub fn parse(text: &str) -> Self {
        Self(
            text.split("; ")
                .filter_map(|entry| entry.split_once(": "))
                .map(|(key, what)| (key.to_owned(), what.to_owned()))
                .collect(),
        )
    }

    /// Sets an entry, in its place where there is one.
    pub fn set(&mut self, key: &str, what: impl fmt::Display) {
        let what = what.to_string();
        match self.0.iter_mut().find(|(known, _)| known == key) {
            Some(entry) => entry.1 = what,
            None => self.0.push((key.to_owned(), what)),
        }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|(known, _)| known != key);
    }

    /// Whether there is such an entry.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(known, _)| known == key)
    }

    /// Whether there is none at all.
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

    /// Sets the entry of a label.
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

    /// What the author had written for a field, as claimed: `None` no claim, `Some(None)` nothing.
    pub fn original_value(&self, field: &str) -> Option<Option<i64>> {
        let (_, what) = self.0.iter().find(|(key, _)| key == field)?;
        // `before -> after (why)`, or `before (as stated)`.
        let (before, _) = what.split_once(' ')?;
        if before == UNSET { Some(None) } else { before.parse().ok().map(Some) }
    }

    /// The containers whose requests and limits it claims were set.
    pub fn claimed_containers(&self) -> impl Iterator<Item = &str> {
        let what = self.0.iter().find(|(key, _)| key == RESOURCES).map_or("", |(_, what)| what.as_str());
        what.split_once(" (").map_or("", |(names, _)| names).split(", ").filter(|name| !name.is_empty())
    }

    /// The entries that `other` does not have, word for word.
    pub fn entries_not_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let known = |entry: &&(String, String)| !other.0.contains(entry);
        self.0.iter().filter(known).map(|(key, what)| (key.as_str(), what.as_str()))
    }

    /// The labels it claims were added.
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
    fn reads_what_it_writes() {
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
        fn any_text_is_read(text in ".{0,200}") {
            let read = StampedAnnotation::parse(&text);
            let _: (Option<Option<i64>>, Vec<ClaimedLabel>) = (read.original_value(TTL), read.claimed_labels());
            prop_assert_eq!(&StampedAnnotation::parse(&read.to_string()), &read);
        }
    }
}
