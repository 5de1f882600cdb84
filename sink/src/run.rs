//! The running sink: its tasks, what each needs, and how it ends.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures::future::{BoxFuture, select_all};
use job_handler_shared::{
    kube::metrics_auth::TokenMetricsAuth,
    ledger::refusal::Refusal,
    policy::install_defaults,
    process::{
        admin::{self, MetricsAuth, Readiness, ReadyHandle},
        jitter::jitter,
        supervisor::{ShutdownSignals, Supervisor, TaskError},
        telemetry::Metrics,
    },
};
use kube::Client;
use tokio::sync::{mpsc, watch as channel};

use crate::{
    cloudevents::{
        client::{HttpReceiver, ReceiverError},
        outbox,
        refusal_spool::{RefusalSpool, RefusalSpools},
    },
    config::Config,
    enforce::{entry_writer, held_slots, ledger_gc, repair},
    harvest::{collector::Collector, follower::Follower, pod_tracker::PodTracker},
    metrics::SinkMetrics,
    model::entry_state::EntryState,
    notify::{recorder::Recorder, refusal_listener, refusal_writer},
    object_store::{FullLogStore, FullLogStoreError},
    observe::{context::Context, job_watch, key::Key, reflectors, secret_watch, store::Store},
    queueing::{dequeued_by_user, failure_backoff, release},
    reconcile::{job::JobReconciler, log_retry::LogRetries, resync::enqueue_all, stale_jobs},
    retention::{gc::GarbageCollector, object_gc, plan::ClusterBudget},
    runtime::{leader_election, resync::RESYNC},
    status::writer,
};

/// How long the tasks have to end.
const GRACE: Duration = Duration::from_secs(10);

/// Options of the running sink.
#[derive(Clone, Debug)]
pub(crate) struct RunOptions {
    /// Address of `/healthz`, `/readyz` and `/metrics`.
    pub(crate) admin_listen: SocketAddr,
    /// Whether `/metrics` asks for a bearer token.
    pub(crate) metrics_auth: bool,
    /// The namespace that job-handler runs in.
    pub(crate) namespace: String,
    /// The namespaces to serve; empty = all.
    pub(crate) namespaces: Vec<String>,
    /// This replica's name, unique among running replicas.
    pub(crate) replica: String,
    /// Unix socket for refusals.
    pub(crate) refusal_socket: PathBuf,
    /// Bytes of all stored results of the cluster; None = unlimited.
    pub(crate) results_budget: Option<ClusterBudget>,
    /// Most bytes that a policy may grant the results of a namespace; None = unlimited.
    pub(crate) results_max_bytes_per_namespace: Option<u64>,
    /// The configuration file.
    pub(crate) config: Config,
}

