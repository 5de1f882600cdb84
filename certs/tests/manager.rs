//! The certificate manager with an in-memory apiserver, and real TLS handshakes with the certificates that it serves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod apiserver;

use std::{path::Path, sync::Arc, time::Duration};

use apiserver::{
    CONFIGURATION_PATH, CONFIGURATIONS, CertObjects, SECRET_PATH, SECRETS_PATH, configuration,
    start as start_apiserver, until,
};
use http::Method;
use job_handler_certs::{
    CertHandle, CertOptions,
    ca::{self, CertificateAuthority},
    client_auth::ClientAuth,
    source::FileSource,
    start, start_files,
};
use job_handler_shared::webhook_address;
use kube::Client;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::json;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

fn options() -> CertOptions {
    CertOptions {
        namespace: "ns".into(),
        secret: "ca".into(),
        mutating_configuration: "job-handler".into(),
        dns_names: vec!["127.0.0.1".into()],
        path_interval: Duration::ZERO,
        clients: None,
    }
}

fn start_manager(client: Client, shutdown: &CancellationToken) -> CertHandle {
    start(client, options(), shutdown.clone()).unwrap()
}

async fn published(handle: &CertHandle) {
    let mut published = handle.published();
    let wait = published.wait_for(|published| *published);
    tokio::time::timeout(std::time::Duration::from_secs(10), wait).await.expect("published in time").unwrap();
}

/// Connects as the apiserver does, trusting `bundle`. Returns the leaf that the server presents.
async fn handshake(handle: &CertHandle, bundle: &str, host: &str) -> anyhow::Result<CertificateDer<'static>> {
    handshake_as(handle, bundle, host, None).await
}

/// The same with a client certificate and its key (PEM).
async fn handshake_as(
    handle: &CertHandle,
    bundle: &str,
    host: &str,
    client: Option<&(String, String)>,
) -> anyhow::Result<CertificateDer<'static>> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(ca?)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let client = match client {
        Some((certificate, key)) => builder.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        )?,
        None => builder.with_no_client_auth(),
    };
    let (near, far) = tokio::io::duplex(64 << 10);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(handle.server_config()));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let name = ServerName::try_from(host.to_owned())?;
    let (server, client) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
    let (client, _server) = (client?, server?);
    Ok(client.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned())
}

#[tokio::test]
async fn creates_and_publishes_the_ca_and_serves_a_leaf_that_the_apiserver_trusts() {
    let (server, client) = start_apiserver();
    server.put(CONFIGURATIONS, configuration());
    let shutdown = CancellationToken::new();
    let handle = start_manager(client, &shutdown);
    published(&handle).await;

    let bundle = server.published().expect("a caBundle");
    assert_eq!(bundle, server.secret_value("ca.crt"));
    for host in ["job-handler.ns.svc", "job-handler.ns.svc.cluster.local", "127.0.0.1"] {
        handshake(&handle, &bundle, host).await.unwrap_or_else(|e| panic!("{host}: {e}"));
    }
    let error = handshake(&handle, &bundle, "another.ns.svc").await.unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
    let stranger = ca::new_secret("ns", "ca", None, OffsetDateTime::now_utc()).unwrap();
    let stranger = String::from_utf8(stranger.data.unwrap()["ca.crt"].0.clone()).unwrap();
    let error = handshake(&handle, &stranger, "job-handler.ns.svc").await.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");

    shutdown.cancel();
    handle.join().await.unwrap();
}

#[tokio::test]
async fn the_published_path_is_accepted_and_no_other() {
    let (server, client) = start_apiserver();
    server.put(CONFIGURATIONS, configuration());
    let shutdown = CancellationToken::new();
    let handle = start_manager(client.clone(), &shutdown);
    let paths = handle.review_paths();
    published(&handle).await;
    let path = |configuration: serde_json::Value| {
        configuration["webhooks"][0]["clientConfig"]["service"]["path"].as_str().unwrap().to_owned()
    };
    let address = path(server.configuration().unwrap());
    let secret = webhook_address::secret(&address).expect(&address);
    assert_eq!(address, format!("/{secret}/mutate"));
    assert!(paths.accepts(secret));
    // Another replica accepts it too.
    let other = start_manager(client, &shutdown);
    published(&other).await;
    assert!(other.review_paths().accepts(secret));
    for wrong in ["", "mutate", &secret.replace('-', ""), &format!("0{secret}")] {
        assert!(!paths.accepts(wrong), "{wrong}");
    }
    // Whoever applies the manifest again does not lock the apiserver out.
    server.put(CONFIGURATIONS, configuration());
    until(&server, "a path", |server| path(server.configuration().unwrap()) != "/mutate").await;
    let address = path(server.configuration().unwrap());
    assert!(paths.accepts(webhook_address::secret(&address).unwrap()));
    shutdown.cancel();
    handle.join().await.unwrap();
}

/// A CA (PEM), and client certificates with keys that it issued for these names.
fn client_certificates<const N: usize>(names: [&str; N]) -> (String, [(String, String); N]) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let certificates = names.map(|name| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
    });
    (ca.pem(), certificates)
}

