//! A reverse proxy between a program of the pair and the API server that makes single calls fail. It terminates the
//! program's TLS with its own CA and speaks TLS to the API server. It forwards tokens; client certificates cannot be
//! forwarded. Calls that no [`Rule`] matches are forwarded unchanged, streams included.
//!
//! Read `proxy` first; `rule` says which calls fail and how, `forward` serves the connections, `streams` handles watches.

mod forward;
mod proxy;
mod proxy_state;
mod rule;
mod streams;

pub use proxy::FaultProxy;
pub use proxy_state::RecordedWrite;
pub use rule::{ApiCall, FaultCount, ProxyFault, Rule};
pub use streams::DroppedEvents;
