//! The HTTPS server: TLS, HTTP/1.1, invalid input.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; clippy knows only #[test] itself"
)]

mod common;

use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{builds, job, policy, review};
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use job_handler_certs::{
    CertOptions,
    review_path::{LeakSign, ReviewPaths},
};
use job_handler_shared::{
    keys,
    policy::{reference::Labels, set::PolicySet},
    testing::apiserver::Apiserver,
};
use job_handler_webhook::{
    admission::{server::serve_webhook, state::WebhookState},
    limit::{Attempt, Limiter, Verdict},
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{Mutex, watch},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

/// A webhook on a free port of loopback, with the image-build policy.
struct HttpsServer {
    port: u16,
    tls: TlsConnector,
    handle: actix_web::dev::ServerHandle,
}

#[derive(Debug)]
struct HttpsAnswer {
    status: u16,
    body: String,
}

impl HttpsAnswer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn state() -> WebhookState {
    WebhookState::fixed(PolicySet::new([policy("builds", builds())]), [("ci".to_owned(), Labels::new())])
}

fn server() -> HttpsServer {
    server_of(state())
}

fn server_of(state: WebhookState) -> HttpsServer {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let cert = certified.cert.der().clone();
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let server = serve_webhook(listener, config, state).unwrap();
    let handle = server.handle();
    // Ends with the test's runtime, or by its handle.
    drop(tokio::spawn(server));
    HttpsServer { port, tls: TlsConnector::from(Arc::new(client)), handle }
}

impl HttpsServer {
    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        self.tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
    }

    async fn post(&self, path: &str, body: &[u8]) -> HttpsAnswer {
        request(&mut self.connect().await, "POST", path, body).await
    }
}

/// One request over an open connection, within five seconds.
async fn request<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut TlsStream<S>,
    method: &str,
    path: &str,
    body: &[u8],
) -> HttpsAnswer {
    let exchange = async {
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        // Else its end may stay in the TLS buffer.
        stream.flush().await.unwrap();
        read_answer(stream).await
    };
    tokio::time::timeout(Duration::from_secs(20), exchange).await.expect("no answer: a hung connection")
}

async fn read_answer<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut TlsStream<S>) -> HttpsAnswer {
    let mut got = Vec::new();
    loop {
        let mut chunk = vec![0; 16 << 10];
        let n = stream.read(&mut chunk).await.unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&chunk[..n]);
        let text = String::from_utf8_lossy(&got);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length: usize =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        if body.len() >= length {
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            return HttpsAnswer { status, body: body.to_owned() };
        }
    }
}

fn build() -> Value {
    job(json!({"app": "build", "id": "7"}), json!({}))
}