#[tokio::test]
async fn only_a_client_with_the_right_certificate_can_connect() {
    let (ca, [apiserver, kubelet]) = client_certificates(["kube-apiserver", "kubelet"]);
    let (_, [forged]) = client_certificates(["kube-apiserver"]);
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.crt");
    std::fs::write(&ca_file, ca).unwrap();
    for names in [vec!["kube-apiserver".to_owned()], Vec::new()] {
        let (server, client) = start_apiserver();
        server.put(CONFIGURATIONS, configuration());
        let shutdown = CancellationToken::new();
        let is_named = !names.is_empty();
        let clients = Some(ClientAuth { ca_file: ca_file.clone(), names });
        let handle = start(client, CertOptions { clients, ..options() }, shutdown.clone()).unwrap();
        published(&handle).await;
        let bundle = server.published().unwrap();
        let connects = async |client: Option<&(String, String)>| {
            handshake_as(&handle, &bundle, "127.0.0.1", client).await.is_ok()
        };
        assert_eq!(connects(Some(&apiserver)).await, is_named);
        assert!(!connects(Some(&kubelet)).await, "the right CA, another name");
        assert!(!connects(Some(&forged)).await);
        assert!(!connects(None).await);
        shutdown.cancel();
        handle.join().await.unwrap();
    }
}

