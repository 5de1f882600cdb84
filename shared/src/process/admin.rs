//! The admin endpoint: `/healthz`, `/readyz`, `/metrics` over plain HTTP.
//!
//! `/metrics` may ask for a bearer token.
//!
//! Anybody in the cluster can connect. The newest connection always has a place, and serves one request: whoever holds
//! connections keeps no probe out.
//!
//! Ready means that every component that was registered has reported ready; `/readyz` names those that have not.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_http::HttpServiceBuilder;
use actix_service::map_config;
use actix_web::{
    App, HttpRequest, HttpResponse,
    dev::{AppConfig, Server},
    http::{KeepAlive, header::AUTHORIZATION},
    web,
};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::process::{
    bounded_service::BoundedFactory,
    connections::{ConnectionBounds, ConnectionTable},
    telemetry::Metrics,
};

/// Path of the metrics.
pub const METRICS_PATH: &str = "/metrics";
/// Content type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// About 20 MiB if all of them are hostile. Probes and scrapes are few, and each is over in a moment.
const CONNECTIONS: ConnectionBounds =
    ConnectionBounds { total: 128, per_address: 16, unused: Duration::ZERO };

/// The state of one component: ready, or why not.
type ComponentState = Result<(), String>;

/// The readiness of the process; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, watch::Receiver<ComponentState>>>>);

/// Reports whether one component of the process is ready.
#[derive(Clone, Debug)]
pub struct ReadyHandle(watch::Sender<ComponentState>);

impl Readiness {
    /// Registers a component that is not ready yet.
    pub fn register(&self, component: impl Into<String>) -> ReadyHandle {
        let handle = ReadyHandle(watch::Sender::new(Err("starting".to_owned())));
        self.0.lock().insert(component.into(), handle.0.subscribe());
        handle
    }

    /// Components that are not ready, with the reason.
    pub fn not_ready(&self) -> Vec<String> {
        let components = self.0.lock();
        let why = |state: &watch::Receiver<ComponentState>| state.borrow().clone().err();
        components
            .iter()
            .filter_map(|(component, state)| Some(format!("{component}: {}", why(state)?)))
            .collect()
    }
}

impl ReadyHandle {
    /// Reports the component as ready.
    pub fn set_ready(&self) {
        self.set(Ok(()));
    }

    /// Reports the component as not ready.
    pub fn set_not_ready(&self, why: impl Into<String>) {
        self.set(Err(why.into()));
    }

    fn set(&self, state: ComponentState) {
        drop(self.0.send_replace(state));
    }

    fn is_ready(&self) -> bool {
        self.0.borrow().is_ok()
    }
}

/// Waits until all these components are ready at the same time.
pub async fn all_ready(components: &[ReadyHandle]) {
    while !components.iter().all(ReadyHandle::is_ready) {
        for component in components {
            // The handle itself keeps the channel open.
            let _: Result<_, _> = component.0.subscribe().wait_for(Result::is_ok).await;
        }
    }
}

/// An address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address}: {source}. Is it in use by another process? Set another address with {flag}"
)]
pub struct ListenError {
    /// Address to listen on.
    pub address: SocketAddr,
    /// Flag that sets the address.
    pub flag: &'static str,
    /// Error of the operating system.
    pub source: std::io::Error,
}

/// Binds `address`, which `flag` sets.
///
/// # Errors
/// Fails if the address cannot be bound; the error names the flag.
pub fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, ListenError> {
    let wrong = |source| ListenError { address, flag, source };
    let listener = TcpListener::bind(address).map_err(wrong)?;
    listener.set_nonblocking(true).map_err(wrong)?;
    Ok(listener)
}

/// Decides who may read the metrics.
pub trait MetricsAuth: Send + Sync {
    /// Checks the bearer token of a request.
    fn check<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<(), MetricsDenial>>;
}

/// Why a request for the metrics is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetricsDenial {
    /// No token, or one that the apiserver does not know.
    #[error("expected a bearer token of this cluster")]
    Unauthenticated,
    /// The user lacks the right.
    #[error("user {0:?} may not get the path {METRICS_PATH}: bind a ClusterRole with that nonResourceURL")]
    Forbidden(String),
    /// The apiserver gave no answer.
    #[error("{0}")]
    Unavailable(String),
    /// Too many tokens are checked at this moment.
    #[error("too many tokens are checked at this moment")]
    Busy,
}

impl MetricsDenial {
    fn response(&self) -> HttpResponse {
        let mut response = match self {
            Self::Unauthenticated => HttpResponse::Unauthorized(),
            Self::Forbidden(_) => HttpResponse::Forbidden(),
            Self::Unavailable(_) => HttpResponse::ServiceUnavailable(),
            Self::Busy => HttpResponse::TooManyRequests(),
        };
        response.body(format!("{self}\n"))
    }
}

