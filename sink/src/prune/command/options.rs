//! Options and errors of the `prune` command.

use std::io;

use job_handler_shared::{kube::error::ApiError, names, policy::cleanup::Keep};

/// Whether Jobs are deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DryRun {
    /// Jobs are deleted.
    #[default]
    None,
    /// Deletions are only planned.
    Client,
    /// The apiserver checks each deletion but does not carry it out.
    Server,
}

/// Options of the `prune` command.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// Label key. Jobs of a namespace with the same value are one group.
    pub group_label: String,
    /// Namespaces to prune; empty = all except the excluded ones.
    pub namespaces: Vec<String>,
    /// Jobs per page of a list.
    pub page: u32,
    /// Jobs of each group to keep; the newest always stays.
    pub keep: Keep,
    /// Whether Jobs are deleted.
    pub dry_run: DryRun,
    /// Also deletes Jobs whose result may still have to be stored.
    pub unharvested: bool,
}

/// Why the command failed. A deletion that fails is counted, and is no such error.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// No Job can have this label key.
    #[error("`{0}` is not a label key: expected [prefix/]name, such as argocd.argoproj.io/instance")]
    Key(String),
    /// The Jobs cannot be listed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The output is closed or full.
    #[error("cannot write the report: {0}")]
    Output(#[from] io::Error),
    /// A signal arrived before the end.
    #[error("{0}: interrupted; Jobs deleted so far stay deleted")]
    Interrupted(String),
}

impl PruneOptions {
    pub(super) fn validate(&self) -> Result<(), PruneError> {
        let key = &self.group_label;
        if is_label_key(key) { Ok(()) } else { Err(PruneError::Key(key.clone())) }
    }
}

/// `k8s.io/apimachinery/pkg/util/validation`, IsQualifiedName.
fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let subdomain = |text: &str| {
        !text.is_empty()
            && text.len() <= 253
            && text.split('.').all(|part| {
                let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                let bytes = part.as_bytes();
                edge(bytes.first())
                    && edge(bytes.last())
                    && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
            })
    };
    !name.is_empty() && names::is_label_value(name) && prefix.is_none_or(subdomain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys_are_validated_as_the_apiserver_does() {
        for key in ["argocd.argoproj.io/instance", "app", "A_b.c-9"] {
            assert!(is_label_key(key), "{key}");
        }
        for key in ["", "/a", "a/", "a b", "A.b/c", "a/b/c", "a=b", "a,b", "!a"] {
            assert!(!is_label_key(key), "{key}");
        }
    }
}