/// Why the sink has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SinkError {
    /// The admin address cannot be bound.
    #[error(transparent)]
    Listen(#[from] admin::ListenError),
    /// The refusal socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] refusal_listener::SocketError),
    /// The admin server cannot serve.
    #[error("the admin endpoint cannot be served: {0}")]
    Admin(std::io::Error),
    /// The client of a CloudEvents receiver cannot be built.
    #[error(transparent)]
    Receiver(#[from] ReceiverError),
    /// The object store cannot be used.
    #[error(transparent)]
    Objects(#[from] FullLogStoreError),
    /// A task ended early.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// Runs the sink until a signal.
///
/// # Errors
/// If it cannot start or a task ends early.
pub(crate) async fn run(
    client: Client,
    options: RunOptions,
    mut signals: ShutdownSignals,
) -> Result<(), SinkError> {
    let metrics = Metrics::default();
    let readiness = Readiness::default();
    // Errors of this machine are reported before the first call to the cluster.
    let objects = options.config.objects.as_ref();
    let objects = objects.map(|config| FullLogStore::open(config, &options.replica, &metrics)).transpose()?;
    let listener = admin::listen(options.admin_listen, "--admin-listen")?;
    let socket = refusal_listener::listen(&options.refusal_socket)?;
    let metrics_auth =
        options.metrics_auth.then(|| Arc::new(TokenMetricsAuth::new(client.clone())) as Arc<dyn MetricsAuth>);
    let server = admin::serve(listener, readiness.clone(), metrics.clone(), metrics_auth);
    let server = server.map_err(SinkError::Admin)?;
    let server_handle = server.handle();

    let own = SinkMetrics::new(&metrics);
    let store = Store::default();
    store.served.restrict(options.namespaces);
    let context = Context {
        client: client.clone(),
        queue: Key::queue(&store),
        store,
        namespace: options.namespace.as_str().into(),
        resync: Arc::default(),
        metrics: own.clone(),
    };
    let recorder = Recorder::new(client.clone(), &options.replica);
    let (leading, leads) = channel::channel(false);

    let mut tasks = Supervisor::default();
    tasks.spawn("admin server", server);
    // The leader acts only on complete lists: a policy it does not know yet could be the one that retains a Job.
    let mut gate = Vec::new();
    let mut gated = |part: &str| {
        let ready = readiness.register(part);
        gate.push(ready.clone());
        ready
    };
    let policies = [gated("policies"), gated("cluster policies")];
    let [of_namespaces, of_cluster] = policies.clone();
    tasks.spawn("jobs watch", job_watch::run(context.clone(), gated("jobs"), policies));
    tasks.spawn("policies watch", reflectors::policies(context.clone(), of_namespaces));
    tasks.spawn("cluster policies watch", reflectors::cluster_policies(context.clone(), of_cluster));
    tasks.spawn("namespaces watch", reflectors::namespaces(context.clone(), gated("namespaces")));
    let mut in_secrets = Vec::new();
    for scope in context.store.served.scopes() {
        in_secrets.push((scope.clone(), gated(&scope.name_of("results in secrets"))));
        let (task, ready) = (scope.name_of("results watch"), gated(&scope.name_of("results")));
        tasks.spawn(task, reflectors::results(context.clone(), scope.clone(), ready));
    }
    tasks.spawn("Secrets watch", secret_watch::run(context.clone(), in_secrets));
    tasks.spawn("ledgers watch", reflectors::ledgers(context.clone(), gated("ledgers")));
    let leases = reflectors::replicas(context.clone(), readiness.register("webhook leases"));
    tasks.spawn("webhook leases watch", leases);
    let mut receivers = Vec::new();
    let mut spools = Vec::new();
    for config in &options.config.receivers {
        let receiver = Arc::new(HttpReceiver::new(config.clone(), client.clone(), &options.namespace)?);
        let spool = RefusalSpool::open(&config.name, &options.refusal_socket, own.clone());
        tasks.spawn(format!("refusal events to {}", config.name), spool.clone().run(receiver.clone()));
        receivers.push(receiver);
        spools.push(spool);
    }
    context.store.set_known_receivers(options.config.receiver_names());
    context.store.set_namespace_bytes_max(options.results_max_bytes_per_namespace);
    let spools = RefusalSpools::new(spools);
    let (sender, refusals) = mpsc::channel(refusal_writer::QUEUE);
    let policies = context.store.clone();
    let forward = move |refusal: &Refusal| {
        let receivers = policies.receivers_of(&refusal.policy.uid);
        spools.put(refusal, receivers.iter().map(String::as_str));
    };
    let store = context.store.clone();
    tasks.spawn(
        "refusal writer",
        refusal_writer::run(refusals, store, recorder.clone(), own.clone(), forward),
    );
    let serve = refusal_listener::serve(socket, sender, own, readiness.register("refusals"));
    tasks.spawn("refusal listener", serve);
    let reconciler = JobReconciler {
        client: client.clone(),
        store: context.store.clone(),
        queue: context.queue.clone(),
        collector: Collector::new(client.clone()).with_objects(objects.clone()),
        pod_tracker: PodTracker::default(),
        log_retries: LogRetries::default(),
        recorder,
        metrics: context.metrics.clone(),
    };
    let garbage_collector = GarbageCollector {
        client: client.clone(),
        store: context.store.clone(),
        metrics: context.metrics.clone(),
        budget: options.results_budget,
        objects,
    };
    let namespace = context.namespace.clone();
    let last_refusals = writer::write_last_refusals(client.clone(), context.store.clone(), leads.clone());
    tasks.spawn("refusal status", last_refusals);
    let pods = readiness.register("pods");
    tasks.spawn("leader", lead(context, reconciler, garbage_collector, receivers, leads, gate, pods));

    let mut election = Supervisor::default();
    let ready = readiness.register("leader lease");
    election.spawn_graceful("leader election", |token| {
        leader_election::elect(client, namespace, options.replica.as_str().into(), leading, ready, token)
    });
    tracing::info!(version = crate::VERSION, replica = options.replica, "started");
    let ended = tokio::select! {
        signal = signals.next() => { tracing::info!("{signal}: shutting down"); Ok(()) }
        error = tasks.first_exit() => Err(error),
        error = election.first_exit() => Err(error),
    };
    server_handle.stop(false).await;
    let shut_down = tasks.shut_down(GRACE).await;
    // The Lease is released last: until then no other sink may take over.
    let released = election.shut_down(GRACE).await;
    // Connecting to a missing socket fails with a clearer error than to one without a listener.
    if let Err(error) = std::fs::remove_file(&options.refusal_socket) {
        tracing::debug!(%error, "cannot remove the refusal socket");
    }
    Ok(ended.and(shut_down).and(released)?)
}

/// Runs the leader's tasks while this sink is the leader and all watch caches are filled.
async fn lead(
    context: Context,
    reconciler: JobReconciler,
    garbage_collector: GarbageCollector,
    receivers: Vec<Arc<HttpReceiver>>,
    mut leads: channel::Receiver<bool>,
    gate: Vec<ReadyHandle>,
    pods: ReadyHandle,
) -> Infallible {
    loop {
        // Only the leader watches pods.
        pods.set_ready();
        // Only the election drops the sender, at the end of the process.
        if leads.wait_for(|leads| *leads).await.is_err() {
            return std::future::pending().await;
        }
        admin::all_ready(&gate).await;
        context.metrics.set_leading(true);
        context.queue.clear();
        enqueue_all(&context.store, &context.queue);
        let work =
            work(&context, reconciler.clone(), garbage_collector.clone(), receivers.clone(), pods.clone());
        tokio::select! {
            never = work => match never {},
            _ = leads.wait_for(|leads| !*leads) => {}
        }
        // Work in progress is dropped here; the next leader continues from what is stored.
        context.metrics.set_leading(false);
    }
}

async fn work(
    context: &Context,
    reconciler: JobReconciler,
    garbage_collector: GarbageCollector,
    receivers: Vec<Arc<HttpReceiver>>,
    pods: ReadyHandle,
) -> Infallible {
    let (entry_state, entries) = channel::channel(EntryState::default());
    let write_entries = entry_writer::run(
        context.client.clone(),
        context.store.clone(),
        context.namespace.clone(),
        reconciler.recorder.clone(),
        entry_state,
    );
    let status = writer::run(
        context.client.clone(),
        context.store.clone(),
        context.namespace.clone(),
        entries,
        context.metrics.clone(),
        context.queue.clone(),
    );
    let recorder = reconciler.recorder.clone();
    let release = release::run(context.client.clone(), context.store.clone(), reconciler.recorder.clone());
    let dequeued = dequeued_by_user::run(context.client.clone(), context.store.clone());
    let overdue = stale_jobs::run(context.clone(), reconciler.pod_tracker.clone());
    let follower = Follower {
        context: context.clone(),
        collector: reconciler.collector.clone(),
        pod_tracker: reconciler.pod_tracker.clone(),
    };
    let record_streaks =
        failure_backoff::run(context.client.clone(), context.store.clone(), context.namespace.clone());
    let ledger_gc = ledger_gc::run(context.client.clone(), context.store.clone(), context.namespace.clone());
    let free_slots =
        held_slots::run(context.client.clone(), context.store.clone(), context.namespace.clone());
    let repair = repair::run(context.client.clone(), context.store.clone(), recorder);
    let outbox =
        outbox::run(receivers, context.client.clone(), context.store.clone(), context.metrics.clone());
    // On the heap, each by itself: as one future they overflow a worker's stack in a debug build.
    let parts: [BoxFuture<'_, Infallible>; 16] = [
        Box::pin(reconciler.run()),
        Box::pin(follower.run(pods)),
        Box::pin(write_entries),
        Box::pin(status),
        Box::pin(resync(context)),
        Box::pin(overdue),
        Box::pin(create_defaults(context)),
        Box::pin(object_gc::run(
            garbage_collector.objects.clone(),
            context.client.clone(),
            context.store.clone(),
        )),
        Box::pin(garbage_collector.run()),
        Box::pin(release),
        Box::pin(dequeued),
        Box::pin(record_streaks),
        Box::pin(ledger_gc),
        Box::pin(free_slots),
        Box::pin(repair),
        Box::pin(outbox),
    ];
    // Runs them all: none of them ends.
    select_all(parts).await.0
}

/// Reconciles everything at an interval, and after each change of a policy's spec.
async fn resync(context: &Context) -> Infallible {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RESYNC) => {}
            () = context.resync.notified() => {}
        }
        enqueue_all(&context.store, &context.queue);
    }
}

/// Creates the policies of the base install, once in the life of the install; then waits until it is dropped.
async fn create_defaults(context: &Context) -> Infallible {
    loop {
        match install_defaults::create_once(&context.client, &context.namespace).await {
            Ok(created) => {
                created.iter().for_each(|policy| tracing::info!(policy, "created the default policy"));
                return std::future::pending().await;
            }
            Err(error) => tracing::warn!("default policies: {error}; retrying"),
        }
        tokio::time::sleep(jitter(RESYNC)).await;
    }
}

/// The default identity in Leases and Events.
pub(crate) fn default_replica() -> Arc<str> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    let host = if name.is_empty() { "unknown" } else { name };
    format!("{host}-{}", std::process::id()).into()
}
