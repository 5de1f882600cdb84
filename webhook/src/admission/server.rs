//! The HTTPS server: TLS, HTTP/1.1, bodies of bounded size and duration.
//!
//! The handler is a parameter, so that benchmarks can compare handlers on the same server.

use std::{future::Future, net::TcpListener, num::NonZero, time::Duration};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::Server,
    http::{KeepAlive, StatusCode, header::CONTENT_TYPE},
    web::{self, Bytes, BytesMut},
};
use futures::StreamExt;
use job_handler_shared::keys;
use rustls::ServerConfig;

use crate::{
    admission::{
        mutate::mutate, response::HttpReply, review::MAX_BODY, state::WebhookState, validate::validate,
        warn::warn,
    },
    metrics::Endpoint,
};

/// Longer than the 90 s after which the apiserver closes idle connections (`k8s.io/client-go` transport cache).
const KEEP_ALIVE: Duration = Duration::from_secs(120);
/// Time for a TLS handshake, and again for the request head: as long as the apiserver waits by default, because it does
/// not retry on a new connection that the server closes.
const CONNECT_TIMEOUT: Duration = DEFAULT_TIMEOUT;
/// Time for a client to send the request body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for requests in flight at a shutdown. The slowest ones wait for a LIST.
const SHUTDOWN_SECONDS: u64 = 10;
/// How much of a too large body is read and discarded, so that the client can read the response.
const MAX_DISCARDED: usize = 64 << 20;
/// For requests without a timeout: the default of a webhook's `timeoutSeconds`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum of a webhook's `timeoutSeconds`.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
/// More threads do not speed up reviews, and each takes memory.
const MAX_WORKERS: usize = 4;

/// The webhook's server. It runs while it is awaited, and stops by its handle.
///
/// # Errors
/// If the listener cannot be used.
pub fn serve_webhook(
    listener: TcpListener,
    tls: ServerConfig,
    state: WebhookState,
) -> std::io::Result<Server> {
    serve(listener, tls, move |endpoint, body, timeout| {
        let state = state.clone();
        async move {
            match endpoint {
                Endpoint::Mutate => mutate(&body, &state).await,
                Endpoint::Validate => validate(&body, timeout, &state).await,
                Endpoint::Warn => warn(&body, timeout, &state).await,
            }
        }
    })
}

/// A server that answers each `POST` by `handler`: (endpoint, body, the caller's timeout) -> reply.
///
/// # Errors
/// If the listener cannot be used.
pub fn serve<H, F>(listener: TcpListener, tls: ServerConfig, handler: H) -> std::io::Result<Server>
where
    H: Fn(Endpoint, Bytes, Duration) -> F + Clone + Send + 'static,
    F: Future<Output = HttpReply> + 'static,
{
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_WORKERS);
    let server = HttpServer::new(move || {
        let post = |endpoint: Endpoint| {
            let handler = handler.clone();
            web::post().to(move |request: HttpRequest, payload: web::Payload| {
                let handler = handler.clone();
                async move {
                    match read_body(payload).await {
                        Ok(body) => {
                            respond(handler(endpoint, body, timeout_of(request.query_string())).await)
                        }
                        Err(reply) => respond(reply),
                    }
                }
            })
        };
        let resource = |path: &str, endpoint: Endpoint| {
            web::resource(path).route(post(endpoint)).default_service(web::to(method_not_allowed))
        };
        App::new()
            .service(resource(keys::MUTATE_PATH, Endpoint::Mutate))
            .service(resource(keys::VALIDATE_PATH, Endpoint::Validate))
            .service(resource(keys::WARN_PATH, Endpoint::Warn))
            .default_service(web::to(not_found))
    });
    let server = server
        .workers(workers)
        .disable_signals()
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .tls_handshake_timeout(CONNECT_TIMEOUT)
        .client_request_timeout(CONNECT_TIMEOUT)
        // If the client disconnects, the handler is dropped, and its grant is undone.
        .h1_allow_half_closed(false)
        .tcp_nodelay(true)
        .listen_rustls_0_23(listener, tls)?;
    Ok(server.run())
}

fn respond(reply: HttpReply) -> HttpResponse {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    HttpResponse::build(status).insert_header((CONTENT_TYPE, reply.content_type)).body(reply.body)
}

async fn method_not_allowed() -> HttpResponse {
    respond(HttpReply::text(405, "expected POST with an AdmissionReview"))
}

async fn not_found() -> HttpResponse {
    respond(HttpReply::text(404, "not found: expected POST /mutate, /validate or /warn"))
}

async fn read_body(payload: web::Payload) -> Result<Bytes, HttpReply> {
    match tokio::time::timeout(BODY_TIMEOUT, collect(payload)).await {
        Ok(body) => body,
        Err(_) => Err(HttpReply::text(
            408,
            format!("timed out after {} s waiting for the body", BODY_TIMEOUT.as_secs()),
        )),
    }
}

async fn collect(mut payload: web::Payload) -> Result<Bytes, HttpReply> {
    let broken = |error| HttpReply::text(400, format!("cannot read the body: {error}"));
    // Most reviews arrive in one chunk, which needs no copy.
    let Some(first) = payload.next().await.transpose().map_err(broken)? else { return Ok(Bytes::new()) };
    let Some(second) = payload.next().await.transpose().map_err(broken)? else { return Ok(first) };
    let mut body = BytesMut::with_capacity((first.len() + second.len()) * 4);
    body.extend_from_slice(&first);
    body.extend_from_slice(&second);
    let mut total = body.len();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(broken)?;
        total += chunk.len();
        if total <= MAX_BODY {
            body.extend_from_slice(&chunk);
        } else if total > MAX_BODY + MAX_DISCARDED {
            break;
        }
    }
    if total > MAX_BODY {
        return Err(HttpReply::text(
            413,
            format!("expected at most {} MiB, the body is larger", MAX_BODY >> 20),
        ));
    }
    Ok(body.freeze())
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
