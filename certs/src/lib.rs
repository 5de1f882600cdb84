//! Certificates of the webhook: issue, publish, reload.
//!
//! The CA is in a Secret. The first replica creates it, the others adopt it. Each replica issues its own leaf in memory and
//! publishes the CA in the MutatingWebhookConfiguration. [`start`] does all of this; the program `job-handler-certs` creates
//! the CA by hand and shows the state. `README.md` explains rotation and renewal.
//!
//! | file | holds |
//! | --- | --- |
//! | `ca.rs` | creates, reads and checks a CA |
//! | `leaf.rs` | the certificate that the server presents, and when it is renewed |
//! | `secret.rs` | creates or adopts the CA's Secret |
//! | `publish.rs` | writes the `caBundle` and the paths, guarded by resourceVersion |
//! | `review_path.rs`, `path_rotation.rs` | the secret in the paths of reviews, and when it is replaced |
//! | `client_auth.rs` | checks client certificates, where the apiserver presents one |
//! | `serve.rs` | gives rustls the current leaf |
//! | `source.rs` | where certificates come from: the Secret, or files |
//! | `run.rs` | the task that connects these |

pub mod ca;
pub mod client_auth;
mod leaf;
mod path_rotation;
pub mod publish;
pub mod review_path;
mod run;
pub mod secret;
mod serve;
pub mod source;

pub use run::{CertError, CertHandle, CertOptions, start, start_files};
