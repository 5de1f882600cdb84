//! The one entry of annotation `job-handler/stamped` that both programs write: that a Job waits for a slot.
//!
//! The webhook writes it when it queues a Job, the sink replaces it when it starts the Job.

/// Key of the entry of a Job that waits for a slot.
pub const QUEUED: &str = "queued";
/// Key of the entry of a Job that has waited and was started.
pub const WAITED: &str = "waited";
/// What the entry says before it names the limit.
pub const WAITS: &str = "waits for ";

/// Entries are kept apart by this.
const SEPARATOR: &str = "; ";

/// What the text says the Job waits for; none where nobody queued it.
pub fn waits_for(text: &str) -> Option<&str> {
    let what = text.split(SEPARATOR).find_map(queued)?;
    Some(what.strip_prefix(WAITS).unwrap_or(what))
}

/// The text without the entry; none where nothing is left.
pub fn without_queued(text: &str) -> Option<String> {
    let left: Vec<&str> = text.split(SEPARATOR).filter(|entry| queued(entry).is_none()).collect();
    let left = left.join(SEPARATOR);
    (!left.is_empty()).then_some(left)
}

/// The text of a Job that was started after `waited` (`12s`).
pub fn started(text: &str, waited: &str) -> String {
    let entry = waits_for(text).map(|what| format!("{WAITED}: {waited} for {what}"));
    let left = without_queued(text);
    left.into_iter().chain(entry).collect::<Vec<_>>().join(SEPARATOR)
}

fn queued(entry: &str) -> Option<&str> {
    entry.strip_prefix(QUEUED)?.strip_prefix(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_entry_is_read_and_taken_out() {
        let slot = r#"a slot of limit "few" of JobPolicy ci/q"#;
        let text = format!("group: 7 (by id, JobPolicy ci/q); queued: waits for {slot}; opted out: yes");
        assert_eq!(waits_for(&text), Some(slot));
        assert_eq!(without_queued(&text).unwrap(), "group: 7 (by id, JobPolicy ci/q); opted out: yes");
        let after = started(&text, "12s");
        assert!(after.ends_with(&format!("opted out: yes; waited: 12s for {slot}")), "{after}");
        assert_eq!((waits_for(&after), started(&after, "9s")), (None, after.clone()));
        assert_eq!(without_queued(&format!("queued: waits for {slot}")), None);
        for other in ["", "label queued: x (JobPolicy ci/q)", "was queued: x", "queued"] {
            assert_eq!(waits_for(other), None, "{other}");
        }
    }
}
