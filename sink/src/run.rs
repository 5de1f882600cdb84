//! The running sink: its tasks, what each needs, and how it ends.

use std::{future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures::future::{BoxFuture, join_all};
use job_handler_shared::{
    policy::install_defaults,
    process::{
        admin::{self, Readiness, ReadyHandle},
        jitter::jitter,
        telemetry::Metrics,
    },
};
use kube::Client;
use tokio::{sync::watch as channel, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    cloudevents::{
        client::{Receiver, ReceiverError},
        outbox,
        refusal_spool::{Spool, Spools},
    },
    config::Config,
    enforce::{
        ledger_gc, repair,
        webhook_entries::{self, Kept},
    },
    harvest::{collector::Capturer, follower::Follower, pod_tracker::Followed},
    metrics::SinkMetrics,
    notify::{recorder::Recorder, refusal_listener},
    object_store::{Objects, ObjectsError},
    observe::{context::Context, key::Key, reflectors, secret_watch, store::Store},
    queueing::{dequeued_by_user, failure_backoff, release},
    reconcile::{job::Actor, resync::enqueue_all, stale_jobs},
    retention::{gc::Broom, object_gc},
    runtime::{leader_election, resync::RESYNC},
    status::writer,
};

/// How long the tasks have to end.
const GRACE: Duration = Duration::from_secs(10);

/// What the process was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where `/healthz`, `/readyz` and `/metrics` are.
    pub admin_listen: SocketAddr,
    /// The pair's namespace.
    pub namespace: String,
    /// This replica's name, of which there is one at a time.
    pub replica: String,
    /// Where refusals come in.
    pub refusal_socket: PathBuf,
    /// Most bytes of stored results in the whole cluster; the oldest go first. Nothing = no bound.
    pub results_max_bytes: Option<u64>,
    /// What its configuration file says.
    pub config: Config,
}

