//! Whether the webhook entries of the policies are in place.

use std::collections::BTreeMap;

/// The webhook entries as the enforcing task last saw them; policy conditions report it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct EntryState {
    /// Policy uid -> generation whose entries are in place.
    pub(crate) written: BTreeMap<String, i64>,
    /// Policy uid -> why the entries of this policy are not in place.
    pub(crate) failures: BTreeMap<String, EntryFailure>,
    /// Why no entry could be compared.
    pub(crate) error: Option<String>,
}

/// Reason of entries that the apiserver rejects.
const REJECTED: &str = "EntryRejected";

/// Why the entries of one policy are not in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntryFailure {
    /// Reason of condition `Ready`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl EntryFailure {
    /// They are not written yet, or could not be written.
    pub(crate) fn missing(why: &str) -> Self {
        let message = format!("waiting for the webhook entry of its limits: {why}");
        Self { reason: "EntryMissing", message }
    }

    /// The apiserver rejects them; `why` is its message.
    pub(crate) fn rejected(why: &str) -> Self {
        let message =
            format!("its limits are not enforced, since the apiserver rejects their webhook entry: {why}");
        Self { reason: REJECTED, message }
    }

    pub(crate) fn is_rejected(&self) -> bool {
        self.reason == REJECTED
    }

    /// The configurations have no room for them.
    pub(crate) fn no_room(why: &str) -> Self {
        Self { reason: "NoRoom", message: format!("its limits are not enforced: {why}") }
    }
}
