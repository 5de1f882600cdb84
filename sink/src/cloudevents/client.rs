//! Posts CloudEvents to a receiver over HTTP, and classifies its responses.

use std::{
    fmt,
    time::{Duration, Instant},
};

use http::{HeaderValue, StatusCode};
use job_handler_shared::{
    kube::error::{ApiError, call},
    process::{error_chain::error_chain, jitter::Backoff},
    result::pending_events::JobPhase,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use parking_lot::Mutex;

use crate::{
    cloudevents::event::{CONTENT_TYPE, CloudEvent},
    config::{ReceiverConfig, TokenRef},
};

/// How long a token from the Secret is cached.
const TOKEN_AGE: Duration = Duration::from_secs(60);

/// Why an event was not delivered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliveryError {
    /// The receiver accepts no events at present: all wait.
    #[error("{0}")]
    Unavailable(String),
    /// The receiver rejects this event: others are delivered.
    #[error("{0}")]
    Rejected(String),
    /// The apiserver failed to read the event's source or to record the delivery.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// A receiver of events.
pub(crate) trait EventReceiver: Send + Sync {
    /// Its name in the configuration and in policies.
    fn name(&self) -> &str;

    fn deliver(&self, event: &CloudEvent) -> impl Future<Output = Result<(), DeliveryError>> + Send;
}

/// A receiver over HTTP.
pub(crate) struct HttpReceiver {
    config: ReceiverConfig,
    http: reqwest::Client,
    kube: Client,
    namespace: String,
    token: Mutex<Option<(Instant, HeaderValue)>>,
}

impl fmt::Debug for HttpReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

impl HttpReceiver {
    /// `namespace` is the sink's own, which has the Secret with the tokens.
    ///
    /// # Errors
    /// If the certificates or the proxy cannot be used, or the machine has no trusted certificates.
    pub(crate) fn new(config: ReceiverConfig, kube: Client, namespace: &str) -> Result<Self, ReceiverError> {
        let wrong = |source: reqwest::Error| ReceiverError { name: config.name.clone(), source };
        let mut builder = reqwest::Client::builder()
            .user_agent(format!("{}/{}", crate::PROGRAM, crate::VERSION))
            .timeout(config.timeout)
            .connect_timeout(config.timeout)
            // A redirect would send the event and its token to another address than the configured one.
            .redirect(reqwest::redirect::Policy::none())
            // The configuration names the proxy, not the environment.
            .no_proxy();
        if !config.roots.is_empty() {
            let roots: Result<Vec<_>, _> =
                config.roots.iter().map(|root| reqwest::Certificate::from_der(root)).collect();
            builder = builder.tls_certs_only(roots.map_err(wrong)?);
        }
        if let Some(proxy) = &config.proxy {
            builder = builder.proxy(reqwest::Proxy::all(proxy.clone()).map_err(wrong)?);
        }
        let http = builder.build().map_err(wrong)?;
        Ok(Self { http, kube, namespace: namespace.to_owned(), token: Mutex::default(), config })
    }

    async fn token(&self) -> Result<Option<HeaderValue>, DeliveryError> {
        let Some(TokenRef { secret, key }) = &self.config.token else { return Ok(None) };
        {
            let known = self.token.lock();
            if let Some((_, token)) = known.as_ref().filter(|(at, _)| at.elapsed() < TOKEN_AGE) {
                return Ok(Some(token.clone()));
            }
        }
        let place = format!("Secret {}/{secret}", self.namespace);
        let api = Api::<Secret>::namespaced(self.kube.clone(), &self.namespace);
        let found = call(&format!("get {place}"), api.get_opt(secret)).await;
        let found = found
            .map_err(|error| DeliveryError::Unavailable(format!("its token cannot be read: {error}")))?;
        let data = found.and_then(|found| found.data).unwrap_or_default();
        let bytes = data.get(key).ok_or_else(|| {
            DeliveryError::Unavailable(format!("its token is missing: there is no key {key:?} in {place}"))
        })?;
        let text = [b"Bearer ", bytes.0.trim_ascii()].concat();
        let mut token = HeaderValue::from_bytes(&text).map_err(|_| {
            DeliveryError::Unavailable(format!(
                "its token in {place} is invalid: it contains control characters"
            ))
        })?;
        token.set_sensitive(true);
        *self.token.lock() = Some((Instant::now(), token.clone()));
        Ok(Some(token))
    }
}

impl EventReceiver for HttpReceiver {
    fn name(&self) -> &str {
        &self.config.name
    }

    async fn deliver(&self, event: &CloudEvent) -> Result<(), DeliveryError> {
        let body = event.to_json(&self.config.source, &self.config.types).to_string();
        let mut request = self
            .http
            .post(self.config.url.clone())
            .header(http::header::CONTENT_TYPE, CONTENT_TYPE)
            .body(body);
        if let Some(token) = self.token().await? {
            request = request.header(http::header::AUTHORIZATION, token);
        }
        // The address may hold credentials.
        let answer = request
            .send()
            .await
            .map_err(|error| DeliveryError::Unavailable(error_chain(&error.without_url())))?;
        let status = answer.status();
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            *self.token.lock() = None;
        }
        classify(status, event.phase)
    }
}

