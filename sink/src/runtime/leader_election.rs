//! The leader's Lease: who may harvest, prune and write.
//!
//! Times written by others are never compared with our clock: a Lease is over when it has not *changed* for its
//! duration on our own monotonic clock (as in client-go's `leaderelection`). Every write is a replace by
//! resourceVersion, so that of two who try, one wins.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::process::jitter::jitter;
use job_handler_shared::{keys, process::admin::ReadyHandle};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use job_handler_shared::kube::error::{ApiError, call};

/// Seconds after which others may take the Lease.
pub const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long steps down: well before others take over.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Pause between looks.
pub const RENEW: Duration = Duration::from_secs(3);

/// A Lease as last seen, and when it was first seen so, on our clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// `metadata.resourceVersion`.
    pub version: String,
    /// What it says.
    pub spec: LeaseSpec,
    /// First seen with this version.
    pub at: Instant,
}

/// What to do about a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is ours: renew it.
    Renew,
    /// It is free, or its holder is dead: take it.
    Take,
    /// Somebody holds it.
    Follow,
}

/// What `me` should do about a Lease, `now`.
pub fn decide(lease: Option<&Observed>, me: &str, now: Instant) -> Decision {
    let Some(lease) = lease else { return Decision::Take };
    let spec = &lease.spec;
    match spec.holder_identity.as_deref() {
        None | Some("") => Decision::Take,
        Some(holder) if holder == me => Decision::Renew,
        Some(_) => {
            let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
            let duration = seconds.map_or(DURATION, Duration::from_secs);
            if now.saturating_duration_since(lease.at) >= duration {
                Decision::Take
            } else {
                Decision::Follow
            }
        }
    }
}

/// Takes part in the election until `shutdown`, tells of leadership through `leading`, and gives the Lease back at
/// the end so that the next one takes over at once.
pub async fn elect(
    client: Client,
    namespace: Arc<str>,
    me: Arc<str>,
    leading: watch::Sender<bool>,
    ready: ReadyHandle,
    shutdown: CancellationToken,
) {
    let mut candidate =
        Candidate { api: Api::namespaced(client, &namespace), me, observed: None, renewed: None };
    while !shutdown.is_cancelled() {
        let turn = tokio::time::timeout(candidate.bounded(RENEW), candidate.turn());
        let outcome = tokio::select! {
            () = shutdown.cancelled() => break,
            outcome = turn => outcome,
        };
        match outcome {
            Ok(Ok(())) => ready.set_ready(),
            Ok(Err(error)) => {
                tracing::warn!("leader lease: {error}; trying again");
                if candidate.observed.is_none() {
                    ready.set_not_ready(error.to_string());
                }
            }
            Err(_) => tracing::warn!("leader lease: the apiserver gave no answer in time; trying again"),
        }
        tell(&leading, candidate.leads(Instant::now()));
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(candidate.pause()) => {}
        }
        // The pause ends no later than the deadline.
        tell(&leading, candidate.leads(Instant::now()));
    }
    leading.send_replace(false);
    if candidate.leads(Instant::now())
        && let Err(error) = candidate.release().await
    {
        tracing::warn!("could not give the leader lease back, the next leader waits {DURATION:?}: {error}");
    }
}

fn tell(leading: &watch::Sender<bool>, leads: bool) {
    let changed = leading.send_if_modified(|before| std::mem::replace(before, leads) != leads);
    match (changed, leads) {
        (true, true) => tracing::info!("leading: this sink harvests, prunes and writes"),
        (true, false) => {
            tracing::warn!("not leading any more: the lease could not be renewed in time, or was taken");
        }
        (false, _) => {}
    }
}

struct Candidate {
    api: Api<Lease>,
    me: Arc<str>,
    observed: Option<Observed>,
    /// Taken before the write that renewed it was sent: the others' clocks started later.
    renewed: Option<Instant>,
}

impl Candidate {
    fn leads(&self, now: Instant) -> bool {
        self.renewed.is_some_and(|at| now.saturating_duration_since(at) < DEADLINE)
    }

