//! The CA's Secret: made once, by whichever replica comes first, and adopted by the others.

use job_handler_shared::kube::error::{ApiError, call};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, api::PostParams};
use time::OffsetDateTime;

use crate::ca::{self, Authority, CaError};

/// How often a Secret that appears and vanishes under us is looked at again within one turn.
const ROUNDS: usize = 3;

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The apiserver.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The namespace is not there.
    #[error("namespace {0} does not exist: apply manifests/base, or name the right one with --namespace")]
    NoNamespace(String),
    /// The Secret is there and cannot be used; it is left alone.
    #[error(
        "Secret {namespace}/{name} cannot be used as the CA: {source}. It is left as it is; put a CA into it \
         (tls.crt, tls.key, ca.crt), or let a new one be made: kubectl -n {namespace} delete secret {name}"
    )]
    Unusable {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: CaError,
    },
    /// No CA could be made.
    #[error(transparent)]
    Make(CaError),
}

/// The Secret `namespace/name`.
#[derive(Clone)]
pub struct CaSecret {
    pub(crate) api: Api<Secret>,
    namespace: String,
    pub(crate) name: String,
}

impl CaSecret {
    /// Reads and writes through `client`.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The CA that is there.
    ///
    /// # Errors
    /// Where the Secret cannot be read or used.
    pub async fn read(&self, now: OffsetDateTime) -> Result<Option<Authority>, SecretError> {
        let what = &format!("get Secret {}/{}", self.namespace, self.name);
        let Some(secret) = call(what, self.api.get_opt(&self.name)).await? else { return Ok(None) };
        let authority = Authority::from_secret(&secret, now).map_err(|source| SecretError::Unusable {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            source,
        })?;
        Ok(Some(authority))
    }

    /// The CA that is there, or a new one. What `trusted` (PEM) holds stays in a new one's bundle. Where another replica
    /// is quicker, its CA is adopted: the create then conflicts, and nothing is ever overwritten.
    ///
    /// # Errors
    /// Where the Secret cannot be read, made or used.
    pub async fn ensure(&self, trusted: Option<&str>, now: OffsetDateTime) -> Result<Authority, SecretError> {
        let mut lost = None;
        for _ in 0..ROUNDS {
            if let Some(authority) = self.read(now).await? {
                return Ok(authority);
            }
            let secret =
                ca::new_secret(&self.namespace, &self.name, trusted, now).map_err(SecretError::Make)?;
            let what = &format!("create Secret {}/{}", self.namespace, self.name);
            match call(what, self.api.create(&PostParams::default(), &secret)).await {
                Ok(made) => {
                    tracing::info!(namespace = %self.namespace, secret = %self.name, "made a new CA");
                    return Authority::from_secret(&made, now).map_err(SecretError::Make);
                }
                Err(error) if error.is_conflict() || error.is_failed_test() => {
                    tracing::info!(secret = %self.name, "another replica made the CA first; adopting it");
                    lost = Some(error);
                }
                Err(error) if error.is_not_found() => {
                    return Err(SecretError::NoNamespace(self.namespace.clone()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        // The loop ends here only after a conflict in each of its rounds.
        Err(lost.map_or_else(|| SecretError::NoNamespace(self.namespace.clone()), SecretError::Api))
    }
}
