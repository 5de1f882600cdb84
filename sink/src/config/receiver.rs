//! A receiver of CloudEvents: an entry of `cloudEventSinks`.

use std::{fmt, path::Path, time::Duration};

use job_handler_shared::{keys, result::pending_events::JobPhase};
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;

use crate::config::{event_types::EventTypes, tls::TlsFile};

/// One receiver of CloudEvents.
#[derive(Clone)]
pub(crate) struct ReceiverConfig {
    pub(crate) name: String,
    /// Events are posted to this URL.
    pub(crate) url: Url,
    /// The `source` attribute of its events.
    pub(crate) source: String,
    /// The `type` attribute of its events.
    pub(crate) types: EventTypes,
    /// Trusted certificates (DER), instead of the system's.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// The bearer token.
    pub(crate) token: Option<TokenRef>,
    pub(crate) proxy: Option<Url>,
    /// Timeout of one request.
    pub(crate) timeout: Duration,
}

/// A key of a Secret in job-handler's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenRef {
    /// Name of the Secret; in the base install the sink may read only [`keys::SINK_CONFIGURATION`].
    pub(crate) secret: String,
    pub(crate) key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ReceiverFile {
    pub(super) name: String,
    url: String,
    source: Option<String>,
    #[serde(default)]
    types: EventTypesFile,
    tls: Option<TlsFile>,
    bearer_token: Option<TokenFile>,
    proxy: Option<String>,
    timeout_seconds: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EventTypesFile {
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

impl ReceiverFile {
    /// Checks what can be checked without the receiver; an error names the field.
    pub(super) fn check(self, field: &str, folder: &Path) -> Result<ReceiverConfig, String> {
        let is_label = |name: &str| {
            let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !name.is_empty() && name.len() <= 63 && name.chars().all(inner) && !name.starts_with('-')
        };
        if !is_label(&self.name) {
            return Err(format!(
                "{field}.name: {:?} is not valid: expected at most 63 characters of a-z, 0-9 and -",
                self.name
            ));
        }
        let url = http_url(&format!("{field}.url"), &self.url)?;
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
            return Err(format!("{field}.source: {source:?} is not a URI reference"));
        }
        Ok(ReceiverConfig {
            types: self.types.check(field)?,
            proxy: self.proxy.map(|proxy| http_url(&format!("{field}.proxy"), &proxy)).transpose()?,
            name: self.name,
            url,
            source,
            roots,
            token,
            timeout,
        })
    }
}

impl EventTypesFile {
    fn check(self, field: &str) -> Result<EventTypes, String> {
        let mut types = EventTypes::default();
        let given = [
            (JobPhase::Started, self.started),
            (JobPhase::Completed, self.completed),
            (JobPhase::Failed, self.failed),
            (JobPhase::Refused, self.refused),
        ];
        for (phase, value) in given {
            match value {
                Some(value) if value.trim().is_empty() => {
                    return Err(format!("{field}.types.{}: a type must not be empty", phase.as_str()));
                }
                Some(value) => types.set(phase, value),
                None => {}
            }
        }
        Ok(types)
    }
}

fn http_url(field: &str, text: &str) -> Result<Url, String> {
    let wrong = |why: &dyn fmt::Display| {
        format!("{field}: {text:?} cannot be used: {why}; expected http://… or https://…")
    };
    let url = Url::parse(text).map_err(|error| wrong(&error))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        other => Err(wrong(&format!("its scheme is {other}"))),
    }
}

/// URLs may contain credentials, which must not be logged.
impl fmt::Debug for ReceiverConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiverConfig").field("name", &self.name).finish_non_exhaustive()
    }
}
