//! The section `objectStore` of the configuration file: the address and the options of the store for full logs.
//!
//! Credentials come from environment variables (`AWS_…`, `GOOGLE_…`, `AZURE_…`, named as in each cloud's own tools) or from
//! the identity of the machine. In the file, which is a ConfigMap, they are an error.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use job_handler_shared::policy::bytes::Bytes;
use object_store::{
    Certificate, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    local::LocalFileSystem,
    path::Path as Key,
};
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;

use crate::config::tls::TlsFile;

/// Where full logs are stored.
#[derive(Clone)]
pub struct ObjectsConfig {
    /// `s3://bucket/prefix`, `gs://…`, `az://…`, `file:///folder`; never with credentials.
    pub(crate) url: Url,
    /// Further options, named as in the crate `object_store`.
    pub(crate) options: BTreeMap<String, String>,
    /// Trusted certificates (DER), in addition to the system's.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// Folder of logs that wait for their upload; each replica has its own folder in it.
    pub(crate) spool: PathBuf,
    /// Maximum size of these logs in bytes.
    pub(crate) spool_bytes: u64,
    /// Timeout of one call.
    pub(crate) timeout: Duration,
    /// Pause between two garbage collections of objects that no result names.
    pub(crate) gc_interval: Duration,
}

/// Options may contain user names: only the URL is logged.
impl fmt::Debug for ObjectsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectsConfig").field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ObjectsFile {
    url: String,
    #[serde(default)]
    options: BTreeMap<String, Scalar>,
    tls: Option<TlsFile>,
    #[serde(default)]
    spool: SpoolFile,
    timeout_seconds: Option<u64>,
    sweep_seconds: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SpoolFile {
    folder: Option<PathBuf>,
    max_bytes: Option<Bytes>,
}

/// An option, which may be written as any YAML scalar.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Bool(bool),
    Number(u64),
    Text(String),
}

impl ObjectsFile {
    /// Checks what can be checked without the store; an error names the field.
    pub(crate) fn check(self, folder: &Path) -> Result<ObjectsConfig, String> {
        let url = store_url(&self.url).map_err(|why| format!("objectStore.url: {why}"))?;
        let bounded = |name: &str, seconds: u64, range: std::ops::RangeInclusive<u64>| {
            if range.contains(&seconds) {
                return Ok(Duration::from_secs(seconds));
            }
            let (from, to) = (range.start(), range.end());
            Err(format!("objectStore.{name}: {seconds} is not between {from} and {to}"))
        };
        let roots = match &self.tls {
            Some(_) if url.scheme() == "file" => {
                return Err("objectStore.tls: a folder has no TLS".to_owned());
            }
            Some(tls) => tls.roots("objectStore.tls", folder)?,
            None => Vec::new(),
        };
        let text = |(name, value): (String, Scalar)| {
            let value = match value {
                Scalar::Bool(value) => value.to_string(),
                Scalar::Number(value) => value.to_string(),
                Scalar::Text(value) => value,
            };
            (name, value)
        };
        let spool = self.spool.folder.unwrap_or_else(|| "/var/spool/job-handler".into());
        if !spool.is_absolute() {
            return Err(format!("objectStore.spool.folder: {} is not an absolute path", spool.display()));
        }
        let config = ObjectsConfig {
            url,
            options: self.options.into_iter().map(text).collect(),
            roots,
            spool,
            spool_bytes: self.spool.max_bytes.map_or(1 << 30, |bytes| bytes.0),
            timeout: bounded("timeoutSeconds", self.timeout_seconds.unwrap_or(30), 1..=300)?,
            gc_interval: bounded("sweepSeconds", self.sweep_seconds.unwrap_or(600), 1..=86_400)?,
        };
        if config.spool_bytes < 1 << 20 {
            return Err("objectStore.spool.maxBytes: at least 1Mi is needed".to_owned());
        }
        // Reports invalid options now, not with the first log.
        if config.url.scheme() != "file" {
            config.open()?;
        }
        Ok(config)
    }
}

/// Parses the address of a known kind of store, which must not contain anything secret.
fn store_url(text: &str) -> Result<Url, String> {
    const EXPECTED: &str = "expected s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, \
                            abfss://container@account.host/prefix or file:///folder";
    // A text that does not parse may contain a password: it is not repeated.
    let url = Url::parse(text).map_err(|error| format!("it cannot be used: {error}; {EXPECTED}"))?;
    if url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("it must not contain credentials or a query; {EXPECTED}"));
    }
    match url.scheme() {
        "file" if url.host().is_none() && url.path().len() > 1 => Ok(url),
        "s3" | "gs" | "az" if url.has_host() && url.username().is_empty() => Ok(url),
        "abfss" if url.has_host() => Ok(url),
        _ => Err(format!("{text:?} cannot be used; {EXPECTED}")),
    }
}

