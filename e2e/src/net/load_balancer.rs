//! What stands before the webhook replicas: a TCP balancer on loopback, in the place of a Service.

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

/// How often backends are checked, and how long a check may take.
const CHECK_EVERY: Duration = Duration::from_millis(500);
const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// A server behind the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Where connections go.
    pub address: SocketAddr,
    /// Where `GET /readyz` tells whether it wants connections; without it, that it accepts them is enough.
    pub admin: Option<SocketAddr>,
}

impl Backend {
    /// A backend on a port of 127.0.0.1, without an admin port.
    pub fn on(port: u16) -> Self {
        Self { address: (Ipv4Addr::LOCALHOST, port).into(), admin: None }
    }
}

/// A TCP balancer: each connection goes to the next backend that is ready; one that refuses connections
/// is passed over at once, one that is not ready after a check. As behind a Service, connections that
/// stand are left alone.
#[derive(Debug)]
pub struct LoadBalancer {
    shared: Arc<BalancerState>,
    server: BackgroundServer,
}

#[derive(Debug, Default)]
struct BalancerState {
    backends: Mutex<Vec<BackendState>>,
    next: AtomicUsize,
    /// Cancelled to cut the connections that were made under it.
    standing: Mutex<CancellationToken>,
}

#[derive(Clone, Debug)]
struct BackendState {
    backend: Backend,
    ready: bool,
    connections: usize,
}

impl LoadBalancer {
    /// Starts a balancer on a free port of the given address (loopback, except for a cluster elsewhere).
    ///
    /// It lives on a thread of its own, so that it outlasts the runtime of the test that started it.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn start(on: Ipv4Addr, backends: &[Backend]) -> Result<Self> {
        let shared = Arc::new(BalancerState::default());
        let theirs = Arc::clone(&shared);
        let server = BackgroundServer::start(on, "the balancer", |listener| serve(listener, theirs))?;
        let balancer = Self { shared, server };
        balancer.set_backends(backends);
        Ok(balancer)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Changes where connections go.
    pub fn set_backends(&self, backends: &[Backend]) {
        let entry = |backend: &Backend| BackendState { backend: *backend, ready: true, connections: 0 };
        *self.shared.lock() = backends.iter().map(entry).collect();
    }

    /// Cuts the connections that stand, so that whoever comes again goes where connections go now.
    pub fn close_connections(&self) {
        std::mem::take(&mut *self.shared.standing()).cancel();
    }

    /// How many connections each backend was given since it was pointed at.
    pub fn connections(&self) -> Vec<usize> {
        self.shared.lock().iter().map(|entry| entry.connections).collect()
    }

    /// Whether each backend is thought ready.
    pub fn ready(&self) -> Vec<bool> {
        self.shared.lock().iter().map(|entry| entry.ready).collect()
    }
}

impl BalancerState {
    fn lock(&self) -> MutexGuard<'_, Vec<BackendState>> {
        self.backends.lock()
    }

    fn standing(&self) -> MutexGuard<'_, CancellationToken> {
        self.standing.lock()
    }

    /// The backends in the order to try: the ready ones, from the next on, then the others.
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
                // An accept can fail for want of file descriptors; the next may go well.
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
    let standing = shared.standing().clone();
    for backend in shared.order() {
        let connecting = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(backend.address)).await;
        let Ok(Ok(mut server)) = connecting else {
            shared.note(backend, |entry| entry.ready = false);
            continue;
        };
        shared.note(backend, |entry| entry.connections += 1);
        // Small answers must not wait for the peer's acknowledgement; without it only latency suffers.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        // Whichever side breaks off, both are closed: that is all a balancer can tell.
        let _ = standing.run_until_cancelled(copy_bidirectional(&mut client, &mut server)).await;
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
