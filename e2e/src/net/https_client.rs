//! A small HTTPS client with control over its connections, for benchmarks and for input that no apiserver sends. It
//! speaks HTTP/1.1 with keep-alive over TLS 1.3, like the apiserver to a webhook. A connection carries one request at a
//! time.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::harness::error::{Error, Result};

/// Default of [`HttpsClient::patience`].
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A client of one server, whose certificate must come from one CA.
#[derive(Clone)]
pub struct HttpsClient {
    address: SocketAddr,
    /// The local address of connections.
    local: Ipv4Addr,
    connector: TlsConnector,
    patience: Duration,
}

/// An open connection. Its task ends when it is dropped.
#[derive(Debug)]
pub struct Connection {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
    patience: Duration,
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// HTTP status code.
    pub status: u16,
    /// The body. Bytes that are not UTF-8 are replaced.
    pub body: String,
}

impl HttpsClient {
    /// A client of the server at `address`. Its certificate must be valid for that IP address and issued by a CA in the
    /// PEM bundle `ca_pem`.
    ///
    /// # Errors
    /// If the bundle has no certificate, or one that cannot be read.
    pub fn new(ca_pem: impl AsRef<[u8]>, address: SocketAddr) -> Result<Self> {
        let wrong =
            |why: String| Error::Invalid(format!("the CA bundle for {address} cannot be used: {why}"));
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_ref()) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(wrong("expected PEM with at least one CERTIFICATE, found none".to_owned()));
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // What the apiserver offers to a webhook that is not on localhost.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let local = Ipv4Addr::UNSPECIFIED;
        Ok(Self { address, local, connector: TlsConnector::from(Arc::new(config)), patience: PATIENCE })
    }

    /// Sets the local IPv4 address of its connections.
    #[must_use]
    pub fn local_address(mut self, local: Ipv4Addr) -> Self {
        self.local = local;
        self
    }

    /// Sets the timeout of connecting, and of each request including its answer.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Opens a connection that is ready for requests.
    ///
    /// # Errors
    /// If nothing listens there, the certificate is not trusted, or it takes too long.
    pub async fn connect(&self) -> Result<Connection> {
        timeout(self.patience, self.open()).await.map_err(|_| self.late("a TLS connection"))?
    }

    /// Sends one request on a new connection.
    ///
    /// # Errors
    /// As [`connect`](Self::connect) and [`Connection::post`].
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Result<HttpAnswer> {
        self.connect().await?.post(path, body).await
    }

    async fn open(&self) -> Result<Connection> {
        let address = self.address;
        let connecting = || Error::io(format!("connecting to {address} from {}", self.local));
        let socket = TcpSocket::new_v4().map_err(connecting())?;
        if !self.local.is_unspecified() {
            socket.bind((self.local, 0).into()).map_err(connecting())?;
        }
        let tcp = socket.connect(address).await.map_err(connecting())?;
        tcp.set_nodelay(true).map_err(Error::io(format!("setting TCP_NODELAY towards {address}")))?;
        let tls = self
            .connector
            .connect(ServerName::IpAddress(address.ip().into()), tcp)
            .await
            .map_err(Error::io(format!("TLS with {address}")))?;
        let (sender, connection) = handshake(TokioIo::new(tls))
            .await
            .map_err(|error| Error::Invalid(format!("HTTP/1.1 with {address}: {error}")))?;
        let driver = tokio::spawn(connection);
        Ok(Connection { address, sender, driver, patience: self.patience })
    }

    fn late(&self, what: &str) -> Error {
        late(format!("{what} with {}", self.address), self.patience)
    }
}

impl Connection {
    /// Posts `body` as JSON and reads the answer, whatever its status.
    ///
    /// # Errors
    /// If the connection is closed before the answer is complete, or the answer takes too long. The connection is
    /// unusable afterwards.
    pub async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> Result<HttpAnswer> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body.into()))
            .map_err(|error| Error::Invalid(format!("POST {path}: {error}")))?;
        let (address, patience) = (self.address, self.patience);
        let broken = |error| Error::Invalid(format!("POST {path} to {address}: incomplete answer: {error}"));
        let exchange = async {
            self.sender.ready().await?;
            read(self.sender.send_request(request).await?).await
        };
        match timeout(patience, exchange).await {
            Ok(answer) => answer.map_err(broken),
            Err(_) => Err(late(format!("the answer of {address} to POST {path}"), patience)),
        }
    }

    /// Whether the server has closed it.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.driver.is_finished()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl std::fmt::Debug for HttpsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpsClient")
            .field("address", &self.address)
            .field("patience", &self.patience)
            .finish()
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> hyper::Result<HttpAnswer> {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(HttpAnswer { status, body: String::from_utf8_lossy(&body).into_owned() })
}

fn late(what: String, waited: Duration) -> Error {
    Error::Timeout { what, waited, last: "nothing".to_owned() }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Accepts connections and answers each request with `answer`.
    async fn server(answer: &'static str) -> (String, SocketAddr) {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                // A client that does not trust the certificate closes the connection.
                let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = tls.read(&mut buffer).await {
                        seen.extend_from_slice(&buffer[..read]);
                        if seen.ends_with(b"{\"a\":1}") {
                            assert!(seen.starts_with(b"POST /mutate HTTP/1.1\r\n"));
                            seen.clear();
                            tls.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        (certified.cert.pem(), address)
    }

    #[tokio::test]
    async fn keeps_a_connection_and_reads_any_status() {
        let (ca, address) = server("HTTP/1.1 422 No\r\ncontent-length: 3\r\n\r\nno\n").await;
        let mut connection = HttpsClient::new(&ca, address).unwrap().connect().await.unwrap();
        for _ in 0..3 {
            let answer = connection.post("/mutate", "{\"a\":1}").await.unwrap();
            assert_eq!(answer, HttpAnswer { status: 422, body: "no\n".to_owned() });
        }
        assert!(!connection.is_closed());
    }

    #[tokio::test]
    async fn a_silent_server_is_a_timeout_and_a_short_answer_an_error() {
        let (ca, address) = server("").await;
        let https = HttpsClient::new(&ca, address).unwrap().patience(Duration::from_millis(100));
        let error = https.post("/mutate", "{\"a\":1}").await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        let (ca, address) = server("HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\nshort").await;
        let https = HttpsClient::new(&ca, address).unwrap().patience(Duration::from_millis(100));
        assert!(https.post("/mutate", "{\"a\":1}").await.is_err());
    }

    #[tokio::test]
    async fn trusts_only_the_given_ca() {
        let (_, address) = server("").await;
        let (other, _) = server("").await;
        let error = HttpsClient::new(&other, address).unwrap().connect().await.unwrap_err().to_string();
        assert!(error.contains("TLS with 127.0.0.1") && error.contains("certificate"), "{error}");
        let error = HttpsClient::new("", address).unwrap_err().to_string();
        assert!(error.contains("at least one CERTIFICATE"), "{error}");
    }
}
