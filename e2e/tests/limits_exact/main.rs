//! A limit is exact with three replicas that share a ledger: bursts of creates in every way in which Jobs are created, while replicas and the apiserver are killed, paused or unreachable, and while a quota denies admitted Jobs. Checked in the history of all Jobs: at no resourceVersion are more active than the limit allows.
//!
//! Three rounds of each with random limits; `SOAK=1` makes it 20 (`SOAK_ROUNDS=` so many) and writes `e2e/SOAK.md`.
//! `SEED=` repeats the random choices of a run, `VARIANT=` runs one variant alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod burst;
mod clients;
mod disturbance;
mod fixtures;
mod job_runner;
mod soak_report;

use std::time::Instant;

use burst::{Outcome, VARIANTS, Variant};
use disturbance::Disturbance;
use fixtures::Fixture;
use futures::{StreamExt, stream};
use job_handler_e2e::cluster::E2E_KUBECONFIG;

/// Concurrent rounds of the variant that waits for attempts to expire, beside the others.
const BESIDE: usize = 2;

/// Two clusters for all: booting costs more than a burst.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_exact_with_three_replicas() {
    if std::env::var_os(E2E_KUBECONFIG).is_some_and(|path| !path.is_empty()) {
        eprintln!("skipped: it would disturb other users of the cluster of {E2E_KUBECONFIG}");
        return;
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seed = number("SEED").unwrap_or_else(|| rand::random::<u32>().into());
    let soak = number("SOAK").is_some_and(|soak| soak > 0);
    let rounds = match soak {
        true => number("SOAK_ROUNDS").unwrap_or(20),
        false => 3,
    };
    let only = std::env::var("VARIANT").ok();
    let all: Vec<_> = VARIANTS
        .iter()
        .filter(|variant| only.as_ref().is_none_or(|only| only == variant.name))
        .flat_map(|variant| (0..rounds).map(move |round| (variant, seed.wrapping_add(round))))
        .collect();
    let (waiting, rest): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(variant, _)| variant.disturbance == Disturbance::QuotaDenies);
    let (restarts, others) =
        rest.into_iter().partition(|(variant, _)| variant.disturbance == Disturbance::ApiserverRestarted);
    println!("SEED={seed}, {rounds} rounds of each");

    let begun = Instant::now();
    // One after the other: a burst has the cluster to itself, and their troubles do not mix. Where the apiserver is
    // restarted most of the time is spent waiting for attempts to run out: that has a cluster of its own, beside.
    let together = async {
        let fixture = Fixture::start().await;
        let (mut outcomes, beside) =
            tokio::join!(several(&fixture, others, 1), several(&fixture, waiting, BESIDE));
        outcomes.extend(beside);
        settled(&fixture, outcomes).await
    };
    let alone = async {
        if restarts.is_empty() {
            return Vec::new();
        }
        let fixture = Fixture::start().await;
        settled(&fixture, several(&fixture, restarts, 1).await).await
    };
    let (mut outcomes, restarted) = tokio::join!(together, alone);
    outcomes.extend(restarted);
    let wrong: Vec<String> = outcomes.iter().filter_map(Outcome::wrong).collect();
    let table = soak_report::table(seed, rounds, &outcomes, &wrong);
    println!("{table}\nin {:.0?}", begun.elapsed());
    // Also written on failure, to keep the table of an hour.
    if soak {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/SOAK.md");
        std::fs::write(file, table).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Waits until nothing is left in the ledgers.
async fn settled(fixture: &Fixture, mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
    for outcome in &mut outcomes {
        outcome.settle(fixture).await;
    }
    outcomes
}

async fn several(fixture: &Fixture, rounds: Vec<(&'static Variant, u64)>, at_once: usize) -> Vec<Outcome> {
    let running = rounds.into_iter().map(|(variant, seed)| burst::round(fixture, variant, seed));
    stream::iter(running).buffer_unordered(at_once).collect().await
}
