//! Forwards calls to the API server, or injects a fault.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::harness::error::{Error, Result};
use crate::net::fault_proxy::proxy_state::{ProxyState, RecordedWrite};
use crate::net::fault_proxy::rule::{ApiCall, ProxyFault};

pub(super) type Body = BoxBody<Bytes, hyper::Error>;
type Sender = SendRequest<Full<Bytes>>;

/// The API server.
#[derive(Clone)]
pub(super) struct Upstream {
    host: String,
    port: u16,
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl Upstream {
    pub(super) fn of(config: &kube::Config) -> Result<Self> {
        let url = &config.cluster_url;
        let wrong = |why: &str| Error::Invalid(format!("cannot start a proxy for {url}: {why}"));
        let mut roots = RootCertStore::empty();
        for der in config.root_cert.iter().flatten() {
            roots.add(CertificateDer::from(der.clone())).map_err(|error| wrong(&error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(wrong("its kubeconfig names no certificate-authority"));
        }
        let host = url.host().ok_or_else(|| wrong("it has no host"))?.to_owned();
        let shown = config.tls_server_name.clone().unwrap_or_else(|| host.clone());
        let name = ServerName::try_from(shown).map_err(|error| wrong(&error.to_string()))?;
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let port = url.port_u16().unwrap_or(443);
        Ok(Self { host, port, name, connector: TlsConnector::from(Arc::new(tls)) })
    }

    async fn connect(&self) -> std::io::Result<Sender> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let tls = self.connector.connect(self.name.clone(), tcp).await?;
        let (sender, connection) = handshake(TokioIo::new(tls)).await.map_err(std::io::Error::other)?;
        // Ends once the sender and the last answer are dropped. The answer carries the error, if any.
        tokio::spawn(async move { _ = connection.await });
        Ok(sender)
    }
}

/// Returned instead of an answer to close the connection.
#[derive(Debug)]
struct NoAnswer;

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is closed on purpose")
    }
}

impl std::error::Error for NoAnswer {}

pub(super) async fn serve(
    listener: std::net::TcpListener,
    tls: Arc<ServerConfig>,
    upstream: Upstream,
    shared: Arc<ProxyState>,
) -> std::io::Result<Infallible> {
    let listener = TcpListener::from_std(listener)?;
    let acceptor = TlsAcceptor::from(tls);
    loop {
        // An accept can fail for lack of file descriptors; the next may succeed.
        let Ok((client, _)) = listener.accept().await else { continue };
        let (acceptor, upstream, shared) = (acceptor.clone(), upstream.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            // Small answers must not wait for the peer's acknowledgement. A failure only costs latency.
            let _ = client.set_nodelay(true);
            let Ok(client) = acceptor.accept(client).await else { return };
            // A connection carries one call at a time (HTTP/1.1), so it needs one upstream connection.
            let sender: Arc<Mutex<Option<Sender>>> = Arc::default();
            let service = service_fn(|request| {
                answer(request, upstream.clone(), Arc::clone(&sender), Arc::clone(&shared))
            });
            // Closed on purpose, or by the caller.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(client), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    upstream: Upstream,
    sender: Arc<Mutex<Option<Sender>>>,
    shared: Arc<ProxyState>,
) -> std::result::Result<Response<Body>, NoAnswer> {
    let (mut parts, body) = request.into_parts();
    // Only answers are streams; a request has at most 3 MiB (`MaxRequestBodyBytes`).
    let body = body.collect().await.map_err(|_| NoAnswer)?.to_bytes();
    let call = ApiCall::new(parts.method.clone(), &parts.uri, &body);
    let fault = shared.inject(&call);
    let faulty = fault.is_some();
    let note = |answer: Option<u16>| {
        if call.is_write() {
            shared.writes().push(RecordedWrite { call: call.clone(), answer, faulty });
        }
    };
    match &fault {
        Some(ProxyFault::Refuse(code)) => {
            note(None);
            return Ok(refusal(*code, "injected by the test's proxy"));
        }
        Some(ProxyFault::RefuseWith(code, message)) => {
            note(None);
            return Ok(refusal(*code, message));
        }
        Some(ProxyFault::Disconnect) => {
            note(None);
            return Err(NoAnswer);
        }
        Some(ProxyFault::DelayCall(time)) => tokio::time::sleep(*time).await,
        _ => {}
    }
    let host =
        HeaderValue::from_str(&format!("{}:{}", upstream.host, upstream.port)).map_err(|_| NoAnswer)?;
    parts.headers.insert(HOST, host);
    let answered = pass(Request::from_parts(parts, Full::new(body)), &upstream, &sender).await;
    note(answered.as_ref().ok().map(|answer| answer.status().as_u16()));
    match fault {
        Some(ProxyFault::DisconnectAfter) => return Err(NoAnswer),
        Some(ProxyFault::Timeout) => std::future::pending().await,
        Some(ProxyFault::DelayAnswer(time)) => tokio::time::sleep(time).await,
        Some(ProxyFault::Callback(callback)) => {
            callback(&call);
            return Err(NoAnswer);
        }
        _ => {}
    }
    answered.map(|answer| match call.is_watch() {
        true => answer.map(|body| shared.streams.filter(&call.path, body)),
        false => answer,
    })
}

async fn pass(
    request: Request<Full<Bytes>>,
    upstream: &Upstream,
    sender: &Mutex<Option<Sender>>,
) -> std::result::Result<Response<Body>, NoAnswer> {
    let mut slot = sender.lock().await;
    let mut kept = slot.take();
    // Not ready: it was closed in the meantime.
    if let Some(open) = &mut kept
        && open.ready().await.is_err()
    {
        kept = None;
    }
    let mut open = match kept {
        Some(open) => open,
        None => upstream.connect().await.map_err(|_| NoAnswer)?,
    };
    let answer = open.send_request(request).await.map_err(|_| NoAnswer)?;
    *slot = Some(open);
    Ok(answer.map(BodyExt::boxed))
}

/// An answer like the API server's own.
fn refusal(code: u16, message: &str) -> Response<Body> {
    let reason = match code {
        400 => "BadRequest",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    let body = Full::new(Bytes::from(status.to_string())).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or_default();
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if code == 429 {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}
