//! The proxy that tests start, and its certificates.

use std::net::Ipv4Addr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;

use crate::harness::background_server::BackgroundServer;
use crate::harness::error::{Error, Result};
use crate::harness::kubeconfig;
use crate::net::fault_proxy::forward::{self, Upstream};
use crate::net::fault_proxy::proxy_state::{ProxyState, RecordedWrite};
use crate::net::fault_proxy::rule::{FaultCount, Rule};
use crate::net::fault_proxy::streams::DroppedEvents;

/// A running proxy. It ends when it is dropped.
/// It runs on its own thread, so that it outlives the runtime of the test that started it.
#[derive(Debug)]
pub struct FaultProxy {
    ca_pem: String,
    shared: Arc<ProxyState>,
    server: BackgroundServer,
}

impl FaultProxy {
    /// Starts a proxy for the cluster of this configuration, on a free port of loopback.
    ///
    /// # Errors
    /// If no port is free, or the configuration names no CA.
    pub fn start(config: &kube::Config) -> Result<Self> {
        let upstream = Upstream::of(config)?;
        let (ca_pem, tls) = certificates()?;
        let shared = Arc::new(ProxyState::default());
        let theirs = Arc::clone(&shared);
        let serve = |listener| forward::serve(listener, tls, upstream, theirs);
        let server = BackgroundServer::start(Ipv4Addr::LOCALHOST, "the proxy", serve)?;
        Ok(Self { ca_pem, shared, server })
    }

    /// Adds a rule. If several rules match a call, the first one added applies.
    pub fn add(&self, rule: Rule) -> FaultCount {
        let (entry, faulty) = rule.activate();
        self.shared.rules().push(entry);
        faulty
    }

    /// Removes all rules. Hanging calls hang until their caller gives up.
    pub fn clear(&self) {
        self.shared.rules().clear();
    }

    /// Stalls the open watches of this path: their connections stay open, and no event arrives any more. Returns their
    /// number.
    pub fn stall_watches(&self, path: &str) -> usize {
        self.shared.streams.stall(path)
    }

    /// Drops every watch event that contains all of these words, from now on, of open watches too. Returns the count of
    /// dropped events.
    pub fn drop_events(&self, words: &[&str]) -> DroppedEvents {
        self.shared.streams.drop_events(words)
    }

    /// The write calls, in the order in which they were answered.
    pub fn writes(&self) -> Vec<RecordedWrite> {
        self.shared.writes().clone()
    }

    /// A copy of a kubeconfig that goes through the proxy.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn kubeconfig(&self, through: &str) -> Result<String> {
        let mut config: Value = serde_norway::from_str(through)
            .map_err(|error| Error::Invalid(format!("the kubeconfig for the proxy is invalid: {error}")))?;
        for entry in config["clusters"].as_array_mut().into_iter().flatten() {
            entry["cluster"] = kubeconfig::cluster_entry(
                &format!("https://127.0.0.1:{}", self.server.port()),
                self.ca_pem.as_bytes(),
            );
        }
        Ok(config.to_string())
    }
}

/// A new CA, and the TLS configuration of a server with a certificate of it.
fn certificates() -> Result<(String, Arc<ServerConfig>)> {
    let creating =
        |error: rcgen::Error| Error::Invalid(format!("creating the proxy's certificates: {error}"));
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer =
        CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(creating)?).map_err(creating)?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let key = KeyPair::generate().map_err(creating)?;
    let leaf = params.signed_by(&key, &issuer).map_err(creating)?;
    let unusable = |why: String| Error::Invalid(format!("the proxy's certificate: {why}"));
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|why| unusable(why.to_owned()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key))
        .map_err(|error| unusable(error.to_string()))?;
    Ok((issuer.pem(), Arc::new(config)))
}