fn patch_of(answer: &HttpsAnswer) -> Value {
    let patch = answer.json()["response"]["patch"].as_str().unwrap().to_owned();
    serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_is_answered_with_a_patch_over_http_1_1() {
    let server = server();
    let mut stream = server.connect().await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "also if the client offers h2");
    for _ in 0..3 {
        let answer = request(&mut stream, "POST", "/mutate?timeout=2s", &review(&build())).await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            (&answer.json()["response"]["uid"], &answer.json()["response"]["allowed"]),
            (&json!("u-1"), &json!(true))
        );
        assert_eq!(patch_of(&answer)[0]["path"], "/spec/ttlSecondsAfterFinished");
        let answer = request(&mut stream, "POST", "/validate?timeout=10s", &review(&build())).await;
        assert_eq!(answer.json()["response"]["allowed"], true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_input_gets_the_reason() {
    let server = server();
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_review = format!(
        r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}}"#,
        "{\"a\":".repeat(10_000) + "1" + &"}".repeat(10_000)
    );
    let table: [(&str, Vec<u8>, u16, &str); 8] = [
        ("not JSON", b"stamp me".to_vec(), 400, "expected an AdmissionReview"),
        ("empty", vec![], 400, "EOF"),
        (
            "no request",
            br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#.to_vec(),
            400,
            "no request",
        ),
        (
            "wrong version",
            br#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u"}}"#
                .to_vec(),
            400,
            "v1beta1",
        ),
        ("deep", deep.into_bytes(), 400, "expected an AdmissionReview"),
        ("deep request", deep_review.into_bytes(), 400, "no uid"),
        ("9 MiB", vec![b' '; 9 << 20], 413, "at most 7.0Mi"),
        ("40 MiB of zeros", vec![0; 40 << 20], 413, "at most 7.0Mi"),
    ];
    for path in ["/mutate", "/validate"] {
        for (what, body, status, text) in &table {
            let answer = server.post(path, body).await;
            assert_eq!(answer.status, *status, "{what}: {answer:?}");
            assert!(answer.body.contains(text), "{what}: {answer:?}");
        }
    }
    let mut stream = server.connect().await;
    assert_eq!(request(&mut stream, "GET", "/mutate", b"").await.status, 405);
    assert_eq!(request(&mut stream, "POST", "/", b"").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_objects_are_allowed_with_a_warning() {
    let server = server();
    let mut pod: Value = serde_json::from_slice(&review(&json!({"spec": {}}))).unwrap();
    pod["request"]["kind"] = json!({"group": "", "version": "v1", "kind": "Pod"});
    for path in ["/mutate", "/validate"] {
        let answer = server.post(path, pod.to_string().as_bytes()).await.json();
        assert_eq!(answer["response"]["allowed"], true);
        assert!(answer["response"]["warnings"][0].as_str().unwrap().contains("found Pod"), "{answer}");
        assert!(answer["response"].get("patch").is_none());
    }
    let unreadable = review(&json!({"spec": "none"}));
    let answer = server.post("/mutate", &unreadable).await.json();
    assert_eq!(answer["response"]["allowed"], true);
    assert!(answer["response"]["warnings"][0].as_str().unwrap().contains("cannot be read"), "{answer}");
    let answer = server.post("/validate", &unreadable).await.json();
    assert_eq!(
        (&answer["response"]["allowed"], &answer["response"]["status"]["code"]),
        (&json!(false), &json!(400))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_deeply_nested_jobs_are_stamped() {
    let server = server();
    let mut many = build();
    let container = many["spec"]["template"]["spec"]["containers"][0].clone();
    many["spec"]["template"]["spec"]["containers"] = json!(vec![container; 1_000]);
    let mut big = build();
    big["metadata"]["annotations"] = json!({"note": "x".repeat(3 << 20)});
    let deep = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let deep = String::from_utf8(review(&build())).unwrap().replace("{\"kept\":[1,2]}", &deep);
    assert!(deep.len() > 60_000);
    for body in [review(&many), review(&big), deep.into_bytes()] {
        let answer = server.post("/mutate", &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(patch_of(&answer)[0]["value"], 604_800);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_in_excluded_namespaces_are_not_changed() {
    let server = server();
    for namespace in ["kube-system", "job-handler-system"] {
        let mut excluded: Value = serde_json::from_slice(&review(&build())).unwrap();
        excluded["request"]["namespace"] = json!(namespace);
        let answer = server.post("/mutate", excluded.to_string().as_bytes()).await.json();
        assert_eq!(answer["response"], json!({"uid": "u-1", "allowed": true}));
    }
}

// On a busy node a TLS handshake can take seconds. A create must not fail for it while the apiserver still waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handshake_ends_within_the_time_of_a_review() {
    let server = server();
    let mut socket = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let (client, mut slow) = tokio::io::duplex(64 << 10);
    let delay = async move {
        let mut hello = vec![0; 16 << 10];
        let n = slow.read(&mut hello).await.unwrap();
        socket.write_all(&hello[..n]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        tokio::io::copy_bidirectional(&mut slow, &mut socket).await
    };
    drop(tokio::spawn(delay));
    let mut stream = server.tls.connect(ServerName::try_from("localhost").unwrap(), client).await.unwrap();
    assert_eq!(request(&mut stream, "POST", "/mutate", &review(&build())).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_stop_closes_idle_connections() {
    let server = server();
    let mut stream = server.connect().await;
    assert_eq!(request(&mut stream, "POST", "/mutate", &review(&build())).await.status, 200);
    let stopped = tokio::time::timeout(Duration::from_secs(9), server.handle.stop(true));
    stopped.await.expect("a connection that idles must not hold up the end");
    let mut rest = Vec::new();
    assert_eq!(stream.read_to_end(&mut rest).await.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_beyond_the_bounds_is_not_stamped_and_passes_no_limit() {
    let server = server();
    let mut large = build();
    large["metadata"]["annotations"] = json!({"note": "x".repeat(5 << 20)});
    let mut labels = build();
    let many: BTreeMap<String, String> = (0..100_000).map(|n| (format!("l{n}"), String::new())).collect();
    labels["metadata"]["labels"] = json!(many);
    for (job, why) in [(large, "larger than 3.0Mi"), (labels, "labels take more than 256 KiB")] {
        let answer = server.post("/mutate", &review(&job)).await.json();
        assert_eq!(answer["response"]["allowed"], true);
        assert!(answer["response"]["warnings"][0].as_str().unwrap().contains(why), "{answer}");
        assert!(answer["response"].get("patch").is_none());
        let answer = server.post("/validate", &review(&job)).await.json();
        assert_eq!(answer["response"]["allowed"], false);
        assert!(answer["response"]["status"]["message"].as_str().unwrap().contains(why), "{answer}");
    }
    let labels: BTreeMap<String, String> =
        (0..60).map(|n| (format!("{n:02}{}", "k".repeat(60)), "v".repeat(60))).collect();
    let mut named = builds();
    named["jobSelector"] = json!({"matchLabels": labels});
    let policies = PolicySet::new([policy("builds", named)]);
    let server = server_of(WebhookState::fixed(policies, [("ci".to_owned(), Labels::new())]));
    let answer = server.post("/validate", &review(&job(json!(labels), json!({})))).await.json();
    assert_eq!(answer["response"]["status"]["code"], 400);
    let message = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("its labels that policies name take more than 4 KiB"), "{message}");
    for (field, value) in [("name", "a".repeat(900_000)), ("uid", "u".repeat(64))] {
        let mut stranger = build();
        stranger["metadata"][field] = json!(value);
        let answer = server.post("/validate", &review(&stranger)).await.json();
        let message = answer["response"]["status"]["message"].as_str().unwrap();
        assert_eq!(message, format!("metadata.{field} is not within the limits of Kubernetes"));
    }
}

/// Sends the head of a request and a part of its body.
async fn send_part(stream: &mut TlsStream<TcpStream>, announced: usize, sent: usize) {
    let head = format!("POST /mutate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {announced}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; sent]).await.unwrap();
    stream.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_flight_have_a_budget_in_common() {
    let server = server();
    let ask = || async { server.post("/mutate", &vec![b' '; 3 << 20]).await };
    let mut held = Vec::new();
    // A request that arrives while they are read may take the place of one of them, so there is no fixed number.
    let answer = loop {
        let answer = ask().await;
        if answer.status == 429 {
            break answer;
        }
        assert!(held.len() < 50, "{answer:?}");
        let mut stream = server.connect().await;
        send_part(&mut stream, 6 << 20, 5 << 20).await;
        held.push(stream);
    };
    assert!(answer.body.contains("in flight"), "{answer:?}");
    assert_eq!(server.post("/mutate", &review(&build())).await.status, 200, "a usual review has room");
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(30);
    while ask().await.status != 400 {
        assert!(Instant::now() < deadline, "no room after the bodies are gone");
    }
}

/// Never decides, and counts the attempts that wait.
struct Undecided(watch::Sender<usize>);

impl Limiter for Undecided {
    fn admit(&self, _: Attempt) -> BoxFuture<'_, Verdict> {
        self.0.send_modify(|waiting| *waiting += 1);
        Box::pin(std::future::pending())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_reviews_that_wait_for_a_decision_keep_nobody_out() {
    let limiter = Arc::new(Undecided(watch::Sender::new(0)));
    let mut waiting = limiter.0.subscribe();
    let server = server_of(state().with_limiter(limiter));
    let mut large = build();
    large["metadata"]["annotations"] = json!({"note": "x".repeat(5 << 19)});
    let large = review(&large);
    let mut held = Vec::new();
    for n in 1..=20 {
        let mut stream = server.connect().await;
        let head = format!(
            "POST /validate?timeout=30s HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
            large.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&large).await.unwrap();
        stream.flush().await.unwrap();
        let arrives = tokio::time::timeout(Duration::from_secs(30), waiting.wait_for(|count| *count == n));
        assert!(arrives.await.is_ok(), "review {n}: {:?}", read_answer(&mut stream).await);
        held.push(stream);
    }
    assert_eq!(server.post("/mutate", &large).await.status, 200);
}

/// Held by tests that open many files: a process may often have 1,024 only.
static MANY_FILES: Mutex<()> = Mutex::const_new(());

/// Connects from another address of this machine.
async fn connect_from(address: &str, port: u16) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(address.parse().unwrap()).unwrap();
    socket.connect(format!("127.0.0.1:{port}").parse().unwrap()).await.unwrap()
}

/// Waits until the server has closed the connection.
async fn is_closed(mut stream: TcpStream) {
    let mut buffer = [0; 16];
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut buffer));
    assert!(read.await.expect("it stays open").unwrap_or_default() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_only_connects_is_disconnected_and_keeps_nobody_out() {
    const SHARE: usize = 256;
    let _files = MANY_FILES.lock().await;
    let server = server();
    let mut silent = Vec::new();
    for _ in 0..SHARE + 44 {
        silent.push(TcpStream::connect(("127.0.0.1", server.port)).await.unwrap());
    }
    let closed = tokio::spawn(join_all(silent.into_iter().map(is_closed)));
    let apiserver = connect_from("127.0.0.2:0", server.port).await;
    let name = ServerName::try_from("localhost").unwrap();
    let mut apiserver = server.tls.connect(name, apiserver).await.unwrap();
    assert_eq!(request(&mut apiserver, "POST", "/mutate", &review(&build())).await.status, 200);
    let closed = closed.await.unwrap();
    assert_eq!(closed.len(), SHARE + 44);
}

/// TLS has a bound of its own, on the handshakes of a worker.
#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_that_are_all_in_one_worker_hold_up_no_review() {
    /// Together more handshakes than TLS lets a worker begin. Each has fewer connections than an address may have.
    const OF_EACH_STRANGER: usize = 130;
    /// Connections go round among the workers: two, three or four.
    const ROUND: usize = 12;
    let _files = MANY_FILES.lock().await;
    let server = server();
    let mut silent = Vec::new();
    for stranger in ["127.0.0.2:0", "127.0.0.3:0"] {
        for _ in 0..OF_EACH_STRANGER {
            silent.push(connect_from(stranger, server.port).await);
            for _ in 1..ROUND {
                drop(connect_from(stranger, server.port).await);
            }
        }
    }
    for _ in 0..ROUND {
        let body = review(&build());
        let answer = server.post("/mutate", &body);
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
        assert_eq!(answer.expect("it waits for the handshakes of others").status, 200);
    }
    drop(silent);
}

/// 408 of actix for the head, ours for the body.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_never_complete_is_ended() {
    let server = server();
    let answer_to = async |part: &str| {
        let mut stream = server.connect().await;
        stream.write_all(part.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
        // An error is the end of the connection, too.
        let _: Result<_, _> = ended.expect("it stays open");
        String::from_utf8(answer).unwrap()
    };
    let (head, body) = tokio::join!(
        answer_to("POST /mutate HTTP/1.1\r\nhost: local"),
        answer_to("POST /mutate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3000\r\n\r\n"),
    );
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    assert!(body.starts_with("HTTP/1.1 408 ") && body.contains("waiting for the body"), "{body}");
}

/// The head of a review, whose body never comes.
async fn answer_to_head(server: &HttpsServer, path: &str) -> Option<HttpsAnswer> {
    let mut stream = server.connect().await;
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    tokio::time::timeout(Duration::from_secs(3), read_answer(&mut stream)).await.ok()
}

/// Paths that are valid, and the secret of one.
async fn published_paths() -> (ReviewPaths, String) {
    let apiserver = Apiserver::default();
    let configuration = json!({"metadata": {"name": keys::MUTATING_CONFIGURATION}, "webhooks": [{
        "name": keys::MUTATING_WEBHOOK, "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": "https://localhost"}}]});
    apiserver.put("mutatingwebhookconfigurations", configuration);
    let options = CertOptions {
        namespace: keys::NAMESPACE.to_owned(),
        secret: keys::CA_SECRET.to_owned(),
        mutating_configuration: keys::MUTATING_CONFIGURATION.to_owned(),
        dns_names: Vec::new(),
        path_interval: Duration::ZERO,
        clients: None,
    };
    let shutdown = CancellationToken::new();
    let certificates = job_handler_certs::start(apiserver.client(), options, shutdown.clone()).unwrap();
    certificates.published().wait_for(|published| *published).await.unwrap();
    let found = apiserver.get("mutatingwebhookconfigurations", "", keys::MUTATING_CONFIGURATION).unwrap();
    let url = found["webhooks"][0]["clientConfig"]["url"].as_str().unwrap().to_owned();
    let secret = url.trim_start_matches("https://localhost/").trim_end_matches("/mutate").to_owned();
    let paths = certificates.review_paths();
    // Signs of a leak are left to the test.
    shutdown.cancel();
    certificates.join().await.unwrap();
    (paths, secret)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_paths_with_a_valid_secret_are_served_and_others_are_refused_before_their_body_is_read() {
    let (paths, secret) = published_paths().await;
    let server = server_of(state().with_paths(paths));
    for endpoint in ["mutate", "validate", "warn"] {
        let valid = format!("/{secret}/{endpoint}?timeout=2s");
        assert_eq!(server.post(&valid, &review(&build())).await.status, 200, "{valid}");
        let forged = secret.replace(|digit: char| digit.is_ascii_digit(), "0");
        for path in [
            format!("/{endpoint}"),
            format!("//{endpoint}"),
            format!("/{endpoint}/{endpoint}"),
            format!("/{forged}/{endpoint}"),
            format!("/x/{secret}/{endpoint}"),
            format!("/{secret}/{endpoint}/x"),
            format!("/%2e/{secret}/../{endpoint}"),
        ] {
            let answer = answer_to_head(&server, &path).await.unwrap_or_else(|| panic!("{path}: no answer"));
            assert_eq!(answer.status, 404, "{path}: {answer:?}");
            assert!(!answer.body.contains(&secret), "{answer:?}");
        }
    }
    let valid = format!("/{secret}/validate");
    assert!(answer_to_head(&server, &valid).await.is_none(), "the body is awaited");
    let mut stream = server.connect().await;
    assert_eq!(request(&mut stream, "GET", &valid, b"").await.status, 405);
}

/// A tenant cancels his creates, or sets a `timeout`: the apiserver answers him without the URL.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_review_is_no_sign_of_a_leak_and_one_that_timed_out_is() {
    let (paths, secret) = published_paths().await;
    let limiter = Arc::new(Undecided(watch::Sender::new(0)));
    let mut waiting = limiter.0.subscribe();
    let server = server_of(state().with_limiter(limiter).with_paths(paths.clone()));
    let (mut cancelled, mut times_out) = (server.connect().await, server.connect().await);
    let body = review(&build());
    let head = format!(
        "POST /{secret}/validate?timeout=10s HTTP/1.1\r\nhost: l\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    for stream in [&mut cancelled, &mut times_out] {
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        stream.flush().await.unwrap();
    }
    let arrive = tokio::time::timeout(Duration::from_secs(30), waiting.wait_for(|count| *count == 2));
    drop(arrive.await.unwrap().unwrap());
    drop(cancelled);
    tokio::time::sleep(Duration::from_millis(7500)).await;
    assert_eq!(paths.suspected().now_or_never(), None);
    drop(times_out);
    let signs = tokio::time::timeout(Duration::from_secs(30), paths.suspected()).await.unwrap();
    assert_eq!(Vec::from_iter(signs), [LeakSign::NoAnswer]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_served_before_a_path_is_published() {
    let server = server_of(state().with_paths(ReviewPaths::default()));
    for path in ["/mutate", "/validate", "/x/mutate"] {
        assert_eq!(server.post(path, &review(&build())).await.status, 404, "{path}");
    }
}
