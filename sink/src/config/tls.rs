//! Trusted certificates in the configuration file.

use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TlsFile {
    ca: Option<String>,
    ca_file: Option<PathBuf>,
}

impl TlsFile {
    /// Reads the certificates; an error names the field.
    pub(super) fn roots(&self, field: &str, folder: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
        let (name, text) = match (&self.ca, &self.ca_file) {
            (Some(text), None) => ("ca", text.clone()),
            (None, Some(file)) => {
                let file = folder.join(file);
                let text = std::fs::read_to_string(&file)
                    .map_err(|error| format!("{field}.caFile: {}: {error}", file.display()))?;
                ("caFile", text)
            }
            _ => return Err(format!("{field}: expected either ca (certificates as PEM) or caFile")),
        };
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        match roots {
            Ok(roots) if !roots.is_empty() => Ok(roots),
            Ok(_) => Err(format!("{field}.{name}: no certificate found; expected PEM")),
            Err(error) => Err(format!("{field}.{name}: not PEM: {error}")),
        }
    }
}
