//! Leader election by a Lease: only the leader harvests, prunes and writes.
//!
//! A Lease expires when it has not *changed* for its duration on this process's monotonic clock, as in client-go's
//! `leaderelection`. Every write is a replace by resourceVersion, so that only one of two candidates succeeds.
//!
//! No crate is used: those for kube 5 compare the `renewTime` in the Lease with the local wall clock, and so rely on the
//! clocks of different machines being equal. Here, the deadline is observed locally. The Lease's durations are plain
//! seconds, since `kube::core::Duration` panics on overflow.

use std::{sync::Arc, time::Duration};

use job_handler_shared::{
    keys,
    kube::error::{ApiError, call_within},
    process::{admin::ReadyHandle, jitter::jitter},
};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// Others may acquire the Lease when it has not changed for this long.
pub(crate) const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long steps down, well before others can acquire the Lease.
pub(crate) const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between attempts.
pub(crate) const RETRY_PERIOD: Duration = Duration::from_secs(3);
/// Longest wait for the answer to one call: a leader whose connection hangs has time for a second attempt. Not shorter,
/// because a busy apiserver takes seconds, and a leader that gives up reads everything again.
const LEASE_CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause of a leader after a failed attempt.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// A Lease as last read, and when that version was first read, on our clock.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ObservedLease {
    pub(crate) version: String,
    pub(crate) spec: LeaseSpec,
    pub(crate) at: Instant,
}

/// What a candidate does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseAction {
    /// Renews its own Lease.
    Renew,
    /// Acquires a Lease that is free or has expired.
    Acquire,
    /// Waits: another candidate holds the Lease.
    Wait,
}

/// What the candidate `me` does about a Lease at `now`.
pub(crate) fn decide(lease: Option<&ObservedLease>, me: &str, now: Instant) -> LeaseAction {
    let Some(lease) = lease else { return LeaseAction::Acquire };
    let spec = &lease.spec;
    match spec.holder_identity.as_deref() {
        None | Some("") => LeaseAction::Acquire,
        Some(holder) if holder == me => LeaseAction::Renew,
        Some(_) => {
            let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
            let duration = seconds.map_or(LEASE_DURATION, Duration::from_secs);
            if now.saturating_duration_since(lease.at) >= duration {
                LeaseAction::Acquire
            } else {
                LeaseAction::Wait
            }
        }
    }
}

/// Takes part in the election until `shutdown` and reports leadership through `leading`. Releases the Lease at the end,
/// so that the next leader need not wait.
pub(crate) async fn elect(
    client: Client,
    namespace: Arc<str>,
    me: Arc<str>,
    leading: watch::Sender<bool>,
    ready: ReadyHandle,
    shutdown: CancellationToken,
) {
    let mut candidate =
        LeaseCandidate { api: Api::namespaced(client, &namespace), me, observed: None, renewed: None };
    while !shutdown.is_cancelled() {
        let attempt = tokio::time::timeout(candidate.bounded(RENEW_DEADLINE), candidate.attempt());
        let outcome = tokio::select! {
            () = shutdown.cancelled() => break,
            outcome = attempt => outcome,
        };
        let failed = !matches!(outcome, Ok(Ok(())));
        match outcome {
            Ok(Ok(())) => ready.set_ready(),
            Ok(Err(error)) => {
                tracing::warn!("leader election: {error}; retrying");
                if candidate.observed.is_none() {
                    ready.set_not_ready(error.to_string());
                }
            }
            Err(_) => tracing::warn!("leader election: timed out; retrying"),
        }
        report(&leading, candidate.leads(Instant::now()));
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(candidate.pause(failed)) => {}
        }
        // The pause ends no later than the deadline.
        report(&leading, candidate.leads(Instant::now()));
    }
    leading.send_replace(false);
    if candidate.leads(Instant::now())
        && let Err(error) = candidate.release().await
    {
        tracing::warn!(
            "cannot release the leader Lease, the next leader waits {} s: {error}",
            LEASE_DURATION.as_secs()
        );
    }
}

fn report(leading: &watch::Sender<bool>, leads: bool) {
    let changed = leading.send_if_modified(|before| std::mem::replace(before, leads) != leads);
    match (changed, leads) {
        (true, true) => tracing::info!("became the leader: this sink harvests, prunes and writes"),
        (true, false) => {
            tracing::warn!(
                "lost leadership: the Lease could not be renewed in time, or another sink acquired it"
            );
        }
        (false, _) => {}
    }
}

