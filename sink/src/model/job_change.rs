//! A Job's identity and what a watch event changed.

use job_handler_shared::job::group::GroupId;

/// A Job's uid.
pub type Uid = String;

/// Namespace and group.
pub(crate) type GroupKey = (String, GroupId);

/// What a watch event changed about a Job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobChange {
    /// The Job was not in the cache.
    pub new: bool,
    /// The Job was in the cache and had not finished.
    pub(crate) finished_now: bool,
    /// Its group.
    pub group: Option<GroupKey>,
}
