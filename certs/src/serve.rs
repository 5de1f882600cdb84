//! Gives rustls the current leaf at each handshake.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
};

use crate::leaf::Leaf;

/// The current leaf. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct CurrentLeaf(Arc<ArcSwapOption<Leaf>>);

impl CurrentLeaf {
    /// Serves `leaf` from the next handshake on. Open connections are not closed.
    pub(crate) fn set(&self, leaf: Leaf) {
        self.0.store(Some(Arc::new(leaf)));
    }

    pub(crate) fn get(&self) -> Option<Arc<Leaf>> {
        self.0.load_full()
    }

    /// Certificate and key for a handshake.
    pub(crate) fn certified_key(&self) -> Option<Arc<CertifiedKey>> {
        self.0.load().as_ref().map(|leaf| leaf.key.clone())
    }

    /// A TLS server configuration that presents the current leaf. It asks for a client certificate only where there is a
    /// verifier: by default an apiserver has none.
    pub(crate) fn server_config(
        &self,
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<ServerConfig, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?;
        let builder = match clients {
            Some(clients) => builder.with_client_cert_verifier(clients),
            None => builder.with_no_client_auth(),
        };
        Ok(builder.with_cert_resolver(Arc::new(self.clone())))
    }
}

impl ResolvesServerCert for CurrentLeaf {
    /// Without a leaf, the handshake fails.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified_key()
    }
}
