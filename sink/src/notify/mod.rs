//! Kubernetes Events.
//!
//! In: committed results, and refusals that the webhook sends over a local socket. Out: `events.k8s.io/v1` Events.
//! Read [`recorder`] first; `refusal_listener` → `refusal_writer` → `refusal_series` is the way of a refusal.

pub(crate) mod event_rate;
pub mod recorder;
pub(crate) mod refusal_event;
pub mod refusal_listener;
pub(crate) mod refusal_series;
pub mod refusal_writer;
pub(crate) mod result_events;
