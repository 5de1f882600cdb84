//! One burst, and its check against the history.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use job_handler_e2e::etcd_history::{LimitReport, check_limit};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    clients::{BurstJob, Client, ClientErrors, CreateMethod, ExtraSteps},
    disturbance::BurstDisturbance,
    fixtures::{BurstFixture, PATIENCE},
    job_runner,
};

const CREATES: usize = 200;
const CONNECTIONS: usize = 20;
/// Jobs per slot that the Job controller, the scheduler and a node run, which takes some seconds each. The test
/// completes all others, because at a limit of 1 all 200 Jobs run one after the other.
const REAL_PER_SLOT: usize = 8;

/// How Jobs are created in a burst, and what disturbs it.
#[derive(Debug)]
pub struct BurstVariant {
    pub name: &'static str,
    method: CreateMethod,
    extra_steps: ExtraSteps,
    pub disturbance: BurstDisturbance,
    /// Policies with the same limit: for each of them the apiserver asks a replica about every create.
    policies: usize,
}

const fn variant(
    name: &'static str,
    method: CreateMethod,
    extra_steps: ExtraSteps,
    disturbance: BurstDisturbance,
) -> BurstVariant {
    BurstVariant { name, method, extra_steps, disturbance, policies: 1 }
}

pub static VARIANTS: [BurstVariant; 11] = [
    variant("creates", CreateMethod::Create, ExtraSteps::None, BurstDisturbance::None),
    variant("generateName", CreateMethod::GenerateName, ExtraSteps::None, BurstDisturbance::None),
    variant("server-side apply", CreateMethod::Apply, ExtraSteps::None, BurstDisturbance::None),
    BurstVariant {
        policies: 3,
        ..variant("three policies", CreateMethod::Create, ExtraSteps::None, BurstDisturbance::None)
    },
    variant("dry runs mixed in", CreateMethod::Create, ExtraSteps::DryRuns, BurstDisturbance::None),
    variant("un-suspends mixed in", CreateMethod::Create, ExtraSteps::Suspended, BurstDisturbance::None),
    variant(
        "a quota denies half of the Jobs",
        CreateMethod::Create,
        ExtraSteps::None,
        BurstDisturbance::QuotaDenies,
    ),
    variant("a replica is killed", CreateMethod::Create, ExtraSteps::None, BurstDisturbance::ReplicaKilled),
    variant(
        "a replica is paused for 3 s",
        CreateMethod::Create,
        ExtraSteps::None,
        BurstDisturbance::ReplicaPaused,
    ),
    variant(
        "the apiserver is restarted",
        CreateMethod::Create,
        ExtraSteps::None,
        BurstDisturbance::ApiserverRestarted,
    ),
    variant(
        "/mutate is unreachable",
        CreateMethod::Create,
        ExtraSteps::None,
        BurstDisturbance::MutateUnreachable,
    ),
];

/// The outcome of one round.
pub struct BurstOutcome {
    pub variant: &'static BurstVariant,
    pub seed: u64,
    pub max: usize,
    pub took: Duration,
    pub report: LimitReport,
    pub errors: ClientErrors,
    namespace: String,
    start: Instant,
    from: usize,
}