fn classify(status: StatusCode, phase: JobPhase) -> Result<(), DeliveryError> {
    let words = format!("it responds {status} to an event of type {:?}", phase.as_str());
    match status.as_u16() {
        200..=299 => Ok(()),
        // These concern the event; all others concern the receiver and may pass.
        400 | 413 | 415 | 422 => Err(DeliveryError::Rejected(words)),
        300..=399 => Err(DeliveryError::Unavailable(format!(
            "{words}; redirects are not followed, configure the final URL"
        ))),
        _ => Err(DeliveryError::Unavailable(words)),
    }
}

/// A receiver with a configuration that cannot work.
#[derive(Debug, thiserror::Error)]
#[error("CloudEvent receiver {name:?}: {}", error_chain(.source))]
pub(crate) struct ReceiverError {
    name: String,
    source: reqwest::Error,
}

/// The pauses while a receiver is unavailable: up to a minute, jitter included.
pub(crate) fn delivery_backoff() -> Backoff {
    Backoff::new(Duration::from_secs(1), Duration::from_secs(30))
}

#[cfg(test)]
pub(crate) mod tests {
    use job_handler_shared::{ledger::refusal::Refusal, testing::refusals};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::config::Config;

    pub(crate) fn refusal(uid: &str) -> Refusal {
        Refusal { uid: uid.into(), ..refusals::refusal("j") }
    }

    /// Serves one request. Returns the port and the request.
    async fn once(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut sent = Vec::new();
            while !String::from_utf8_lossy(&sent).contains("\r\n\r\n") {
                let mut piece = [0; 4096];
                let n = stream.read(&mut piece).await.unwrap();
                assert_ne!(n, 0);
                sent.extend_from_slice(&piece[..n]);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&sent).into_owned()
        });
        (port, task)
    }

    fn receiver(sink: &str) -> HttpReceiver {
        let _: Result<_, _> = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, format!("cloudEventSinks: [{{name: ci, {sink}}}]")).unwrap();
        let config = Config::load(&path).unwrap().receivers.remove(0);
        let kube = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        HttpReceiver::new(config, kube, "ours").unwrap()
    }

    #[tokio::test]
    async fn responses_are_classified() {
        for (answer, expected) in [
            ("HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n", "Ok"),
            ("HTTP/1.1 422 Unprocessable Entity\r\ncontent-length: 0\r\n\r\n", "Rejected"),
            ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "Unavailable"),
            ("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", "Unavailable"),
            (
                "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
                "Unavailable",
            ),
        ] {
            let (port, sent) = once(answer).await;
            let found = receiver(&format!("url: 'http://127.0.0.1:{port}/in'"))
                .deliver(&CloudEvent::refused(&refusal("u")))
                .await;
            assert!(
                format!("{found:?}").starts_with(expected) || format!("{found:?}").contains(expected),
                "{found:?}"
            );
            let sent = sent.await.unwrap();
            assert!(
                sent.starts_with("POST /in HTTP/1.1") && sent.contains("application/cloudevents+json"),
                "{sent}"
            );
        }
    }

    #[tokio::test]
    async fn an_unreachable_receiver_is_reported_without_its_address() {
        let found = receiver("url: 'http://user:secret@127.0.0.1:1/in'")
            .deliver(&CloudEvent::refused(&refusal("u")))
            .await;
        let Err(DeliveryError::Unavailable(why)) = found else { panic!("{found:?}") };
        assert!(why.contains("onnect") && !why.contains("secret"), "{why}");
    }

    #[tokio::test]
    async fn events_go_through_the_proxy() {
        let (port, sent) = once("HTTP/1.1 204 No Content\r\n\r\n").await;
        let through = format!("url: 'http://receiver.invalid/in', proxy: 'http://127.0.0.1:{port}'");
        receiver(&through).deliver(&CloudEvent::refused(&refusal("u"))).await.unwrap();
        let sent = sent.await.unwrap();
        assert!(sent.starts_with("POST http://receiver.invalid/in HTTP/1.1"), "{sent}");
        // TLS goes through a tunnel.
        let (port, sent) = once("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        let through = format!("url: 'https://receiver.invalid/in', proxy: 'http://127.0.0.1:{port}'");
        let found = receiver(&through).deliver(&CloudEvent::refused(&refusal("u"))).await;
        assert!(matches!(found, Err(DeliveryError::Unavailable(_))), "{found:?}");
        assert!(sent.await.unwrap().starts_with("CONNECT receiver.invalid:443 HTTP/1.1"));
    }

    #[tokio::test]
    async fn nothing_is_sent_without_the_configured_token() {
        let found = receiver("url: 'http://127.0.0.1:1/in', bearerToken: {key: ci}")
            .deliver(&CloudEvent::refused(&refusal("u")))
            .await;
        let Err(DeliveryError::Unavailable(why)) = found else { panic!("{found:?}") };
        assert!(
            why.starts_with("its token cannot be read: cannot get Secret ours/job-handler-sink"),
            "{why}"
        );
    }
}