macro_rules! cloud {
    ($builder:ty, $key:ty, $prefix:literal, $config:expr) => {{
        let mut builder = <$builder>::new()
            .with_client_options($config.client()?)
            .with_retry($config.retries())
            .with_url($config.url.as_str());
        for (name, value) in environment($prefix) {
            if let Ok(key) = name.parse::<$key>() {
                builder = builder.with_config(key, value);
            }
        }
        for (name, value) in &$config.options {
            let key = name.to_ascii_lowercase().parse::<$key>().map_err(|_| unknown_option(name))?;
            if is_secret(key.as_ref()) {
                return Err(secret_option(name, $prefix));
            }
            builder = builder.with_config(key, value);
        }
        let store = builder.build().map_err(|error| {
            format!("objectStore: {}", crate::model::object_store_error::describe(&error))
        })?;
        Arc::new(store) as Arc<dyn ObjectStore>
    }};
}

impl ObjectsConfig {
    /// Opens the store; returns it and the prefix of its keys. An error names the field.
    pub(crate) fn open(&self) -> Result<(Arc<dyn ObjectStore>, Key), String> {
        let (scheme, base) =
            ObjectStoreScheme::parse(&self.url).map_err(|error| format!("objectStore.url: {error}"))?;
        let store = match scheme {
            ObjectStoreScheme::Local => return self.open_folder(),
            ObjectStoreScheme::AmazonS3 => cloud!(AmazonS3Builder, AmazonS3ConfigKey, "AWS_", self),
            ObjectStoreScheme::GoogleCloudStorage => {
                cloud!(GoogleCloudStorageBuilder, GoogleConfigKey, "GOOGLE_", self)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                cloud!(MicrosoftAzureBuilder, AzureConfigKey, "AZURE_", self)
            }
            _ => return Err(format!("objectStore.url: {} is not of a known kind of store", self.url)),
        };
        Ok((store, base))
    }

    fn open_folder(&self) -> Result<(Arc<dyn ObjectStore>, Key), String> {
        if let Some(name) = self.options.keys().next() {
            return Err(format!("objectStore.options.{name}: a folder has no options"));
        }
        let folder = self.url.to_file_path().map_err(|()| "objectStore.url: not a path".to_owned())?;
        // A missing folder means that the volume is not mounted, so it is not created.
        let store = LocalFileSystem::new_with_prefix(&folder).map_err(|_| {
            format!("objectStore.url: folder {} does not exist; mount a volume there", folder.display())
        })?;
        Ok((Arc::new(store.with_automatic_cleanup(true)), Key::default()))
    }

    fn client(&self) -> Result<ClientOptions, String> {
        let mut options = ClientOptions::new()
            .with_timeout(self.timeout)
            .with_connect_timeout(self.timeout.min(Duration::from_secs(5)))
            .with_default_content_type("application/gzip");
        for root in &self.roots {
            let root = Certificate::from_der(root).map_err(|error| format!("objectStore.tls: {error}"))?;
            options = options.with_root_certificate(root);
        }
        Ok(options)
    }

    fn retries(&self) -> RetryConfig {
        RetryConfig { max_retries: 3, retry_timeout: self.timeout, ..RetryConfig::default() }
    }
}

fn environment(prefix: &str) -> impl Iterator<Item = (String, String)> {
    let ours = move |name: &String| name.starts_with(prefix);
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os()
        .filter_map(text)
        .filter(move |(name, _)| ours(name))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
}

/// Whether the value of an option must not be in a ConfigMap. The path of a file with a secret may be.
fn is_secret(option: &str) -> bool {
    const SECRET: [&str; 9] = [
        "secret",
        "access_key",
        "account_key",
        "master_key",
        "session_token",
        "bearer",
        "sas_",
        "_token",
        "sse_customer",
    ];
    SECRET.iter().any(|part| option.contains(part)) && !option.ends_with("_file")
}

fn unknown_option(name: &str) -> String {
    format!(
        "objectStore.options.{name}: this store has no such option; expected one of the crate object_store, such as \
         region, endpoint or allow_http"
    )
}

