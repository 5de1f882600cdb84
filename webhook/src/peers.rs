//! Asks another replica to decide about a review, as the apiserver would have asked it.
//!
//! Where several replicas write one ledger, most of their writes come too late; so all but one pass on what they are asked
//! ([`crate::ledger::turns::leader`]). Nothing depends on it: whoever gets no answer decides itself, and to the ledger the
//! two are calls of their own.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::{Request, header::CONTENT_TYPE};
use job_handler_shared::keys;
use kube::{Client, Config, client::Body};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use tokio::sync::watch;

use crate::{
    answer::{Answer, Denial},
    metrics::Outcome,
    mirror::causes,
};

/// Within this time an answer is awaited; under load decisions take some 100 ms.
const PATIENCE: Duration = Duration::from_millis(500);
/// What a decision leaves of its caller's time; see the limiter.
const MARGIN: Duration = Duration::from_millis(300);
/// Whoever gave no answer is left alone for this long.
const AWAY: Duration = Duration::from_secs(5);
/// So many are remembered. Replicas come and go with addresses of their own.
const REMEMBERED: usize = 16;

/// The way to other replicas.
pub struct Peers {
    /// What they all go by.
    server_name: String,
    /// The CAs that sign what they show.
    bundle: watch::Receiver<Option<String>>,
    peers: Mutex<HashMap<SocketAddr, Peer>>,
}

struct Peer {
    bundle: String,
    client: Client,
    away: Option<Instant>,
}

#[derive(Deserialize)]
struct Review {
    response: Response,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    allowed: bool,
    #[serde(default)]
    status: Status,
    #[serde(default)]
    audit_annotations: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

impl Peers {
    /// Replicas behind the Service of our namespace, that show certificates of these CAs.
    pub fn new(namespace: &str, bundle: watch::Receiver<Option<String>>) -> Self {
        let server_name = format!("{}.{namespace}.svc", keys::APP);
        Self { server_name, bundle, peers: Mutex::default() }
    }

    /// Its decision: allowed, or refused by a limit. None where it gave none, or cannot decide.
    pub async fn ask(
        &self,
        peer: SocketAddr,
        review: &[u8],
        answer_by: Instant,
    ) -> Option<(Answer, Outcome)> {
        let client = self.client(peer)?;
        let patience = PATIENCE.min(answer_by.saturating_duration_since(Instant::now()) / 2);
        let answer = tokio::time::timeout(patience, ask(client, review, patience + MARGIN)).await;
        match answer.unwrap_or_else(|_| Err("no answer in time".to_owned())).and_then(decided) {
            Ok(decided) => Some(decided),
            Err(why) => {
                self.is_away(peer, &why);
                None
            }
        }
    }

    fn client(&self, peer: SocketAddr) -> Option<Client> {
        let bundle = self.bundle.borrow().clone()?;
        let mut peers = self.peers();
        let known = peers.get(&peer);
        if known.and_then(|known| known.away).is_some_and(|since| since.elapsed() < AWAY) {
            return None;
        }
        if let Some(known) = known.filter(|known| known.bundle == bundle) {
            return Some(known.client.clone());
        }
        match connection(peer, &self.server_name, &bundle) {
            Ok(client) => {
                if peers.len() >= REMEMBERED {
                    peers.clear();
                }
                peers.insert(peer, Peer { bundle, client: client.clone(), away: None });
                Some(client)
            }
            Err(why) => {
                tracing::warn!(%peer, "no other replica can be asked: {why}");
                None
            }
        }
    }

    fn is_away(&self, peer: SocketAddr, why: &str) {
        tracing::info!(%peer, "deciding about limits here, as another replica does not: {why}");
        if let Some(known) = self.peers().get_mut(&peer) {
            known.away = Some(Instant::now());
        }
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<SocketAddr, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connection(peer: SocketAddr, server_name: &str, bundle: &str) -> Result<Client, String> {
    let uri = format!("https://{peer}").parse().map_err(|error| format!("{peer}: {error}"))?;
    let roots = CertificateDer::pem_slice_iter(bundle.as_bytes());
    let roots: Result<Vec<_>, _> = roots.map(|root| root.map(|root| root.to_vec())).collect();
    let mut config = Config::new(uri);
    config.root_cert = Some(roots.map_err(|error| format!("the CA: {error}"))?);
    config.tls_server_name = Some(server_name.to_owned());
    config.connect_timeout = Some(PATIENCE);
    config.default_retry = false;
    Client::try_from(config).map_err(|error| error.to_string())
}

async fn ask(client: Client, review: &[u8], timeout: Duration) -> Result<Response, String> {
    let path = format!("{}?timeout={}ms", keys::VALIDATE_HERE_PATH, timeout.as_millis());
    let request = Request::post(path)
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(review.to_vec()))
        .map_err(|error| error.to_string())?;
    let answer = client.send(request).await.map_err(|error| causes(&error))?;
    let status = answer.status();
    let body = answer.into_body().collect_bytes().await.map_err(|error| causes(&error))?;
    if !status.is_success() {
        return Err(format!("HTTP {status}"));
    }
    let review: Review = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    Ok(review.response)
}

fn decided(response: Response) -> Result<(Answer, Outcome), String> {
    let Response { allowed, status, audit_annotations: audit } = response;
    match (allowed, status.code) {
        (true, _) => Ok((Answer::default(), Outcome::Allowed)),
        (false, 403) => {
            let denied = Some(Denial::forbidden(status.message));
            Ok((Answer { denied, audit, ..Answer::default() }, Outcome::Refused))
        }
        // It may be about itself, such as that it cannot reach the apiserver.
        (false, code) => Err(format!("{code}: {}", status.message)),
    }
}
