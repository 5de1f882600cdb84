//! Whether the webhook entries of the policies are in place.

use std::collections::BTreeMap;

/// The webhook entries as the enforcing task last saw them; policy conditions report it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct EntryState {
    /// Policy uid -> generation whose entries are in place.
    pub(crate) written: BTreeMap<String, i64>,
    /// Why other entries are not in place.
    pub(crate) error: Option<String>,
}
