//! The HTTPS server: TLS, HTTP/1.1, with bounds on connections, on bodies (`request_body`) and on time.
//!
//! The handler is a parameter, so that benchmarks can compare handlers on the same server.

use std::{
    future::Future,
    net::TcpListener,
    num::NonZero,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use actix_http::{HttpServiceBuilder, TlsAcceptorConfig};
use actix_service::map_config;
use actix_web::{
    App, HttpRequest, HttpResponse,
    dev::{AppConfig, Server},
    guard,
    http::{
        KeepAlive, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    web,
};
use job_handler_shared::{
    keys,
    process::{
        bounded_service::BoundedFactory,
        connections::{ConnectionBounds, ConnectionTable},
    },
};
use rustls::ServerConfig;

use crate::{
    admission::{
        known_callers::KnownCallers,
        mutate::mutate,
        paths::ServedPaths,
        request_body::{BodyBudget, RequestBody, read_body},
        response::HttpReply,
        state::WebhookState,
        validate::validate,
        warn::warn,
    },
    metrics::Endpoint,
};

/// About 85 MiB if all of them are hostile. An apiserver has one per review in flight, and may share its address with others.
const CONNECTIONS: ConnectionBounds =
    ConnectionBounds { total: 512, per_address: 256, unused: Duration::from_secs(3) };
/// Longer than the 90 s after which the apiserver closes idle connections (`k8s.io/client-go` transport cache).
const KEEP_ALIVE: Duration = Duration::from_secs(120);
/// Time for a TLS handshake, and again for the first request head of a connection: as long as the apiserver waits by
/// default, because it does not retry on a new connection that the server closes.
const CONNECT_TIMEOUT: Duration = DEFAULT_TIMEOUT;
/// Time for a connection to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for requests in flight at a shutdown. The slowest ones wait for a LIST.
const SHUTDOWN_SECONDS: u64 = 10;
/// For requests without a timeout: the default of a webhook's `timeoutSeconds`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum of a webhook's `timeoutSeconds`.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
/// More threads do not speed up reviews, and each takes memory. With only one, a large review would hold up all others.
const WORKERS: RangeInclusive<usize> = 2..=4;
/// `Retry-After` of a 429, seconds.
const RETRY_SECONDS: u64 = 1;

/// The webhook's server. It runs while it is awaited, and stops by its handle.
///
/// # Errors
/// If the listener cannot be used.
pub fn serve_webhook(
    listener: TcpListener,
    tls: ServerConfig,
    state: WebhookState,
) -> std::io::Result<Server> {
    let paths = match &state.paths {
        Some(valid) => ServedPaths::Secret {
            valid: valid.clone(),
            callers: KnownCallers::new(Instant::now()),
            unknown: state.metrics.unknown_paths.clone(),
        },
        None => ServedPaths::Plain,
    };
    serve_paths(listener, tls, paths, move |endpoint, body, timeout| {
        let state = state.clone();
        async move {
            match endpoint {
                Endpoint::Mutate => mutate(body, &state).await,
                Endpoint::Validate => validate(body, timeout, &state).await,
                Endpoint::Warn => warn(body, timeout, &state).await,
            }
        }
    })
}

/// A server whose paths have no secret. It answers each `POST` by `handler`: (endpoint, body, the caller's timeout) ->
/// reply.
///
/// # Errors
/// If the listener cannot be used.
pub fn serve<H, F>(listener: TcpListener, tls: ServerConfig, handler: H) -> std::io::Result<Server>
where
    H: Fn(Endpoint, RequestBody, Duration) -> F + Clone + Send + 'static,
    F: Future<Output = HttpReply> + 'static,
{
    serve_paths(listener, tls, ServedPaths::Plain, handler)
}

fn serve_paths<H, F>(
    listener: TcpListener,
    tls: ServerConfig,
    paths: ServedPaths,
    handler: H,
) -> std::io::Result<Server>
where
    H: Fn(Endpoint, RequestBody, Duration) -> F + Clone + Send + 'static,
    F: Future<Output = HttpReply> + 'static,
{
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let server = Server::build()
        .workers(workers.clamp(*WORKERS.start(), *WORKERS.end()))
        .disable_signals()
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .max_concurrent_connections(CONNECTIONS.accepted());
    let stopping = server.graceful_shutdown_signal();
    let watched = paths.clone();
    let connections = ConnectionTable::new(CONNECTIONS, move |address| watched.lost_connection(address));
    let budget = BodyBudget::default();
    // What `HttpServer` of actix-web does, with a bound on connections before TLS, for which it has no place.
    let server = server.listen("webhook", listener, move || {
        let post = |endpoint: Endpoint| {
            let (handler, paths) = (handler.clone(), paths.clone());
            let (connections, budget) = (connections.clone(), budget.clone());
            web::post().to(move |request: HttpRequest, payload: web::Payload| {
                let in_flight = request.peer_addr().map(|peer| connections.request_began(peer));
                paths.check_caller(&request);
                let timeout = timeout_of(request.query_string());
                let (handler, budget, guard) =
                    (handler.clone(), budget.clone(), paths.watch_answer(endpoint, timeout));
                async move {
                    let reply = match read_body(payload, &budget).await {
                        Ok(body) => handler(endpoint, body, timeout).await,
                        Err(reply) => reply,
                    };
                    if let Some(guard) = guard {
                        guard.answered();
                    }
                    drop(in_flight);
                    respond(reply)
                }
            })
        };
        let resource = |path: &str, endpoint: Endpoint| {
            let valid = paths.clone();
            web::resource(paths.pattern(path))
                .guard(guard::fn_guard(move |request| valid.accepts(request)))
                .route(post(endpoint))
                .default_service(web::to(method_not_allowed))
        };
        let others = paths.clone();
        let not_found = move || {
            others.count_unknown();
            not_found()
        };
        let app = App::new()
            .service(resource(keys::MUTATE_PATH, Endpoint::Mutate))
            .service(resource(keys::VALIDATE_PATH, Endpoint::Validate))
            .service(resource(keys::WARN_PATH, Endpoint::Warn))
            .default_service(web::to(not_found));
        let stopping = stopping.clone();
        let http = HttpServiceBuilder::default()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
            .client_request_timeout(CONNECT_TIMEOUT)
            .client_disconnect_timeout(CLOSE_TIMEOUT)
            // If the client disconnects, the handler is dropped, and its grant is undone.
            .h1_allow_half_closed(false)
            .tcp_nodelay(true)
            .finish(map_config(app, |()| AppConfig::default()))
            .rustls_0_23_with_config(
                tls.clone(),
                TlsAcceptorConfig::default().handshake_timeout(CONNECT_TIMEOUT),
            );
        BoundedFactory { inner: http, connections: connections.clone() }
    })?;
    Ok(server.run())
}

fn respond(reply: HttpReply) -> HttpResponse {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.insert_header((RETRY_AFTER, RETRY_SECONDS));
    }
    response.insert_header((CONTENT_TYPE, reply.content_type)).body(reply.body)
}

async fn method_not_allowed() -> HttpResponse {
    respond(HttpReply::text(405, "expected POST with an AdmissionReview"))
}

async fn not_found() -> HttpResponse {
    respond(HttpReply::text(404, "not found"))
}

/// The query parameter `timeout`, a Go duration such as `10s` or `1m0s`.
fn timeout_of(query: &str) -> Duration {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("timeout="))
        .and_then(go_duration)
        .map_or(DEFAULT_TIMEOUT, |timeout| timeout.min(MAX_TIMEOUT))
}

fn go_duration(mut text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    while !text.is_empty() {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = text.get(..digits)?.parse().ok()?;
        let rest = text.get(digits..)?;
        let (seconds, rest) = if let Some(rest) = rest.strip_prefix("ms") {
            (0.001, rest)
        } else if let Some(rest) = rest.strip_prefix('s') {
            (1.0, rest)
        } else if let Some(rest) = rest.strip_prefix('m') {
            (60.0, rest)
        } else {
            (3600.0, rest.strip_prefix('h')?)
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        text = rest;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("timeout=2s", Duration::from_secs(2))]
    #[case("x=1&timeout=1.5s", Duration::from_millis(1500))]
    #[case("timeout=500ms", Duration::from_millis(500))]
    #[case("timeout=1m0s", MAX_TIMEOUT)]
    #[case("timeout=99999999999999999999h", DEFAULT_TIMEOUT)]
    #[case("timeout=soon", DEFAULT_TIMEOUT)]
    #[case("timeout=-3s", DEFAULT_TIMEOUT)]
    #[case("", DEFAULT_TIMEOUT)]
    fn the_timeout_is_read_from_the_query(#[case] query: &str, #[case] expected: Duration) {
        assert_eq!(timeout_of(query), expected);
    }
}
