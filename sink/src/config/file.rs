//! Reads and parses the configuration file.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::config::{
    object_store::{ObjectsConfig, ObjectsFile},
    receiver::{ReceiverConfig, ReceiverFile},
};

/// The content of the configuration file.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Receivers of CloudEvents; policies refer to them by name.
    pub(crate) receivers: Vec<ReceiverConfig>,
    /// Where full logs are stored, if configured.
    pub objects: Option<ObjectsConfig>,
}

/// The configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the configuration {path} cannot be used: {why}")]
pub struct ConfigError {
    path: PathBuf,
    why: String,
}

impl Config {
    /// Reads the file. In the base install, its folder is an optional ConfigMap: without the ConfigMap the folder is empty
    /// and nothing is configured. If the folder is missing, the path is wrong.
    ///
    /// # Errors
    /// If the file cannot be read or has an invalid field.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let wrong = |why: String| ConfigError { path: path.to_owned(), why };
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, folder_of(path)).map_err(wrong),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && folder_of(path).is_dir() => {
                tracing::info!(path = %path.display(), "no configuration file: no CloudEvents are sent and long logs are truncated");
                Ok(Self::default())
            }
            Err(error) => Err(wrong(format!("{error}. Correct --config, or omit it"))),
        }
    }

    /// Parses the text. Files that it names are relative to `folder`.
    pub(crate) fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        // An empty file is a null, not an empty map.
        let file: Option<ConfigFile> = serde_norway::from_str(text).map_err(|error| error.to_string())?;
        let file = file.unwrap_or_default();
        let mut names = BTreeSet::new();
        let mut receivers = Vec::new();
        for (n, receiver) in file.cloud_event_sinks.into_iter().enumerate() {
            let field = format!("cloudEventSinks[{n}]");
            if !names.insert(receiver.name.clone()) {
                return Err(format!("{field}.name: {:?} is used twice", receiver.name));
            }
            receivers.push(receiver.check(&field, folder)?);
        }
        let objects = file.object_store.map(|section| section.check(folder)).transpose()?;
        Ok(Self { receivers, objects })
    }

    /// The names of the receivers.
    pub(crate) fn receiver_names(&self) -> BTreeSet<String> {
        self.receivers.iter().map(|receiver| receiver.name.clone()).collect()
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    cloud_event_sinks: Vec<ReceiverFile>,
    object_store: Option<ObjectsFile>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::TokenRef;
    use job_handler_shared::{keys, result::pending_events::JobPhase};

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/nowhere"))
    }

    #[test]
    fn all_fields_of_a_receiver_are_read() {
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
        let [ci, plain] = config.receivers.try_into().expect("two");
        assert_eq!((ci.roots.len(), ci.timeout), (1, Duration::from_secs(3)));
        assert_eq!(ci.token, Some(TokenRef { secret: keys::SINK_CONFIGURATION.into(), key: "ci".into() }));
        assert_eq!(ci.types.of(JobPhase::Completed), "build.complete");
        assert_eq!(ci.types.of(JobPhase::Started), "io.job-handler.job.started");
        assert_eq!((plain.source.as_str(), plain.token), ("/job-handler", None));
        assert!(!format!("{ci:?}").contains("events.example"));
    }

    #[test]
    fn an_empty_file_configures_nothing() {
        for text in ["", "# nothing yet\n", "{}", "cloudEventSinks: []"] {
            assert!(parse(text).unwrap().receivers.is_empty(), "{text:?}");
        }
    }

    #[test]
    fn errors_name_the_invalid_field() {
        let sink = |more: &str| format!("cloudEventSinks: [{{name: a, url: 'https://h', {more}}}]");
        for (text, expected) in [
            ("cloudEventSink: []".to_owned(), "unknown field `cloudEventSink`"),
            ("cloudEventSinks: [{name: a}]".to_owned(), "cloudEventSinks[0]: missing field `url`"),
            ("cloudEventSinks: [{name: A b, url: 'http://h'}]".to_owned(), "cloudEventSinks[0].name"),
            ("cloudEventSinks: [{name: a, url: 'ftp://h'}]".to_owned(), "its scheme is ftp"),
            ("cloudEventSinks: [{name: a, url: h}]".to_owned(), "cloudEventSinks[0].url"),
            (
                "cloudEventSinks: [{name: a, url: 'http://h'}, {name: a, url: 'http://i'}]".to_owned(),
                "cloudEventSinks[1].name: \"a\" is used twice",
            ),
            (sink("types: {complete: x}"), "unknown field `complete`"),
            (sink("types: {failed: ' '}"), "cloudEventSinks[0].types.failed"),
            (sink("tls: {}"), "cloudEventSinks[0].tls: expected either"),
            (sink("tls: {ca: hello}"), "cloudEventSinks[0].tls.ca: no certificate"),
            (sink("tls: {caFile: gone.pem}"), "/nowhere/gone.pem"),
            (sink("timeoutSeconds: 0"), "cloudEventSinks[0].timeoutSeconds"),
            (sink("source: ''"), "cloudEventSinks[0].source"),
            (sink("proxy: 'socks5://p'"), "cloudEventSinks[0].proxy"),
            (sink("bearerToken: {key: ''}"), "cloudEventSinks[0].bearerToken"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_valid_if_its_folder_exists() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Config::load(&folder.path().join("config.yaml")).unwrap().receivers.is_empty());
        let error = Config::load(&folder.path().join("typo/config.yaml")).unwrap_err().to_string();
        assert!(error.contains("typo/config.yaml") && error.contains("--config"), "{error}");
    }
}