struct LeaseCandidate {
    api: Api<Lease>,
    me: Arc<str>,
    observed: Option<ObservedLease>,
    /// When the write that renewed it was sent: the deadlines of others begin later.
    renewed: Option<Instant>,
}

impl LeaseCandidate {
    fn leads(&self, now: Instant) -> bool {
        self.renewed.is_some_and(|at| now.saturating_duration_since(at) < RENEW_DEADLINE)
    }

    /// Followers read a bit more often than leaders write, with jitter. A leader's period begins with the call, so that a
    /// slow answer does not delay the next one.
    fn pause(&self, failed: bool) -> Duration {
        match self.renewed {
            None => jitter(RETRY_PERIOD),
            Some(_) if failed => self.bounded(ERROR_PAUSE),
            Some(sent) => self.bounded((sent + RETRY_PERIOD).saturating_duration_since(Instant::now())),
        }
    }

    /// `pause`, but not beyond the renew deadline of a leader.
    fn bounded(&self, pause: Duration) -> Duration {
        let left = self.renewed.map(|at| (at + RENEW_DEADLINE).saturating_duration_since(Instant::now()));
        left.filter(|left| !left.is_zero()).map_or(pause, |left| left.min(pause))
    }

    async fn attempt(&mut self) -> Result<(), ApiError> {
        // A leader knows its Lease, so that it renews by one call. An earlier write of its own may have been stored
        // although its answer was lost: then it has to read.
        if self.leads(Instant::now()) && self.try_write().await? {
            return Ok(());
        }
        let get = self.api.get_opt(keys::LEADER_LEASE);
        let found = call_within(LEASE_CALL_TIMEOUT, "get the leader lease", get).await?;
        self.observe(found.as_ref());
        let acts = decide(self.observed.as_ref(), &self.me, Instant::now()) != LeaseAction::Wait;
        if !acts || !self.try_write().await? {
            self.renewed = None;
        }
        Ok(())
    }

    /// Writes the Lease. Returns whether the version was still the observed one.
    async fn try_write(&mut self) -> Result<bool, ApiError> {
        let now = Instant::now();
        let written = match self.write(self.next_spec()).await {
            Err(error) if error.is_conflict() || error.is_not_found() => return Ok(false),
            written => written?,
        };
        self.observe(Some(&written));
        self.renewed = Some(now);
        Ok(true)
    }

    fn observe(&mut self, lease: Option<&Lease>) {
        let Some(lease) = lease else {
            self.observed = None;
            return;
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.observed.as_ref().is_none_or(|known| known.version != version) {
            let spec = lease.spec.clone().unwrap_or_default();
            self.observed = Some(ObservedLease { version, spec, at: Instant::now() });
        }
    }

    fn next_spec(&self) -> LeaseSpec {
        let time = MicroTime(jiff::Timestamp::now());
        let before = self.observed.as_ref().map(|o| o.spec.clone()).unwrap_or_default();
        let same = before.holder_identity.as_deref() == Some(&*self.me);
        LeaseSpec {
            holder_identity: Some(self.me.to_string()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| same).or_else(|| Some(time.clone())),
            renew_time: Some(time),
            lease_transitions: Some(before.lease_transitions.unwrap_or_default() + i32::from(!same)),
            ..before
        }
    }

    async fn write(&self, spec: LeaseSpec) -> Result<Lease, ApiError> {
        let version = self.observed.as_ref().map(|o| o.version.clone());
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(keys::LEADER_LEASE.into()),
                labels: Some([(keys::COMPONENT.to_owned(), "sink".to_owned())].into()),
                resource_version: version.clone(),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        };
        let params = PostParams::default();
        if version.is_some() {
            let replace = self.api.replace(keys::LEADER_LEASE, &params, &lease);
            call_within(LEASE_CALL_TIMEOUT, "renew the leader lease", replace).await
        } else {
            let create = self.api.create(&params, &lease);
            call_within(LEASE_CALL_TIMEOUT, "create the leader lease", create).await
        }
    }

    async fn release(&self) -> Result<(), ApiError> {
        let Some(observed) = &self.observed else { return Ok(()) };
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            ..observed.spec.clone()
        };
        self.write(spec).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::{process::admin::Readiness, testing::apiserver::Apiserver};
    use proptest::prelude::*;

    use super::*;

