//! The Secret of the CA. The first replica creates it; the others adopt it.

use job_handler_shared::kube::error::{ApiError, call};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, api::PostParams};
use time::OffsetDateTime;

use crate::ca::{self, CaError, CertificateAuthority};

/// Most attempts to read or create a Secret that others create and delete meanwhile.
const MAX_ATTEMPTS: usize = 3;

/// Why there is no usable CA.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// A call to the apiserver failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The namespace does not exist.
    #[error("namespace {0} does not exist: apply manifests/base, or name the right one with --namespace")]
    NoNamespace(String),
    /// The Secret exists but is not a usable CA. It is never overwritten.
    #[error(
        "Secret {namespace}/{name} cannot be used as the CA: {source}. It is not overwritten: put a CA into it \
         (tls.crt, tls.key, ca.crt), or delete it, so that a new one is created: kubectl -n {namespace} delete secret {name}"
    )]
    Unusable {
        /// The Secret's namespace.
        namespace: String,
        /// The Secret's name.
        name: String,
        /// The fault.
        source: CaError,
    },
    /// A CA cannot be created.
    #[error(transparent)]
    Create(CaError),
}

/// Reads and creates the CA's Secret.
#[derive(Clone)]
pub struct CaSecret {
    pub(crate) api: Api<Secret>,
    namespace: String,
    pub(crate) name: String,
}

impl CaSecret {
    /// The Secret `namespace/name`.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Reads the CA, if the Secret exists.
    ///
    /// # Errors
    /// If the Secret cannot be read or used.
    pub async fn read(&self, now: OffsetDateTime) -> Result<Option<CertificateAuthority>, SecretError> {
        let what = &format!("get Secret {}/{}", self.namespace, self.name);
        let Some(secret) = call(what, self.api.get_opt(&self.name)).await? else { return Ok(None) };
        let authority = CertificateAuthority::from_secret(&secret, now).map_err(|source| {
            SecretError::Unusable { namespace: self.namespace.clone(), name: self.name.clone(), source }
        })?;
        Ok(Some(authority))
    }

    /// Reads the CA, or creates one whose bundle includes `trusted` (PEM). If another replica creates the Secret first, the
    /// create conflicts, and that CA is adopted. An existing Secret is never overwritten.
    ///
    /// # Errors
    /// If the Secret cannot be read, created or used.
    pub async fn ensure(
        &self,
        trusted: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<CertificateAuthority, SecretError> {
        let mut conflict = None;
        for _ in 0..MAX_ATTEMPTS {
            if let Some(authority) = self.read(now).await? {
                return Ok(authority);
            }
            let secret =
                ca::new_secret(&self.namespace, &self.name, trusted, now).map_err(SecretError::Create)?;
            let what = &format!("create Secret {}/{}", self.namespace, self.name);
            match call(what, self.api.create(&PostParams::default(), &secret)).await {
                Ok(created) => {
                    tracing::info!(namespace = %self.namespace, secret = %self.name, "created a new CA");
                    return CertificateAuthority::from_secret(&created, now).map_err(SecretError::Create);
                }
                Err(error) if error.is_conflict() || error.is_failed_test() => {
                    tracing::info!(secret = %self.name, "another replica created the CA first; adopting it");
                    conflict = Some(error);
                }
                Err(error) if error.is_not_found() => {
                    return Err(SecretError::NoNamespace(self.namespace.clone()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        // The loop ends only after a conflict in each attempt.
        Err(conflict.map_or_else(|| SecretError::NoNamespace(self.namespace.clone()), SecretError::Api))
    }
}
