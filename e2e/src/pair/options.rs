//! How the pair is installed.

/// Environment variable: the address at which an existing cluster (`E2E_KUBECONFIG`) reaches this machine.
pub const E2E_WEBHOOK_HOST: &str = "E2E_WEBHOOK_HOST";

/// How the pair is installed.
#[derive(Clone, Debug)]
pub struct PairOptions {
    /// The number of webhook replicas behind the load balancer.
    pub webhooks: usize,
    /// The number of sinks; by default as many as webhooks. Webhook `i` sends its refusals to sink `i % sinks`.
    pub sinks: Option<usize>,
    /// More arguments for each webhook.
    pub webhook_arguments: Vec<String>,
    /// More arguments for each sink.
    pub sink_arguments: Vec<String>,
    /// Puts a fault proxy between each webhook and the API server; see [`Member::proxy`](crate::pair::Member::proxy).
    pub webhook_proxy: bool,
    /// Puts a fault proxy between each sink and the API server.
    pub sink_proxy: bool,
    /// The sinks' configuration file, YAML; none by default.
    pub sink_configuration: Option<String>,
    /// More environment variables for each sink.
    pub sink_environment: Vec<(String, String)>,
    /// `RUST_LOG` of the programs, unless the environment sets it.
    pub log: String,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            webhooks: 1,
            sinks: None,
            webhook_arguments: Vec::new(),
            sink_arguments: Vec::new(),
            webhook_proxy: false,
            sink_proxy: false,
            sink_configuration: None,
            sink_environment: Vec::new(),
            log: "info".to_owned(),
        }
    }
}