    fn held(by: &str, age: u64, now: Instant) -> Option<ObservedLease> {
        let spec = LeaseSpec {
            holder_identity: Some(by.into()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        Some(ObservedLease { version: "1".into(), spec, at: now - Duration::from_secs(age) })
    }

    #[test]
    fn a_lease_is_acquired_when_it_is_free_or_expired() {
        let now = Instant::now() + Duration::from_secs(1000);
        for (lease, expected) in [
            (None, LeaseAction::Acquire),
            (held("", 0, now), LeaseAction::Acquire),
            (held("me", 0, now), LeaseAction::Renew),
            (held("me", 100, now), LeaseAction::Renew),
            (held("other", 0, now), LeaseAction::Wait),
            (held("other", 14, now), LeaseAction::Wait),
            (held("other", 15, now), LeaseAction::Acquire),
        ] {
            assert_eq!(decide(lease.as_ref(), "me", now), expected, "{lease:?}");
        }
    }

    proptest! {
        /// A leader steps down before others can acquire its Lease, whenever they read the renewal.
        #[test]
        fn there_are_never_two_leaders(seen_after in 0u64..5_000, checked_after in 0u64..60_000) {
            let sent = Instant::now();
            let candidate = LeaseCandidate {
                api: Api::namespaced(dummy(), "x"), me: "a".into(), observed: None, renewed: Some(sent),
            };
            let seen = sent + Duration::from_millis(seen_after);
            let spec = LeaseSpec {
                holder_identity: Some("a".into()), lease_duration_seconds: Some(15), ..LeaseSpec::default()
            };
            let observed = ObservedLease { version: "1".into(), spec, at: seen };
            let now = seen + Duration::from_millis(checked_after);
            let acquired = decide(Some(&observed), "b", now) == LeaseAction::Acquire;
            prop_assert!(!(acquired && candidate.leads(now)));
        }
    }

    /// An apiserver that is busy, perhaps with this sink's own reads: a leader that gave up would read everything again.
    #[tokio::test(start_paused = true)]
    async fn a_slow_apiserver_takes_no_leadership_away() {
        let apiserver = Apiserver::default();
        let client = apiserver.slow_client(|_, _| Duration::from_secs(4));
        let (gets, writes) = keeps_the_lease(&apiserver, client).await;
        assert!(gets <= 2 && writes > 100, "a leader renews by one call: {gets} reads, {writes} writes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_lease_is_created_again_by_its_leader() {
        let apiserver = Apiserver::default();
        let server = apiserver.clone();
        let deleted = tokio::spawn(async move {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(50)).await;
                server.remove("leases", "own", keys::LEADER_LEASE);
            }
        });
        keeps_the_lease(&apiserver, apiserver.client()).await;
        deleted.await.unwrap();
    }

    /// Then the stored version is not the one that the leader has seen.
    #[tokio::test(start_paused = true)]
    async fn a_renewal_whose_answer_is_lost_takes_no_leadership_away() {
        let apiserver = Apiserver::default().with_lost_responses(5);
        let (gets, writes) = keeps_the_lease(&apiserver, apiserver.client()).await;
        assert!(gets > 10 && writes > 100, "{gets} reads, {writes} writes");
    }

    /// Leads for ten minutes. Returns how many reads and writes that took.
    async fn keeps_the_lease(apiserver: &Apiserver, client: Client) -> (usize, usize) {
        let (leading, mut leads) = watch::channel(false);
        let (shutdown, ready) = (CancellationToken::new(), Readiness::default().register("lease"));
        let election = elect(client, "own".into(), "a".into(), leading, ready, shutdown.clone());
        let election = tokio::spawn(election);
        let first = tokio::time::timeout(Duration::from_secs(60), leads.wait_for(|leads| *leads)).await;
        drop(first.expect("it never leads").unwrap());
        let lost = tokio::time::timeout(Duration::from_secs(600), leads.wait_for(|leads| !leads)).await;
        assert!(lost.is_err(), "the Lease was lost");
        shutdown.cancel();
        election.await.unwrap();
        (apiserver.gets("leases"), apiserver.writes())
    }

    fn dummy() -> Client {
        let _guard = RUNTIME.enter();
        let (service, _handle) =
            tower_test::mock::pair::<http::Request<kube::client::Body>, http::Response<kube::client::Body>>();
        Client::new(service, "x")
    }

    static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> =
        std::sync::LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());
}
