//! The programs that a cluster, the demo and the tests need: found if they are installed, or built once.
//!
//! Start with [`cluster_programs`] in `kubernetes.rs`. [`pair_programs`] builds webhook and sink with cargo; all others
//! are Go programs (`go.rs`) that are stored in the user's cache (`cache.rs`). `builder.rs` runs a builder and prints
//! its progress (`progress.rs`); `cancellable.rs` runs it on a blocking thread and stops it on Ctrl-C.

mod builder;
mod cache;
mod cancellable;
mod cloudevents;
mod go;
mod installed;
mod kubernetes;
mod object_store;
mod pair;
mod progress;
mod prometheus;

pub(crate) use cancellable::run_cancellable;
pub use cloudevents::event_receiver;
pub use kubernetes::{ClusterPrograms, cluster_programs};
pub(crate) use kubernetes::{kubectl, node_binary};
pub use object_store::{VERSITYGW_BIN, object_store};
pub use pair::{PAIR_BIN_DIR, pair_programs};
pub use prometheus::{PROMETHEUS_BIN_DIR, PrometheusTools, prometheus_tools};

use std::path::PathBuf;

use crate::harness::error::{Error, Result};

/// Names a ready binary, as built from `e2e/kubernetes`, that is used for all components.
pub const KUBERNETES_BIN: &str = "JOB_HANDLER_KUBERNETES_BIN";

/// Returns the path that an environment variable names, which must exist.
fn named_by(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from) else {
        return Ok(None);
    };
    match path.canonicalize() {
        Ok(path) => Ok(Some(path)),
        Err(error) => Err(Error::io(format!("{variable} names {}", path.display()))(error)),
    }
}
