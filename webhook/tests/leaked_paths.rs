//! From the ledger to the paths: whoever forges reviews with a leaked secret loses it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; clippy knows only #[test] itself")]

mod apiserver;
mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use apiserver::{LimitsApiserver, TestReplica, attempt, empty, eventually, replica};
use common::policy;
use job_handler_certs::{CertHandle, CertOptions};
use job_handler_shared::{keys, webhook_address};
use job_handler_webhook::{
    admission::leak_signs::report_leaks,
    limit::{Limiter, Verdict},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const CONFIGURATIONS: &str = "mutatingwebhookconfigurations";

/// A webhook that replaces its paths every five minutes, or early.
struct LeakFixture {
    apiserver: Arc<LimitsApiserver>,
    replica: TestReplica,
    certificates: CertHandle,
}

impl LeakFixture {
    /// Starts it and waits until the replacements after the start are over.
    async fn settled() -> Self {
        let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
        let configuration = json!({"metadata": {"name": keys::MUTATING_CONFIGURATION}, "webhooks": [{
            "name": keys::MUTATING_WEBHOOK, "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"url": "https://localhost"}}]});
        apiserver.put(CONFIGURATIONS, configuration);
        let limits = json!({"limits": [{"name": "few", "maxActiveJobs": 100}]});
        let replica = replica(&apiserver, &[policy("builds", limits)]).ready().await;
        let options = CertOptions {
            namespace: keys::NAMESPACE.to_owned(),
            secret: keys::CA_SECRET.to_owned(),
            mutating_configuration: keys::MUTATING_CONFIGURATION.to_owned(),
            dns_names: Vec::new(),
            path_interval: Duration::from_secs(300),
            clients: None,
        };
        let certificates =
            job_handler_certs::start(apiserver.client(), options, CancellationToken::new()).unwrap();
        certificates.published().wait_for(|published| *published).await.unwrap();
        tokio::spawn(report_leaks(replica.limiter.clone(), certificates.review_paths()));
        tokio::time::sleep(Duration::from_secs(60)).await;
        Self { apiserver, replica, certificates }
    }

    fn secret(&self) -> String {
        let found = self.apiserver.get(CONFIGURATIONS, "", keys::MUTATING_CONFIGURATION).unwrap();
        let url = found["webhooks"][0]["clientConfig"]["url"].as_str().unwrap();
        webhook_address::secret(url).unwrap().to_owned()
    }

    /// Reviews of creates that the apiserver never sees.
    async fn forge(&self, count: usize) {
        for n in 0..count {
            let mut attempt = attempt(&format!("ci/forged-{n}"), &n.to_string());
            // The clock of the tasks runs ahead of that of the caller.
            attempt.answer_by = Instant::now() + Duration::from_secs(3600);
            assert_eq!(self.replica.limiter.admit(attempt).await, Verdict::Granted);
        }
        eventually("the ledger to be known", || {
            let known = self.replica.limiter.context().known_ledgers.latest("ci");
            known.is_some_and(|known| known.contents.pending.len() == count)
        })
        .await;
        self.replica.clock.advance(Duration::from_secs(6));
    }
}

#[tokio::test(start_paused = true)]
async fn a_path_is_replaced_at_once_if_more_attempts_than_usual_never_become_jobs() {
    let webhook = LeakFixture::settled().await;
    let (leaked, paths) = (webhook.secret(), webhook.certificates.review_paths());
    // As many as a quota may cause.
    webhook.forge(4).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(webhook.secret(), leaked);
    webhook.forge(5).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(!paths.accepts(&leaked), "it is of no use after two replacements");
    assert!(paths.accepts(&webhook.secret()));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stood_still_replaces_its_paths() {
    let webhook = LeakFixture::settled().await;
    let (leaked, paths) = (webhook.secret(), webhook.certificates.review_paths());
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(!paths.accepts(&leaked));
}
