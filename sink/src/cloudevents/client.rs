//! One receiver of CloudEvents: posts to it, and sorts what comes back by what can be done about it.

use std::{
    fmt,
    time::{Duration, Instant},
};

use http::{HeaderValue, StatusCode};
use job_handler_shared::{
    kube::error::{ApiError, call},
    process::{error_chain::error_chain, jitter::jitter},
    result::pending_events::JobPhase,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use parking_lot::Mutex;

use crate::{
    cloudevents::event::{CONTENT_TYPE, Told},
    config::{SinkConfig, TokenRef},
};

/// How long a token that was read is taken to hold.
const TOKEN_AGE: Duration = Duration::from_secs(60);

/// Why an event was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The receiver takes none at the moment: all wait.
    #[error("{0}")]
    Away(String),
    /// It does not take this one: the others go on.
    #[error("{0}")]
    Rejected(String),
    /// We could not read what is to be told, or not note that it was.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Takes events; the real one is [`Receiver`].
pub trait Post: Send + Sync {
    /// Its name, as policies have it.
    fn name(&self) -> &str;

    /// Posts one event.
    fn post(&self, told: &Told) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// A receiver over HTTP.
pub struct Receiver {
    config: SinkConfig,
    http: reqwest::Client,
    kube: Client,
    namespace: String,
    token: Mutex<Option<(Instant, HeaderValue)>>,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

impl Receiver {
    /// `namespace` is our own, where the tokens' Secret is.
    ///
    /// # Errors
    /// Where the certificates or the proxy cannot be used, or this machine has no trusted certificates.
    pub fn new(config: SinkConfig, kube: Client, namespace: &str) -> Result<Self, ReceiverError> {
        let wrong = |source: reqwest::Error| ReceiverError { name: config.name.clone(), source };
        let mut builder = reqwest::Client::builder()
            .user_agent(format!("{}/{}", crate::PROGRAM, crate::VERSION))
            .timeout(config.timeout)
            .connect_timeout(config.timeout)
            // An event belongs where the operator said; a redirect would take the token along.
            .redirect(reqwest::redirect::Policy::none())
            // Only what the configuration says, not what the environment does.
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

    async fn token(&self) -> Result<Option<HeaderValue>, Fault> {
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
        let found = found.map_err(|error| Fault::Away(format!("its token cannot be read: {error}")))?;
        let data = found.and_then(|found| found.data).unwrap_or_default();
        let bytes = data.get(key).ok_or_else(|| {
            Fault::Away(format!("its token is missing: there is no key {key:?} in {place}"))
        })?;
        let text = [b"Bearer ", bytes.0.trim_ascii()].concat();
        let mut token = HeaderValue::from_bytes(&text)
            .map_err(|_| Fault::Away(format!("its token in {place} is none: it holds control characters")))?;
        token.set_sensitive(true);
        *self.token.lock() = Some((Instant::now(), token.clone()));
        Ok(Some(token))
    }
}

impl Post for Receiver {
    fn name(&self) -> &str {
        &self.config.name
    }

    async fn post(&self, told: &Told) -> Result<(), Fault> {
        let body = told.to_json(&self.config.source, &self.config.types).to_string();
        let mut request = self
            .http
            .post(self.config.url.clone())
            .header(http::header::CONTENT_TYPE, CONTENT_TYPE)
            .body(body);
        if let Some(token) = self.token().await? {
            request = request.header(http::header::AUTHORIZATION, token);
        }
        // The address may hold credentials.
        let answer = request.send().await.map_err(|error| Fault::Away(error_chain(&error.without_url())))?;
        let status = answer.status();
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            *self.token.lock() = None;
        }
        sort(status, told.phase)
    }
}

/// What an answer means.
fn sort(status: StatusCode, phase: JobPhase) -> Result<(), Fault> {
    let words = format!("it answers {status} to an event «{}»", phase.as_str());
    match status.as_u16() {
        200..=299 => Ok(()),
        // About the event itself; anything else is about the receiver, and may pass.
        400 | 413 | 415 | 422 => Err(Fault::Rejected(words)),
        300..=399 => Err(Fault::Away(format!("{words}; redirects are not followed, name the place itself"))),
        _ => Err(Fault::Away(words)),
    }
}

/// A receiver that cannot be spoken to, whatever it does.
#[derive(Debug, thiserror::Error)]
#[error("CloudEvent receiver {name:?}: {}", error_chain(.source))]
pub struct ReceiverError {
    name: String,
    source: reqwest::Error,
}

/// How long a receiver that is away is left alone: doubling from a second to a minute, spread.
#[derive(Debug, Default)]
pub struct Patience(u32);

impl Patience {
    /// It took an event. Tells whether it was away before.
    pub fn well(&mut self) -> bool {
        std::mem::take(&mut self.0) > 0
    }

    /// It took none: the pause until the next try.
    pub fn pause(&mut self) -> Duration {
        let seconds = 2_u64.saturating_pow(self.0).min(60);
        self.0 = self.0.saturating_add(1);
        jitter(Duration::from_secs(seconds))
    }

    /// Whether the last try should be told of: the first, and then now and then.
    pub fn is_worth_a_word(&self) -> bool {
        self.0 == 1 || self.0.is_multiple_of(10)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use job_handler_shared::{
        ledger::refusal::{Refusal, RefusalKind},
        policy::reference::{PolicyKind, PolicyRef},
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::config::Config;

    pub(crate) fn refusal(uid: &str) -> Refusal {
        Refusal {
            decision: RefusalKind::Refused,
            policy: PolicyRef {
                kind: PolicyKind::JobPolicy,
                namespace: Some("ci".into()),
                name: "builds".into(),
                uid: "p".into(),
            },
            limit: "l".into(),
            namespace: "ci".into(),
            job: "j".into(),
            uid: uid.into(),
            stored: false,
            owner: None,
            message: "full".into(),
            at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    /// Answers one request with `answer`; gives what it was sent.
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

    fn receiver(sink: &str) -> Receiver {
        let _: Result<_, _> = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, format!("cloudEventSinks: [{{name: ci, {sink}}}]")).unwrap();
        let config = Config::load(&path).unwrap().sinks.remove(0);
        let kube = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        Receiver::new(config, kube, "ours").unwrap()
    }

    #[tokio::test]
    async fn answers_are_sorted() {
        for (answer, expected) in [
            ("HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n", "Ok"),
            ("HTTP/1.1 422 Unprocessable Entity\r\ncontent-length: 0\r\n\r\n", "Rejected"),
            ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "Away"),
            ("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", "Away"),
            (
                "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
                "Away",
            ),
        ] {
            let (port, sent) = once(answer).await;
            let found = receiver(&format!("url: 'http://127.0.0.1:{port}/in'"))
                .post(&Told::refused(&refusal("u")))
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
    async fn nobody_there_says_so_without_the_address() {
        let found =
            receiver("url: 'http://user:secret@127.0.0.1:1/in'").post(&Told::refused(&refusal("u"))).await;
        let Err(Fault::Away(why)) = found else { panic!("{found:?}") };
        assert!(why.contains("onnect") && !why.contains("secret"), "{why}");
    }

    #[tokio::test]
    async fn a_proxy_is_gone_through() {
        let (port, sent) = once("HTTP/1.1 204 No Content\r\n\r\n").await;
        let through = format!("url: 'http://receiver.invalid/in', proxy: 'http://127.0.0.1:{port}'");
        receiver(&through).post(&Told::refused(&refusal("u"))).await.unwrap();
        let sent = sent.await.unwrap();
        assert!(sent.starts_with("POST http://receiver.invalid/in HTTP/1.1"), "{sent}");
        // Over TLS it is a tunnel, whose other end alone sees the event.
        let (port, sent) = once("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        let through = format!("url: 'https://receiver.invalid/in', proxy: 'http://127.0.0.1:{port}'");
        let found = receiver(&through).post(&Told::refused(&refusal("u"))).await;
        assert!(matches!(found, Err(Fault::Away(_))), "{found:?}");
        assert!(sent.await.unwrap().starts_with("CONNECT receiver.invalid:443 HTTP/1.1"));
    }

    #[tokio::test]
    async fn a_token_that_cannot_be_read_is_told_and_nothing_is_sent_without_it() {
        let found = receiver("url: 'http://127.0.0.1:1/in', bearerToken: {key: ci}")
            .post(&Told::refused(&refusal("u")))
            .await;
        let Err(Fault::Away(why)) = found else { panic!("{found:?}") };
        assert!(
            why.starts_with("its token cannot be read: cannot get Secret ours/job-handler-sink"),
            "{why}"
        );
    }
}
