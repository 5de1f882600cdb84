//! Kills and pauses webhooks and API servers, one at a time, at random moments.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use job_handler_e2e::Component;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio_util::sync::CancellationToken;

use super::fixtures::ChaosFixture;

/// Promise 1 holds while no API server pauses for longer than 20 s between admission and its write.
const PROMISED_PAUSE: Duration = Duration::from_secs(20);

/// How often something is down, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct OutageRhythm {
    /// All is up for this time. Long enough that no request meets two long pauses before its write.
    pub gap_ms: (u64, u64),
    /// The longest pause of an API server.
    pub apiserver_pause_ms: u64,
    /// The longest pause of a webhook.
    pub webhook_pause_ms: u64,
}

impl OutageRhythm {
    /// Of a run of minutes.
    pub const SOAK: Self =
        Self { gap_ms: (6_000, 14_000), apiserver_pause_ms: 19_000, webhook_pause_ms: 40_000 };
    /// Of a run of seconds.
    pub const SHORT: Self =
        Self { gap_ms: (1_500, 3_000), apiserver_pause_ms: 2_500, webhook_pause_ms: 3_000 };
}

/// What was down.
#[derive(Clone, Debug, Default)]
pub struct OutageFigures {
    /// By what was done to what.
    pub counts: BTreeMap<&'static str, usize>,
    /// The time with something down, restarts included.
    pub down: Duration,
    /// The longest pause of an API server, as it was.
    pub longest_apiserver_pause: Duration,
}

impl OutageFigures {
    /// The condition of the promise that this run broke, because the machine was too busy to end a pause in time.
    pub fn broken_condition(&self) -> Option<String> {
        let paused = self.longest_apiserver_pause;
        (paused > PROMISED_PAUSE).then(|| {
            format!("an API server paused for {paused:?}, so this run says nothing about the promise")
        })
    }
}

/// Disturbs until it is stopped; everything is up again when it returns.
pub async fn disturb(
    fixture: &ChaosFixture,
    rhythm: OutageRhythm,
    seed: u64,
    stop: &CancellationToken,
) -> OutageFigures {
    let (mut random, mut figures) = (StdRng::seed_from_u64(seed), OutageFigures::default());
    loop {
        // These times are what is tested, not waits for conditions.
        sleep(random.random_range(rhythm.gap_ms.0..=rhythm.gap_ms.1)).await;
        if stop.is_cancelled() {
            return figures;
        }
        let start = Instant::now();
        let what = if random.random_bool(0.5) {
            webhook(fixture, rhythm, &mut random).await
        } else {
            apiserver(fixture, rhythm, &mut random, &mut figures).await
        };
        *figures.counts.entry(what).or_default() += 1;
        figures.down += start.elapsed();
    }
}

async fn webhook(fixture: &ChaosFixture, rhythm: OutageRhythm, random: &mut StdRng) -> &'static str {
    let replicas = fixture.pair.webhooks();
    let replica = &replicas[random.random_range(0..replicas.len())];
    if random.random_bool(0.5) {
        replica.kill().unwrap();
        sleep(random.random_range(0..3_000)).await;
        replica.restart().unwrap();
        return "webhooks killed";
    }
    replica.stop().unwrap();
    sleep(random.random_range(200..=rhythm.webhook_pause_ms)).await;
    replica.cont().unwrap();
    "webhooks paused"
}

async fn apiserver(
    fixture: &ChaosFixture,
    rhythm: OutageRhythm,
    random: &mut StdRng,
    figures: &mut OutageFigures,
) -> &'static str {
    let component = Component::APISERVERS[random.random_range(0..fixture.apiservers)];
    let apiserver = fixture.cluster.component(component).unwrap();
    if random.random_bool(0.5) {
        apiserver.kill().unwrap();
        sleep(random.random_range(0..2_000)).await;
        apiserver.restart().await.unwrap();
        return "API servers killed";
    }
    let start = Instant::now();
    apiserver.stop().unwrap();
    sleep(random.random_range(500..=rhythm.apiserver_pause_ms)).await;
    apiserver.cont().unwrap();
    figures.longest_apiserver_pause = figures.longest_apiserver_pause.max(start.elapsed());
    "API servers paused"
}

async fn sleep(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}
