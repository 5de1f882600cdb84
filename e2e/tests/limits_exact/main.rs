//! A limit is exact with three replicas that share a ledger: bursts of creates by every method (create, `generateName`,
//! apply, resume), while replicas and the apiserver are killed, paused or unreachable, and while a quota denies
//! admitted Jobs. The check reads the history of all Jobs in etcd: at no resourceVersion are more active than the limit
//! allows.
//!
//! `chaos/` runs everything at once, for longer.
//!
//! One round of each variant with random limits; `SOAK=1` runs 20 (or `SOAK_ROUNDS`), checks durations too, and writes
//! `e2e/SOAK.md`. `SEED=` repeats the random choices of a run, `VARIANT=` runs one variant alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod burst;
mod chaos;
mod clients;
mod disturbance;
mod fixtures;
mod job_runner;
mod soak_report;

use std::time::Instant;

use burst::{BurstOutcome, BurstVariant, VARIANTS};
use disturbance::BurstDisturbance;
use fixtures::BurstFixture;
use futures::{StreamExt, stream};
use job_handler_e2e::cluster::E2E_KUBECONFIG;

/// One cluster at a time: two on two cores make calls time out.
static ONE_CLUSTER: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Concurrent rounds of the variant that waits for attempts to expire. They run concurrently with the other variants.
const QUOTA_ROUNDS: usize = 2;

/// One cluster for all: booting costs more than a burst.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_exact_with_three_replicas() {
    if std::env::var_os(E2E_KUBECONFIG).is_some_and(|path| !path.is_empty()) {
        eprintln!("skipped: it would disturb other users of the cluster of {E2E_KUBECONFIG}");
        return;
    }
    let _alone = ONE_CLUSTER.lock().await;
    let seed = number("SEED").unwrap_or_else(|| rand::random::<u32>().into());
    let soak = number("SOAK").is_some_and(|soak| soak > 0);
    let rounds = match soak {
        true => number("SOAK_ROUNDS").unwrap_or(20),
        false => 1,
    };
    let only = std::env::var("VARIANT").ok();
    let all: Vec<_> = VARIANTS
        .iter()
        .filter(|variant| only.as_ref().is_none_or(|only| only == variant.name))
        .flat_map(|variant| (0..rounds).map(move |round| (variant, seed.wrapping_add(round))))
        .collect();
    let (quota_rounds, rest): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(variant, _)| variant.disturbance == BurstDisturbance::QuotaDenies);
    let (restarts, others) = rest
        .into_iter()
        .partition(|(variant, _)| variant.disturbance == BurstDisturbance::ApiserverRestarted);
    println!("SEED={seed}, {rounds} rounds of each");

    let start = Instant::now();
    let fixture = BurstFixture::start().await;
    // One after the other, so that disturbances do not affect other bursts. The rounds with a quota mostly wait, and
    // restarts of the apiserver come last.
    let (mut outcomes, quota_outcomes) =
        tokio::join!(run_rounds(&fixture, others, 1), run_rounds(&fixture, quota_rounds, QUOTA_ROUNDS));
    outcomes.extend(quota_outcomes);
    outcomes.extend(run_rounds(&fixture, restarts, 1).await);
    for outcome in &mut outcomes {
        outcome.wait_for_empty_ledger(&fixture).await;
    }
    let failures: Vec<String> = outcomes.iter().filter_map(|outcome| outcome.failure(soak)).collect();
    let table = soak_report::table(seed, rounds, &outcomes, &failures);
    println!("{table}\nin {:.0?}", start.elapsed());
    // Also written on failure, to keep the table of an hour.
    if soak {
        soak_report::write_section(&table);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The number in an environment variable.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect(name))
}

async fn run_rounds(
    fixture: &BurstFixture,
    rounds: Vec<(&'static BurstVariant, u64)>,
    concurrency: usize,
) -> Vec<BurstOutcome> {
    let running = rounds.into_iter().map(|(variant, seed)| burst::round(fixture, variant, seed));
    stream::iter(running).buffer_unordered(concurrency).collect().await
}
