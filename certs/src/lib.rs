//! Certificates: issue, publish, reload.