/// Runs one burst: the clients retry until all Jobs are created.
pub async fn round(fixture: &BurstFixture, variant: &'static BurstVariant, seed: u64) -> BurstOutcome {
    // Each variant has its own random choices.
    let variant_seed = variant.name.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
    let mut random = StdRng::seed_from_u64(seed ^ (variant_seed << 32));
    let max = random.random_range(1..=25);
    let namespace = fixture.namespace().await;
    fixture.limit(&namespace, max, variant.policies).await;
    let real = (REAL_PER_SLOT * max).min(CREATES);
    let jobs: Arc<Vec<BurstJob>> = Arc::new(
        (0..CREATES)
            .map(|number| BurstJob {
                number,
                real: random.random_range(0..CREATES) < real,
                extra: variant.extra_steps != ExtraSteps::None && random.random_bool(0.5),
            })
            .collect(),
    );
    let replica = *[0, 1, 2].choose(&mut random).unwrap();
    // The number of admitted Jobs at which the disturbance starts.
    let middle = random.random_range(CREATES / 4..CREATES / 2);

    variant.disturbance.prepare(fixture, &namespace).await;
    let from = fixture.history.len();
    let start = Instant::now();
    let report = || check_limit(&fixture.history.since(from), &namespace, max, CREATES, start);
    let runner = job_runner::Runner::start(fixture, &namespace, from, random.random());
    let clients = join_all((0..CONNECTIONS).map(|connection| {
        let mut client =
            Client::new(fixture, &namespace, variant.method, variant.extra_steps, random.random());
        let own_jobs = jobs.iter().skip(connection).step_by(CONNECTIONS);
        async move {
            for job in own_jobs {
                client.create(job).await;
            }
            client.errors
        }
    }));
    let disturbance = async {
        let reached = |entries: &[_]| {
            let admitted = check_limit(entries, &namespace, max, CREATES, start).admitted.len();
            if admitted >= middle { Ok(()) } else { Err(format!("{admitted} are admitted")) }
        };
        fixture.history.wait(from, PATIENCE, "the middle of the burst", reached).await.unwrap();
        variant.disturbance.apply(fixture, &namespace, replica).await;
    };
    let (errors, ()) = tokio::join!(clients, disturbance);
    let took = start.elapsed();
    fixture
        .history
        .wait(from, PATIENCE, "all Jobs to finish", |entries| {
            let finished = check_limit(entries, &namespace, max, CREATES, start).finished.len();
            if finished == CREATES { Ok(()) } else { Err(format!("{finished} of {CREATES} finished")) }
        })
        .await
        .unwrap();
    drop(runner);
    variant.disturbance.undo(fixture, &namespace, replica).await;
    let outcome = BurstOutcome {
        variant,
        seed,
        max,
        took,
        report: report(),
        errors: errors.into_iter().sum(),
        start,
        from,
        namespace,
    };
    println!("{outcome}");
    outcome
}

impl BurstOutcome {
    /// Waits until the ledger is empty, and checks the limit again.
    pub async fn wait_for_empty_ledger(&mut self, fixture: &BurstFixture) {
        let check = |entries: &[_]| check_limit(entries, &self.namespace, self.max, CREATES, self.start);
        let empty = |entries: &[_]| match check(entries) {
            report if report.pending == 0 => Ok(report),
            report => Err(format!("{} attempts are in the ledger of {}", report.pending, self.namespace)),
        };
        self.report =
            fixture.history.wait(self.from, PATIENCE, "the ledger to be empty", empty).await.unwrap();
    }

    /// The first expectation that the round does not meet. `check_durations` is for a machine that does nothing else.
    pub fn failure(&self, check_durations: bool) -> Option<String> {
        let LimitReport { max_active, max_active_revision, admitted, longest_idle, longest_attempt, .. } =
            &self.report;
        // An attempt without a Job expires after a minute by every replica's clock; a replica removes it within 4 s,
        // with a read and a write. The rest is slack for a busy machine.
        const EXPIRES_WITHIN: Duration = Duration::from_secs(75);
        // A missing ledger is created after a minute, and a tenant whose admitted Jobs are not created waits until the
        // attempts expire. A longer wait is an error.
        const MAX_IDLE: Duration = Duration::from_secs(120);
        // Of a create that is refused for one policy nothing stays, whatever the replicas said about the other policies.
        const REFUSED_WITHIN: Duration = Duration::from_secs(15);
        let failure = match () {
            () if self.variant.policies > 1 && *longest_attempt >= REFUSED_WITHIN => {
                format!("an attempt without a Job was in the ledger for {longest_attempt:?}")
            }
            () if *max_active > self.max => {
                format!(
                    "{max_active} active Jobs at resourceVersion {max_active_revision}, the limit is {}",
                    self.max
                )
            }
            () if admitted.len() != CREATES => format!("{} of {CREATES} Jobs were created", admitted.len()),
            () if check_durations && *longest_attempt >= EXPIRES_WITHIN => {
                format!("an attempt was in the ledger for {longest_attempt:?}")
            }
            () if check_durations && *longest_idle >= MAX_IDLE => {
                format!("a free slot was idle for {longest_idle:?}")
            }
            () => return None,
        };
        Some(format!("{self}: {failure}"))
    }
}

impl std::fmt::Display for BurstOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { variant, seed, max, took, report, errors, .. } = self;
        let LimitReport {
            max_active,
            events,
            ledger_writes,
            filled_after,
            longest_idle,
            longest_attempt,
            ..
        } = report;
        write!(
            f,
            "{} (round {seed}): at most {max_active} of {max} active in {events} events; {CREATES} created in {took:.1?}, \
             the first {max} within {:.1?}; a free slot was idle for at most {longest_idle:.1?}, an attempt in the ledger \
             for at most {longest_attempt:.1?}; {ledger_writes} ledger writes; {errors}",
            variant.name,
            filled_after.unwrap_or_default(),
        )
    }
}
