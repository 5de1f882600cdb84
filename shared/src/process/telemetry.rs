//! Logs and metrics of all programs.

use std::{io, sync::Arc};

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

use crate::text::escape_unsafe;

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
    if let Err(error) = logger(format, &directives, io::stderr).try_init() {
        tracing::debug!(%error, "a logger was installed before");
    }
}

/// In JSON, the fields of an event and of the spans around it are fields. There are no colours: what strangers wrote could
/// not be told from them.
fn logger<W>(format: LogFormat, directives: &str, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let registry = tracing_subscriber::registry().with(EnvFilter::new(directives));
    let layer = fmt::layer().with_writer(SafeLines(writer)).with_ansi(false);
    match format {
        LogFormat::Text => Box::new(registry.with(layer)),
        LogFormat::Json => Box::new(registry.with(layer.json())),
    }
}

/// Makes writers that escape what each event says, so that no text from outside forges a line or drives a terminal.
struct SafeLines<W>(W);

/// Writes one event.
struct SafeLine<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for SafeLines<W> {
    type Writer = SafeLine<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        SafeLine(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for SafeLine<W> {
    /// The formatter writes each event at once, with a line end.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = match text.strip_suffix('\n') {
            Some(text) => format!("{}\n", escape_unsafe(text)),
            None => escape_unsafe(&text).into_owned(),
        };
        self.0.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
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
        let logger = logger(LogFormat::Json, "info", move || writer.clone());
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

    #[test]
    fn no_text_forges_a_line_or_drives_a_terminal() {
        let forged = "a\u{1b}[2J\n2026-01-01T00:00:00Z ERROR forged\u{202e}";
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = Lines::default();
            let writer = lines.clone();
            tracing::subscriber::with_default(logger(format, "info", move || writer.clone()), || {
                tracing::info!(job = forged, "cannot store: {forged}");
            });
            let text = String::from_utf8(lines.0.lock().clone()).unwrap();
            let line = text.strip_suffix('\n').unwrap();
            assert_eq!(escape_unsafe(line), line, "{format:?}");
            if format == LogFormat::Json {
                assert_eq!(serde_json::from_str::<serde_json::Value>(line).unwrap()["fields"]["job"], forged);
            }
        }
    }
}
