//! The HTTPS server: TLS, HTTP/1.1, bodies of bounded size in bounded time. What is answered is the handler's.
//!
//! Benchmarks run other handlers on this very server, so that they compare handlers and nothing else.

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
        mutate::mutate, response::Reply, review::MAX_BODY, state::State, validate::validate, warn::warn,
    },
    metrics::Endpoint,
};

/// The apiserver closes idle connections after 90 s (`k8s.io/client-go` transport cache); it should be the one to.
const KEEP_ALIVE: Duration = Duration::from_secs(120);
/// For the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests under way at a shutdown; the longest wait for a LIST.
const SHUTDOWN_SECONDS: u64 = 10;
/// Of a body that is too large so much more is read away, so that its sender gets to read the answer.
const READ_AWAY: usize = 64 << 20;
/// What a caller grants that names no time (`timeoutSeconds` of a webhook is 10 by default).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// `timeoutSeconds` of a webhook is 30 at most.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
/// More threads help nobody here, and each takes memory.
const MAX_WORKERS: usize = 4;

/// The server of this webhook; runs when awaited or spawned, stops by its handle.
///
/// # Errors
/// Where the listener cannot be used.
pub fn serve_webhook(listener: TcpListener, tls: ServerConfig, state: State) -> std::io::Result<Server> {
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

/// A server whose answers to `POST` at each [`Endpoint`] are `handler`'s: (endpoint, body, the caller's patience) -> reply.
///
/// # Errors
/// Where the listener cannot be used.
pub fn serve<H, F>(listener: TcpListener, tls: ServerConfig, handler: H) -> std::io::Result<Server>
where
    H: Fn(Endpoint, Bytes, Duration) -> F + Clone + Send + 'static,
    F: Future<Output = Reply> + 'static,
{
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_WORKERS);
    let server = HttpServer::new(move || {
        let post = |endpoint: Endpoint| {
            let handler = handler.clone();
            web::post().to(move |request: HttpRequest, payload: web::Payload| {
                let handler = handler.clone();
                async move {
                    match read(payload).await {
                        Ok(body) => respond(handler(endpoint, body, patience(request.query_string())).await),
                        Err(reply) => respond(reply),
                    }
                }
            })
        };
        let resource = |path: &str, endpoint: Endpoint| {
            web::resource(path).route(post(endpoint)).default_service(web::to(only_post))
        };
        App::new()
            .service(resource(keys::MUTATE_PATH, Endpoint::Mutate))
            .service(resource(keys::VALIDATE_PATH, Endpoint::Validate))
            .service(resource(keys::WARN_PATH, Endpoint::Warn))
            .default_service(web::to(nothing_here))
    });
    let server = server
        .workers(workers)
        .disable_signals()
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .client_request_timeout(HEAD_TIMEOUT)
        // Who hangs up is not decided about any more, and what was granted it is taken back.
        .h1_allow_half_closed(false)
        .tcp_nodelay(true)
        .listen_rustls_0_23(listener, tls)?;
    Ok(server.run())
}

fn respond(reply: Reply) -> HttpResponse {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    HttpResponse::build(status).insert_header((CONTENT_TYPE, reply.content_type)).body(reply.body)
}

async fn only_post() -> HttpResponse {
    respond(Reply::text(405, "expected POST with an AdmissionReview"))
}

async fn nothing_here() -> HttpResponse {
    respond(Reply::text(404, "nothing here: expected POST /mutate, /validate or /warn"))
}

async fn read(payload: web::Payload) -> Result<Bytes, Reply> {
    match tokio::time::timeout(BODY_TIMEOUT, collect(payload)).await {
        Ok(body) => body,
        Err(_) => {
            Err(Reply::text(408, format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs())))
        }
    }
}

async fn collect(mut payload: web::Payload) -> Result<Bytes, Reply> {
    let broken = |error| Reply::text(400, format!("the body broke off: {error}"));
    // Most reviews come in one piece, which needs no copy.
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
        } else if total > MAX_BODY + READ_AWAY {
            break;
        }
    }
    if total > MAX_BODY {
        return Err(Reply::text(413, format!("expected at most {} MiB, the body is larger", MAX_BODY >> 20)));
    }
    Ok(body.freeze())
}

/// `timeout` of the query, as the apiserver writes it (a Go duration, such as `10s` or `1m0s`).
fn patience(query: &str) -> Duration {
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
    fn the_callers_patience(#[case] query: &str, #[case] expected: Duration) {
        assert_eq!(patience(query), expected);
    }
}
