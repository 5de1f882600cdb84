//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use job_handler_shared::{keys, process::telemetry::LogFormat};

/// Admission webhook of job-handler: stamps new Jobs and enforces limits.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct WebhookArgs {
    /// Address for admission reviews (HTTPS).
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], keys::WEBHOOK_PORT)))]
    pub listen: SocketAddr,
    /// Address of /healthz, /readyz and /metrics (HTTP).
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], keys::WEBHOOK_ADMIN_PORT)))]
    pub admin_listen: SocketAddr,
    /// Namespace of job-handler.
    #[arg(long, env = "POD_NAMESPACE", default_value = keys::NAMESPACE)]
    pub namespace: String,
    /// Name of this replica; its Lease is named after it.
    #[arg(long, env = "POD_NAME", default_value = "local")]
    pub replica: String,
    /// Unix socket on which the sink listens for refusals.
    #[arg(long, default_value = keys::REFUSAL_SOCKET)]
    pub refusal_socket: PathBuf,
    /// DNS name or IP address for the server certificate, besides `job-handler.<namespace>.svc`; repeatable.
    #[arg(long = "dns-name")]
    pub dns_names: Vec<String>,
    /// CAs (PEM) of client certificates, for an apiserver that presents one. Callers without one are then refused. Read at
    /// the start.
    #[arg(long, value_name = "FILE", requires = "client_names")]
    pub client_ca_file: Option<PathBuf>,
    /// Accepted common name of a client certificate; repeatable. Without one, a CA that others have certificates of as well
    /// (kubelets and users of the cluster's own) would let all of them in.
    #[arg(long = "client-name", value_name = "NAME", requires = "client_ca_file")]
    pub client_names: Vec<String>,
    /// Seconds between two secrets in the paths of reviews, at least 20. A secret that may have leaked is replaced sooner.
    /// 0 = a secret is never replaced.
    #[arg(long, default_value_t = 300)]
    pub path_rotation_seconds: u64,
    /// Serve /metrics only to those whose bearer token may get the path /metrics (TokenReview, SubjectAccessReview).
    #[arg(long)]
    pub metrics_auth: bool,
    /// Seconds to keep serving reviews after SIGTERM, until all endpoints have removed this replica.
    #[arg(long, default_value_t = 2)]
    pub(crate) drain_seconds: u64,
    /// Format of log lines: text or json. RUST_LOG filters them.
    #[arg(long, default_value = "text")]
    pub log_format: LogFormat,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// With the CA of the cluster alone, every kubelet would get in.
    #[test]
    fn a_client_ca_needs_a_name() {
        let parse =
            |arguments: &[&str]| WebhookArgs::try_parse_from([&["job-handler-webhook"], arguments].concat());
        let error = parse(&["--client-ca-file=ca.crt"]).unwrap_err().to_string();
        assert!(error.contains("--client-name"), "{error}");
        assert!(parse(&["--client-name=apiserver"]).is_err());
        assert!(parse(&["--client-ca-file=ca.crt", "--client-name=apiserver"]).is_ok());
    }
}