fn secret_option(name: &str, prefix: &str) -> String {
    format!(
        "objectStore.options.{name}: credentials must not be in this file; set them in the sink's environment \
         ({prefix}…), from a Secret"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(section: &str) -> Result<ObjectsConfig, String> {
        let _: Result<_, _> = rustls::crypto::ring::default_provider().install_default();
        let text = format!("objectStore: {section}");
        Config::parse(&text, Path::new("/nowhere")).map(|config| config.objects.expect("it is there"))
    }

    #[test]
    fn every_kind_of_store_is_accepted() {
        for (section, base) in [
            ("{url: 's3://logs/a/b', options: {region: x, endpoint: 'https://s3.example:9000'}}", "a/b"),
            ("{url: 's3://logs', options: {virtual_hosted_style_request: false, AWS_REGION: x}}", ""),
            ("{url: 'gs://logs/a'}", "a"),
            ("{url: 'az://logs/a', options: {account_name: someone}}", "a"),
            ("{url: 'abfss://logs@someone.dfs.core.windows.net/a'}", "a"),
            ("{url: 's3://logs', spool: {folder: /tmp/s, maxBytes: 2Gi}, timeoutSeconds: 5}", ""),
        ] {
            let config = parse(section).unwrap_or_else(|why| panic!("{section}: {why}"));
            assert_eq!(config.open().unwrap().1.as_ref(), base, "{section}");
        }
        let folder = tempfile::tempdir().unwrap();
        let config = parse(&format!("{{url: 'file://{}'}}", folder.path().display())).unwrap();
        assert!(config.open().is_ok());
        drop(folder);
        let why = config.open().unwrap_err();
        assert!(why.contains("mount a volume"), "{why}");
    }

    #[test]
    fn errors_name_the_field_and_repeat_no_secret() {
        for (section, expected) in [
            ("{}", "missing field `url`"),
            ("{url: logs}", "objectStore.url"),
            ("{url: 'http://store/logs'}", "objectStore.url"),
            ("{url: 'memory:///'}", "objectStore.url"),
            ("{url: 'file:///'}", "objectStore.url"),
            ("{url: 's3://key:hunter2@logs/a'}", "credentials"),
            ("{url: 'az://logs/a?sig=hunter2'}", "credentials"),
            ("{url: 's3://logs', options: {colour: red}}", "objectStore.options.colour"),
            ("{url: 's3://logs', options: {secret_access_key: hunter2}}", "AWS_…"),
            ("{url: 's3://logs', options: {access_key_id: hunter2}}", "AWS_…"),
            ("{url: 's3://logs', options: {aws_session_token: hunter2}}", "AWS_…"),
            ("{url: 'gs://logs', options: {service_account_key: hunter2}}", "GOOGLE_…"),
            ("{url: 'az://logs', options: {account_key: hunter2}}", "AZURE_…"),
            ("{url: 'az://logs', options: {sas_key: hunter2}}", "AZURE_…"),
            ("{url: 'az://logs', options: {bearer_token: hunter2}}", "AZURE_…"),
            ("{url: 's3://logs', options: {endpoint: {a: b}}}", "objectStore"),
            ("{url: 's3://logs', spool: {folder: here}}", "objectStore.spool.folder"),
            ("{url: 's3://logs', spool: {maxBytes: 1}}", "objectStore.spool.maxBytes"),
            ("{url: 's3://logs', timeoutSeconds: 0}", "objectStore.timeoutSeconds"),
            ("{url: 's3://logs', sweepSeconds: 0}", "objectStore.sweepSeconds"),
            ("{url: 's3://logs', tls: {ca: hello}}", "objectStore.tls.ca"),
            ("{url: 'file:///a', tls: {ca: hello}}", "objectStore.tls"),
        ] {
            let why = parse(section).map(|config| format!("{config:?}")).unwrap_err();
            assert!(why.contains(expected) && !why.contains("hunter2"), "{section}: {why}");
        }
    }

    #[tokio::test]
    async fn plain_http_needs_allow_http() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let options =
            format!("endpoint: 'http://{}', region: x, skip_signature: true", listener.local_addr().unwrap());
        let config =
            parse(&format!("{{url: 's3://logs', options: {{{options}}}, timeoutSeconds: 1}}")).unwrap();
        let (store, _) = config.open().unwrap();
        let listed = object_store::ObjectStore::list_with_delimiter(&*store, None).await;
        assert!(listed.is_err());
        assert!(listener.accept().is_err(), "no call was made");
    }
}
