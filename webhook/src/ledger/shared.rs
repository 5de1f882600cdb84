//! What all actors of a process share.

use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::Mutex;

use crate::{
    cache::{jobs::JobCache, policies::Policies},
    ledger::{client::LedgerClient, known_ledgers::KnownLedgers, other_webhooks::OtherWebhooks},
    metrics::WebhookMetrics,
};

/// The least time between two consistent reads of a process: they cost the apiserver, so a flood of refusals shares
/// them.
const READ_INTERVAL: Duration = Duration::from_millis(50);

/// Clients, caches and counters that the actors share.
pub struct LedgerContext {
    /// Reads Jobs.
    pub client: Client,
    /// Reads and writes ledgers.
    pub ledger_client: LedgerClient,
    /// The ledgers as they were read, watched or written last.
    pub known_ledgers: KnownLedgers,
    /// How long the apiserver may wait for other webhooks.
    pub other_webhooks: OtherWebhooks,
    /// The watch cache of Jobs.
    pub cache: JobCache,
    /// Limits the rate of consistent reads.
    pub reads: ReadRateLimiter,
    /// Policies and namespaces.
    pub policies: Policies,
    /// job-handler's own namespace, which holds the ledgers and whose Jobs are not limited.
    pub namespace: String,
    /// The metrics of decisions, writes and reads.
    pub metrics: WebhookMetrics,
}

/// Allows one consistent read per 50 ms, in the order of the calls.
#[derive(Debug, Default)]
pub struct ReadRateLimiter(Mutex<Option<Instant>>);

impl ReadRateLimiter {
    /// Waits until the next read may begin.
    pub(crate) async fn acquire(&self) {
        let mut last = self.0.lock().await;
        if let Some(last) = *last {
            tokio::time::sleep_until((last + READ_INTERVAL).into()).await;
        }
        *last = Some(Instant::now());
    }
}
