//! Logs and metrics of all programs.

use std::{io::IsTerminal, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::text,
    registry::{Metric, Registry},
};
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Readable text.
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
            other => Err(format!("`{other}` is not a log format: expected text or json")),
        }
    }
}

/// Libraries that log each of our failed calls again, without context; and actix, which logs its number of threads.
/// `RUST_LOG` can name them to see their messages.
const QUIET: &str = "kube_client::client::builder=off,kube_runtime::watcher=off,actix_server=warn";

/// Installs the process's logger. A second call changes nothing. `RUST_LOG` filters; the default is `info`.
pub fn init_logs(format: LogFormat) {
    let wanted = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| "info".to_owned());
    // Of two directives for one target, the later one applies.
    let directives = format!("{QUIET},{wanted}");
    // Colours are noise in files and in the logs of pods.
    let colours = std::io::stderr().is_terminal();
    if let Err(error) = logger(format, &directives, std::io::stderr, colours).try_init() {
        tracing::debug!(%error, "a logger was installed before");
    }
}

/// In JSON, the fields of an event and of the spans around it are fields.
fn logger<W>(
    format: LogFormat,
    directives: &str,
    writer: W,
    colours: bool,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let registry = tracing_subscriber::registry().with(EnvFilter::new(directives));
    let layer = fmt::layer().with_writer(writer).with_ansi(colours);
    match format {
        LogFormat::Text => Box::new(registry.with(layer)),
        LogFormat::Json => Box::new(registry.with(layer.json())),
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

    /// Registers a metric and returns it.
    pub fn add<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.register(|registry| registry.register(name, help, metric.clone()));
        metric
    }

    /// Creates a metric, registers it and returns it.
    pub fn create<M: Metric + Clone + Default>(&self, name: &str, help: &str) -> M {
        self.add(name, help, M::default())
    }

    /// Encodes all metrics as OpenMetrics text.
    ///
    /// # Errors
    /// Fails if a metric cannot be encoded.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.0.lock())?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_lines_have_the_fields_of_spans() {
        let lines = Lines::default();
        let writer = lines.clone();
        let logger = logger(LogFormat::Json, "info", move || writer.clone(), false);
        tracing::subscriber::with_default(logger, || {
            let _span = tracing::info_span!("reconcile", namespace = "ci", job = "build").entered();
            tracing::info!(bytes = 7, "stored the result");
        });
        let line: serde_json::Value = serde_json::from_slice(&lines.0.lock()).unwrap();
        assert_eq!(line["fields"]["message"], "stored the result");
        assert_eq!(line["fields"]["bytes"], 7);
        assert_eq!(line["span"]["namespace"], "ci");
        assert_eq!(line["spans"][0]["job"], "build", "{line}");
    }
}
