//! The task that keeps the certificate: load the source, publish its CA, serve its leaf, wait for a reason to look again.

use std::{
    pin::{Pin, pin},
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, stream};
use job_handler_shared::process::{failure_log::FailureLog, jitter::Backoff};
use kube::Client;
use rustls::ServerConfig;
use time::OffsetDateTime;
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    leaf::{LeafError, ServerNames},
    publish::{PublishError, Publisher},
    rfc3339,
    serve::Current,
    source::{self, FileSource, Material, Source, SourceError},
};

/// How often the leaf is held against the wall clock. The timer itself stands still while a machine is suspended, so a
/// leaf that ended meanwhile is replaced at most this long after it wakes up.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
/// How often everything is looked at again, should a watch have missed something.
const RESYNC: Duration = Duration::from_secs(300);
/// After a hint, more of them are waited for; it also bounds how fast we answer somebody who keeps undoing our writes.
const SETTLE: Duration = Duration::from_millis(500);

/// What [`start`] needs to know.
#[derive(Clone, Debug)]
pub struct CertOptions {
    /// Namespace of the CA's Secret and of the Service.
    pub namespace: String,
    /// Name of the CA's Secret.
    pub secret: String,
    /// MutatingWebhookConfiguration that gets the CA.
    pub mutating_configuration: String,
    /// Names and IP addresses that the server goes by, besides those of its Service.
    pub dns_names: Vec<String>,
}