    /// Followers look a bit more often than leaders write, at uneven times.
    fn pause(&self) -> Duration {
        if self.renewed.is_some() { self.bounded(RENEW) } else { jitter(RENEW) }
    }

    /// `pause`, but not beyond the deadline of a leader.
    fn bounded(&self, pause: Duration) -> Duration {
        let left = self.renewed.map(|at| (at + DEADLINE).saturating_duration_since(Instant::now()));
        left.filter(|left| !left.is_zero()).map_or(pause, |left| left.min(pause))
    }

    async fn turn(&mut self) -> Result<(), ApiError> {
        let found = call("get the leader lease", self.api.get_opt(keys::LEADER_LEASE)).await?;
        self.observe(found.as_ref());
        let now = Instant::now();
        match decide(self.observed.as_ref(), &self.me, now) {
            Decision::Follow => {
                self.renewed = None;
                Ok(())
            }
            Decision::Renew | Decision::Take => {
                let written = match self.write(self.next_spec()).await {
                    // Somebody else was first: look again at the next turn.
                    Err(error) if error.is_conflict() => {
                        self.renewed = None;
                        return Ok(());
                    }
                    written => written?,
                };
                self.observe(Some(&written));
                self.renewed = Some(now);
                Ok(())
            }
        }
    }

    fn observe(&mut self, lease: Option<&Lease>) {
        let Some(lease) = lease else {
            self.observed = None;
            return;
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.observed.as_ref().is_none_or(|known| known.version != version) {
            let spec = lease.spec.clone().unwrap_or_default();
            self.observed = Some(Observed { version, spec, at: Instant::now() });
        }
    }

    fn next_spec(&self) -> LeaseSpec {
        let time = MicroTime(jiff::Timestamp::now());
        let before = self.observed.as_ref().map(|o| o.spec.clone()).unwrap_or_default();
        let same = before.holder_identity.as_deref() == Some(&*self.me);
        LeaseSpec {
            holder_identity: Some(self.me.to_string()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
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
            call("renew the leader lease", self.api.replace(keys::LEADER_LEASE, &params, &lease)).await
        } else {
            call("create the leader lease", self.api.create(&params, &lease)).await
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
    use proptest::prelude::*;

    use super::*;

    fn held(by: &str, age: u64, now: Instant) -> Option<Observed> {
        let spec = LeaseSpec {
            holder_identity: Some(by.into()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        Some(Observed { version: "1".into(), spec, at: now - Duration::from_secs(age) })
    }

    #[test]
    fn table() {
        let now = Instant::now() + Duration::from_secs(1000);
        for (lease, expected) in [
            (None, Decision::Take),
            (held("", 0, now), Decision::Take),
            (held("me", 0, now), Decision::Renew),
            (held("me", 100, now), Decision::Renew),
            (held("other", 0, now), Decision::Follow),
            (held("other", 14, now), Decision::Follow),
            (held("other", 15, now), Decision::Take),
        ] {
            assert_eq!(decide(lease.as_ref(), "me", now), expected, "{lease:?}");
        }
    }

    proptest! {
        /// A leader stops before anybody may take its Lease, whenever each saw the renewal.
        #[test]
        fn never_two_by_the_clock(seen_after in 0u64..5_000, look_at in 0u64..60_000) {
            let sent = Instant::now();
            let candidate = Candidate {
                api: Api::namespaced(dummy(), "x"), me: "a".into(), observed: None, renewed: Some(sent),
            };
            let seen = sent + Duration::from_millis(seen_after);
            let spec = LeaseSpec {
                holder_identity: Some("a".into()), lease_duration_seconds: Some(15), ..LeaseSpec::default()
            };
            let observed = Observed { version: "1".into(), spec, at: seen };
            let now = seen + Duration::from_millis(look_at);
            let taken = decide(Some(&observed), "b", now) == Decision::Take;
            prop_assert!(!(taken && candidate.leads(now)));
        }
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
