//! Asks another replica to decide about a review, as the apiserver would have asked it.
//!
//! Where several replicas write one ledger, many of their writes come too late; so all but one pass on what they are asked
//! ([`crate::ledger::write_order::leader`]). What that one answers is as good as an own decision, so it has to show a certificate
//! of our CA. Whoever gets no answer decides itself, and to the ledger the two are calls of their own.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use http::{Request, header::CONTENT_TYPE};
use job_handler_shared::keys;
use kube::{Client, Config, client::Body};
use parking_lot::{Mutex, MutexGuard};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use tokio::{runtime::Handle, sync::watch};

use crate::{
    admission::response::{Answer, Denial},
    cache::reflector::causes,
    ledger::limiter::MARGIN,
    metrics::Outcome,
};

/// Within this time an answer is awaited; under load decisions take some 100 ms.
const PATIENCE: Duration = Duration::from_millis(500);
/// Whoever gave no answer is left alone for this long, and after more failures for longer, up to [`AWAY_MOST`].
const AWAY: Duration = Duration::from_secs(5);
const AWAY_MOST: Duration = Duration::from_secs(80);
/// So many are remembered. Replicas come and go with addresses of their own.
const REMEMBERED: usize = 64;

/// The way to other replicas.
pub struct Peers {
    /// What they all go by.
    server_name: String,
    /// The CAs that sign what they show.
    bundle: watch::Receiver<Option<String>>,
    peers: Mutex<HashMap<SocketAddr, Peer>>,
    /// Runs the connections; who asks may be on a server's thread of its own.
    runtime: Handle,
}

struct Peer {
    bundle: String,
    /// None where it could not be made.
    client: Option<Client>,
    /// Until when it is left alone, and for how long it was.
    away: Option<(Instant, Duration)>,
}

/// What came of asking.
#[derive(Debug)]
pub enum Asked {
    /// It was not asked: it is left alone for now, or cannot be asked.
    Not,
    /// It gave no answer, or cannot decide. It may have granted it all the same, or be about to.
    InVain,
    /// Its decision.
    Decided(Answer, Outcome),
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
    #[serde(default)]
    details: Details,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    #[serde(default)]
    retry_after_seconds: u32,
}

impl Peers {
    /// Replicas behind the Service of our namespace, that show certificates of these CAs. Connections are the current
    /// runtime's.
    pub fn new(namespace: &str, bundle: watch::Receiver<Option<String>>) -> Self {
        let server_name = format!("{}.{namespace}.svc", keys::APP);
        Self { server_name, bundle, peers: Mutex::default(), runtime: Handle::current() }
    }

    /// Asks it about a review that has to be answered by then.
    pub async fn ask(&self, peer: SocketAddr, review: &[u8], answer_by: Instant) -> Asked {
        let Some(client) = self.client(peer) else { return Asked::Not };
        let patience = PATIENCE.min(answer_by.saturating_duration_since(Instant::now()) / 2);
        // It gives up first, and takes back what it granted.
        let answer = tokio::time::timeout(patience, ask(client, review, patience * 3 / 4 + MARGIN)).await;
        match answer.unwrap_or_else(|_| Err("no answer in time".to_owned())).and_then(decided) {
            Ok((answer, outcome)) => {
                self.is_there(peer);
                Asked::Decided(answer, outcome)
            }
            Err(why) => {
                self.is_away(peer, &why);
                Asked::InVain
            }
        }
    }

    fn client(&self, peer: SocketAddr) -> Option<Client> {
        let mut peers = self.peers();
        let known = peers.get(&peer);
        if known.and_then(|known| known.away).is_some_and(|(until, _)| Instant::now() < until) {
            return None;
        }
        let bundle = self.bundle.borrow();
        let bundle = bundle.as_deref()?;
        if let Some(known) = known.filter(|known| known.bundle == bundle) {
            return known.client.clone();
        }
        let away = known.and_then(|known| known.away);
        let _entered = self.runtime.enter();
        let client = connection(peer, &self.server_name, bundle)
            .inspect_err(|why| tracing::warn!(%peer, "no other replica can be asked: {why}"))
            .ok();
        if peers.len() >= REMEMBERED {
            peers.clear();
        }
        peers.insert(peer, Peer { bundle: bundle.to_owned(), client: client.clone(), away });
        client
    }

    fn is_there(&self, peer: SocketAddr) {
        if let Some(known) = self.peers().get_mut(&peer) {
            known.away = None;
        }
    }

    /// Those who were asked at the same time count once.
    fn is_away(&self, peer: SocketAddr, why: &str) {
        let now = Instant::now();
        let mut peers = self.peers();
        let Some(known) = peers.get_mut(&peer) else { return };
        let time = match known.away {
            Some((until, _)) if now < until => return,
            Some((_, before)) => (before * 2).min(AWAY_MOST),
            None => AWAY,
        };
        known.away = Some((now + time, time));
        tracing::info!(%peer, "deciding about limits here for {} s, as another replica does not: {why}", time.as_secs());
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<SocketAddr, Peer>> {
        self.peers.lock()
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
    let denied = match (allowed, status.code) {
        (true, _) => return Ok((Answer::default(), Outcome::Allowed)),
        (false, 403) => (Denial::forbidden(status.message), Outcome::Refused),
        (false, 429) => {
            (Denial::too_many(status.message, status.details.retry_after_seconds), Outcome::Unavailable)
        }
        // It may be about itself, such as that it cannot reach the apiserver.
        (false, code) => return Err(format!("{code}: {}", status.message)),
    };
    Ok((Answer { denied: Some(denied.0), audit, ..Answer::default() }, denied.1))
}