/// Why certificates cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A bad `--dns-name`.
    #[error("cannot make certificates: {0}")]
    Name(#[from] LeafError),
    /// The TLS library does not take our configuration.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The task ended by a panic.
    #[error("the task that keeps the certificates died: {0}")]
    Died(#[from] tokio::task::JoinError),
}

/// A running keeper of certificates.
#[derive(Debug)]
pub struct CertHandle {
    config: ServerConfig,
    current: Current,
    published: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl CertHandle {
    /// A server's TLS configuration, which shows the current leaf at each handshake.
    pub fn server_config(&self) -> ServerConfig {
        self.config.clone()
    }

    /// Whether the CA was written where the apiserver looks for it, and read back.
    pub fn published(&self) -> watch::Receiver<bool> {
        self.published.clone()
    }

    /// What tells, at any time, when the certificate that is served expires: seconds since 1970; nothing while none is.
    pub fn expiry(&self) -> impl Fn() -> Option<i64> + Send + Sync + 'static {
        let current = self.current.clone();
        move || current.leaf().map(|leaf| leaf.not_after().unix_timestamp())
    }

    /// Ends when the shutdown token does.
    ///
    /// # Errors
    /// Where the task died; the process should end too.
    pub async fn join(self) -> Result<(), CertError> {
        Ok(self.task.await?)
    }
}

/// Keeps a certificate from the CA in a Secret until `shutdown`, on the current runtime. Faults (apiserver away, missing
/// rights, a Secret that cannot be used) are told and tried again; nothing is served until there is a leaf.
///
/// # Errors
/// For a name that no certificate can carry.
pub fn start(
    client: Client,
    options: CertOptions,
    shutdown: CancellationToken,
) -> Result<CertHandle, CertError> {
    let names =
        ServerNames::of_service(job_handler_shared::keys::APP, &options.namespace, &options.dns_names)?;
    let source = source::from_secret(client.clone(), &options.namespace, &options.secret, names);
    spawn(source, Publisher::new(client, &options.mutating_configuration), shutdown)
}

/// Like [`start`], from files that somebody else renews; they are read again when their content changes.
///
/// # Errors
/// Where TLS cannot be set up.
pub fn start_files(
    client: Client,
    files: FileSource,
    mutating_configuration: &str,
    shutdown: CancellationToken,
) -> Result<CertHandle, CertError> {
    spawn(files, Publisher::new(client, mutating_configuration), shutdown)
}

fn spawn(
    source: impl Source,
    publisher: Publisher,
    shutdown: CancellationToken,
) -> Result<CertHandle, CertError> {
    let current = Current::default();
    let config = current.server_config()?;
    let keeper = Keeper::new(source, publisher, current.clone(), OffsetDateTime::now_utc);
    let published = keeper.published.subscribe();
    let task = tokio::spawn(async move {
        // None: the token came. There is nothing to put away.
        let _: Option<()> = shutdown.run_until_cancelled(keeper.run()).await;
    });
    Ok(CertHandle { config, current, published, task })
}

/// What can go wrong in one turn.
#[derive(Debug, thiserror::Error)]
enum TurnError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

struct Keeper<S, C> {
    source: S,
    publisher: Publisher,
    current: Current,
    serving: Option<Material>,
    published: watch::Sender<bool>,
    /// The wall clock.
    clock: C,
}

impl<S: Source, C: Fn() -> OffsetDateTime> Keeper<S, C> {
    fn new(source: S, publisher: Publisher, current: Current, clock: C) -> Self {
        Self { source, publisher, current, serving: None, published: watch::Sender::new(false), clock }
    }

    async fn run(mut self) {
        let configuration = source::changes(
            self.publisher.api.clone(),
            &self.publisher.name,
            "mutatingwebhookconfigurations.admissionregistration.k8s.io",
        );
        let mut hints = pin!(stream::select(self.source.hints(), configuration));
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
        let mut failures = FailureLog::default();
        loop {
            let pause = match self.turn().await {
                Ok(()) => {
                    backoff.reset();
                    if failures.succeeded() {
                        tracing::info!("certificates are in order again");
                    }
                    RESYNC
                }
                Err(error) => {
                    let failure = error.to_string();
                    if failures.is_due(&failure) {
                        tracing::warn!("certificates are not in order, retrying: {failure}");
                    }
                    backoff.next_pause()
                }
            };
            self.wait(pause, hints.as_mut()).await;
        }
    }

    /// Brings everything in order, or tells what is in the way. Always from fresh reads, so that a replica that is
    /// behind never publishes an older bundle over a newer one.
    async fn turn(&mut self) -> Result<(), TurnError> {
        let now = (self.clock)();
        let fresh = self.source.load(now).await?;
        // A leaf of another CA has to wait until that CA is published, while there is one that still works. Everything
        // else must not wait: the publishing below may fail for a long time.
        let waits = |old: &Material| old.issuer != fresh.issuer && now < old.leaf.not_after();
        if !self.serving.as_ref().is_some_and(waits) {
            self.serve(fresh.clone());
        }
        if let Some(bundle) = &fresh.bundle {
            let unpublished = || _ = self.published.send_replace(false);
            let wrote = self.publisher.publish(bundle, unpublished).await;
            if let Err(PublishError::Missing(_) | PublishError::Empty(_)) = &wrote {
                unpublished();
            }
            if wrote? {
                tracing::info!(configuration = %self.publisher.name, "published the CA");
            }
        }
        self.serve(fresh);
        self.published.send_replace(true);
        Ok(())
    }

    fn serve(&mut self, fresh: Material) {
        if self.serving.as_ref().is_none_or(|old| !old.leaf.is_same(&fresh.leaf)) {
            tracing::info!(until = %rfc3339(fresh.leaf.not_after()), "serving a new certificate");
            self.current.set(fresh.leaf.clone());
        }
        self.serving = Some(fresh);
    }

    /// Returns after `pause`, on a hint, or when the leaf is due.
    async fn wait(&self, pause: Duration, mut hints: Pin<&mut (impl Stream<Item = ()> + Send)>) {
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return,
                Some(()) = hints.next() => {
                    tokio::time::sleep(SETTLE).await;
                    while let Some(Some(())) = hints.next().now_or_never() {}
                    return;
                }
                () = tokio::time::sleep(CLOCK_CHECK) => {
                    if self.source.is_due((self.clock)()) {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    };

    use futures::stream::BoxStream;
    use http::{Request, Response};
    use kube::client::Body;

    use super::*;
    use crate::{
        ca::{self, Authority},
        leaf::Leaf,
    };

    /// Mints from a CA in memory; hints nothing.
    struct Minting {
        ca: Authority,
        held: Option<Leaf>,
    }

    impl Source for Minting {
        async fn load(&mut self, now: OffsetDateTime) -> Result<Material, SourceError> {
            let names = ServerNames::of_service("s", "ns", &[])?;
            let leaf = match self.held.take().filter(|held| !held.is_due(now)) {
                Some(held) => held,
                None => Leaf::mint(&self.ca, &names, now)?,
            };
            self.held = Some(leaf.clone());
            Ok(Material { leaf, issuer: None, bundle: None })
        }

        fn hints(&self) -> BoxStream<'static, ()> {
            stream::pending().boxed()
        }

        fn is_due(&self, now: OffsetDateTime) -> bool {
            self.held.as_ref().is_none_or(|held| held.is_due(now))
        }
    }

    /// The timers stand still while a machine sleeps; the wall clock does not.
    #[tokio::test(start_paused = true)]
    async fn a_machine_that_slept_for_weeks_wakes_up_valid_within_a_minute() {
        const DAY: i64 = 24 * 3600;
        let start = 1_790_000_000;
        let wall = Arc::new(AtomicI64::new(start));
        let reads = wall.clone();
        let clock = move || OffsetDateTime::from_unix_timestamp(reads.load(Ordering::SeqCst)).unwrap();
        let secret = ca::new_secret("ns", "ca", None, clock()).unwrap();
        let source = Minting { ca: Authority::from_secret(&secret, clock()).unwrap(), held: None };
        // An apiserver that never answers.
        let (service, _handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let publisher = Publisher::new(Client::new(service, "default"), "c");
        let current = Current::default();
        let keeper = Keeper::new(source, publisher, current.clone(), clock);
        let mut published = keeper.published.subscribe();
        let task = tokio::spawn(keeper.run());
        published.wait_for(|published| *published).await.unwrap();

        let serial = || current.shown().unwrap().cert[0].clone();
        let first = serial();
        // A day passes: nothing is due.
        wall.store(start + DAY, Ordering::SeqCst);
        tokio::time::sleep(CLOCK_CHECK * 2).await;
        assert_eq!(serial(), first);
        // Three weeks pass at once.
        wall.store(start + 22 * DAY, Ordering::SeqCst);
        tokio::time::sleep(CLOCK_CHECK + Duration::from_secs(1)).await;
        assert_ne!(serial(), first);
        task.abort();
    }
}
