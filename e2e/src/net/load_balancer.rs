//! A TCP load balancer on loopback in front of the webhook replicas, in place of a Service.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::harness::background_server::BackgroundServer;
use crate::harness::error::Result;
use crate::net::http_probe;

/// Interval of the readiness checks.
const CHECK_EVERY: Duration = Duration::from_millis(500);
const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// A server behind the load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address.
    pub address: SocketAddr,
    /// The address of its `/readyz`. Without it, a backend is ready if it accepts connections.
    pub admin: Option<SocketAddr>,
}

impl Backend {
    /// A backend on a port of 127.0.0.1, without an admin port.
    pub fn on(port: u16) -> Self {
        Self { address: (Ipv4Addr::LOCALHOST, port).into(), admin: None }
    }
}

/// Routes each connection to the next ready backend. A backend that refuses a connection is skipped at once, one that
/// is not ready after the next check. As behind a Service, open connections stay.
#[derive(Debug)]
pub struct LoadBalancer {
    shared: Arc<BalancerState>,
    server: BackgroundServer,
}

#[derive(Debug, Default)]
struct BalancerState {
    backends: Mutex<Vec<BackendState>>,
    next: AtomicUsize,
    /// Cancelled to close the open connections.
    open_connections: Mutex<CancellationToken>,
}

#[derive(Clone, Debug)]
struct BackendState {
    backend: Backend,
    ready: bool,
    connections: usize,
}

impl LoadBalancer {
    /// Starts a load balancer on a free port of the given address (loopback, except for a cluster on another machine).
    /// It runs on its own thread, so that it outlives the runtime of the test that started it.
    ///
    /// # Errors
    /// If no port is free.
    pub fn start(on: Ipv4Addr, backends: &[Backend]) -> Result<Self> {
        let shared = Arc::new(BalancerState::default());
        let theirs = Arc::clone(&shared);
        let server = BackgroundServer::start(on, "the load balancer", |listener| serve(listener, theirs))?;
        let balancer = Self { shared, server };
        balancer.set_backends(backends);
        Ok(balancer)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Replaces the backends of new connections.
    pub fn set_backends(&self, backends: &[Backend]) {
        let entry = |backend: &Backend| BackendState { backend: *backend, ready: true, connections: 0 };
        *self.shared.lock() = backends.iter().map(entry).collect();
    }

    /// Closes the open connections, so that clients reconnect to the current backends.
    pub fn close_connections(&self) {
        std::mem::take(&mut *self.shared.open_connections()).cancel();
    }

    /// The number of connections to each backend since [`Self::set_backends`].
    pub fn connections(&self) -> Vec<usize> {
        self.shared.lock().iter().map(|entry| entry.connections).collect()
    }

    /// Whether each backend was ready at its last check.
    pub fn ready(&self) -> Vec<bool> {
        self.shared.lock().iter().map(|entry| entry.ready).collect()
    }
}

impl BalancerState {
    fn lock(&self) -> MutexGuard<'_, Vec<BackendState>> {
        self.backends.lock()
    }

    fn open_connections(&self) -> MutexGuard<'_, CancellationToken> {
        self.open_connections.lock()
    }

    /// The backends in the order to try: ready ones first, round-robin.
    fn order(&self) -> Vec<Backend> {
        let mut entries = self.lock().clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % entries.len().max(1);
        entries.rotate_left(first);
        entries.sort_by_key(|entry| !entry.ready);
        entries.into_iter().map(|entry| entry.backend).collect()
    }

    fn note(&self, backend: Backend, change: impl Fn(&mut BackendState)) {
        self.lock().iter_mut().filter(|entry| entry.backend == backend).for_each(change);
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<BalancerState>) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut checks = tokio::time::interval(CHECK_EVERY);
    checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut work = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An accept can fail for lack of file descriptors; the next may succeed.
                if let Ok((client, _)) = accepted {
                    work.spawn(forward(client, Arc::clone(&shared)));
                }
            }
            _ = checks.tick() => {
                let backends: Vec<Backend> = shared.lock().iter().map(|entry| entry.backend).collect();
                for backend in backends {
                    work.spawn(check(backend, Arc::clone(&shared)));
                }
            }
            Some(_) = work.join_next() => {}
        }
    }
}

async fn forward(mut client: TcpStream, shared: Arc<BalancerState>) {
    let open = shared.open_connections().clone();
    for backend in shared.order() {
        let connecting = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(backend.address)).await;
        let Ok(Ok(mut server)) = connecting else {
            shared.note(backend, |entry| entry.ready = false);
            continue;
        };
        shared.note(backend, |entry| entry.connections += 1);
        // Small answers must not wait for the peer's acknowledgement. A failure only costs latency.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        // If either side disconnects, both are closed.
        let _ = open.run_until_cancelled(copy_bidirectional(&mut client, &mut server)).await;
        return;
    }
}

async fn check(backend: Backend, shared: Arc<BalancerState>) {
    let ready = match backend.admin {
        Some(admin) => {
            let answer = tokio::time::timeout(CONNECT_WITHIN, http_probe::get(admin, "/readyz")).await;
            matches!(answer, Ok(Ok((200, _))))
        }
        None => {
            let connecting = TcpStream::connect(backend.address);
            matches!(tokio::time::timeout(CONNECT_WITHIN, connecting).await, Ok(Ok(_)))
        }
    };
    shared.note(backend, |entry| entry.ready = ready);
}
