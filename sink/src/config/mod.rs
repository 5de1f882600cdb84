//! The sink's configuration file: what belongs to the operator of the cluster and not to whoever writes policies, such
//! as addresses, tokens and certificates.
//!
//! YAML; unknown fields are refused. Read once at the start.

pub mod object_store;
pub mod tls;

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use job_handler_shared::{keys, result::pending_events::JobPhase};
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;

use crate::config::{
    event_types::Types,
    object_store::{ObjectsConfig, ObjectsFile},
    tls::TlsFile,
};

/// All that the file says.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Receivers of CloudEvents, by the names that policies use.
    pub sinks: Vec<SinkConfig>,
    /// Where whole logs go, if anywhere.
    pub objects: Option<ObjectsConfig>,
}

/// One receiver of CloudEvents.
#[derive(Clone)]
pub struct SinkConfig {
    /// Its name.
    pub name: String,
    /// Where events are posted to.
    pub url: Url,
    /// The events' `source`.
    pub source: String,
    /// The events' types.
    pub types: Types,
    /// Certificates that are trusted instead of the system's, DER.
    pub roots: Vec<CertificateDer<'static>>,
    /// Where the bearer token is.
    pub token: Option<TokenRef>,
    /// The proxy that is gone through.
    pub proxy: Option<Url>,
    /// How long one post may take.
    pub timeout: Duration,
}

/// A key of a Secret in our own namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRef {
    /// Name of the Secret; the base install lets the sink read [`keys::SINK_CONFIGURATION`] and no other.
    pub secret: String,
    /// Key in its data.
    pub key: String,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the configuration {path} cannot be used: {why}")]
pub struct ConfigError {
    path: PathBuf,
    why: String,
}

impl Config {
    /// Reads the file. In the base install its folder is a ConfigMap that may be missing: then there is no file, and
    /// nothing is configured. A folder that is not there is a wrong path.
    ///
    /// # Errors
    /// Names the file and the field.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let wrong = |why: String| ConfigError { path: path.to_owned(), why };
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, folder_of(path)).map_err(wrong),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && folder_of(path).is_dir() => {
                tracing::info!(path = %path.display(), "no configuration file: no CloudEvents are sent, logs are cut");
                Ok(Self::default())
            }
            Err(error) => Err(wrong(format!("{error}. Name it with --config, or leave --config out"))),
        }
    }

    /// Reads the text; files that it names are found beside it, in `folder`.
    ///
    /// # Errors
    /// Names the field.
    pub(crate) fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        // An empty file is a null, not an empty map.
        let file: Option<File> = serde_norway::from_str(text).map_err(|error| error.to_string())?;
        let file = file.unwrap_or_default();
        let mut names = BTreeSet::new();
        let mut sinks = Vec::new();
        for (n, sink) in file.cloud_event_sinks.into_iter().enumerate() {
            let field = format!("cloudEventSinks[{n}]");
            if !names.insert(sink.name.clone()) {
                return Err(format!("{field}.name: there are two of the name {:?}", sink.name));
            }
            sinks.push(sink.check(&field, folder)?);
        }
        let objects = file.object_store.map(|section| section.check(folder)).transpose()?;
        Ok(Self { sinks, objects })
    }

    /// The names of the receivers.
    pub fn sink_names(&self) -> BTreeSet<String> {
        self.sinks.iter().map(|sink| sink.name.clone()).collect()
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The file as it is written.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    cloud_event_sinks: Vec<SinkFile>,
    object_store: Option<ObjectsFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SinkFile {
    name: String,
    url: String,
    source: Option<String>,
    #[serde(default)]
    types: TypesFile,
    tls: Option<TlsFile>,
    bearer_token: Option<TokenFile>,
    proxy: Option<String>,
    timeout_seconds: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TypesFile {
    started: Option<String>,
    completed: Option<String>,
    failed: Option<String>,
    refused: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenFile {
    secret_name: Option<String>,
    key: String,
}

impl SinkFile {
    fn check(self, field: &str, folder: &Path) -> Result<SinkConfig, String> {
        let is_label = |name: &str| {
            let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !name.is_empty() && name.len() <= 63 && name.chars().all(inner) && !name.starts_with('-')
        };
        if !is_label(&self.name) {
            return Err(format!(
                "{field}.name: {:?} is none: expected a-z, 0-9 and -, at most 63 of them",
                self.name
            ));
        }
        let url = url(&format!("{field}.url"), &self.url)?;
        let roots = match &self.tls {
            Some(tls) if url.scheme() == "https" => tls.roots(&format!("{field}.tls"), folder)?,
            Some(_) => return Err(format!("{field}.tls: the url is not https")),
            None => Vec::new(),
        };
        let token = self.bearer_token.map(|token| TokenRef {
            secret: token.secret_name.unwrap_or_else(|| keys::SINK_CONFIGURATION.to_owned()),
            key: token.key,
        });
        if let Some(token) = &token
            && (token.secret.is_empty() || token.key.is_empty())
        {
            return Err(format!("{field}.bearerToken: secretName and key must not be empty"));
        }
        let timeout = match self.timeout_seconds.unwrap_or(10) {
            seconds @ 1..=300 => Duration::from_secs(seconds),
            seconds => return Err(format!("{field}.timeoutSeconds: {seconds} is not between 1 and 300")),
        };
        let source = self.source.unwrap_or_else(|| "/job-handler".to_owned());
        if source.is_empty() || source.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("{field}.source: {source:?} is no URI reference"));
        }
        Ok(SinkConfig {
            types: self.types.check(field)?,
            proxy: self.proxy.map(|proxy| self::url(&format!("{field}.proxy"), &proxy)).transpose()?,
            name: self.name,
            url,
            source,
            roots,
            token,
            timeout,
        })
    }
}

impl TypesFile {
    fn check(self, field: &str) -> Result<Types, String> {
        let mut types = Types::default();
        let given = [
            (JobPhase::Started, self.started),
            (JobPhase::Completed, self.completed),
            (JobPhase::Failed, self.failed),
            (JobPhase::Refused, self.refused),
        ];
        for (phase, wanted) in given {
            match wanted {
                Some(wanted) if wanted.trim().is_empty() => {
                    return Err(format!("{field}.types.{}: a type must not be empty", phase.as_str()));
                }
                Some(wanted) => types.set(phase, wanted),
                None => {}
            }
        }
        Ok(types)
    }
}

fn url(field: &str, text: &str) -> Result<Url, String> {
    let wrong = |why: &dyn fmt::Display| {
        format!("{field}: {text:?} cannot be used: {why}; expected http://… or https://…")
    };
    let url = Url::parse(text).map_err(|error| wrong(&error))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        other => Err(wrong(&format!("its scheme is {other}"))),
    }
}

