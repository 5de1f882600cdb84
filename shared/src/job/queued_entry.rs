//! The entry of annotation `job-handler/stamped` about the queue. The webhook writes it when it queues a Job; the sink
//! replaces it when it releases the Job.

/// Key of the entry of a Job that waits for a slot.
pub const QUEUED: &str = "queued";
/// Key of the entry of a Job that was released.
pub(crate) const WAITED: &str = "waited";
/// Text of the entry before the name of the limit.
pub const WAITS: &str = "waits for ";

/// Separates entries.
const SEPARATOR: &str = "; ";

/// Returns what the Job waits for; none if it was not queued.
pub fn waits_for(text: &str) -> Option<&str> {
    let what = text.split(SEPARATOR).find_map(queued)?;
    Some(what.strip_prefix(WAITS).unwrap_or(what))
}

/// The text without the entry; none if it has no other entry.
pub fn without_queued(text: &str) -> Option<String> {
    let left: Vec<&str> = text.split(SEPARATOR).filter(|entry| queued(entry).is_none()).collect();
    let left = left.join(SEPARATOR);
    (!left.is_empty()).then_some(left)
}

/// Replaces the entry for a Job that was released after `waited` (`12s`).
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
    fn only_the_queued_entry_is_read_and_removed() {
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
