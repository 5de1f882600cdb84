//! What rustls asks at each handshake: the leaf of the moment.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::leaf::Leaf;

/// Holds the leaf of the moment; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Current(Arc<ArcSwapOption<Leaf>>);

impl Current {
    /// Serves `leaf` from the next handshake on. Connections that are open stay.
    pub(crate) fn set(&self, leaf: Leaf) {
        self.0.store(Some(Arc::new(leaf)));
    }

    /// The leaf of now.
    pub(crate) fn leaf(&self) -> Option<Arc<Leaf>> {
        self.0.load_full()
    }

    /// What a handshake shows now.
    pub(crate) fn shown(&self) -> Option<Arc<CertifiedKey>> {
        self.0.load().as_ref().map(|leaf| leaf.key.clone())
    }

    /// A server that shows it. No client certificates: the apiserver's identity is not what admission rests on.
    pub(crate) fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        Ok(ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone())))
    }
}

impl ResolvesServerCert for Current {
    /// None (the handshake is refused) until there is a leaf.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown()
    }
}