/// Builds the admin server on a bound listener. It runs when awaited or spawned, and stops by its handle: it does not
/// handle signals, since the process has one shutdown token.
///
/// # Errors
/// Fails if the listener cannot be used.
pub fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    metrics_auth: Option<Arc<dyn MetricsAuth>>,
) -> std::io::Result<Server> {
    let server =
        Server::build().workers(1).disable_signals().max_concurrent_connections(CONNECTIONS.accepted());
    let connections = ConnectionTable::new(CONNECTIONS, |_| {});
    let server = server.listen("admin", listener, move || {
        let app = App::new()
            .app_data(web::Data::new(readiness.clone()))
            .app_data(web::Data::new(metrics.clone()))
            .app_data(web::Data::new(metrics_auth.clone()))
            .route("/healthz", web::get().to(|| async { "ok\n" }))
            .route("/readyz", web::get().to(readyz))
            .route(METRICS_PATH, web::get().to(metrics_text));
        let http = HttpServiceBuilder::default()
            .keep_alive(KeepAlive::Disabled)
            .finish(map_config(app, |()| AppConfig::default()))
            .tcp();
        BoundedFactory { inner: http, connections: connections.clone() }
    })?;
    Ok(server.run())
}

async fn readyz(readiness: web::Data<Readiness>) -> HttpResponse {
    let missing = readiness.not_ready();
    if missing.is_empty() {
        HttpResponse::Ok().body("ok\n")
    } else {
        HttpResponse::ServiceUnavailable().body(missing.join("\n") + "\n")
    }
}

async fn metrics_text(
    request: HttpRequest,
    metrics: web::Data<Metrics>,
    auth: web::Data<Option<Arc<dyn MetricsAuth>>>,
) -> HttpResponse {
    if let Some(auth) = auth.get_ref() {
        let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer "));
        if let Err(denial) = auth.check(token).await {
            return denial.response();
        }
    }
    match metrics.encode() {
        Ok(text) => HttpResponse::Ok().content_type(OPENMETRICS).body(text),
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpSocket, TcpStream},
    };

    use super::*;

    #[test]
    fn the_process_is_ready_when_every_component_is() {
        let readiness = Readiness::default();
        let (policies, certificates) = (readiness.register("policies"), readiness.register("certificates"));
        policies.set_ready();
        assert_eq!(readiness.not_ready(), ["certificates: starting"]);
        certificates.set_ready();
        assert!(readiness.not_ready().is_empty());
        policies.set_not_ready("watch failed");
        assert_eq!(readiness.not_ready(), ["policies: watch failed"]);
    }

    #[tokio::test]
    async fn a_gate_opens_when_all_components_are_ready_at_once() {
        let readiness = Readiness::default();
        let components = [readiness.register("jobs"), readiness.register("policies")];
        let other = readiness.register("leader lease");
        let mut gate = std::pin::pin!(all_ready(&components));
        components[0].set_ready();
        other.set_ready();
        assert!(futures::poll!(&mut gate).is_pending());
        components[0].set_not_ready("gone");
        components[1].set_ready();
        assert!(futures::poll!(&mut gate).is_pending());
        other.set_not_ready("lost");
        components[0].set_ready();
        assert!(futures::poll!(&mut gate).is_ready());
    }

    #[test]
    fn a_busy_port_is_an_error_that_names_it() {
        let taken = listen(SocketAddr::from(([127, 0, 0, 1], 0)), "--admin-listen").unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen(address, "--admin-listen").unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--admin-listen"), "{error}");
    }

    /// The server's answer to a request of which this is the rest; empty if it closed the connection before.
    async fn answer_to(mut stream: TcpStream, rest: &[u8]) -> String {
        let mut answer = Vec::new();
        let exchange = async {
            stream.write_all(rest).await?;
            stream.read_to_end(&mut answer).await
        };
        let ended = tokio::time::timeout(Duration::from_secs(30), exchange).await;
        // An error is the end of the connection, too.
        let _: Result<_, _> = ended.expect("it stays open");
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_holds_connections_keeps_no_probe_out_and_few_of_them_stay_open() {
        const STRANGERS: usize = 10;
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), "--admin-listen").unwrap();
        let address = listener.local_addr().unwrap();
        let server = serve(listener, Readiness::default(), Metrics::default(), None).unwrap();
        // Ends with the test's runtime.
        drop(tokio::spawn(server));
        // All are addresses of this machine.
        let connect_from = async |stranger: usize| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(format!("127.0.0.{}:0", stranger + 2).parse().unwrap()).unwrap();
            socket.connect(address).await.unwrap()
        };
        let mut held = Vec::new();
        for stranger in 0..STRANGERS {
            for _ in 0..CONNECTIONS.per_address + 4 {
                let mut stream = connect_from(stranger).await;
                stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: stranger\r\nunfinished: ").await.unwrap();
                held.push(stream);
            }
        }
        let probe =
            answer_to(connect_from(STRANGERS).await, b"GET /healthz HTTP/1.1\r\nhost: probe\r\n\r\n").await;
        assert!(probe.starts_with("HTTP/1.1 200 ") && probe.ends_with("ok\n"), "{probe}");
        let is_open = |stream: &TcpStream| {
            stream.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        // Those of the last address that wait for a place are open, too; nothing is read from them.
        let most = CONNECTIONS.total + CONNECTIONS.per_address;
        let few_are_open = async {
            loop {
                let open = held.iter().filter(|stream| is_open(stream)).count();
                if open <= most {
                    return open;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // Shorter than the time after which a head that never ends is cut off.
        let open = tokio::time::timeout(Duration::from_secs(4), few_are_open).await.expect("many stay open");
        assert!(open > 0);
    }
}
