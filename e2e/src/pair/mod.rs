//! The pair on a cluster: webhooks and sinks as local processes, installed with `manifests/`, each with only the rights
//! of its own ServiceAccount.
//!
//! [`Pair::install`] (`installed_pair.rs`, read it first) applies the manifests (`install.rs`) and starts the processes
//! (`member.rs`). `manifests.rs` changes the installed objects.

mod install;
mod installed_pair;
mod manifests;
mod member;
mod options;
mod pods;

pub use installed_pair::Pair;
pub use manifests::{
    allow_metrics_auth, allow_secrets, apply_samples, forbid_secrets, patch_stamping_webhooks, review_path,
};
pub use member::Member;
pub use options::{E2E_WEBHOOK_HOST, PairOptions};
pub use pods::install_in_pods;
