//! Webhook servers, one process per handler, all with the same HTTP server, TLS and number of workers.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use actix_web::dev::Server as ActixServer;
use clap::ValueEnum;
use job_handler_shared::policy::reference::Labels;
use job_handler_webhook::admission::mutate::mutate;
use job_handler_webhook::admission::response::HttpReply;
use job_handler_webhook::admission::server::serve_webhook;
use job_handler_webhook::admission::state::WebhookState;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use serde::{Deserialize, Serialize};

use crate::bench::handlers::{self, HandlerFn};
use crate::bench::reviews;
use crate::harness::error::{Error, Result};
use crate::net::https_client::HttpsClient;

/// The handler of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Handler {
    /// Reads the body without parsing it and allows the request.
    Null,
    /// Ours: the webhook's `/mutate` with policies in memory, without a cluster.
    Ours,
    /// Reads the review into typed objects and answers their difference as patch.
    Typed,
    /// Reads the body without parsing it and always answers the same patch.
    SamePatch,
}

/// A running server. It ends when this value is dropped, and with the process that started it.
#[derive(Debug)]
pub struct BenchServer {
    child: Child,
    address: SocketAddr,
    ca: String,
}

/// The first line that a server process prints.
#[derive(Debug, Deserialize, Serialize)]
struct ServerAddress {
    address: SocketAddr,
    ca: String,
}

impl Handler {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null handler",
            Self::Ours => "ours",
            Self::Typed => "typed objects",
            Self::SamePatch => "same patch",
        }
    }
}

impl BenchServer {
    /// Starts `program serve` (see `bench-all`) with policies in `namespace`.
    ///
    /// # Errors
    /// If it does not start, or does not print its address.
    pub fn start(program: &Path, handler: Handler, namespace: &str) -> Result<Self> {
        let name = handler.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let mut command = Command::new(program);
        command.args(["serve", "--handler", &name, "--namespace", namespace]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let what = format!("starting the server with the {}", handler.name());
        let mut child = crate::harness::process::spawn(command).map_err(Error::io(&what))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(Error::io(&what))?;
        }
        match serde_json::from_str::<ServerAddress>(&line) {
            Ok(ServerAddress { address, ca }) => Ok(Self { child, address, ca }),
            Err(error) => {
                let status = child.kill().and_then(|()| child.wait()).map_err(Error::io(&what))?;
                let found = format!("found {line:?} ({error}); it exited with {status}");
                Err(Error::Invalid(format!("{what}: expected a line with its address, {found}")))
            }
        }
    }

    /// A client that trusts its certificate.
    ///
    /// # Errors
    /// If its certificate cannot be read.
    pub fn client(&self) -> Result<HttpsClient> {
        HttpsClient::new(&self.ca, self.address)
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its CA as PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BenchServer {
    fn drop(&mut self) {
        // It may have exited already. If this fails, the parent-death signal still ends it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until the process ends.
///
/// # Errors
/// If it cannot listen, or the server fails.
pub fn serve(handler: Handler, namespace: &str) -> Result<()> {
    let policies = reviews::policies(namespace)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("binding a port"))?;
    let address = listener.local_addr().map_err(Error::io("reading the local address"))?;
    let (tls, ca) = tls()?;
    let started = serde_json::to_string(&ServerAddress { address, ca })
        .map_err(|error| Error::Invalid(format!("serializing the address: {error}")))?;
    let namespaces = [(namespace.to_owned(), Labels::new())];
    actix_web::rt::System::new().block_on(async move {
        let ours = WebhookState::fixed(policies.clone(), namespaces);
        let server = match handler {
            Handler::Ours => serve_webhook(listener, tls, ours),
            Handler::Null => with(listener, tls, handlers::null()),
            Handler::Typed => with(listener, tls, handlers::typed(policies)),
            Handler::SamePatch => {
                let first = mutate(&reviews::review_in(namespace), &ours).await;
                with(listener, tls, handlers::same_patch(&first.body)?)
            }
        };
        let server = server.map_err(Error::io(format!("serving on {address}")))?;
        let mut out = std::io::stdout();
        writeln!(out, "{started}").and_then(|()| out.flush()).map_err(Error::io("printing the address"))?;
        server.await.map_err(Error::io("serving"))
    })
}

/// The webhook's HTTP server with another handler.
fn with(listener: TcpListener, tls: ServerConfig, handler: HandlerFn) -> std::io::Result<ActixServer> {
    job_handler_webhook::admission::server::serve(listener, tls, move |_, body, _| {
        std::future::ready(match handler(body.as_ref()) {
            Ok(answer) => HttpReply::json(answer),
            Err(message) => HttpReply::text(400, message),
        })
    })
}

/// A self-signed certificate like the webhook's (ECDSA P-256).
fn tls() -> Result<(ServerConfig, String)> {
    let wrong = |error: &dyn std::fmt::Display| Error::Invalid(format!("creating a certificate: {error}"));
    let names = [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED].map(|name| name.to_string());
    let certified = rcgen::generate_simple_self_signed(names).map_err(|error| wrong(&error))?;
    let key =
        PrivateKeyDer::try_from(certified.signing_key.serialize_der()).map_err(|error| wrong(&error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder.with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key)
        })
        .map_err(|error| wrong(&error))?;
    Ok((config, certified.cert.pem()))
}
