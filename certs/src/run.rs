//! The task that manages the serving certificate: load the source, publish its CA, serve its leaf, wait for a change.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, stream};
use job_handler_shared::process::{failure_log::FailureLog, jitter::Backoff};
use kube::Client;
use rustls::{ServerConfig, pki_types::CertificateDer, server::danger::ClientCertVerifier};
use time::OffsetDateTime;
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    ca::rfc3339,
    client_auth::{ClientAuth, ClientAuthError},
    leaf::{LeafError, ServerNames},
    path_rotation::PathRotation,
    publish::{PathPlan, PublishError, Publisher},
    review_path::ReviewPaths,
    serve::CurrentLeaf,
    source::{CertificateSource, FileSource, LoadedCertificate, SecretSource, SourceError, watch_changes},
};

/// How often the leaf's validity is compared with the wall clock. Timers stop while a machine is suspended, so a leaf that
/// expired meanwhile is replaced at most this long after the machine resumes.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// How often everything is checked again, in case a watch missed an event.
const RESYNC_INTERVAL: Duration = Duration::from_secs(300);
/// Time to collect further changes after the first. It also limits how often our writes compete with those of another
/// program.
const DEBOUNCE: Duration = Duration::from_millis(500);

/// How long the old leaf is still served after the CA of a new one is published: the sink copies the bundle into the webhook
/// entries of the limits, thousands in a large cluster, and every apiserver takes them up.
const TAKE_UP: Duration = Duration::from_secs(5);
/// A replacement of the secret in the paths that is overdue for longer is worth a line in the log: by then a sink that was
/// only restarted has copied the current one.
const OVERDUE: Duration = Duration::from_secs(120);

/// Options of [`start`].
#[derive(Clone, Debug)]
pub struct CertOptions {
    /// Namespace of the CA's Secret and of the Service.
    pub namespace: String,
    /// Name of the CA's Secret.
    pub secret: String,
    /// MutatingWebhookConfiguration to publish the CA in.
    pub mutating_configuration: String,
    /// Names and IP addresses of the server, besides those of its Service.
    pub dns_names: Vec<String>,
    /// How often the secret in the paths of reviews is replaced. Zero: never.
    pub path_interval: Duration,
    /// Which client certificates are accepted. None: clients need none.
    pub clients: Option<ClientAuth>,
}

