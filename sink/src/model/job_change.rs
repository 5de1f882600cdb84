//! A Job's identity and what a watch event changed.

use job_handler_shared::job::group::GroupId;

/// A Job's uid.
pub type Uid = String;

/// Namespace and group: whose Jobs are runs of the same thing.
pub type GroupKey = (String, GroupId);

/// What came of a Job's change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// It was not known before.
    pub new: bool,
    /// It was known, and not finished.
    pub finished_now: bool,
    /// Its group.
    pub group: Option<GroupKey>,
}