/// Why the sink has ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The admin address cannot be had.
    #[error(transparent)]
    Listen(#[from] admin::ListenError),
    /// The refusal socket cannot be had.
    #[error(transparent)]
    Socket(#[from] refusal_listener::SocketError),
    /// The admin server cannot serve.
    #[error("the admin endpoint cannot be served: {0}")]
    Admin(std::io::Error),
    /// A receiver of CloudEvents cannot be spoken to.
    #[error(transparent)]
    Receiver(#[from] ReceiverError),
    /// The object store cannot be used.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// A task that must live has ended.
    #[error("the part «{part}» has ended: {why}")]
    Ended {
        /// Which.
        part: &'static str,
        /// Why.
        why: String,
    },
}

/// Runs the sink until `shutdown`.
///
/// # Errors
/// Where it cannot start, or a part that must live has ended.
pub async fn run(client: Client, options: Options, shutdown: CancellationToken) -> Result<(), RunError> {
    let metrics = Metrics::default();
    let readiness = Readiness::default();
    // What can be wrong on this machine is told before anything is asked of the cluster.
    let objects = options.config.objects.as_ref();
    let objects = objects.map(|config| Objects::open(config, &options.replica, &metrics)).transpose()?;
    let listener = admin::listen(options.admin_listen, "--admin-listen")?;
    let socket = refusal_listener::listen(&options.refusal_socket)?;
    let server = admin::serve(listener, readiness.clone(), metrics.clone()).map_err(RunError::Admin)?;
    let server_handle = server.handle();

    let own = SinkMetrics::new(&metrics);
    let store = Store::default();
    let context = Context {
        client: client.clone(),
        queue: Key::queue(&store),
        store,
        namespace: options.namespace.as_str().into(),
        metrics: own.clone(),
    };
    let recorder = Recorder::new(client.clone(), &options.replica);
    let (leading, leads) = channel::channel(false);

    let mut parts = Parts::default();
    parts.add("admin", async move { server.await.map_err(|e| e.to_string()) });
    let part = |name| readiness.register(name);
    parts.add("jobs", reflectors::jobs(context.clone(), part("jobs")).never());
    parts.add("policies", reflectors::policies(context.clone(), part("policies")).never());
    parts.add(
        "cluster policies",
        reflectors::cluster_policies(context.clone(), part("cluster policies")).never(),
    );
    parts.add("namespaces", reflectors::namespaces(context.clone(), part("namespaces")).never());
    parts.add("results", reflectors::results(context.clone(), part("results")).never());
    parts.add("results in secrets", secret_watch::keep(context.clone(), part("results in secrets")).never());
    parts.add("ledgers", reflectors::ledgers(context.clone(), part("ledgers")).never());
    parts.add("webhook leases", reflectors::replicas(context.clone(), part("webhook leases")).never());
    let mut receivers = Vec::new();
    let mut spools = Vec::new();
    for config in &options.config.sinks {
        let receiver = Arc::new(Receiver::new(config.clone(), client.clone(), &options.namespace)?);
        let spool = Spool::open(&config.name, &options.refusal_socket, own.clone());
        parts.add("CloudEvents of refusals", spool.clone().keep(receiver.clone()).never());
        receivers.push(receiver);
        spools.push(spool);
    }
    context.store.set_known_sinks(options.config.sink_names());
    let spools = Spools::new(spools);
    let serve = refusal_listener::serve(
        socket,
        context.store.clone(),
        recorder.clone(),
        own,
        spools,
        part("refusals"),
    );
    parts.add("refusals", async move { Err(serve.await.err().map(|e| e.to_string()).unwrap_or_default()) });
    let actor = Actor {
        client: client.clone(),
        store: context.store.clone(),
        queue: context.queue.clone(),
        capturer: Capturer::new(client.clone()).with_objects(objects.clone()),
        followed: Followed::default(),
        recorder,
        metrics: context.metrics.clone(),
    };
    let broom = Broom {
        client: client.clone(),
        store: context.store.clone(),
        metrics: context.metrics.clone(),
        max_bytes: options.results_max_bytes,
        objects,
    };
    let namespace = context.namespace.clone();
    let tell = writer::tell_refusals(client.clone(), context.store.clone(), leads.clone());
    parts.add("last refusals", tell.never());
    parts.add("leader", lead(context, actor, broom, receivers, leads, readiness.clone()).never());

    // The Lease is given back last: until then nobody else may take over.
    let ending = CancellationToken::new();
    let elect = leader_election::elect(
        client,
        namespace,
        options.replica.as_str().into(),
        leading,
        readiness.register("leader lease"),
        ending.clone(),
    );
    let mut election = tokio::spawn(elect);
    tracing::info!(version = crate::VERSION, replica = options.replica, "started");
    let outcome = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = parts.first() => Err(ended),
        ended = &mut election => Err(RunError::Ended {
            part: "leader lease",
            why: ended.err().map_or_else(|| "it returned".to_owned(), |e| e.to_string()),
        }),
    };
    tracing::info!("stopping");
    server_handle.stop(false).await;
    parts.end().await;
    ending.cancel();
    if !election.is_finished() && tokio::time::timeout(GRACE, &mut election).await.is_err() {
        tracing::warn!("the leader lease was not given back in time");
        election.abort();
    }
    // A socket without a listener only puzzles; one that is gone is told apart.
    if let Err(error) = std::fs::remove_file(&options.refusal_socket) {
        tracing::debug!(%error, "the refusal socket stays");
    }
    outcome
}

/// The leader's part: works while this sink leads and everything it decides by is known.
async fn lead(
    context: Context,
    actor: Actor,
    broom: Broom,
    receivers: Vec<Arc<Receiver>>,
    mut leads: channel::Receiver<bool>,
    readiness: Readiness,
) {
    // Pods are watched by the leader alone.
    let pods = readiness.register("pods");
    loop {
        pods.set_ready();
        // Only the election drops the sender, at the end of the process.
        if leads.wait_for(|leads| *leads).await.is_err() {
            return std::future::pending().await;
        }
        known(&readiness).await;
        context.metrics.set_leading(true);
        context.queue.clear();
        enqueue_all(&context.store, &context.queue);
        let work = work(&context, actor.clone(), broom.clone(), receivers.clone(), pods.clone());
        tokio::select! {
            () = work => {}
            _ = leads.wait_for(|leads| !*leads) => {}
        }
        // All that was begun is dropped here; the next leader picks it up from what is written.
        context.metrics.set_leading(false);
    }
}

async fn work(
    context: &Context,
    actor: Actor,
    broom: Broom,
    receivers: Vec<Arc<Receiver>>,
    pods: ReadyHandle,
) {
    let (kept, entries) = channel::channel(Kept::default());
    let keep = webhook_entries::keep(
        context.client.clone(),
        context.store.clone(),
        context.namespace.clone(),
        actor.recorder.clone(),
        kept,
    );
    let status = writer::keep(
        context.client.clone(),
        context.store.clone(),
        context.namespace.clone(),
        entries,
        context.metrics.clone(),
        context.queue.clone(),
    );
    let resync = async {
        loop {
            tokio::time::sleep(RESYNC).await;
            enqueue_all(&context.store, &context.queue);
        }
    };
    let defaults = create_defaults(context);
    let recorder = actor.recorder.clone();
    let release = release::keep(context.client.clone(), context.store.clone(), actor.recorder.clone());
    let unqueued = dequeued_by_user::keep(context.client.clone(), context.store.clone());
    let overdue = stale_jobs::keep(context.clone(), actor.followed.clone());
    let follower = Follower {
        context: context.clone(),
        capturer: actor.capturer.clone(),
        followed: actor.followed.clone(),
    };
    let absorb =
        failure_backoff::keep(context.client.clone(), context.store.clone(), context.namespace.clone());
    let sweep = ledger_gc::sweep(context.client.clone(), context.store.clone(), context.namespace.clone());
    let heal = repair::keep(context.client.clone(), context.store.clone(), recorder);
    let outbox =
        outbox::keep(receivers, context.client.clone(), context.store.clone(), context.metrics.clone());
    // On the heap, each by itself: as one future they overflow a worker's stack in a debug build.
    let parts: [BoxFuture<'_, ()>; 15] = [
        Box::pin(actor.work()),
        Box::pin(follower.keep(pods)),
        Box::pin(keep),
        Box::pin(status),
        Box::pin(resync),
        Box::pin(overdue),
        Box::pin(defaults),
        Box::pin(object_gc::keep(broom.objects.clone(), context.client.clone(), context.store.clone())),
        Box::pin(broom.keep()),
        Box::pin(release),
        Box::pin(unqueued),
        Box::pin(absorb),
        Box::pin(sweep),
        Box::pin(heal),
        Box::pin(outbox),
    ];
    // But for the default policies' part, an outbox without receivers and a missing object store, none of them ends.
    join_all(parts).await;
}

/// Creates the policies of the base install, once in the life of the install.
async fn create_defaults(context: &Context) {
    loop {
        match install_defaults::create_once(&context.client, &context.namespace).await {
            Ok(created) => {
                created.iter().for_each(|policy| tracing::info!(policy, "created the default policy"));
                return;
            }
            Err(error) => tracing::warn!("default policies: {error}; trying again"),
        }
        tokio::time::sleep(jitter(RESYNC)).await;
    }
}

/// Waits until the first lists are complete: a policy that is not known yet could be the one that keeps a Job.
async fn known(readiness: &Readiness) {
    const NEEDED: [&str; 7] = [
        "jobs:",
        "policies:",
        "cluster policies:",
        "namespaces:",
        "results:",
        "results in secrets:",
        "ledgers:",
    ];
    loop {
        let missing = readiness.not_ready();
        if !missing.iter().any(|missing| NEEDED.iter().any(|part| missing.starts_with(part))) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Tasks that must live as long as the process.
#[derive(Default)]
struct Parts {
    tasks: JoinSet<(&'static str, Result<(), String>)>,
}

impl Parts {
    fn add(&mut self, part: &'static str, task: impl Future<Output = Result<(), String>> + Send + 'static) {
        self.tasks.spawn(async move { (part, task.await) });
    }

    /// The first that ends, and why.
    async fn first(&mut self) -> RunError {
        match self.tasks.join_next().await {
            Some(Ok((part, outcome))) => {
                RunError::Ended { part, why: outcome.err().unwrap_or_else(|| "it returned".to_owned()) }
            }
            Some(Err(error)) => RunError::Ended { part: "unknown", why: error.to_string() },
            None => RunError::Ended { part: "all", why: "there was none".to_owned() },
        }
    }

    async fn end(mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// A task that has no end: that it has one is the fault.
trait Never: Future<Output = ()> + Sized {
    fn never(self) -> impl Future<Output = Result<(), String>>;
}

impl<F: Future<Output = ()>> Never for F {
    async fn never(self) -> Result<(), String> {
        self.await;
        Err("it returned".to_owned())
    }
}

/// The identity that a Lease or an Event carries where nobody gave one.
pub fn default_replica() -> Arc<str> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    let host = if name.is_empty() { "unknown" } else { name };
    format!("{host}-{}", std::process::id()).into()
}