/// Why certificates cannot be managed.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A bad `--dns-name`.
    #[error("cannot create certificates: {0}")]
    Name(#[from] LeafError),
    /// Client certificates cannot be checked.
    #[error(transparent)]
    Clients(#[from] ClientAuthError),
    /// The TLS library rejects our configuration.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The task panicked.
    #[error("the certificate task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A running certificate manager.
#[derive(Debug)]
pub struct CertHandle {
    config: ServerConfig,
    current: CurrentLeaf,
    published: watch::Receiver<bool>,
    paths: ReviewPaths,
    task: JoinHandle<()>,
}

impl CertHandle {
    /// TLS configuration of a server that presents the current leaf at each handshake.
    pub fn server_config(&self) -> ServerConfig {
        self.config.clone()
    }

    /// Which paths of reviews are valid.
    pub fn review_paths(&self) -> ReviewPaths {
        self.paths.clone()
    }

    /// Whether the CA is published in the MutatingWebhookConfiguration.
    pub fn published(&self) -> watch::Receiver<bool> {
        self.published.clone()
    }

    /// A function that returns when the served certificate expires (Unix time in seconds), or none without a certificate.
    pub fn expiry(&self) -> impl Fn() -> Option<i64> + Send + Sync + 'static {
        let current = self.current.clone();
        move || current.get().map(|leaf| leaf.not_after().unix_timestamp())
    }

    /// Waits for the task, which ends when the shutdown token is cancelled.
    ///
    /// # Errors
    /// If the task panicked. The process should exit.
    pub async fn join(self) -> Result<(), CertError> {
        Ok(self.task.await?)
    }
}

/// Manages a certificate from the CA in a Secret until `shutdown`, on the current runtime. Errors (apiserver unavailable,
/// missing permissions, unusable Secret) are logged and retried. Handshakes fail until there is a leaf.
///
/// # Errors
/// For a name that cannot be in a certificate, or if client certificates cannot be checked.
pub fn start(
    client: Client,
    options: CertOptions,
    shutdown: CancellationToken,
) -> Result<CertHandle, CertError> {
    let names =
        ServerNames::of_service(job_handler_shared::keys::APP, &options.namespace, &options.dns_names)?;
    let source = SecretSource::new(client.clone(), &options.namespace, &options.secret, names);
    let clients = options.clients.as_ref().map(ClientAuth::verifier).transpose()?;
    let publisher = Publisher::new(client, &options.mutating_configuration);
    spawn(source, publisher, PathRotation::new(options.path_interval), clients, shutdown)
}

/// Like [`start`], with certificate files that another program renews. They are reloaded when their content changes.
///
/// # Errors
/// If TLS cannot be set up.
pub fn start_files(
    client: Client,
    files: FileSource,
    mutating_configuration: &str,
    shutdown: CancellationToken,
) -> Result<CertHandle, CertError> {
    let publisher = Publisher::new(client, mutating_configuration);
    spawn(files, publisher, PathRotation::new(Duration::ZERO), None, shutdown)
}

fn spawn(
    source: impl CertificateSource,
    publisher: Publisher,
    rotation: PathRotation,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    shutdown: CancellationToken,
) -> Result<CertHandle, CertError> {
    let current = CurrentLeaf::default();
    let config = current.server_config(clients)?;
    let manager =
        CertificateManager::new(source, publisher, rotation, current.clone(), OffsetDateTime::now_utc);
    let (published, paths) = (manager.published.subscribe(), manager.paths.clone());
    let task = tokio::spawn(async move {
        // None: shut down. There is nothing to clean up.
        let _: Option<()> = shutdown.run_until_cancelled(manager.run()).await;
    });
    Ok(CertHandle { config, current, published, paths, task })
}

#[derive(Debug, thiserror::Error)]
enum ReconcileError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

struct CertificateManager<S, C> {
    source: S,
    publisher: Publisher,
    rotation: PathRotation,
    paths: ReviewPaths,
    current: CurrentLeaf,
    serving: Option<LoadedCertificate>,
    published: watch::Sender<bool>,
    /// The CA that was published last while a leaf of another one is served, and since when.
    taken_up_since: Option<(Option<CertificateDer<'static>>, Instant)>,
    /// The wall clock.
    clock: C,
}

impl<S: CertificateSource, C: Fn() -> OffsetDateTime> CertificateManager<S, C> {
    fn new(source: S, publisher: Publisher, rotation: PathRotation, current: CurrentLeaf, clock: C) -> Self {
        Self {
            source,
            publisher,
            rotation,
            paths: ReviewPaths::default(),
            current,
            serving: None,
            published: watch::Sender::new(false),
            taken_up_since: None,
            clock,
        }
    }

    async fn run(mut self) {
        let configuration = watch_changes(
            self.publisher.api.clone(),
            &self.publisher.name,
            "mutatingwebhookconfigurations.admissionregistration.k8s.io",
        );
        let mut changes = pin!(stream::select(self.source.changes(), configuration));
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
        let (mut failures, mut overdue) = (FailureLog::default(), FailureLog::default());
        loop {
            let pause = match self.reconcile().await {
                Ok(pause) => {
                    backoff.reset();
                    if failures.succeeded() {
                        tracing::info!("certificates work again");
                    }
                    self.log_overdue(&mut overdue);
                    pause
                }
                Err(error) => {
                    let failure = error.to_string();
                    if failures.is_due(&failure) {
                        tracing::warn!("cannot provide certificates, retrying: {failure}");
                    }
                    self.rotation.postpone(Instant::now());
                    backoff.next_pause()
                }
            };
            self.paths.set_wanted_at(self.rotation.wanted_at());
            self.wait(pause, changes.as_mut()).await;
        }
    }

    fn log_overdue(&self, log: &mut FailureLog) {
        let since = self.rotation.wanted_at().filter(|at| at.elapsed() > OVERDUE);
        let held_up = "the secret in the paths of reviews cannot be replaced: webhook entries of limits have another one; \
                       does the sink run, and may it write them? Its log says why";
        match since {
            Some(_) if log.is_due(held_up) => tracing::warn!("{held_up}"),
            Some(_) => {}
            None if log.succeeded() => tracing::info!("the secret in the paths of reviews is replaced again"),
            None => {}
        }
    }

    /// Loads, publishes and serves the certificate. It reads from the apiserver, not from a watch, so that a slow replica
    /// never publishes an older bundle over a newer one. Returns the pause until the next time.
    async fn reconcile(&mut self) -> Result<Duration, ReconcileError> {
        let now = (self.clock)();
        let fresh = self.source.load(now).await?;
        // While the old leaf is valid, a leaf of another CA is not served before that CA is published and taken up. Anything
        // else is served at once, because publishing may fail for a long time.
        let must_wait = |old: &LoadedCertificate| old.issuer != fresh.issuer && now < old.leaf.not_after();
        if !self.serving.as_ref().is_some_and(must_wait) {
            self.serve(fresh.clone());
        }
        self.paths.use_key(&fresh.path_key);
        if let Some(bundle) = &fresh.bundle {
            self.publish(bundle, now).await?;
        }
        self.published.send_replace(true);
        if self.serving.as_ref().is_some_and(must_wait) {
            let known = self.taken_up_since.take().filter(|(issuer, _)| *issuer == fresh.issuer);
            let (_, since) =
                self.taken_up_since.insert(known.unwrap_or((fresh.issuer.clone(), Instant::now())));
            let left = TAKE_UP.saturating_sub(since.elapsed());
            if !left.is_zero() {
                return Ok(left);
            }
        }
        self.serve(fresh);
        Ok(RESYNC_INTERVAL)
    }

    /// Publishes the CA, and a secret in the paths.
    async fn publish(&mut self, bundle: &str, now: OffsetDateTime) -> Result<(), PublishError> {
        let plan = PathPlan {
            keys: self.paths.keys(),
            replace: self.rotation.is_due(Instant::now()),
            now: u64::try_from(now.unix_timestamp()).unwrap_or_default(),
        };
        let unpublished = || _ = self.published.send_replace(false);
        let publication = self.publisher.publish_with_path(bundle, Some(plan), unpublished).await;
        if let Err(PublishError::Missing(_) | PublishError::Empty(_)) = &publication {
            unpublished();
        }
        let publication = publication?;
        if publication.wrote {
            tracing::info!(configuration = %self.publisher.name, "published the CA or another path of reviews");
        }
        if let Some(path) = publication.path {
            self.rotation.record(path, publication.postponed, Instant::now());
            self.paths.accept_since(path.oldest);
            if !publication.older_key_in_use {
                self.paths.retire_older_keys();
            }
        }
        Ok(())
    }

    fn serve(&mut self, fresh: LoadedCertificate) {
        if self.serving.as_ref().is_none_or(|old| !old.leaf.is_same(&fresh.leaf)) {
            tracing::info!(until = %rfc3339(fresh.leaf.not_after()), "serving a new certificate");
            self.current.set(fresh.leaf.clone());
        }
        self.serving = Some(fresh);
    }

    /// Returns after `pause`, after a change, or when the leaf or the secret in the paths is due for renewal.
    async fn wait(&mut self, pause: Duration, mut changes: Pin<&mut (impl Stream<Item = ()> + Send)>) {
        let end = Instant::now() + pause;
        // Outside of the loop, so that suspicions do not put it off.
        let mut clock_check =
            tokio::time::interval_at(Instant::now() + CLOCK_CHECK_INTERVAL, CLOCK_CHECK_INTERVAL);
        loop {
            let end = self.rotation.due_at().map_or(end, |due| due.min(end));
            tokio::select! {
                () = tokio::time::sleep_until(end) => return,
                signs = self.paths.suspected() => {
                    for sign in signs {
                        if self.rotation.suspect(sign, Instant::now()) {
                            tracing::info!("the paths of reviews may have leaked, replacing them soon: {sign}");
                        }
                    }
                }
                Some(()) = changes.next() => {
                    tokio::time::sleep(DEBOUNCE).await;
                    while let Some(Some(())) = changes.next().now_or_never() {}
                    return;
                }
                _ = clock_check.tick() => {
                    if self.source.is_due((self.clock)()) {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
