//! How full each limit is.

use std::sync::Arc;

use job_handler_shared::job::{scope::ScopeKey, snapshot::JobSnapshot};

/// A Job, and the scopes in which it takes a slot with what each holds at most.
pub type Counted = (Arc<JobSnapshot>, Vec<(ScopeKey, u32)>);
