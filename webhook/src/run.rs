//! The process: starts its tasks and ends them.
//!
//! A task that exits early ends the process with an error. On SIGTERM or SIGINT, the process is no longer ready, serves
//! reviews for a while, completes those in flight, deletes its Lease and exits with 0.

use std::{io, sync::Arc, time::Duration};

use job_handler_certs::{CertError, CertOptions, client_auth::ClientAuth};
use job_handler_shared::{
    keys,
    kube::{
        client::{self, ClientError},
        metrics_auth::TokenMetricsAuth,
    },
    process::{
        admin::{self, ListenError, MetricsAuth, Readiness, ReadyHandle},
        supervisor::{ShutdownSignals, Supervisor, TaskError},
        telemetry::Metrics,
    },
};
use tokio::sync::watch;

use crate::{
    admission::{
        job_estimator::JobEstimator, leak_signs::report_leaks, server::serve_webhook, state::WebhookState,
    },
    args::WebhookArgs,
    cache::policies::Policies,
    ledger::{attempt_age::Clock, limiter},
    limit::Limiter,
    metrics::{WebhookMetrics, certificate_expiry::CertificateExpiry, path_overdue::PathOverdue},
    presence_lease::{Liveness, PresenceLease},
    refusal_sender,
};

/// How long tasks may take to end.
const GRACE: Duration = Duration::from_secs(10);

const PROGRAM: &str = "job-handler-webhook";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An error that ends the process.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// An address is in use or forbidden.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// There is no cluster to connect to.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The certificates cannot be managed.
    #[error(transparent)]
    Certificates(#[from] CertError),
    /// A server or a signal handler cannot be set up.
    #[error("{what}: {source}")]
    Io {
        /// What cannot be set up.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A task ended early.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// Runs until a signal, or until a task ends early.
///
/// # Errors
/// If the process cannot start or a task ends early.
pub async fn run(args: WebhookArgs) -> Result<(), WebhookError> {
    // Fails only if a provider was installed before.
    let _: Result<_, _> = rustls::crypto::ring::default_provider().install_default();
    let listener = admin::listen(args.listen, "--listen")?;
    let admin_listener = admin::listen(args.admin_listen, "--admin-listen")?;
    let mut signals = ShutdownSignals::listen().map_err(io("cannot handle signals"))?;
    let registry = Metrics::default();
    let metrics = WebhookMetrics::new(&registry);
    let readiness = Readiness::default();
    let running = readiness.register("running");
    let client = client::build(PROGRAM, VERSION).await?;
    let mut tasks = Supervisor::default();

    let metrics_auth =
        args.metrics_auth.then(|| Arc::new(TokenMetricsAuth::new(client.clone())) as Arc<dyn MetricsAuth>);
    let admin = admin::serve(admin_listener, readiness.clone(), registry.clone(), metrics_auth)
        .map_err(io("cannot start the admin server"))?;
    let admin_handle = admin.handle();
    tasks.spawn_graceful("admin server", |_| admin);

    let options = CertOptions {
        namespace: args.namespace.clone(),
        secret: keys::CA_SECRET.to_owned(),
        mutating_configuration: keys::MUTATING_CONFIGURATION.to_owned(),
        dns_names: args.dns_names.clone(),
        path_interval: Duration::from_secs(args.path_rotation_seconds),
        clients: args.client_ca_file.map(|ca_file| ClientAuth { ca_file, names: args.client_names }),
    };
    let certificates = job_handler_certs::start(client.clone(), options, tasks.shutdown_token())?;
    let tls = certificates.server_config();
    let expiry = Box::new(CertificateExpiry::new(certificates.expiry()));
    registry.register(|registry| registry.register_collector(expiry));
    let (published, paths) = (certificates.published(), certificates.review_paths());
    let overdue = Box::new(PathOverdue(paths.clone()));
    registry.register(|registry| registry.register_collector(overdue));
    tasks.spawn("certificate readiness", report_published(published, readiness.register("certificates")));
    tasks.spawn_graceful("certificates", |_| certificates.join());

    let policies = Policies::default();
    for (task, watch) in policies.watches(&client, &readiness) {
        tasks.spawn(task, watch);
    }
    tasks.spawn("policy count", count_policies(policies.clone(), metrics.clone()));

    let (refusals, sender) = refusal_sender::channel(args.refusal_socket.clone(), metrics.clone());
    tasks.spawn_graceful("refusal sender", |token| sender.run(token));

    // Every response about a ledger matters, and a review waits for it.
    let without_retries = client::build_without_retries(PROGRAM, VERSION).await?;
    let (limiter, ledgers) = limiter::limiter(
        without_retries,
        &args.namespace,
        policies.clone(),
        metrics.clone(),
        Clock::default(),
    );
    tasks.spawn_graceful("ledgers", |token| ledgers.run(&readiness, token));

    tasks.spawn("leaked paths", report_leaks(limiter.clone(), paths.clone()));

    let liveness = Liveness::default();
    let estimator = JobEstimator::new(limiter.context());
    let limiter = Arc::new(limiter);
    let lease = Arc::new(PresenceLease::new(
        client,
        &args.namespace,
        &args.replica,
        policies.clone(),
        limiter.clone(),
        liveness.clone(),
        readiness.register("lease"),
    ));
    let renewed = lease.clone();
    tasks.spawn_graceful("presence lease", |token| async move { renewed.run(token).await });

    let limiter = Some(limiter as Arc<dyn Limiter>);
    let state = WebhookState::new(policies, limiter, liveness, Some(refusals), metrics, &args.namespace);
    let mut state = state.with_paths(paths);
    state.estimator = Some(estimator);
    let server = serve_webhook(listener, tls, state).map_err(io("cannot start the webhook server"))?;
    let server_handle = server.handle();
    tasks.spawn_graceful("webhook server", |_| server);

    running.set_ready();
    tracing::info!(listen = %args.listen, admin = %args.admin_listen, replica = %args.replica, "started");
    let ended = tokio::select! {
        signal = signals.next() => { tracing::info!("{signal}: shutting down"); Ok(()) }
        error = tasks.first_exit() => Err(error),
    };
    running.set_not_ready("shutting down");
    if ended.is_ok() {
        tokio::time::sleep(Duration::from_secs(args.drain_seconds)).await;
    }
    // The last reviews need the other tasks.
    server_handle.stop(true).await;
    admin_handle.stop(false).await;
    let shut_down = tasks.shut_down(GRACE).await;
    lease.release().await;
    Ok(ended.and(shut_down)?)
}

async fn report_published(mut published: watch::Receiver<bool>, readiness: ReadyHandle) {
    loop {
        if *published.borrow_and_update() {
            readiness.set_ready();
        } else {
            readiness.set_not_ready("the CA is not published in the MutatingWebhookConfiguration yet");
        }
        if published.changed().await.is_err() {
            // The task of the certificates reports its own end.
            return std::future::pending().await;
        }
    }
}

async fn count_policies(policies: Policies, metrics: WebhookMetrics) {
    let mut changes = policies.changes();
    while changes.changed().await.is_ok() {
        metrics.policies.set(i64::try_from(policies.current().iter().count()).unwrap_or(i64::MAX));
    }
}

fn io(what: &'static str) -> impl Fn(io::Error) -> WebhookError {
    move |source| WebhookError::Io { what, source }
}
