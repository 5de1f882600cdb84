//! Chaos: clients do everything that people do to Jobs, under four limits of three scopes, while webhooks and API
//! servers are killed and paused. At every write of a Job in etcd's history, no limit is exceeded.
//!
//! `fixtures.rs` starts the cluster and names the limits; `load.rs` has the clients and `job_bodies.rs` their Jobs;
//! `outages.rs` kills and pauses; `slot_check.rs` (pure) counts; `figures.rs` has what a run reports.
//!
//! Without `SOAK=1`, 25 s with one API server. With it, 30 minutes each (or `SOAK_SECONDS`), also with three.

mod figures;
mod fixtures;
mod job_bodies;
mod load;
mod outages;
mod slot_check;

use std::time::Duration;

use job_handler_e2e::cluster::E2E_KUBECONFIG;

/// The length of a run that is no soak.
const SHORT: Duration = Duration::from_secs(25);
const SOAK: Duration = Duration::from_secs(30 * 60);

#[tokio::test(flavor = "multi_thread")]
async fn one_apiserver() {
    let soak = crate::number("SOAK").is_some_and(|soak| soak > 0);
    run(1, soak).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_apiservers() {
    if crate::number("SOAK").is_none_or(|soak| soak == 0) {
        eprintln!("skipped: only with SOAK=1");
        return;
    }
    run(3, true).await;
}

async fn run(apiservers: usize, soak: bool) {
    if std::env::var_os(E2E_KUBECONFIG).is_some_and(|path| !path.is_empty()) {
        eprintln!("skipped: it would disturb other users of the cluster of {E2E_KUBECONFIG}");
        return;
    }
    let _alone = crate::ONE_CLUSTER.lock().await;
    let length = if soak { crate::number("SOAK_SECONDS").map_or(SOAK, Duration::from_secs) } else { SHORT };
    let seed = crate::number("SEED").unwrap_or_else(|| rand::random::<u32>().into());
    println!("SEED={seed}, {length:?} with {apiservers} API servers");
    let figures = fixtures::ChaosFixture::start(apiservers).await.run(seed, length, soak).await;
    println!("{figures}");
    if soak {
        figures.write();
    }
    let failures = figures.failures();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