/// Addresses may hold credentials, which do not belong into logs.
impl fmt::Debug for SinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SinkConfig").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/nowhere"))
    }

    #[test]
    fn everything_that_can_be_said() {
        let ca = rcgen::generate_simple_self_signed(["receiver".to_owned()]).unwrap().cert.pem();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), ca).unwrap();
        let text = "
            cloudEventSinks:
              - name: ci
                url: https://events.example:8443/in?x=1
                source: /clusters/a
                types: {completed: build.complete, failed: build.failed}
                tls: {caFile: ca.pem}
                bearerToken: {key: ci}
                proxy: http://proxy:3128
                timeoutSeconds: 3
              - {name: plain, url: 'http://127.0.0.1:1'}
        ";
        let config = Config::parse(text, folder.path()).unwrap();
        let [ci, plain] = config.sinks.try_into().expect("two");
        assert_eq!((ci.roots.len(), ci.timeout), (1, Duration::from_secs(3)));
        assert_eq!(ci.token, Some(TokenRef { secret: keys::SINK_CONFIGURATION.into(), key: "ci".into() }));
        assert_eq!(ci.types.of(JobPhase::Completed), "build.complete");
        assert_eq!(ci.types.of(JobPhase::Started), "io.job-handler.job.started");
        assert_eq!((plain.source.as_str(), plain.token), ("/job-handler", None));
        assert!(!format!("{ci:?}").contains("events.example"));
    }

    #[test]
    fn an_empty_file_says_nothing() {
        for text in ["", "# nothing yet\n", "{}", "cloudEventSinks: []"] {
            assert!(parse(text).unwrap().sinks.is_empty(), "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_names_its_field() {
        let sink = |more: &str| format!("cloudEventSinks: [{{name: a, url: 'https://h', {more}}}]");
        for (text, told) in [
            ("cloudEventSink: []".to_owned(), "unknown field `cloudEventSink`"),
            ("cloudEventSinks: [{name: a}]".to_owned(), "cloudEventSinks[0]: missing field `url`"),
            ("cloudEventSinks: [{name: A b, url: 'http://h'}]".to_owned(), "cloudEventSinks[0].name"),
            ("cloudEventSinks: [{name: a, url: 'ftp://h'}]".to_owned(), "its scheme is ftp"),
            ("cloudEventSinks: [{name: a, url: h}]".to_owned(), "cloudEventSinks[0].url"),
            (
                "cloudEventSinks: [{name: a, url: 'http://h'}, {name: a, url: 'http://i'}]".to_owned(),
                "cloudEventSinks[1].name: there are two of the name",
            ),
            (sink("types: {complete: x}"), "unknown field `complete`"),
            (sink("types: {failed: ' '}"), "cloudEventSinks[0].types.failed"),
            (sink("tls: {}"), "cloudEventSinks[0].tls: expected either"),
            (sink("tls: {ca: hello}"), "cloudEventSinks[0].tls.ca: there is no certificate"),
            (sink("tls: {caFile: gone.pem}"), "/nowhere/gone.pem"),
            (sink("timeoutSeconds: 0"), "cloudEventSinks[0].timeoutSeconds"),
            (sink("source: ''"), "cloudEventSinks[0].source"),
            (sink("proxy: 'socks5://p'"), "cloudEventSinks[0].proxy"),
            (sink("bearerToken: {key: ''}"), "cloudEventSinks[0].bearerToken"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_no_fault_where_its_folder_is_there() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Config::load(&folder.path().join("config.yaml")).unwrap().sinks.is_empty());
        let error = Config::load(&folder.path().join("typo/config.yaml")).unwrap_err().to_string();
        assert!(error.contains("typo/config.yaml") && error.contains("--config"), "{error}");
    }
}
pub mod event_types;
