//! The process: its tasks, and how they end.
//!
//! Every task is awaited. One that ends before it should ends the process, which says why. On SIGTERM or SIGINT: no
//! longer ready, answer what comes for a while, finish what is under way, let go of the Lease, end with 0.

use std::{future::Future, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use job_handler_certs::{CertError, CertOptions};
use job_handler_shared::{
    keys,
    kube::client::{self, ClientError},
    process::{
        admin::{self, ListenError, Readiness},
        telemetry::{LogFormat, Metrics, init_logs},
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{job_estimator::JobEstimator, server::serve_webhook, state::WebhookState},
    cache::{policies::Policies, reflector::MirrorError},
    ledger::{
        attempt_age::Clock,
        limiter::{self, LedgerTaskError},
    },
    metrics::{WebhookMetrics, certificate_expiry::CertificateExpiry},
    presence_lease::{Liveness, PresenceLease},
    refusal_sender,
};

/// Tasks that are asked to end get this long.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Admission webhook of job-handler: stamps new Jobs and holds limits.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Options {
    /// Where admission reviews come in (HTTPS).
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], keys::WEBHOOK_PORT)))]
    pub listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are (HTTP).
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], keys::WEBHOOK_ADMIN_PORT)))]
    pub admin_listen: SocketAddr,
    /// Our own namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = keys::NAMESPACE)]
    pub namespace: String,
    /// Name of this replica; its Lease is named after it.
    #[arg(long, env = "POD_NAME", default_value = "local")]
    pub replica: String,
    /// Unix socket on which the sink listens for refusals.
    #[arg(long, default_value = keys::REFUSAL_SOCKET)]
    pub refusal_socket: PathBuf,
    /// A further name or IP address that this server goes by, besides job-handler.<namespace>.svc; repeatable.
    #[arg(long = "dns-name")]
    pub dns_names: Vec<String>,
    /// Seconds that reviews are still answered after a signal, until endpoints have forgotten this replica.
    #[arg(long, default_value_t = 2)]
    pub drain_seconds: u64,
    /// How log lines look: text or json. RUST_LOG filters them.
    #[arg(long, default_value = "text")]
    pub log_format: LogFormat,
}

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A busy port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No cluster.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Certificates cannot be kept.
    #[error(transparent)]
    Certificates(#[from] CertError),
    /// A server or signal handler cannot be set up, or broke.
    #[error("{what}: {source}")]
    Io {
        /// What broke.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A watch ended.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// Deciding about limits died.
    #[error(transparent)]
    Limits(#[from] LedgerTaskError),
    /// A task died.
    #[error("a task died: {0}")]
    Died(#[from] tokio::task::JoinError),
    /// A task ended that should not have.
    #[error("the task `{0}` ended before its time")]
    Ended(&'static str),
}

type Tasks = JoinSet<Result<&'static str, RunError>>;

/// RunsByGroup until a signal, or until something that must not end does.
///
/// # Errors
/// Says why the process ends.
pub async fn run(options: Options) -> Result<(), RunError> {
    init_logs(options.log_format);
    // A second one would be an error that says it is there already, which is all that is asked.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    // The one shutdown token; it is cancelled once the server has answered its last review, which needs the tasks.
    let background = CancellationToken::new();
    let listener = admin::listen(options.listen, "--listen")?;
    let admin_listener = admin::listen(options.admin_listen, "--admin-listen")?;
    let signals = signals()?;
    let metrics = Metrics::default();
    let ours = WebhookMetrics::new(&metrics);
    let readiness = Readiness::default();
    let running = readiness.part("running");
    let client = client::build("job-handler-webhook", env!("CARGO_PKG_VERSION")).await?;

    let mut tasks: Tasks = JoinSet::new();
    let admin =
        admin::serve(admin_listener, readiness.clone(), metrics.clone()).map_err(io("the admin server"))?;
    let admin_handle = admin.handle();
    tasks.spawn(async move { admin.await.map_err(io("the admin server")).map(|()| "admin server") });

    let certificates = job_handler_certs::start(
        client.clone(),
        CertOptions {
            namespace: options.namespace.clone(),
            secret: keys::CA_SECRET.to_owned(),
            mutating_configuration: keys::MUTATING_CONFIGURATION.to_owned(),
            dns_names: options.dns_names.clone(),
        },
        background.clone(),
    )?;
    let tls = certificates.server_config();
    metrics.register(|registry| {
        registry.register_collector(Box::new(CertificateExpiry::new(certificates.expiry())))
    });
    let mut published = certificates.published();
    let ready = readiness.part("certificates");
    tasks.spawn(until(&background, "readiness of certificates", async move {
        loop {
            if *published.borrow_and_update() {
                ready.ready();
            } else {
                ready.not_ready("the CA is not published in the MutatingWebhookConfiguration yet");
            }
            if published.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }));
    tasks.spawn(async move { certificates.join().await.map(|()| "certificates").map_err(Into::into) });

    let policies = Policies::default();
    let follow = policies.clone().follow(client.clone(), &readiness, background.clone());
    let gauge = ours.policies.clone();
    let counted = policies.clone();
    tasks.spawn(until(&background, "count of policies", async move {
        let mut changes = counted.changes();
        while changes.changed().await.is_ok() {
            gauge.set(i64::try_from(counted.current().iter().count()).unwrap_or(i64::MAX));
        }
    }));

    let (refusals, sender) = refusal_sender::channel(options.refusal_socket.clone(), ours.clone());
    let token = background.clone();
    tasks.spawn(async move {
        sender.run(token).await;
        Ok("refusal sender")
    });

    // Of a ledger every answer counts, and its author waits for it.
    let plain = client::build_without_retries("job-handler-webhook", env!("CARGO_PKG_VERSION")).await?;
    let (limiter, ledgers) =
        limiter::limiter(plain, &options.namespace, policies.clone(), ours.clone(), Clock::default());
    let limits = ledgers.run(&readiness, background.clone());
    tasks.spawn(async move { limits.await.map(|()| "limits").map_err(Into::into) });

    let liveness = Liveness::default();
    let estimator = JobEstimator::new(limiter.shared());
    let limiter = Arc::new(limiter);
    let lease = Arc::new(PresenceLease::new(
        client,
        &options.namespace,
        &options.replica,
        policies.clone(),
        limiter.clone(),
        liveness.clone(),
        readiness.part("lease"),
    ));
    let (renewed, token) = (lease.clone(), background.clone());
    tasks.spawn(async move {
        renewed.run(token).await;
        Ok("lease")
    });

    let limiter = Some(limiter as Arc<dyn crate::limit::Limiter>);
    let mut state = WebhookState::new(policies, limiter, liveness, Some(refusals), ours, &options.namespace);
    state.estimator = Some(estimator);
    let server = serve_webhook(listener, tls, state).map_err(io("the webhook server"))?;
    let server_handle = server.handle();
    tasks.spawn(async move { server.await.map_err(io("the webhook server")).map(|()| "webhook server") });
    tasks.spawn(async move { follow.await.map(|()| "watches").map_err(Into::into) });

    running.ready();
    tracing::info!(listen = %options.listen, admin = %options.admin_listen, replica = %options.replica, "started");
    let why = tokio::select! {
        signal = signals => { tracing::info!("{signal}: shutting down"); Ok(()) }
        ended = tasks.join_next() => Err(early(ended)),
    };
    running.not_ready("shutting down");
    if why.is_ok() {
        tokio::time::sleep(Duration::from_secs(options.drain_seconds)).await;
    }
    server_handle.stop(true).await;
    background.cancel();
    admin_handle.stop(false).await;
    let ended = tokio::time::timeout(END_TIMEOUT, drain(&mut tasks)).await;
    lease.release().await;
    why?;
    match ended {
        Ok(ended) => ended,
        Err(_) => {
            tracing::warn!("some tasks did not end in time");
            Ok(())
        }
    }
}

async fn drain(tasks: &mut Tasks) -> Result<(), RunError> {
    let mut first = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.map_err(RunError::from).and_then(|ended| ended).map(drop);
        first = first.and(ended);
    }
    first
}

fn early(ended: Option<Result<Result<&'static str, RunError>, tokio::task::JoinError>>) -> RunError {
    match ended {
        Some(Ok(Ok(task))) => RunError::Ended(task),
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => error.into(),
        None => RunError::Ended("all"),
    }
}

fn until(
    token: &CancellationToken,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = Result<&'static str, RunError>> + Send + 'static {
    let token = token.clone();
    async move {
        // None: the token came.
        let _: Option<()> = token.run_until_cancelled(task).await;
        Ok(name)
    }
}

fn io(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Io { what, source }
}

fn signals() -> Result<impl Future<Output = &'static str>, RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(io("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io("SIGINT"))?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}
