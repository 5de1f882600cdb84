//! The HTTPS server: TLS, HTTP/1.1, invalid input.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; clippy knows only #[test] itself"
)]

mod common;

use std::{net::TcpListener, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{builds, job, policy, review};
use job_handler_shared::policy::{reference::Labels, set::PolicySet};
use job_handler_webhook::admission::{server::serve_webhook, state::WebhookState};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

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
    let server = serve_webhook(listener, config, state()).unwrap();
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
    };
    tokio::time::timeout(Duration::from_secs(20), exchange).await.expect("no answer: a hung connection")
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
        ("9 MiB", vec![b' '; 9 << 20], 413, "at most 8 MiB"),
        ("40 MiB of zeros", vec![0; 40 << 20], 413, "at most 8 MiB"),
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
    many["spec"]["template"]["spec"]["containers"] = json!(vec![container; 10_000]);
    let mut big = build();
    big["metadata"]["annotations"] = json!({"note": "x".repeat(7 << 20)});
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
    let stopped = tokio::time::timeout(Duration::from_secs(5), server.handle.stop(true));
    stopped.await.expect("a connection that idles must not hold up the end");
    let mut rest = Vec::new();
    assert_eq!(stream.read_to_end(&mut rest).await.unwrap_or(0), 0);
}
