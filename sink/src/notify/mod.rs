//! Events.

pub mod recorder;
pub mod refusal_listener;
pub mod refusal_series;
pub mod result_events;
