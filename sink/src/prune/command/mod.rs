//! The `prune` command: deletes all finished Jobs except the newest of each (namespace, label value), once.
//!
//! In: pages of Jobs from the apiserver. Out: deletions, a line per Job and a [`PruneReport`]. Memory is bounded by the
//! Jobs that stay and a few pages. Start with `prune_run`, which connects the parts:
//!
//! | file | holds |
//! | --- | --- |
//! | `options` | options and errors |
//! | `pages` | lists Jobs page by page, each Job once (effects) |
//! | `groups` | the Jobs of each group that stay (pure) |
//! | `candidate` | what is remembered of a Job, and whether it may be deleted (pure) |
//! | `delete` | deletes one Job, if it has not changed (effects) |
//! | `report` | the line per Job and the counts |
//! | `prune_run` | lists, decides, deletes |

mod candidate;
mod delete;
mod groups;
mod options;
mod pages;
mod prune_run;
mod report;

pub(crate) use self::prune_run::prune_until_signal;
pub use self::{
    options::{DryRun, PruneError, PruneOptions},
    prune_run::prune,
    report::PruneReport,
};
