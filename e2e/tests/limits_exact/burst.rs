//! One burst, and its check against the history.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use job_handler_e2e::etcd_history::{LimitReport, check_limit};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    clients::{Client, Counts, How, Mixed, Wanted},
    disturbance::Disturbance,
    fixtures::{Fixture, PATIENCE},
    job_runner,
};

const CREATES: usize = 200;
const CONNECTIONS: usize = 20;
/// So many Jobs per slot run through the Job controller, the scheduler and a node, which takes them some seconds. The
/// others are run by the test: at a limit of 1 all 200 stand in one line.
const REAL_PER_SLOT: usize = 8;

/// What makes a burst special.
#[derive(Debug)]
pub struct Variant {
    pub name: &'static str,
    how: How,
    mixed: Mixed,
    pub disturbance: Disturbance,
}

const fn variant(name: &'static str, how: How, mixed: Mixed, disturbance: Disturbance) -> Variant {
    Variant { name, how, mixed, disturbance }
}

pub static VARIANTS: [Variant; 10] = [
    variant("creates", How::Create, Mixed::Nothing, Disturbance::None),
    variant("generateName", How::GenerateName, Mixed::Nothing, Disturbance::None),
    variant("server-side apply", How::Apply, Mixed::Nothing, Disturbance::None),
    variant("dry runs mixed in", How::Create, Mixed::DryRuns, Disturbance::None),
    variant("un-suspends mixed in", How::Create, Mixed::Suspended, Disturbance::None),
    variant("a quota denies half of them", How::Create, Mixed::Nothing, Disturbance::QuotaDenies),
    variant("a replica is killed", How::Create, Mixed::Nothing, Disturbance::ReplicaKilled),
    variant("a replica is paused for 3 s", How::Create, Mixed::Nothing, Disturbance::ReplicaPaused),
    variant("the apiserver is restarted", How::Create, Mixed::Nothing, Disturbance::ApiserverRestarted),
    variant("/mutate is unreachable", How::Create, Mixed::Nothing, Disturbance::MutateAway),
];

/// What a round saw.
pub struct Outcome {
    pub variant: &'static Variant,
    pub seed: u64,
    pub max: usize,
    pub took: Duration,
    pub report: LimitReport,
    pub counts: Counts,
    namespace: String,
    begun: Instant,
    from: usize,
}

/// Clients that try again until each Job is created, over so many connections.
pub async fn round(fixture: &Fixture, variant: &'static Variant, seed: u64) -> Outcome {
    // Another stream of choices for each variant.
    let of_its_own = variant.name.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
    let mut random = StdRng::seed_from_u64(seed ^ (of_its_own << 32));
    let max = random.random_range(1..=25);
    let namespace = fixture.namespace().await;
    fixture.limit(&namespace, max).await;
    let real = (REAL_PER_SLOT * max).min(CREATES);
    let wanted: Arc<Vec<Wanted>> = Arc::new(
        (0..CREATES)
            .map(|number| Wanted {
                number,
                real: random.random_range(0..CREATES) < real,
                extra: variant.mixed != Mixed::Nothing && random.random_bool(0.5),
            })
            .collect(),
    );
    let replica = *[0, 1, 2].choose(&mut random).unwrap();
    // Somewhere in the middle.
    let middle = random.random_range(CREATES / 4..CREATES / 2);

    variant.disturbance.prepare(fixture, &namespace).await;
    let from = fixture.history.len();
    let begun = Instant::now();
    let report = || check_limit(&fixture.history.since(from), &namespace, max, CREATES, begun);
    let runner = job_runner::Runner::start(fixture, &namespace, from, random.random());
    let clients = join_all((0..CONNECTIONS).map(|connection| {
        let mut client = Client::new(fixture, &namespace, variant.how, variant.mixed, random.random());
        let mine = wanted.iter().skip(connection).step_by(CONNECTIONS);
        async move {
            for wanted in mine {
                client.make(wanted).await;
            }
            client.counts
        }
    }));
    let disturbance = async {
        let reached = |entries: &[_]| {
            let admitted = check_limit(entries, &namespace, max, CREATES, begun).admitted.len();
            if admitted >= middle { Ok(()) } else { Err(format!("{admitted} were admitted")) }
        };
        fixture.history.wait(from, PATIENCE, "the middle of the burst", reached).await.unwrap();
        variant.disturbance.apply(fixture, &namespace, replica).await;
    };
    let (counts, ()) = tokio::join!(clients, disturbance);
    let took = begun.elapsed();
    fixture
        .history
        .wait(from, PATIENCE, "all of them to finish", |entries| {
            let finished = check_limit(entries, &namespace, max, CREATES, begun).finished.len();
            if finished == CREATES { Ok(()) } else { Err(format!("{finished} of {CREATES} finished")) }
        })
        .await
        .unwrap();
    drop(runner);
    variant.disturbance.undo(fixture, &namespace, replica).await;
    let outcome = Outcome {
        variant,
        seed,
        max,
        took,
        report: report(),
        counts: counts.into_iter().sum(),
        begun,
        from,
        namespace,
    };
    println!("{outcome}");
    outcome
}

impl Outcome {
    /// Waits until nothing is left in the ledger, and judges again.
    pub async fn settle(&mut self, fixture: &Fixture) {
        let judged = |entries: &[_]| check_limit(entries, &self.namespace, self.max, CREATES, self.begun);
        let empty = |entries: &[_]| match judged(entries) {
            report if report.pending == 0 => Ok(report),
            report => Err(format!("{} attempts stand in the ledger of {}", report.pending, self.namespace)),
        };
        self.report =
            fixture.history.wait(self.from, PATIENCE, "the ledger to be empty", empty).await.unwrap();
    }

    /// What is not as it has to be.
    pub fn wrong(&self) -> Option<String> {
        let LimitReport { most, most_at, admitted, longest_idle, longest_attempt, .. } = &self.report;
        // What the ledger holds for what never came it gives back: a minute by every replica's clock, 4 s until one of them
        // turns to it, a look, a write; the rest is for a busy machine.
        const GIVEN_BACK: Duration = Duration::from_secs(75);
        // A ledger that is missing is made after a minute, and a tenant whose attempts come to nothing waits until they have
        // run out; who waits longer waits for nothing.
        const PATIENCE: Duration = Duration::from_secs(120);
        let what = match () {
            () if *most > self.max => {
                format!("{most} active Jobs at resourceVersion {most_at}, allowed are {}", self.max)
            }
            () if admitted.len() != CREATES => format!("{} of {CREATES} Jobs were created", admitted.len()),
            () if *longest_attempt >= GIVEN_BACK => format!("an attempt stood for {longest_attempt:?}"),
            () if *longest_idle >= PATIENCE => "nobody took a free slot".to_owned(),
            () => return None,
        };
        Some(format!("{self}: {what}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { variant, seed, max, took, report, counts, .. } = self;
        let LimitReport { most, events, ledger_writes, filled_after, longest_idle, longest_attempt, .. } =
            report;
        write!(
            f,
            "{} (round {seed}): at most {most} active of {max} in {events} events; {CREATES} created in {took:.1?}, \
             the first {max} within {:.1?}; a free slot was idle for {longest_idle:.1?} at most, an attempt stood for \
             {longest_attempt:.1?}; {ledger_writes} ledger writes; {counts}",
            variant.name,
            filled_after.unwrap_or_default(),
        )
    }
}
