//! Every write of Jobs and ledgers, revision by revision, as etcd stores it.
//!
//! A poll can miss a moment in which one Job too many was active, and a watch through the API server is lost with it:
//! after a restart its watch cache knows nothing from before (410). etcd has every revision. The API server has to
//! store objects as JSON for this: start the cluster with [`STORE_JSON`].
//!
//! [`History::start`] (`history.rs`, read it first) follows etcd's watch (`etcd.rs`) and collects [`HistoryEntry`]s
//! (`object_change.rs`); [`check_limit`] (`limit_check.rs`, pure) derives from them whether a limit was ever exceeded.
//!
//! [`follow_writes`] passes each write on and keeps none.
//!
//! [`copy_job`] writes to etcd: thousands of large Jobs, for tests of what they cost others.

mod copies;
mod etcd;
mod history;
mod limit_check;
mod object_change;

pub use copies::copy_job;
pub use history::{History, HistoryReader, STORE_JSON, follow_writes};
pub use limit_check::{LimitReport, check_limit};
pub use object_change::{HistoryEntry, NUMBER, ObjectChange, StoredJobState, StoredWrite};
