//! The sink's configuration file: what the operator of the cluster decides and not the author of a policy, such as
//! addresses, tokens and certificates.
//!
//! In: YAML, read once at the start; unknown fields are errors. Out: [`Config`]. Start with `file`.
//!
//! | file | holds |
//! | --- | --- |
//! | `file` | reads the file |
//! | `receiver`, [`event_types`] | `cloudEventSinks`: a receiver of CloudEvents, the types of its events |
//! | [`object_store`] | `objectStore`: where full logs are stored |
//! | `tls` | trusted certificates of both |

pub(crate) mod event_types;
mod file;
pub mod object_store;
mod receiver;
mod tls;

pub use self::file::{Config, ConfigError};
pub(crate) use self::receiver::{ReceiverConfig, TokenRef};
