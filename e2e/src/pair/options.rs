//! How the pair is installed.

/// Names this machine as an existing cluster (`E2E_KUBECONFIG`) reaches it, for the webhook's address.
pub const E2E_WEBHOOK_HOST: &str = "E2E_WEBHOOK_HOST";

/// How the pair is installed.
#[derive(Clone, Debug)]
pub struct PairOptions {
    /// How many webhook replicas stand behind the balancer.
    pub webhooks: usize,
    /// How many sinks run; by default one beside each webhook. Webhook `i` hands its refusals to sink
    /// `i % sinks`.
    pub sinks: Option<usize>,
    /// More arguments for each webhook.
    pub webhook_arguments: Vec<String>,
    /// More arguments for each sink.
    pub sink_arguments: Vec<String>,
    /// Puts a proxy of its own between each webhook and the API server; see [`Member::proxy`].
    pub webhook_proxy: bool,
    /// Puts a proxy of its own between each sink and the API server.
    pub sink_proxy: bool,
    /// The sinks' configuration file, YAML; none by default.
    pub sink_configuration: Option<String>,
    /// More environment for each sink.
    pub sink_environment: Vec<(String, String)>,
    /// `RUST_LOG` of the programs, where the environment sets none.
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
