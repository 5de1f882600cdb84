//! Logs and metrics, the same way in both programs.

use std::{io::IsTerminal, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{encoding::text, registry::Registry};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("`{other}` is no log format: expected text or json")),
        }
    }
}

/// Libraries that tell each failed call of ours a second time, without saying what it was for; and actix, which counts
/// its threads. `RUST_LOG` can name them to hear them.
const QUIET: &str = "kube_client::client::builder=off,kube_runtime::watcher=off,actix_server=warn";

/// Installs the process's logger (once; a second call changes nothing). `RUST_LOG` filters, default `info`.
pub fn init_logs(format: LogFormat) {
    let wanted = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| "info".to_owned());
    // Of two directives for one target the later one holds.
    let filter = EnvFilter::new(format!("{QUIET},{wanted}"));
    let registry = tracing_subscriber::registry().with(filter);
    // Colours are for terminals; in a file or a pod's log they are noise.
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let installed = match format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    };
    if let Err(error) = installed {
        tracing::debug!(%error, "logger was installed before");
    }
}

/// The process's metrics; clones share one registry.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// Runs `register` on the registry.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.0.lock())
    }

    /// All metrics in OpenMetrics text.
    ///
    /// # Errors
    /// Where a metric cannot be written as text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.0.lock())?;
        Ok(out)
    }
}