#[tokio::test]
async fn a_wrong_client_ca_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "no certificate").unwrap();
    for ca_file in [empty, Path::new("/does/not/exist").to_owned()] {
        let clients = Some(ClientAuth { ca_file: ca_file.clone(), names: Vec::new() });
        let (_, client) = start_apiserver();
        let error =
            start(client, CertOptions { clients, ..options() }, CancellationToken::new()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("--client-ca-file") && error.contains(ca_file.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn replicas_that_start_together_end_up_with_one_ca() {
    let (server, client) = start_apiserver();
    server.put(CONFIGURATIONS, configuration());
    // Another replica creates the Secret between this one's GET and its create.
    let winner = ca::new_secret("ns", "ca", None, OffsetDateTime::now_utc()).unwrap();
    let theirs = String::from_utf8(winner.data.as_ref().unwrap()["ca.crt"].0.clone()).unwrap();
    let other = server.clone();
    server.before(Method::POST, SECRETS_PATH, move || {
        other.put("secrets", serde_json::to_value(&winner).unwrap());
    });
    let shutdown = CancellationToken::new();
    let handle = start_manager(client, &shutdown);
    published(&handle).await;

    assert_eq!(server.calls()[0], format!("POST {SECRETS_PATH} 409"));
    assert_eq!(server.secret_value("ca.crt"), theirs);
    assert_eq!(server.published().unwrap(), theirs);
    handshake(&handle, &theirs, "job-handler.ns.svc").await.unwrap();
    shutdown.cancel();
    handle.join().await.unwrap();
}

#[tokio::test]
async fn an_unusable_secret_is_not_overwritten_and_is_used_once_repaired() {
    let (server, client) = start_apiserver();
    server.put(CONFIGURATIONS, configuration());
    let garbage = json!({"metadata": {"name": "ca", "namespace": "ns"}, "data": {"tls.crt": "Z2FyYmFnZQ=="}});
    server.put("secrets", garbage.clone());
    // The error in the log.
    let secret = job_handler_certs::secret::CaSecret::new(client.clone(), "ns", "ca");
    let error =
        secret.ensure(None, OffsetDateTime::now_utc()).await.err().expect("garbage accepted").to_string();
    assert!(error.contains("Secret ns/ca cannot be used") && error.contains("tls.crt: "), "{error}");
    assert!(error.contains("kubectl -n ns delete secret ca"), "{error}");

    let shutdown = CancellationToken::new();
    let handle = start_manager(client, &shutdown);
    // It reads the Secret again and again, and writes nothing.
    let reads = server.gets("secrets");
    until(&server, "a second read", |server| server.gets("secrets") > reads + 1).await;
    assert!(server.calls().is_empty(), "{:?}", server.calls());
    assert_eq!(server.secret().unwrap()["data"], garbage["data"]);
    assert!(!*handle.published().borrow());
    let error = handshake(&handle, "", "job-handler.ns.svc").await.unwrap_err();
    assert!(!error.to_string().is_empty(), "no leaf is served");

    server.remove("secrets", "ns", "ca");
    published(&handle).await;
    handshake(&handle, &server.published().unwrap(), "job-handler.ns.svc").await.unwrap();
    shutdown.cancel();
    handle.join().await.unwrap();
}

#[tokio::test]
async fn the_ca_is_published_as_soon_as_rights_and_configuration_exist() {
    let (server, client) = start_apiserver();
    for path in [SECRET_PATH, SECRETS_PATH] {
        server.refuse_once(Method::GET, path, 403);
    }
    let secret = job_handler_certs::secret::CaSecret::new(client.clone(), "ns", "ca");
    let error = secret.ensure(None, OffsetDateTime::now_utc()).await.err().expect("forbidden").to_string();
    assert!(error.contains("no right to get Secret ns/ca") && error.contains("manifests/base"), "{error}");
    let publisher = job_handler_certs::publish::Publisher::new(client.clone(), "job-handler");
    let error = publisher.publish("ca", || {}).await.unwrap_err().to_string();
    assert!(error.contains("does not exist: apply manifests/base"), "{error}");

    let shutdown = CancellationToken::new();
    let handle = start_manager(client, &shutdown);
    until(&server, "the CA is created", |server| server.secret().is_some()).await;
    assert!(!*handle.published().borrow());
    server.put(CONFIGURATIONS, configuration());
    published(&handle).await;
    shutdown.cancel();
    handle.join().await.unwrap();
}

#[tokio::test]
async fn a_removed_ca_bundle_is_published_again() {
    let (server, client) = start_apiserver();
    server.put(CONFIGURATIONS, configuration());
    let shutdown = CancellationToken::new();
    let handle = start_manager(client, &shutdown);
    published(&handle).await;
    server.put(CONFIGURATIONS, configuration());
    until(&server, "the caBundle is back", |server| server.published().is_some()).await;
    published(&handle).await;
    shutdown.cancel();
    handle.join().await.unwrap();
}

#[tokio::test]
async fn a_concurrent_write_is_not_lost() {
    let (server, client) = start_apiserver();
    server.put(CONFIGURATIONS, configuration());
    let other = server.clone();
    server.before(Method::PATCH, CONFIGURATION_PATH, move || {
        let mut changed = configuration();
        changed["webhooks"][0]["timeoutSeconds"] = 7.into();
        other.put(CONFIGURATIONS, changed);
    });
    let publisher = job_handler_certs::publish::Publisher::new(client, "job-handler");
    assert!(publisher.publish("ca", || {}).await.unwrap());
    assert_eq!(
        server.calls(),
        [format!("PATCH {CONFIGURATION_PATH} 422"), format!("PATCH {CONFIGURATION_PATH} 200")]
    );
    assert_eq!(server.configuration().unwrap()["webhooks"][0]["timeoutSeconds"], 7);
    assert_eq!(server.published().unwrap(), "ca");
}

#[tokio::test]
async fn a_deleted_ca_is_replaced_and_the_old_one_stays_trusted() {
    let (server, client) = start_apiserver();
    server.put(CONFIGURATIONS, configuration());
    let shutdown = CancellationToken::new();
    let handle = start_manager(client, &shutdown);
    published(&handle).await;
    let (old_ca, old_bundle) = (server.secret_value("tls.crt"), server.published().unwrap());
    let old_leaf = handshake(&handle, &old_bundle, "job-handler.ns.svc").await.unwrap();

    server.remove("secrets", "ns", "ca");
    until(&server, "both CAs are published", |server| {
        server.published().is_some_and(|bundle| bundle.matches("BEGIN CERTIFICATE").count() == 2)
    })
    .await;
    let bundle = server.published().unwrap();
    assert_ne!(server.secret_value("tls.crt"), old_ca);
    CertificateAuthority::from_secret(
        &serde_json::from_value(server.secret().unwrap()).unwrap(),
        OffsetDateTime::now_utc(),
    )
    .unwrap();
    // The bundle verifies any leaf that is served meanwhile. The last one is the new CA's.
    let new_only = server.secret_value("tls.crt");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let leaf = handshake(&handle, &bundle, "job-handler.ns.svc").await.unwrap();
        if leaf != old_leaf {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the new CA's leaf is never served");
        tokio::task::yield_now().await;
    }
    handshake(&handle, &new_only, "job-handler.ns.svc").await.unwrap();
    shutdown.cancel();
    handle.join().await.unwrap();
}

/// A self-signed certificate and key for the Service in `ns`, as another program writes them into files.
fn pair() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["job-handler.ns.svc".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[tokio::test(start_paused = true)]
async fn files_are_reloaded_when_their_content_changes() {
    let folder = tempfile::tempdir().unwrap();
    let files = FileSource {
        certificate: folder.path().join("tls.crt"),
        key: folder.path().join("tls.key"),
        ca: None,
    };
    let (first, second) = (pair(), pair());
    let write = |(certificate, key): &(String, String)| {
        std::fs::write(&files.key, key).unwrap();
        std::fs::write(&files.certificate, certificate).unwrap();
    };
    write(&first);
    let (server, client) = start_apiserver();
    let shutdown = CancellationToken::new();
    let handle = start_files(client, files.clone(), "job-handler", shutdown.clone()).unwrap();
    published(&handle).await;
    handshake(&handle, &first.0, "job-handler.ns.svc").await.unwrap();

    // During a renewal the key does not match yet. The old pair is still served.
    std::fs::write(&files.certificate, &second.0).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    handshake(&handle, &first.0, "job-handler.ns.svc").await.unwrap();
    write(&second);
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    handshake(&handle, &second.0, "job-handler.ns.svc").await.unwrap();
    assert!(server.calls().is_empty(), "another program publishes the CA of these files");
    shutdown.cancel();
    handle.join().await.unwrap();
}
